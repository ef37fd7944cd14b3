"""The Trainer on tiny random models, without files."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback

from cocomix.evaluation.inference import measure
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import CoCoMixTrainer
from cocomix.training.arguments import training_arguments
from cocomix.training.callbacks import MetricsFile, Progress
from cocomix.training.checkpoints import last_complete_checkpoint
from cocomix.training.meters import TrainingClock
from cocomix.training.objectives import NextToken
from cocomix.training.trainer import collate_blocks
from tests.model.factories import MAIN_BACKBONES, concepts, plain, student, tokens
from tests.training.test_arguments import recipe

SEQ, K_ATTR = 9, 3


class Blocks:
    """Random blocks; some positions of every block carry no concept label, and blocks differ in how many do."""

    def __init__(self, count: int, *, labelled: bool, seed: int = 3) -> None:
        self.columns = {"input_ids": tokens(count, SEQ, seed)}
        if labelled:
            labels = concepts(count, SEQ, K_ATTR, seed + 1)
            for row in range(count):
                labels[row, : row % SEQ] = -100
            self.columns["concept_labels"] = labels

    def __len__(self) -> int:
        return len(self.columns["input_ids"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.columns.items()}


class Logs(TrainerCallback):
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.rows.append(dict(logs))


def build(objective: str, family: str = "gpt2") -> PreTrainedModel:
    return plain(family) if objective == "ntp" else student(family)


def trainer(
    model: PreTrainedModel, folder: Path, *, steps: int = 3, eval_blocks: int = 7, **training: Any
) -> tuple[CoCoMixTrainer, Logs]:
    labelled = model.config.model_type == "cocomix"
    settings = {"max_steps": steps, "logging_steps": 1, "eval_strategy": "no", "save_strategy": "no", **training}
    arguments = training_arguments(recipe(**settings), folder, SEQ, 48)
    logs = Logs()
    made = CoCoMixTrainer(
        model=model,
        args=arguments,
        train_dataset=Blocks(48, labelled=labelled),
        eval_dataset=Blocks(eval_blocks, labelled=labelled, seed=11),
        callbacks=[logs],
    )
    return made, logs


@pytest.mark.parametrize("family", MAIN_BACKBONES)
@pytest.mark.parametrize("objective", ["ntp", "cocomix"])
def test_accumulation_changes_nothing(tmp_path: Path, objective: str, family: str) -> None:
    found = {}
    for batch, accumulation in ((8, 1), (4, 2), (1, 8)):
        model = build(objective, family)
        shape = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        made, logs = trainer(model, tmp_path, learning_rate=1e-3, optim="sgd", **shape)
        made.train()
        assert made.tokens_per_step == 8 * SEQ
        found[batch] = ({name: value.detach() for name, value in model.named_parameters()}, logs.rows)
    reference, rows = found[8]
    expected = {"loss", "ntp_loss", "grad_norm", "tokens", "learning_rate"}
    if objective == "cocomix":
        expected |= {"concept_loss", "concept_recall"}
    assert len(rows) == 4  # three steps and the summary
    for weights, other in (found[4], found[1]):
        for name, value in weights.items():
            torch.testing.assert_close(value, reference[name], rtol=1e-5, atol=1e-6, msg=name)
        for row, twin in zip(rows[:3], other[:3], strict=True):
            assert expected <= row.keys()
            for name in expected:
                assert twin[name] == pytest.approx(row[name], rel=2e-5), name


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "muon"])
@pytest.mark.parametrize("mixing", ["pause", "interleave"])
def test_vectors_are_not_decayed(tmp_path: Path, mixing: str, optim: str) -> None:
    """Gains, biases and the pause vector; embeddings and matrices are."""
    model = student("llama", mixing=mixing)
    made, _ = trainer(model, tmp_path, weight_decay=0.1, optim=optim)
    made.create_optimizer()
    names = {weight: name for name, weight in model.named_parameters()}
    assert {names[weight] for group in made.optimizer.param_groups for weight in group["params"]} == {*names.values()}
    for group in made.optimizer.param_groups:
        for weight in group["params"]:
            assert (group["weight_decay"] == 0.0) == (weight.dim() == 1), names[weight]


@pytest.mark.parametrize("objective", ["ntp", "cocomix"])
def test_evaluation_before_training_is_in_the_training_precision(tmp_path: Path, objective: str) -> None:
    made, _ = trainer(build(objective), tmp_path, steps=1, learning_rate=0.0, bf16=True)
    before = made.evaluate()["eval_loss"]
    made.train()
    assert made.evaluate()["eval_loss"] == before
    exact, _ = trainer(build(objective), tmp_path)
    assert exact.evaluate()["eval_loss"] != before


@pytest.mark.parametrize("family", MAIN_BACKBONES)
@pytest.mark.parametrize("objective", ["ntp", "cocomix"])
def test_resumed_equals_uninterrupted(tmp_path: Path, objective: str, family: str) -> None:
    """Bit for bit, optimizer state and data order included; `train` as a whole is in test_resume.py, on one family."""
    settings = {"steps": 6, "save_strategy": "steps", "save_steps": 3, "gradient_accumulation_steps": 2}
    weights = []
    for part in ("whole", "resumed"):
        model = build(objective, family)
        made, _ = trainer(model, tmp_path, **settings)
        checkpoint = None
        if part == "resumed":
            shutil.rmtree(tmp_path / "checkpoint-6")
            checkpoint = last_complete_checkpoint(tmp_path)
            assert checkpoint == tmp_path / "checkpoint-3"
        made.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        assert made.state.global_step == 6
        weights.append({name: value.detach() for name, value in model.named_parameters()})
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def test_a_resumed_run_logs_what_it_would_have_logged(tmp_path: Path) -> None:
    """Averages over a checkpoint that lies between log lines, which is named or is the last one of the folder."""
    settings = {"steps": 6, "logging_steps": 4, "save_strategy": "steps", "save_steps": 3, "save_total_limit": 9}
    logged = []
    for resume in (None, str(tmp_path / "checkpoint-3"), True):
        made, logs = trainer(build("cocomix"), tmp_path, **settings)
        made.train(resume_from_checkpoint=resume)
        logged.append([row for row in logs.rows if "ntp_loss" in row])
        if resume is not True:
            shutil.rmtree(tmp_path / "checkpoint-6")
    for rows in logged[1:]:
        assert len(rows) == len(logged[0]) == 1
        for name in ("loss", "ntp_loss", "concept_loss", "concept_recall", "tokens"):
            assert rows[0][name] == pytest.approx(logged[0][0][name], rel=1e-12), name
        assert rows[0]["seconds"] > 0


def test_there_is_nothing_to_resume_from(tmp_path: Path) -> None:
    made, _ = trainer(plain("gpt2"), tmp_path)
    with pytest.raises(CoCoMixError, match="resume_from_checkpoint"):
        made.train(resume_from_checkpoint=True)


def test_terms_are_averages_over_targets_and_add_up(tmp_path: Path) -> None:
    model = student("gpt2", concept_loss_weight=0.3)
    shape = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "learning_rate": 0.0}
    made, logs = trainer(model, tmp_path, steps=8, logging_steps=8, **shape)
    made.train()  # one epoch at a learning rate of zero: the averages are those of the whole data set
    columns = made.train_dataset.columns
    with torch.no_grad():
        output = model(input_ids=columns["input_ids"], labels=columns["input_ids"], use_cache=False)
        logits = model(
            input_ids=columns["input_ids"], concept_labels=columns["concept_labels"], output_concept_logits=True
        ).concept_logits
    row = logs.rows[0]
    assert row["ntp_loss"] == pytest.approx(float(output.ntp_loss), rel=1e-5)
    assert row["loss"] == pytest.approx(row["ntp_loss"] + 0.3 * row["concept_loss"], rel=1e-6)
    # Recall is a ratio of sums over all eight steps, not a mean of ratios.
    top = logits.topk(model.config.concept_topk, dim=-1).indices
    labels = columns["concept_labels"]
    found = sum(
        int(label in top[b, t])
        for b in range(labels.shape[0])
        for t in range(SEQ)
        for label in labels[b, t].tolist()
        if label != -100
    )
    assert row["concept_recall"] == pytest.approx(found / int((labels != -100).sum()))


@pytest.mark.parametrize("objective", ["ntp", "cocomix"])
@pytest.mark.parametrize("batch", [1, 3, 7, 20])
def test_evaluation_weighs_targets_not_batches(tmp_path: Path, objective: str, batch: int) -> None:
    model = build(objective)
    made, _ = trainer(model, tmp_path, per_device_eval_batch_size=batch)
    measured = made.measure()
    blocks = made.eval_dataset
    rows = [{"input_ids": row["input_ids"]} for row in (blocks[i] for i in range(len(blocks)))]
    labels = None
    if objective == "cocomix":
        labels = [{"concept_labels": blocks[i]["concept_labels"]} for i in range(len(blocks))]
    losses, concepts = measure(model, rows, batch_size=2, device=torch.device("cpu"), labels=labels)
    assert measured["eval_loss"] == pytest.approx(np.nanmean(losses), abs=1e-6)
    if objective == "cocomix":
        assert concepts is not None
        assert measured["eval_concept_loss"] == pytest.approx(concepts.loss / concepts.positions, abs=1e-6)
        assert measured["eval_concept_recall"] == pytest.approx(concepts.found.sum() / concepts.labels.sum())
    else:
        assert set(measured) == {"eval_loss"}


def test_evaluation_reports_the_next_token_loss_alone(tmp_path: Path) -> None:
    model = student("gpt2", concept_loss_weight=100.0)
    made, logs = trainer(model, tmp_path, steps=2, eval_strategy="steps", eval_steps=2)
    made.train()
    rows = [row for row in logs.rows if "eval_loss" in row]
    assert len(rows) == 1
    assert rows[0]["tokens"] == 2 * 8 * SEQ
    assert rows[0]["eval_loss"] < 10 < 100 * rows[0]["eval_concept_loss"]
    assert model.training


def test_evaluation_keeps_every_block_when_training_drops_the_last_batch(tmp_path: Path) -> None:
    model = plain("gpt2")
    losses = []
    for drop in (False, True):
        made, _ = trainer(model, tmp_path, per_device_eval_batch_size=5, dataloader_drop_last=drop)
        losses.append(made.measure()["eval_loss"])
    assert losses[0] == pytest.approx(losses[1])


def test_both_arms_see_the_same_tokens_in_the_same_order(tmp_path: Path) -> None:
    orders = {}
    for objective in ("ntp", "cocomix"):
        seen: list[Tensor] = []
        made, _ = trainer(build(objective), tmp_path, steps=9)

        class Watched(NextToken):
            def inputs(self, batch: Any, seen: Any = seen) -> Any:
                seen.append(batch["input_ids"].clone())
                return super().inputs(batch)

        made.objectives = (Watched(made.model.config), *made.objectives[1:])
        made.train()
        orders[objective] = torch.cat(seen)
    assert torch.equal(orders["ntp"], orders["cocomix"])
    first_epoch = {tuple(row) for row in orders["ntp"][:48].tolist()}
    assert len(first_epoch) == 48  # every block once


def test_the_order_depends_on_the_seed(tmp_path: Path) -> None:
    rows = []
    for seed in (0, 1):
        made, logs = trainer(plain("gpt2"), tmp_path, seed=seed, learning_rate=0.0)
        made.train()
        rows.append([row["ntp_loss"] for row in logs.rows if "ntp_loss" in row])
    assert rows[0] != rows[1]


@pytest.mark.parametrize("objective", ["ntp", "cocomix"])
def test_weight_decay_leaves_biases_and_norms_alone(tmp_path: Path, objective: str) -> None:
    model = build(objective)
    made, _ = trainer(model, tmp_path)
    made.create_optimizer()
    decayed = {
        name
        for group in made.optimizer.param_groups
        if group["weight_decay"] > 0
        for name, parameter in model.named_parameters()
        if any(parameter is member for member in group["params"])
    }
    every = dict(model.named_parameters())
    assert {parameter for name, parameter in every.items() if name in decayed and parameter.ndim < 2} == set()
    assert {name for name, parameter in every.items() if parameter.ndim >= 2} == decayed


def test_tokens_at_the_end_of_an_epoch(tmp_path: Path) -> None:
    # 48 blocks in batches of 10: the fifth step of an epoch has 8 blocks.
    made, logs = trainer(plain("gpt2"), tmp_path, steps=6, per_device_train_batch_size=10)
    made.train()
    assert [row["tokens"] // SEQ for row in logs.rows[:6]] == [10, 20, 30, 40, 48, 58]


def spoil(made: CoCoMixTrainer, steps: set[int], change: Callable[[Tensor], Tensor]) -> None:
    """Change the next-token loss at some steps, counted from 0, in training alone."""

    class Spoiled(NextToken):
        def __call__(self, output: Any, batch: Any, head: Any) -> Any:
            ((name, term),) = super().__call__(output, batch, head).items()
            spoiled = made.is_in_train and made.model.training and made.state.global_step in steps
            return {name: replace(term, sum=change(term.sum)) if spoiled else term}

    made.objectives = (Spoiled(made.model.config), *made.objectives[1:])


def poisoned(made: CoCoMixTrainer, step: int, what: str) -> None:
    """Make a step's loss, or only its gradient, not a number."""

    def poison(loss: Tensor) -> Tensor:
        if what == "loss":
            return loss * float("nan")
        weight = next(iter(made.model.parameters()))
        return loss + (weight.sum() * 0 + 1e-30).sqrt() * 0 + (weight.flatten()[0] * 0).sqrt()

    spoil(made, {step - 1}, poison)


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("logging_steps", [1, 50])
@pytest.mark.parametrize("objective", ["ntp", "cocomix"])
def test_a_loss_that_is_not_a_number_stops_training(
    tmp_path: Path, what: str, logging_steps: int, objective: str
) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2, "logging_steps": logging_steps}
    made, _ = trainer(build(objective), tmp_path, steps=8, **settings)
    metrics = MetricsFile(tmp_path / "metrics.jsonl", lambda tokens: tokens)
    made.add_callback(metrics)
    poisoned(made, 4, what)
    with pytest.raises(CoCoMixError, match=r"stopped.*checkpoint-2;") as caught:
        made.train()
    assert "\n" not in str(caught.value)
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert not (tmp_path / "checkpoint-4").exists()
    assert "NaN" not in (metrics.path.read_text() if metrics.path.exists() else "")


