"""Distillation and hidden states in training: each arm's loss against its formula, and what a run records of it."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel

from cocomix.artifacts import MadeFromSomethingElse, read_json
from cocomix.concepts import (
    ActivationConfig,
    AttributionLabeller,
    ConceptDictionary,
    ConceptTeacher,
    DictionaryConfig,
    RandomLabeller,
    load_teacher,
)
from cocomix.concepts.decoder import FrozenDecoder
from cocomix.concepts.dictionary import layer_normalize
from cocomix.concepts.sources import TeacherConfig
from cocomix.data import Tokens
from cocomix.evaluation import Run, evaluate_run
from cocomix.evaluation.teacher_flops import teacher_flops
from cocomix.labelling import Concatenated, Labels, distill_data, label_data
from cocomix.model import TopTargets, account
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import CoCoMixTrainer, train
from cocomix.training.arguments import training_arguments
from cocomix.training.distillation import OnlineTeacher
from cocomix.training.objectives import (
    Distillation,
    HiddenPrediction,
    NextToken,
    Objective,
    Schedule,
    count_terms,
    default_objectives,
    loss_terms,
    step_loss,
)
from cocomix.training.objectives.mtp_headless import HeadlessMTP
from tests.model.factories import VOCAB, concepts, plain, student, tokens
from tests.training.test_arguments import recipe
from tests.training.test_trainer import SEQ, Blocks, Logs
from tests.workshop import BLOCK, Workshop, prepare_toy

WEIGHT = 0.3
LAMBDA = Schedule(value=WEIGHT)
STORED = ("teacher_ids", "teacher_log_probs")


def teacher(family: str = "gpt2", layer: int = 1) -> OnlineTeacher:
    return OnlineTeacher(FrozenDecoder(plain(family, seed=5), layer), VOCAB)


def naive_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean over positions with a next token of Σ p (log p − log q)."""
    p, q = teacher_logits[:, :-1].softmax(-1), student_logits[:, :-1].softmax(-1)
    return (p * (p.log() - q.log())).sum(-1).mean()


