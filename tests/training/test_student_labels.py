"""Labels of kind `online` from the recipe to the finished run: no teacher, no dictionary, no stored label."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError
from safetensors.torch import load_file

from cocomix.artifacts import file_sha256
from cocomix.concepts import ActivationConfig, ConceptDictionary, DictionaryConfig, OnlineConfig, TeacherConfig
from cocomix.data import Tokens
from cocomix.evaluation import evaluate_run
from cocomix.evaluation.teacher_flops import dictionary_flops, flops_from_nothing, teacher_flops
from cocomix.interpret import open_run_teacher
from cocomix.labelling import label_data
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import Run, train
from cocomix.training.callbacks import MetricsFile
from cocomix.training.launching import refuse_under_fsdp
from cocomix.training.online import DICTIONARY, STATE, TEACHER
from cocomix.training.recipe import RunConfig
from tests.command_line import Cli
from tests.many.launches import launched
from tests.workshop import BLOCK, Workshop

C = 24
LABELS = {"kind": "online", "num_concepts": C, "active": 6, "ema": 0.6, "learning_rate": 0.01, "dead_after_tokens": 200}
DROPOUT = {"backbone": {"resid_pdrop": 0.2, "embd_pdrop": 0.2}}  # so that any extra random draw shows


def values(workshop: Workshop, **changes: Any) -> dict[str, Any]:
    changes = {"name": "run", "labels": LABELS, **changes}
    changes["model"] = {"mixing": "add", **changes.get("model", {})}
    return {**workshop.values("ntp", **changes), "objective": "cocomix"}  # no teacher is trained, no label stored


def recipe(workshop: Workshop, **changes: Any) -> RunConfig:
    return RunConfig.model_validate(values(workshop, **changes))


def curve(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if name not in ("seconds", "tokens_per_second")}
        for line in lines
    ]


@pytest.fixture(scope="module")
def run(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve steps with dropout, λ from 0 on."""
    schedule = {"concept_loss_weight": {"stages": {0: 0, 0.25: 0.5}}}
    return train(recipe(workshop, model={**DROPOUT, **schedule}), tmp_path_factory.mktemp("whole") / "run")


