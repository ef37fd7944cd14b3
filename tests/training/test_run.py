"""`train()`: what a run folder holds, and what is refused."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel, SchedulerType

from cocomix import CoCoMixForCausalLM
from cocomix.artifacts import read_json
from cocomix.data import VALIDATION, Tokens
from cocomix.evaluation import Run, evaluate_run
from cocomix.labelling import Labels
from cocomix.model import account
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import plan_run, train
from cocomix.training.corpora import open_labels
from cocomix.training.recipe import load_recipe
from tests.workshop import BLOCK, CONCEPTS, Workshop, prepare_toy, write_corpus

FILES = {
    "config.json",
    "generation_config.json",
    "manifest.json",
    "metrics.jsonl",
    "model.safetensors",
    "recipe.yaml",
    "tensorboard",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.mark.parametrize("objective", ["ntp", "cocomix"])
def test_everything_is_there_and_nothing_else(workshop: Workshop, objective: str) -> None:
    run = workshop.ntp_run if objective == "ntp" else workshop.cocomix_run
    own_classes = {"cocomix_classes.py"} if objective == "cocomix" else set()
    written = workshop.written[run]  # tests before this one may have measured the run, whose results go beside it
    assert {path.parts[0] for path in written} == FILES | own_classes
    assert not run.with_name(run.name + ".partial").exists()
    assert not [path for path in written if path.suffix in (".bin", ".pt", ".pth", ".pkl")]


def test_the_run_loads_without_arguments(workshop: Workshop) -> None:
    model = AutoModelForCausalLM.from_pretrained(workshop.cocomix_run)
    assert type(model) is CoCoMixForCausalLM
    assert model.config.num_concepts == CONCEPTS
    assert type(AutoModelForCausalLM.from_pretrained(workshop.ntp_run)) is GPT2LMHeadModel
    tokenizer = AutoTokenizer.from_pretrained(workshop.cocomix_run)
    ids = tokenizer("the list of items", return_tensors="pt")
    assert max(ids["input_ids"][0]) < model.config.vocab_size
    assert model.config.eos_token_id == tokenizer.eos_token_id == model.generation_config.eos_token_id
    generated = model.generate(**ids, max_new_tokens=3, do_sample=False)
    assert generated.shape[1] > ids["input_ids"].shape[1]
    left = list(Tokens.open(workshop.data).split(VALIDATION)[0]["input_ids"])
    assert tokenizer.decode(left) == Tokens.open(workshop.data).tokenizer().decode(left)


def test_manifest(workshop: Workshop) -> None:
    manifest = read_json(workshop.cocomix_run / "manifest.json")
    data = Tokens.open(workshop.data).manifest
    model = AutoModelForCausalLM.from_pretrained(workshop.cocomix_run)
    count = account(model, BLOCK)
    assert manifest["parameters"] == {"total": count.total_parameters, "active": count.active_parameters}
    assert manifest["parameters"]["total"] == sum(weight.numel() for weight in model.parameters())
    assert manifest["flops_per_token"]["training"] == count.training_flops_per_token
    assert manifest["data"] == {
        "path": str(workshop.data),
        "fingerprint": data.fingerprint,
        "tokenizer_fingerprint": data.tokenizer_fingerprint,
        "block_size": BLOCK,
        "first_blocks": None,
        "mixture": None,
    }
    labels = Labels.open(workshop.labels).manifest
    read = {"path": str(workshop.labels), "fingerprint": labels.fingerprint, "tokens": [12 * 8 * BLOCK]}
    assert manifest["labels"] == read
    assert (manifest["objective"], manifest["mixing"], manifest["name"]) == ("cocomix", "interleave", "mixed")
    assert (manifest["tokens"], manifest["steps"]) == (12 * 8 * BLOCK, 12)
    assert (manifest["training_dtype"], manifest["evaluation_dtype"]) == ("float32", "float32")
    assert (manifest["seed"], manifest["device"], manifest["evaluation_blocks"]) == (0, "cpu", 11)
    assert manifest["seconds"] > 0
    assert set(manifest["final"]) == {"eval_loss", "eval_concept_loss", "eval_concept_recall"}
    assert set(manifest["versions"]) == {"torch", "transformers"}
    plain = read_json(workshop.ntp_run / "manifest.json")
    assert (plain["objective"], plain["mixing"], plain["labels"]) == ("ntp", None, None)


def test_metrics_end_with_the_final_evaluation(workshop: Workshop) -> None:
    rows = metrics_of(workshop.cocomix_run)
    assert [(row["step"], "eval_loss" in row) for row in rows] == [
        (3, False),
        (6, False),
        (6, True),
        (9, False),
        (12, False),
        (12, True),
    ]
    assert rows[-1]["eval_loss"] == read_json(workshop.cocomix_run / "manifest.json")["final"]["eval_loss"]
    losses = [row["ntp_loss"] for row in rows if "ntp_loss" in row]
    assert losses[0] > losses[-1]


def test_the_last_step_is_logged_whatever_the_interval(workshop: Workshop, tmp_path: Path) -> None:
    """By its learning rate a comparison tells whether the schedule has ended."""
    rows = {}
    for interval in (5, 100):
        recipe = workshop.recipe("ntp", name="logged", training={"logging_steps": interval})
        rows[interval] = [row for row in metrics_of(train(recipe, tmp_path / str(interval))) if "learning_rate" in row]
    assert {interval: [row["step"] for row in some] for interval, some in rows.items()} == {5: [5, 10, 12], 100: [12]}
    assert rows[5][-1]["learning_rate"] == rows[100][0]["learning_rate"] < rows[5][0]["learning_rate"]
    steps = np.diff([0, 5, 10, 12])
    assert np.average([row["loss"] for row in rows[5]], weights=steps) == pytest.approx(rows[100][0]["loss"])


def test_tensorboard_has_every_term(workshop: Workshop) -> None:
    events = EventAccumulator(str(workshop.cocomix_run / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/ntp_loss", "train/concept_loss", "train/concept_recall", "eval/loss"} <= tags
    assert len(events.Scalars("train/ntp_loss")) == 4


def test_the_recipe_in_the_folder_repeats_the_run(workshop: Workshop, tmp_path: Path) -> None:
    again = train(load_recipe(workshop.cocomix_run / "recipe.yaml"), tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (workshop.cocomix_run / "model.safetensors").read_bytes()


@pytest.mark.parametrize("objective", ["ntp", "cocomix"])
def test_evaluating_the_finished_run_gives_the_same_loss(workshop: Workshop, objective: str) -> None:
    run = Run.open(workshop.ntp_run if objective == "ntp" else workshop.cocomix_run)
    found = evaluate_run(run, device=torch.device("cpu"), limit_blocks=11, reliance=False)
    shutil.rmtree(run.path / "evaluations")
    final = read_json(run.path / "manifest.json")["final"]
    assert found.loss == pytest.approx(final["eval_loss"], abs=1e-6)
    if objective == "cocomix":
        assert found.concepts.loss == pytest.approx(final["eval_concept_loss"], abs=1e-6)
        assert found.concepts.recall_at_32 == pytest.approx(final["eval_concept_recall"])


@pytest.mark.parametrize("mixing", ["residual", "add", "none"])
def test_every_mixing_trains(workshop: Workshop, tmp_path: Path, mixing: str) -> None:
    run = train(workshop.recipe("cocomix", model={"mixing": mixing}, tokens=2 * 8 * BLOCK), tmp_path / mixing)
    assert read_json(run / "manifest.json")["mixing"] == mixing


def test_mixing_without_concept_loss_needs_no_labels(workshop: Workshop, tmp_path: Path) -> None:
    changes = {"labels": None, "model": {"concept_loss_weight": 0.0, "num_concepts": 32}, "tokens": 2 * 8 * BLOCK}
    run = train(workshop.recipe("cocomix", **changes), tmp_path / "run")
    manifest = read_json(run / "manifest.json")
    assert manifest["labels"] is None
    assert set(manifest["final"]) == {"eval_loss"}


def test_a_matched_baseline_has_as_many_active_parameters(workshop: Workshop, tmp_path: Path) -> None:
    shape = {"backbone": {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 2}, "num_concepts": 512}
    active = {}
    for name, objective in (("mixed", "cocomix"), ("matched", "ntp"), ("plain", "ntp")):
        extra = {"baseline": "matched"} if name == "matched" else {}
        changes = {"model": shape, "labels": None, **extra}
        if objective == "cocomix":
            changes["model"] = {**shape, "concept_loss_weight": 0.0}
        plan = plan_run(workshop.recipe(objective, **changes), Tokens.open(workshop.data))
        active[name] = plan.accounting.active_parameters
    assert active["plain"] < active["mixed"]
    # Widths are multiples of 16, which is coarse at 64.
    assert active["matched"] == pytest.approx(active["mixed"], rel=0.2)


def test_bfloat16_is_recorded(workshop: Workshop, tmp_path: Path) -> None:
    run = train(workshop.recipe("cocomix", tokens=2 * 8 * BLOCK, training={"bf16": True}), tmp_path / "run")
    manifest = read_json(run / "manifest.json")
    assert (manifest["training_dtype"], manifest["evaluation_dtype"]) == ("bfloat16", "bfloat16")
    assert all(weight.dtype == torch.float32 for weight in AutoModelForCausalLM.from_pretrained(run).parameters())


@pytest.mark.parametrize(
    "training",
    [
        {"gradient_checkpointing": True},
        {"dataloader_num_workers": 1},
        {"eval_strategy": "no", "save_strategy": "no"},
        {"num_train_epochs": 1, "per_device_train_batch_size": 64},
        {"optim": "adafactor", "lr_scheduler_type": "linear", "lr_scheduler_kwargs": {}},
    ],
    ids=["checkpointing", "worker", "no-evaluation", "epochs", "optimizer"],
)
def test_fields_of_training_arguments(workshop: Workshop, tmp_path: Path, training: dict[str, Any]) -> None:
    tokens = None if "num_train_epochs" in training else 2 * 8 * BLOCK
    run = train(workshop.recipe("cocomix", tokens=tokens, training=training), tmp_path / "run")
    manifest = read_json(run / "manifest.json")
    assert math.isfinite(manifest["final"]["eval_loss"])
    if tokens is None:
        data = Tokens.open(workshop.data)
        assert manifest["tokens"] == len(data.split("train")) * BLOCK
        assert manifest["steps"] == math.ceil(len(data.split("train")) / 64)


# --- refusals ---------------------------------------------------------------------------------------------------------


def refused(recipe: Any, output: Path, match: str) -> None:
    with pytest.raises(CoCoMixError, match=match) as caught:
        train(recipe, output)
    assert "\n" not in str(caught.value)
    assert list(output.parent.iterdir()) == []


def test_labels_of_other_data_are_refused(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("other")
    tokenizer = str(workshop.data / "tokenizer")
    corpus = write_corpus(folder / "corpus", seed=9)
    other = prepare_toy(corpus, folder / "data", vocab_size=None, tokenizer=tokenizer)
    (folder / "runs").mkdir()
    refused(workshop.recipe("cocomix", data=str(other.path)), folder / "runs" / "x", "labels")


def test_stored_labels_of_whatever_dtype_the_machine_chose(workshop: Workshop) -> None:
    labels = {"path": str(workshop.labels), "kind": "attribution", "dtype": "auto"}
    found = open_labels(workshop.recipe("cocomix", labels=labels), Tokens.open(workshop.data))
    assert found is not None
    assert found.first.manifest.labels["dtype"] == "float32"


def made(kind: str = "attribution", **settings: Any) -> dict[str, Any]:
    return {"path": "LABELS", "kind": kind, **settings}


@pytest.mark.parametrize(
    ("section", "match"),
    [
        ({"labels": made(teacher={"model": "someone/else", "layer": 1})}, "labels.teacher.model is 'someone/else'"),
        ({"labels": made(teacher={"model": "TEACHER", "layer": 0})}, "labels.teacher.layer is 0"),
        ({"labels": made("activation")}, "labels.kind is 'activation'"),
        ({"labels": made(sign="abs")}, "labels.sign is 'abs'"),
        ({"dictionary": {"path": "elsewhere"}}, "dictionary.path is 'elsewhere'"),
        ({"model": {"num_concepts": CONCEPTS - 1}}, f"num_concepts is {CONCEPTS - 1} .* {CONCEPTS} concepts"),
        ({"model": {"insert_layer": 3}}, "insert_layer"),
        ({"model": {"concept_topk": CONCEPTS + 1}}, "concept_topk"),
        ({"model": {"backbone": {"n_positions": BLOCK - 1}}}, "n_positions"),
        ({"model": {"backbone": {"vocab_size": 100}}}, "vocab_size is 100"),
        ({"model": {"backbone": {"model_type": "t5"}}}, "t5"),
        ({"model": {"backbone": {"model_type": None}}}, "no model_type"),
        ({"model": {"backbone": {"model_type": "no-such-model"}}}, "no-such-model"),
        ({"model": {"backbone": {"n_head": 3}}}, "model: .*divisible"),
        ({"model": {"attn_implementation": "telepathy"}}, "telepathy"),
        ({"attribution": {"k": 3}}, r"labels\.k"),
        ({"data": "nowhere"}, "nowhere"),
        ({"labels": "nowhere"}, "nowhere"),
        ({"training": {"learning_rat": 1.0}}, r"training\.learning_rat is not a field"),
        ({"training": {"gradient_accumulation_steps": 0}}, "gradient_accumulation_steps"),
    ],
)
def test_what_does_not_fit_is_refused(workshop: Workshop, tmp_path: Path, section: dict[str, Any], match: str) -> None:
    text = json.dumps(section).replace("TEACHER", str(workshop.teacher)).replace("LABELS", str(workshop.labels))
    refused(workshop.recipe("cocomix", **json.loads(text)), tmp_path / "run", match)


def test_a_backbone_that_cannot_be_loaded(workshop: Workshop, tmp_path: Path) -> None:
    values = workshop.values("ntp")
    values["model"]["backbone"] = str(tmp_path)
    from cocomix.training.recipe import RunConfig

    refused(RunConfig.model_validate(values), tmp_path / "run", "cannot be loaded")


def test_a_backbone_folder_gives_its_architecture(workshop: Workshop, tmp_path: Path) -> None:
    from cocomix.training.recipe import RunConfig

    values = workshop.values("cocomix", tokens=8 * BLOCK)
    values["model"]["backbone"] = str(workshop.teacher)
    run = train(RunConfig.model_validate(values), tmp_path / "run")
    assert AutoModelForCausalLM.from_pretrained(run).config.backbone.n_embd == 16


def test_damaged_data_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    shutil.copytree(workshop.data, tmp_path / "data")
    next((tmp_path / "data").glob("train-*.npy")).unlink()
    (tmp_path / "runs").mkdir()
    refused(workshop.recipe("ntp", data=str(tmp_path / "data")), tmp_path / "runs" / "x", r"train-\d+\.npy")


@pytest.mark.parametrize("schedule", [kind.value for kind in SchedulerType])
def test_every_schedule_of_transformers(workshop: Workshop, tmp_path: Path, schedule: str) -> None:
    """Without settings of its own, as far as transformers has defaults for it."""
    training = {"lr_scheduler_type": schedule, "logging_steps": 1, "eval_steps": 2}
    run = train(workshop.recipe("ntp", tokens=6 * 8 * BLOCK, training=training), tmp_path / "run")
    rates = [row["learning_rate"] for row in metrics_of(run) if "learning_rate" in row]
    assert len(rates) == 6
    assert max(rates) > 0


@pytest.mark.parametrize(
    ("training", "match"),
    [
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"lr_scheduler_kwargs": {"nonsense": 1}}, "nonsense"),
        ({"lr_scheduler_type": "cosin"}, "cosin"),
        ({"optim": "adamv"}, "adamv"),
        pytest.param(
            {"fp16": True}, "fp16", marks=pytest.mark.skipif(torch.accelerator.is_available(), reason="has a GPU")
        ),
    ],
)
def test_arguments_that_cannot_train_leave_nothing(
    workshop: Workshop, tmp_path: Path, training: dict[str, Any], match: str
) -> None:
    (tmp_path / "runs").mkdir()
    refused(workshop.recipe("ntp", training=training), tmp_path / "runs" / "x", match)
    with pytest.raises(CoCoMixError) as caught:
        train(workshop.recipe("ntp", training=training), tmp_path / "runs" / "x")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(("fast", "bf16"), [(True, False), (True, True), (False, False)])
def test_it_says_that_the_machine_is_fast_in_bfloat16(
    workshop: Workshop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fast: bool,
    bf16: bool,
) -> None:
    monkeypatch.setattr("cocomix.training.run.fast_bfloat16", lambda device: fast)
    caplog.set_level("INFO", "cocomix")
    train(workshop.recipe("ntp", tokens=8 * BLOCK, training={"bf16": bf16}), tmp_path / "run")
    assert ("training.bf16" in caplog.text) == (fast and not bf16)


def metrics_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_torch_compile_from_a_recipe_gives_the_same_curve(workshop: Workshop, tmp_path: Path) -> None:
    compiled = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    folder = train(workshop.recipe("cocomix", training=compiled), tmp_path / "run")
    for ours, theirs in zip(metrics_of(folder), metrics_of(workshop.cocomix_run), strict=True):
        assert ours.keys() == theirs.keys()
        for name in theirs.keys() & {"ntp_loss", "concept_loss", "eval_loss"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_inductor_in_bfloat16_trains_on_a_gpu(workshop: Workshop, tmp_path: Path) -> None:
    compiled = {"torch_compile": True, "bf16": True}
    folder = train(workshop.recipe("cocomix", training=compiled), tmp_path / "run")
    plain = train(workshop.recipe("cocomix", training={"bf16": True}), tmp_path / "plain")
    final, expected = metrics_of(folder)[-1]["eval_loss"], metrics_of(plain)[-1]["eval_loss"]
    assert final == pytest.approx(expected, rel=2e-2)
