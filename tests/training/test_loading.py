"""What the training loop is given: the same blocks whatever loads them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from cocomix.data import Tokens
from cocomix.labelling import Concatenated, Labels, TeacherProbabilities
from cocomix.runtime.ignore import IGNORE
from cocomix.training import CoCoMixTrainer
from cocomix.training.loading import JoinedBlocks, PaddedBlocks, joined_blocks
from cocomix.training.order import Reading, ShuffledOrder
from tests.evaluation.conftest import ntp_model, token_blocks
from tests.workshop import BLOCK, Workshop


def trainer(tmp_path: Path, blocks: Any, **settings: Any) -> CoCoMixTrainer:
    settings = {"per_device_train_batch_size": 4, "use_cpu": True, "report_to": "none", "seed": 3, **settings}
    return CoCoMixTrainer(model=ntp_model(), args=TrainingArguments(str(tmp_path), **settings), train_dataset=blocks)


@pytest.mark.parametrize("data_seed", [None, 11])
def test_batches_follow_the_order(tmp_path: Path, data_seed: int | None) -> None:
    blocks = token_blocks(10)
    loader = trainer(tmp_path, blocks, data_seed=data_seed).get_train_dataloader()
    assert len(loader) == 3
    for epoch in (0, 1, 0):
        loader.set_epoch(epoch)
        order = ShuffledOrder(10, 3 if data_seed is None else data_seed).blocks(epoch, 0, 10)
        seen = torch.cat([batch["input_ids"] for batch in loader])
        assert torch.equal(seen, blocks.rows[torch.from_numpy(order)])


def test_other_strategies_are_the_base_classs(tmp_path: Path) -> None:
    blocks = token_blocks(10)
    loader = trainer(tmp_path, blocks, train_sampling_strategy="sequential").get_train_dataloader()
    assert torch.equal(torch.cat([batch["input_ids"] for batch in loader]), blocks.rows)


def test_padding_has_no_targets() -> None:
    row = {"input_ids": torch.arange(4), "concept_labels": torch.ones(4, 2, dtype=torch.int64)}
    padded = PaddedBlocks([row, row, row], 2)
    assert len(padded) == 4
    assert torch.equal(padded[2]["labels"], row["input_ids"])
    assert (padded[3]["labels"] == IGNORE).all()
    assert (padded[3]["concept_labels"] == IGNORE).all()
    assert torch.equal(padded[3]["input_ids"], row["input_ids"])


def test_workers_change_nothing(tmp_path: Path) -> None:
    """Neither the batches nor what is left of the random numbers that dropout takes."""
    seen, states = [], []
    for workers in (0, 2):
        loader = trainer(tmp_path, token_blocks(10), dataloader_num_workers=workers).get_train_dataloader()
        torch.manual_seed(0)
        seen.append(torch.cat([batch["input_ids"] for batch in loader]))
        states.append(torch.get_rng_state())
    assert torch.equal(*seen)
    assert torch.equal(*states)


def test_rows_have_everything_stored_of_their_tokens(workshop: Workshop) -> None:
    data, recipe = Tokens.open(workshop.data), workshop.recipe("cocomix")
    labels = Labels.open(workshop.labels)
    probabilities = TeacherProbabilities.open(workshop.probabilities)
    stored = {"concept_labels": Concatenated([labels]), "none": None, "teacher_ids": Concatenated([probabilities])}
    blocks = joined_blocks(recipe, data, stored, "validation", None)
    assert len(blocks) == len(data.split("validation"))
    row = blocks[3]
    assert {name: tuple(value.shape) for name, value in row.items()} == {
        "input_ids": (BLOCK,),
        "concept_labels": (BLOCK, 4),
        "teacher_ids": (BLOCK, 8),
        "teacher_log_probs": (BLOCK, 8),
    }
    assert torch.equal(row["input_ids"], data.split("validation")[3]["input_ids"])
    assert torch.equal(row["concept_labels"], labels.split("validation")[3]["concept_labels"])
    assert torch.equal(row["teacher_ids"], probabilities.split("validation")[3]["teacher_ids"])
    assert isinstance(blocks, JoinedBlocks)
    assert blocks[Reading(3, frozenset({"concept_labels"}))].keys() == {"input_ids", "concept_labels"}


def test_a_limit_keeps_the_first_blocks(workshop: Workshop) -> None:
    data, recipe = Tokens.open(workshop.data), workshop.recipe("ntp")
    few = joined_blocks(recipe, data, {}, "train", 5)
    assert len(few) == 5
    assert torch.equal(few[4]["input_ids"], data.split("train")[4]["input_ids"])
    every = len(data.split("train"))
    assert len(joined_blocks(recipe, data, {}, "train", every + 1)) == every
