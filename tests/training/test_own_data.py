"""What a program gives the Trainer: a `datasets.Dataset` or a stream, padded rows, columns and objectives by name."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainingArguments

from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.ignore import IGNORE
from cocomix.training import CoCoMixTrainer
from cocomix.training.loading import PaddedBlocks, collate_blocks
from cocomix.training.objectives import LossTerm, NextToken, Objective, Schedule, objective_type
from tests.model.factories import concepts, student, tokens

ROWS, SEQ = 12, 10


def data_set(**columns: Any) -> Dataset:
    """Rows of lists, as `datasets` gives them without a format."""
    return Dataset.from_dict({"input_ids": tokens(ROWS, SEQ).tolist(), **columns})


def labelled() -> Dataset:
    return data_set(concept_labels=concepts(ROWS, SEQ).tolist())


def trainer(model: PreTrainedModel, folder: Path, data: Any = None, **settings: Any) -> CoCoMixTrainer:
    given = {name: settings.pop(name) for name in ("eval_dataset", "objectives") if name in settings}
    values = {"max_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 1, "save_strategy": "no", **settings}
    arguments = TrainingArguments(str(folder), report_to="none", use_cpu=True, disable_tqdm=True, **values)
    return CoCoMixTrainer(model, arguments, train_dataset=data, **given)


def test_a_trainer_without_a_training_set_evaluates(tmp_path: Path) -> None:
    model, rows = student("gpt2"), labelled()
    found = trainer(model, tmp_path, eval_dataset=rows).evaluate()
    ids, labels = (torch.tensor(rows[name]) for name in ("input_ids", "concept_labels"))
    with torch.no_grad():
        output = model(ids, labels=ids, concept_labels=labels)
    assert found["eval_loss"] == pytest.approx(output.ntp_loss.item(), rel=1e-5)
    assert found["eval_concept_loss"] == pytest.approx(output.concept_loss.item(), rel=1e-5)
    assert found["tokens"] == 0


def test_a_stream_is_trained_on_and_resumed(tmp_path: Path) -> None:
    def made() -> CoCoMixTrainer:
        stream = labelled().to_iterable_dataset()
        return trainer(student("llama"), tmp_path, stream, max_steps=4, save_strategy="steps", save_steps=2)

    whole = made()
    whole.train()
    assert [row["tokens"] for row in whole.state.log_history if "ntp_loss" in row] == [20, 40, 60, 80]
    shutil.rmtree(tmp_path / "checkpoint-4")
    resumed = made()
    resumed.train(resume_from_checkpoint=True)
    torch.testing.assert_close(dict(resumed.model.named_parameters()), dict(whole.model.named_parameters()))


@pytest.mark.parametrize("side", ["left", "right"])
def test_masked_padding_is_no_target(side: str, tmp_path: Path) -> None:
    ids, mask = tokens(ROWS, SEQ), torch.ones(ROWS, SEQ, dtype=torch.int64)
    kept = [slice(row % 5, None) if side == "left" else slice(None, SEQ - row % 5) for row in range(ROWS)]
    for row, whole in enumerate(kept):
        mask[row] = 0
        mask[row, whole] = 1
    ids[mask == 0] = 0
    model = student("gpt2")
    found = trainer(model, tmp_path, eval_dataset=data_set(attention_mask=mask.tolist(), input_ids=ids.tolist()))
    total, targets = 0.0, 0
    for row, whole in enumerate(kept):
        alone = ids[row : row + 1, whole]
        with torch.no_grad():
            total += model(alone, labels=alone).ntp_loss.item() * (alone.shape[1] - 1)
        targets += alone.shape[1] - 1
    assert found.evaluate()["eval_loss"] == pytest.approx(total / targets, rel=1e-5)


def test_rows_that_fill_up_a_batch_keep_masks_and_lists() -> None:
    row = {"input_ids": [3, 4, 0], "attention_mask": [1, 1, 0], "concept_labels": [[1], [2], [IGNORE]]}
    batch = collate_blocks([PaddedBlocks([row], 2)[index] for index in range(2)])
    assert batch["labels"].tolist() == [[3, 4, IGNORE], [IGNORE] * 3]
    assert batch["concept_labels"].tolist() == [[[1], [IGNORE], [IGNORE]], [[IGNORE]] * 3]


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([{"input_ids": [1, 2, 3]}, {"input_ids": [1, 2]}], "2 to 3"),
        ([{"text": "one"}], "input_ids"),
        ([{"input_ids": [1, 2, 3], "concept_labels": [5, 6, 7]}], r"\[1, 3\]"),  # broadcast, each position had all
    ],
)
def test_rows_that_are_no_blocks_are_refused(rows: list[dict[str, Any]], named: str) -> None:
    with pytest.raises(CoCoMixError, match=named):
        collate_blocks(rows)


class Tempo(Objective):
    """Something that is not ours, of a column that is not ours."""

    name = "tempo"
    needs = frozenset({"tempo"})

    def counts(self, batch: Any) -> dict[str, Tensor]:
        return {"tempo_loss": torch.tensor(len(batch["tempo"]))}

    def __call__(self, output: Any, batch: Any, head: nn.Module | None) -> dict[str, LossTerm]:
        far = (output.last_hidden_state.mean((1, 2)) - batch["tempo"]).square().sum()
        return {"tempo_loss": LossTerm(far, self.counts(batch)["tempo_loss"], self.weight)}


def test_an_objective_reads_a_column_of_its_own(tmp_path: Path) -> None:
    model, tempo = student("gpt2"), torch.linspace(0, 1, ROWS)
    data = data_set(tempo=tempo.tolist(), note=["not read"] * ROWS)
    objectives = [NextToken(model.config), Tempo(Schedule(value=1.0))]
    found = trainer(model, tmp_path, eval_dataset=data, objectives=objectives).evaluate()
    with torch.no_grad():
        means = model(tokens(ROWS, SEQ)).last_hidden_state.mean((1, 2))
    assert found["eval_tempo_loss"] == pytest.approx((means - tempo).square().mean().item(), rel=1e-5)


def test_a_weight_is_a_schedule_or_a_number() -> None:
    assert Tempo(0.5).weight == Schedule(value=0.5)
    with pytest.raises(ValidationError, match="-1"):
        Tempo(-1.0)


def test_two_objectives_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CoCoMixError, match="'tempo'"):
        trainer(student("gpt2"), tmp_path, data_set(), objectives=[Tempo(0.5), Tempo(1.0)])


def test_objectives_without_one_that_reads_tokens_are_refused(tmp_path: Path) -> None:
    data = data_set(tempo=[0.0] * ROWS)
    with pytest.raises(CoCoMixError, match="Tempo"):
        trainer(student("gpt2"), tmp_path, data, objectives=[Tempo(0.5)]).train()


@pytest.mark.parametrize("name", ["mtp_parallel", "mtp_sequential", "nitp", "superposition", "top"])
def test_objectives_need_no_recipe(name: str, tmp_path: Path) -> None:
    model = student("gpt2")
    made = trainer(model, tmp_path, data_set(), objectives=[NextToken(model.config), objective_type(name)()])
    made.train()
    assert f"{name}_loss" in made.state.log_history[0]