def test_a_first_evaluation_that_is_not_a_number_stops_training(tmp_path: Path) -> None:
    model = plain("gpt2")
    with torch.no_grad():
        model.get_input_embeddings().weight[5] = float("inf")
    made, _ = trainer(model, tmp_path)
    with pytest.raises(CoCoMixError, match=r"eval_loss .*nan .*step 0"):
        made.evaluate()


def test_collate() -> None:
    rows = [{"input_ids": torch.tensor([1, 2], dtype=torch.int32), "concept_labels": [[1], [-100]], "note": "x"}]
    batch = collate_blocks(rows * 2)
    assert set(batch) == {"input_ids", "labels", "concept_labels"}
    assert all(value.dtype == torch.int64 for value in batch.values())
    assert batch["concept_labels"].shape == (2, 2, 1)
    own = collate_blocks([{"input_ids": [1, 2], "labels": [-100, 2]}])
    assert own["labels"].tolist() == [[-100, 2]]


def test_progress_is_told_in_tokens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cocomix")
    advanced: list[float] = []
    made, _ = trainer(student("gpt2"), tmp_path, eval_strategy="steps", eval_steps=2)
    made.add_callback(Progress(made.tokens_seen, advanced.append))
    made.train()
    assert sum(advanced) == 3 * 8 * SEQ
    assert [line.partition(" tokens")[0] for line in caplog.messages] == ["144", "216"]
    assert all("concept recall" in line for line in caplog.messages)


