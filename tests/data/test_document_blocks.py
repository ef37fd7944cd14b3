import torch
from hypothesis import given
from hypothesis import strategies as st

from cocomix.data.token_blocks import DocumentBlocks, positions_of_rows
from cocomix.runtime.ignore import IGNORE

END = 0


def naive_positions(tokens: list[int]) -> list[int]:
    positions, position = [], 0
    for token in tokens:
        positions.append(position)
        position = 0 if token == END else position + 1
    return positions


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_positions_start_again_after_every_end(tokens: list[int]) -> None:
    assert positions_of_rows(torch.tensor(tokens), END).tolist() == naive_positions(tokens)


def test_first_tokens_are_no_targets_and_the_rest_of_a_row_stays() -> None:
    row = {"input_ids": torch.tensor([5, END, 6, 7, END, END, 8]), "concept_labels": torch.ones(7, 2)}
    blocks = DocumentBlocks([row, row], END)
    assert len(blocks) == 2
    found = blocks[1]
    assert found["position_ids"].tolist() == [0, 1, 0, 1, 2, 0, 0]
    assert found["labels"].tolist() == [IGNORE, END, IGNORE, 7, END, IGNORE, IGNORE]
    assert found["concept_labels"] is row["concept_labels"]
    assert set(row) == {"input_ids", "concept_labels"}
