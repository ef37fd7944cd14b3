"""Blocks with labels and probabilities beside them, row by row."""

import torch

from cocomix.data import Tokens
from cocomix.labelling import Concatenated, Labels, TeacherProbabilities
from cocomix.training.joined_blocks import JoinedBlocks, joined_blocks
from tests.workshop import BLOCK, Workshop


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
    assert blocks.only(frozenset({"concept_labels"}))[3].keys() == {"input_ids", "concept_labels"}


def test_a_limit_keeps_the_first_blocks(workshop: Workshop) -> None:
    data, recipe = Tokens.open(workshop.data), workshop.recipe("ntp")
    few = joined_blocks(recipe, data, {}, "train", 5)
    assert len(few) == 5
    assert torch.equal(few[4]["input_ids"], data.split("train")[4]["input_ids"])
    every = len(data.split("train"))
    assert len(joined_blocks(recipe, data, {}, "train", every + 1)) == every