def test_progress_counts_what_the_last_batch_of_an_epoch_lacks(tmp_path: Path) -> None:
    advanced: list[float] = []
    made, _ = trainer(student("gpt2"), tmp_path, steps=4, per_device_train_batch_size=20)
    made.add_callback(Progress(made.tokens_seen, advanced.append))
    made.train()
    assert advanced == [20 * SEQ, 20 * SEQ, 8 * SEQ, 20 * SEQ]  # of 48 blocks


def test_metrics_rows(tmp_path: Path) -> None:
    made, _ = trainer(student("gpt2"), tmp_path, eval_strategy="steps", eval_steps=3)
    metrics = MetricsFile(tmp_path / "metrics.jsonl", lambda tokens: 2 * tokens)
    made.add_callback(metrics)
    made.train()
    rows = [json.loads(line) for line in metrics.path.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 3]
    training = {"step", "tokens", "seconds", "flops", "loss", "ntp_loss", "concept_loss", "concept_recall"}
    training |= {"learning_rate", "grad_norm", "tokens_per_second"}
    assert [set(row) for row in rows[:3]] == [training] * 3
    always = {"step", "tokens", "seconds", "flops"}
    assert set(rows[3]) == always | {"eval_loss", "eval_concept_loss", "eval_concept_recall"}
    assert all(row["flops"] == 2.0 * row["tokens"] for row in rows)


def test_the_clock_stands_still_while_paused(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    clock, cpu = TrainingClock(), torch.device("cpu")
    with clock.paused(cpu):
        now = 5.0
    assert clock.seconds == 0.0
    with clock.running(cpu):
        now = 7.0
        with clock.paused(cpu):
            now = 100.0
            assert clock.seconds == 2.0
        now = 101.0
        assert clock.seconds == 3.0
        assert clock.rate(30.0) == pytest.approx(10.0)
    now = 200.0
    assert clock.seconds == 3.0
    with clock.running(cpu):
        now = 202.0
    assert clock.seconds == 5.0
    assert clock.rate(50.0) == pytest.approx(10.0)