def averaged(objectives: Any, model: PreTrainedModel, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch, and its terms."""
    terms = {name: term for name, term in loss_terms(objectives, model, batch)[0].items() if term.weight is not None}
    means = {name: term.sum / term.count for name, term in terms.items()}
    return sum(term.weight.peak * means[name] for name, term in terms.items()), means


# --- each arm's loss --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("teacher_family", ["gpt2", "gemma3_text"])  # the second caps its logits
@pytest.mark.parametrize("arm", ["ntp", "pause", "cocomix"])
def test_distillation_adds_its_share_to_any_objective(arm: str, teacher_family: str) -> None:
    model = plain("gpt2") if arm == "ntp" else student("gpt2", 1, "pause" if arm == "pause" else "interleave")
    online = teacher(teacher_family)
    objectives = (*default_objectives(model.config), Distillation(LAMBDA, online.distributions))
    batch = {"input_ids": tokens(), "labels": tokens()}
    if arm == "cocomix":
        batch["concept_labels"] = concepts()
    loss, means = averaged(objectives, model, batch)
    with torch.no_grad():
        teacher_logits = online.decoder.model(tokens()).logits
    logits = model(tokens()).logits
    ntp = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens()[:, 1:].flatten())
    kl = naive_kl(logits, teacher_logits)
    expected = ntp + WEIGHT * kl
    if arm == "cocomix":
        expected = expected + model.config.concept_loss_weight * means["concept_loss"]
    torch.testing.assert_close(means["kd_loss"], kl, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(means["ntp_loss"], ntp, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    weights = list(model.parameters())
    fast, slow = (torch.autograd.grad(WEIGHT * loss, weights, allow_unused=True) for loss in (means["kd_loss"], kl))
    for a, b in zip(fast, slow, strict=True):
        if a is None or b is None:
            assert a is b
        else:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in online.decoder.model.parameters())


@pytest.mark.parametrize("arm", ["ntp", "cocomix"])
def test_positions_of_which_the_teacher_says_nothing_do_not_count(arm: str) -> None:
    model = plain("gpt2") if arm == "ntp" else student("gpt2", 1)
    with torch.no_grad():
        best = teacher().decoder.model(tokens()).logits.log_softmax(-1).topk(7, dim=-1)
    batch = {"input_ids": tokens(), "labels": tokens(), "teacher_ids": best.indices}
    batch["teacher_log_probs"] = best.values.clone()
    batch["teacher_log_probs"][:, ::2] = -torch.inf
    added = Distillation(LAMBDA, lambda batch: TopTargets(*(batch[name] for name in STORED)), STORED)
    terms, _ = loss_terms((NextToken(model.config), added), model, batch)
    assert int(terms["kd_loss"].count) == int(added.counts(batch)["kd_loss"]) == tokens()[:, 1:-1:2].numel()
    log_q = model(tokens()).logits.log_softmax(-1)
    p, q = best.values.exp(), log_q.gather(-1, best.indices).exp()
    rest = [1 - side.sum(-1) for side in (p, q)]
    kl = (p * (p / q).log()).sum(-1) + rest[0] * (rest[0] / rest[1]).log()
    found = terms["kd_loss"].sum
    torch.testing.assert_close(found, kl[:, 1:-1:2].sum(), rtol=1e-4, atol=1e-4)
    found.backward()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in model.parameters())


def test_a_step_makes_the_logits_once_for_all_losses_of_the_next_token() -> None:
    model = student("gpt2", 1).train()
    objectives = (*default_objectives(model.config), Distillation(LAMBDA, teacher().distributions), HeadlessMTP())
    batch = {"input_ids": tokens(), "labels": tokens(), "concept_labels": concepts()}
    calls: list[int] = []
    model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    found = []
    for counts in (None, count_terms(objectives, [batch], torch.device("cpu"))):
        terms, _ = loss_terms(objectives, model, batch, counts=counts)
        loss, means, _ = step_loss(terms, counts, 0, 1)
        found.append((means, torch.autograd.grad(loss, [*model.parameters()], allow_unused=True)))
        calls.append(0)
    assert calls == [1, 1, 1, 0, 1, 0]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)
    assert all(one.extra_flops_per_token(model.config) == 0.0 for one in objectives)


def test_a_teachers_padded_head_is_cut_to_the_tokenizer() -> None:
    online = dataclasses.replace(teacher(), vocab_size=VOCAB - 4)
    targets = online.distributions({"input_ids": tokens()})
    assert targets.weight.shape[0] == VOCAB - 4
    capped = dataclasses.replace(teacher("gemma3_text"), vocab_size=VOCAB - 4)
    assert capped.distributions({"input_ids": tokens()}).states.shape[-1] == VOCAB - 4


@pytest.mark.parametrize("kind", ["l1", "l2", "cosine"])
def test_direct_hidden_state_prediction(kind: str) -> None:
    online = teacher(layer=1)
    changes = {"prediction": "hidden", "teacher_hidden_size": 32, "hidden_loss": kind, "concept_loss_weight": WEIGHT}
    model = student("gpt2", 1, **changes)
    objectives = (NextToken(model.config), HiddenPrediction(LAMBDA, online.hidden_states))
    loss, means = averaged(objectives, model, {"input_ids": tokens(), "labels": tokens()})
    with torch.no_grad():
        hidden = online.decoder.model(tokens(), output_hidden_states=True).hidden_states[2]  # what block 1 puts out
        target = (hidden - hidden.mean(-1, keepdim=True)) / (hidden.std(-1, keepdim=True) + 1e-5)
    entering = model.lower(tokens()).last_hidden_state
    predicted = model.predictor.mlp(layer_normalize(entering)[0] - model.predictor.pre_bias)
    difference = (predicted - target)[:, :-1]
    expected = {
        "l1": lambda: difference.abs().mean(),
        "l2": lambda: difference.pow(2).mean(),
        "cosine": lambda: 1 - F.cosine_similarity(predicted, target, dim=-1)[:, :-1].mean(),
    }[kind]()
    torch.testing.assert_close(means["hidden_loss"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss, means["ntp_loss"] + WEIGHT * expected, rtol=1e-4, atol=1e-5)


# --- in the Trainer ---------------------------------------------------------------------------------------------------


class Described(Blocks):
    """Blocks whose rows bring the teacher's largest probabilities."""

    def __init__(self, count: int, online: OnlineTeacher, *, seed: int = 3) -> None:
        super().__init__(count, labelled=False, seed=seed)
        with torch.no_grad():
            logits = online.decoder.model(self.columns["input_ids"]).logits
        best = logits.log_softmax(-1).topk(7, dim=-1)
        self.columns |= {"teacher_ids": best.indices.int(), "teacher_log_probs": best.values.half()}


def arm_trainer(arm: str, folder: Path, **training: Any) -> tuple[CoCoMixTrainer, Logs]:
    online, blocks = teacher(), Blocks(48, labelled=False)
    model: PreTrainedModel = plain("gpt2")
    if arm == "pause":
        model = student("gpt2", 1, "pause")
    added: Objective = Distillation(LAMBDA, online.distributions)
    if arm == "kd stored":
        blocks = Described(48, online)
        columns = ("teacher_ids", "teacher_log_probs")
        read = lambda batch: TopTargets(*(batch[column] for column in columns))  # noqa: E731
        added = Distillation(LAMBDA, read, columns)
    elif arm == "hidden":
        model = student("gpt2", 1, prediction="hidden", teacher_hidden_size=32)
        added = HiddenPrediction(Schedule(value=0.1), online.hidden_states)
    settings = {"max_steps": 3, "logging_steps": 1, "eval_strategy": "no", "save_strategy": "no", **training}
    logs = Logs()
    made = CoCoMixTrainer(
        model=model,
        args=training_arguments(recipe(**settings), folder, SEQ, 48),
        train_dataset=blocks,
        eval_dataset=torch.utils.data.Subset(blocks, range(7)),
        callbacks=[logs],
        objectives=[NextToken(model.config), added],
    )
    return made, logs


@pytest.mark.parametrize("arm", ["kd", "kd stored", "pause", "hidden"])
def test_accumulation_changes_nothing(tmp_path: Path, arm: str) -> None:
    found = []
    for batch, accumulation in ((8, 1), (2, 4)):
        shape = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        made, logs = arm_trainer(arm, tmp_path, learning_rate=1e-3, optim="sgd", **shape)
        made.train()
        found.append((dict(made.model.named_parameters()), logs.rows))
    (weights, rows), (others, twins) = found
    for name, value in weights.items():
        torch.testing.assert_close(value, others[name], rtol=1e-5, atol=1e-6, msg=name)
    term, share = ("hidden_loss", 0.1) if arm == "hidden" else ("kd_loss", WEIGHT)
    for row, twin in zip(rows[:3], twins[:3], strict=True):
        for name in ("loss", "ntp_loss", term):
            assert twin[name] == pytest.approx(row[name], rel=2e-5), name
        assert row["loss"] == pytest.approx(row["ntp_loss"] + share * row[term], rel=1e-5)


@pytest.mark.parametrize("arm", ["kd", "kd stored", "hidden"])
def test_evaluation_keeps_the_next_token_loss_apart_and_weighs_targets(tmp_path: Path, arm: str) -> None:
    term = "eval_hidden_loss" if arm == "hidden" else "eval_kd_loss"
    whole, parts = (arm_trainer(arm, tmp_path, per_device_eval_batch_size=batch)[0].measure() for batch in (7, 3))
    assert set(whole) == {"eval_loss", term}
    assert parts == {name: pytest.approx(value, rel=1e-5) for name, value in whole.items()}
    made, _ = arm_trainer(arm, tmp_path)
    ids = torch.stack([made.eval_dataset[index]["input_ids"] for index in range(7)])
    with torch.no_grad():
        logits = made.model.eval()(input_ids=ids).logits
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert whole["eval_loss"] == pytest.approx(float(expected), rel=1e-5)


# --- whole runs -------------------------------------------------------------------------------------------------------


def source(workshop: Workshop) -> dict[str, Any]:
    return {"teacher": {"model": str(workshop.teacher), "layer": 1}}


def test_a_run_on_the_whole_stored_distribution_is_the_online_one(workshop: Workshop, tmp_path: Path) -> None:
    size = Tokens.open(workshop.data).manifest.vocab_size
    distill_data(workshop.data, TeacherConfig(model=str(workshop.teacher), layer=0), tmp_path / "all", top_k=size)
    changes = {"name": "run", "tokens": 4 * 8 * BLOCK, **source(workshop), "training": {"logging_steps": 1}}
    online = train(workshop.recipe("ntp", distillation={}, **changes), tmp_path / "online")
    stored = train(
        workshop.recipe("ntp", distillation={"targets": str(tmp_path / "all")}, **changes), tmp_path / "stored"
    )
    manifests = [read_json(run / "manifest.json") for run in (online, stored)]
    for name in ("eval_loss", "eval_kd_loss"):
        first, second = (manifest["final"][name] for manifest in manifests)
        assert first == pytest.approx(second, rel=1e-3)
    assert [manifest["arm"] for manifest in manifests] == ["ntp, kd", "ntp, kd"]
    assert {name for name, value in manifests[0]["teaching"].items() if value} == {"teacher"}
    assert manifests[1]["teaching"] == {
        "path": str(tmp_path / "all"),
        "fingerprint": read_json(tmp_path / "all/manifest.json")["fingerprint"],
        "tokens": [4 * 8 * BLOCK],
    }
    assert [manifest["teacher_flops_per_token"] > 0 for manifest in manifests] == [True, False]
    assert [path.name for path in online.glob("*.safetensors")] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("kind", "term", "called"),
    [("auto", "kd_loss", "kd of first-token marginals"), ("uld", "uld_loss", "uld"), ("alm", "alm_loss", "alm")],
)
def test_a_teacher_of_another_tokenizer_is_distilled_stacked_with_concepts_and_for_a_while(
    workshop: Workshop, tmp_path: Path, kind: Any, term: str, called: str
) -> None:
    other = prepare_toy(workshop.corpus, tmp_path / "data", vocab_size=280)
    source = TeacherConfig(model=str(workshop.teacher), layer=1)
    top_k = None if kind == "alm" else 8
    stored = distill_data(other.path, source, tmp_path / "stored", kind=kind, top_k=top_k, dtype="auto")
    assert stored is not None
    made = stored.manifest
    assert (made.targets, made.top_k) == ("first_token" if kind == "auto" else kind, top_k or 0)
    assert made.with_target is not None
    assert made.with_target > 0.3
    assert (made.mass is None) == (kind == "alm")
    assert {finding.state for finding in stored.verify().found} == {"ok", "not checked"}
    dictionary = DictionaryConfig(path=str(workshop.dictionary))
    label_data(other.path, ActivationConfig(teacher=source, dictionary=dictionary), tmp_path / "labels")
    weight = {"shape": "stop", "value": 0.5, "until": 0.5}
    distillation = {"targets": str(tmp_path / "stored"), "weight": weight}
    changes = {"data": str(other.path), "labels": str(tmp_path / "labels"), "distillation": distillation}
    run = train(
        workshop.recipe("cocomix", model={"mixing": "add"}, training={"logging_steps": 1}, **changes), tmp_path / "run"
    )
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row[term] > 0 for row in rows if term in row] == [True] * 6  # half of the steps
    assert all(row["concept_loss"] > 0 for row in rows if "ntp_loss" in row)
    manifest = Run.open(run).manifest
    assert manifest.arm is not None
    assert manifest.arm.startswith(f"cocomix, add, {called}, λ_KD")
    labels = Labels.open(tmp_path / "labels").manifest
    read = min(made.tokens("train"), manifest.tokens // 2)  # until its weight is 0
    expected = made.flops_per_token * read + labels.flops_per_token * min(labels.tokens("train"), manifest.tokens)
    assert teacher_flops(Run.open(run)) == pytest.approx(expected)


def test_kinds_of_targets_that_do_not_suit_are_refused_and_the_same_tokenizer_needs_none(
    workshop: Workshop, tmp_path: Path
) -> None:
    source = TeacherConfig(model=str(workshop.teacher), layer=1)
    stored = distill_data(workshop.data, source, tmp_path / "stored", kind="first_token", top_k=4)
    assert stored is not None
    assert stored.manifest.targets == "top_k"
    alm = distill_data(workshop.data, source, tmp_path / "alm", kind="alm")
    assert alm is not None
    with pytest.raises(MadeFromSomethingElse, match="kind"):
        Concatenated([stored, alm])
    with pytest.raises(CoCoMixError, match="top_k"):
        distill_data(workshop.data, source, tmp_path / "no", kind="alm", top_k=4)
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(workshop.teacher / name, bare / name)
    with pytest.raises(CoCoMixError, match="without a tokenizer"):
        distill_data(workshop.data, TeacherConfig(model=str(bare), layer=1), tmp_path / "no", kind="uld", top_k=4)
    assert not (tmp_path / "no").exists()


def test_the_teachers_flops(workshop: Workshop, tmp_path: Path) -> None:
    model = load_teacher(workshop.teacher)
    whole = account(model, BLOCK).forward_flops_per_token
    head = 2 * model.get_output_embeddings().weight.numel()
    below = (whole - head) * 2 / 3  # blocks 0 and 1 of 3
    decoder = FrozenDecoder(model, 1)
    assert decoder.flops_per_token(BLOCK, up_to="head") == whole
    assert decoder.flops_per_token(BLOCK, up_to="layer") == pytest.approx(below)
    teacher = ConceptTeacher(model, ConceptDictionary.from_sae_lens(workshop.dictionary), 1)
    encoding = 2 * teacher.n_concepts * teacher.decoder.d_model
    labelling = whole + (whole - below) + encoding
    for labeller, expected in (
        (AttributionLabeller(teacher), labelling),
        (AttributionLabeller(teacher, activation="pre"), labelling + encoding),
        (RandomLabeller(teacher), below + encoding),
    ):
        assert labeller.flops_per_token(BLOCK) == pytest.approx(expected)
    changes = {"tokens": 8 * BLOCK, **source(workshop)}
    online = {"labels": "online", "dictionary": {"path": str(workshop.dictionary)}, "distillation": {}}
    both = train(workshop.recipe("cocomix", **online, **changes), tmp_path / "both")
    found = read_json(both / "manifest.json")["teacher_flops_per_token"]
    assert found == pytest.approx(whole + labelling)


def test_a_pause_run_loads_evaluates_and_refuses_what_needs_concepts(workshop: Workshop, tmp_path: Path) -> None:
    run = train(workshop.recipe("cocomix", model={"mixing": "pause"}, tokens=8 * BLOCK), tmp_path / "run")
    manifest = Run.open(run).manifest
    assert (manifest.objective, manifest.mixing, manifest.labels) == ("cocomix", "pause", None)
    assert AutoModelForCausalLM.from_pretrained(run).config.has_concepts is False
    evaluated = evaluate_run(Run.open(run), device=torch.device("cpu"), limit_blocks=11)
    assert evaluated.loss == pytest.approx(read_json(run / "manifest.json")["final"]["eval_loss"], abs=1e-6)
    assert evaluated.reliance is None


@pytest.mark.parametrize("objective", ["ntp", "cocomix"])
def test_bfloat16(workshop: Workshop, tmp_path: Path, objective: str) -> None:
    changes = {"tokens": 2 * 8 * BLOCK, "distillation": {}, **source(workshop), "training": {"bf16": True}}
    finals = []
    for bf16 in (True, False):
        changes["training"] = {"bf16": bf16}
        run = train(workshop.recipe(objective, **changes), tmp_path / str(bf16))
        finals.append(read_json(run / "manifest.json")["final"]["eval_kd_loss"])
    assert finals[0] == pytest.approx(finals[1], rel=0.02)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    other = prepare_toy(workshop.corpus, tmp_path / "other", vocab_size=280)
    for changes, match in (
        ({"distillation": {}, **source(workshop), "data": str(other.path)}, "tokenizer is not the one"),
        ({"distillation": {"targets": str(workshop.probabilities)}, "data": str(other.path)}, "tokenizer"),
        ({"distillation": {"targets": str(workshop.labels)}}, "not teacher_probabilities"),
        ({"distillation": {"targets": str(tmp_path / "no")}}, "does not exist"),
        ({"distillation": {}, "teacher": {"model": str(workshop.teacher), "layer": 9}}, "layer 9 is out of range"),
        (
            {"distillation": {"targets": str(workshop.probabilities)}, "teacher": {"model": "other", "layer": 1}},
            "teacher.model is 'other' but the probabilities",
        ),
    ):
        with pytest.raises(CoCoMixError, match=match) as caught:
            train(workshop.recipe("ntp", **changes), tmp_path / "run")
        assert "\n" not in str(caught.value)
    hidden = {"prediction": "hidden", "teacher_hidden_size": 99}
    with pytest.raises(CoCoMixError, match=r"teacher_hidden_size.*99.*16"):
        train(workshop.recipe("cocomix", model=hidden, **source(workshop)), tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