def test_stopped_and_resumed_it_equals_the_uninterrupted_run(
    workshop: Workshop, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 6:
            raise KeyboardInterrupt

    schedule = {"concept_loss_weight": {"stages": {0: 0, 0.25: 0.5}}}
    wanted = recipe(workshop, model={**DROPOUT, **schedule})
    with monkeypatch.context() as patched:
        patched.setattr(MetricsFile, "on_step_end", stop, raising=False)
        with pytest.raises(KeyboardInterrupt):
            train(wanted, tmp_path / "run")
    assert (tmp_path / "run.partial" / "checkpoints" / "checkpoint-4" / STATE).is_file()
    resumed = train(wanted, tmp_path / "run")
    assert curve(resumed) == curve(run)
    for name in ("model.safetensors", f"{TEACHER}/model.safetensors", f"{DICTIONARY}/sae_weights.safetensors"):
        assert file_sha256(resumed / name) == file_sha256(run / name), name
    assert not list(resumed.rglob(STATE))


def test_what_the_run_says(run: Path) -> None:
    rows = [row for row in curve(run) if "loss" in row]
    for row in rows:
        assert 0 < row["label_concepts"] <= C
        assert 0 < row["label_entropy"] <= torch.log(torch.tensor(float(C)))
        assert row["dictionary_fvu"] > 0
        assert 0 <= row["dead_concepts"] <= C
    assert all(row["dictionary_fvu"] < 2 for row in rows)
    evaluated = [row for row in curve(run) if "eval_loss" in row]
    assert all(row["eval_concept_loss"] > 0 for row in evaluated)
    manifest = Run.open(run).manifest
    assert manifest.labels is None
    assert manifest.online_labels is not None
    assert {name: manifest.online_labels.labels[name] for name in LABELS} == LABELS
    assert ConceptDictionary.from_sae_lens(run / DICTIONARY).layer == 1
    assert not any("twin" in name or "labeller" in name for name in load_file(run / "model.safetensors"))


def test_its_flops_by_hand(run: Path) -> None:
    d, k = 16, 6  # of the backbone, and concept_topk
    blocks = 2 * (2 * 12 * d * d + 4 * d * (BLOCK + 1) / 2)  # blocks 0 and 1 of 3
    concepts = 2 * C * d + 2 * k * d  # block 1 reads what the student mixed in below it
    learning = 6 * d * C + 6 * d * (6 + d // 2)
    opened = Run.open(run)
    assert opened.manifest.extra_flops is not None
    assert opened.manifest.extra_flops["cocomix"].per_token == blocks + concepts + learning
    tokens = opened.manifest.tokens
    assert teacher_flops(opened) == (blocks + concepts + learning) * tokens
    assert dictionary_flops(opened) == 0
    assert flops_from_nothing(opened) == tokens * opened.manifest.flops_per_token.training + teacher_flops(opened)


def test_labels_for_measuring_are_made_with_what_it_kept(
    workshop: Workshop, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened = Run.open(run)
    without = evaluate_run(opened, device=torch.device("cpu"), limit_blocks=4)
    assert "--dictionary" in caplog.text
    assert without.concepts is not None
    assert without.concepts.recall_at_32 is None
    source = TeacherConfig(model=str(run / TEACHER), layer=1)
    config = ActivationConfig(teacher=source, dictionary=DictionaryConfig(path=str(run / DICTIONARY)))
    label_data(workshop.data, config, tmp_path / "labels", force=True)
    found = evaluate_run(opened, device=torch.device("cpu"), labels=tmp_path / "labels", limit_blocks=4)
    assert found.concepts is not None
    assert found.concepts.recall_at_32 is not None
    assert found.concepts.label_content is not None
    assert found.concepts.label_content.num_concepts == C
    assert found.reliance is not None
    assert {"shuffle_same_token", "token_table", "oracle"} <= found.reliance.kinds.keys()
    teacher = open_run_teacher(opened, Tokens.open(workshop.data))
    assert teacher.teacher.n_concepts == C


def test_accumulated_micro_batches_make_the_same_labels(workshop: Workshop, tmp_path: Path) -> None:
    curves = []
    for name, size in (("one", 8), ("four", 2)):
        training = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size, "logging_steps": 1}
        changed = recipe(workshop, tokens=3 * 8 * BLOCK, training=training)
        curves.append(curve(train(changed, tmp_path / name)))
    for row, twin in zip(*curves, strict=True):
        for name in row.keys() & {"concept_loss", "label_entropy", "label_concepts", "dictionary_fvu"}:
            assert row[name] == pytest.approx(twin[name], rel=1e-4), name


def test_after_the_last_label_nothing_follows(workshop: Workshop, tmp_path: Path) -> None:
    weight = {"concept_loss_weight": {"shape": "stop", "value": 0.5, "until": 0.5}}
    found = curve(train(recipe(workshop, model=weight, tokens=6 * 8 * BLOCK), tmp_path / "run"))
    rows = [row for row in found if "loss" in row]
    assert ["label_entropy" in row for row in rows] == [True, False]


def test_what_cannot_be_is_refused(workshop: Workshop, tmp_path: Path, cli: Cli) -> None:
    with pytest.raises(ValidationError, match="online"):
        recipe(workshop, labels={**LABELS, "path": "labels/mine"})
    cli.refuses("label", workshop.data, "--kind", "online", "-o", tmp_path / "labels", says="while it trains")
    with pytest.raises(CoCoMixError, match="FSDP"):
        refuse_under_fsdp((), OnlineConfig())
    with pytest.raises(CoCoMixError, match="one position"):
        train(recipe(workshop, labels={**LABELS, "layer": 2}, model={"mixing": "interleave"}), tmp_path / "run")
    with pytest.raises(CoCoMixError, match="layer 7"):
        train(recipe(workshop, labels={**LABELS, "layer": 7}), tmp_path / "other")


def test_interleaved_concepts_are_of_the_block_below(workshop: Workshop, tmp_path: Path) -> None:
    changes = {"tokens": 2 * 8 * BLOCK, "model": {"mixing": "interleave"}}
    found = train(recipe(workshop, **changes), tmp_path / "run")
    assert ConceptDictionary.from_sae_lens(found / DICTIONARY).layer == 0


@pytest.mark.slow
def test_two_processes_learn_one_dictionary(workshop: Workshop, tmp_path: Path) -> None:
    training = {"optim": "sgd", "logging_steps": 1, "per_device_train_batch_size": 8}
    one = train(recipe(workshop, tokens=4 * 8 * BLOCK, training=training), tmp_path / "one")
    training["per_device_train_batch_size"] = 4
    file = tmp_path / "two.yaml"
    file.write_text(yaml.safe_dump(values(workshop, tokens=4 * 8 * BLOCK, training=training)))
    launched(["train", file, "--output", tmp_path / "two"], 2)
    for row, twin in zip(curve(tmp_path / "two"), curve(one), strict=True):
        for name in row.keys() & {"concept_loss", "eval_concept_loss", "label_entropy", "dictionary_fvu"}:
            assert row[name] == pytest.approx(twin[name], rel=1e-4), name
