import json

import numpy as np
import pytest
import torch

from cocomix.evaluation.document_losses import (
    DOCUMENTS_FILE,
    DocumentTally,
    read_document_losses,
    write_document_losses,
)
from cocomix.runtime.errors import CoCoMixError

END = 0


def naive(blocks: list[list[int]], losses: list[list[float]]) -> tuple[list[float], list[int]]:
    """Walk through the text token by token."""
    sums, counts, document = {}, {}, 0
    for tokens, values in zip(blocks, losses, strict=True):
        for position, token in enumerate(tokens):
            if position > 0:
                sums[document] = sums.get(document, 0.0) + values[position - 1]
                counts[document] = counts.get(document, 0) + 1
            document += token == END
    return list(sums.values()), list(counts.values())


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_documents_are_summed_across_blocks_as_a_walk_does(batch_size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(6, (7, 5), generator=generator)
    blocks[3] = 4  # a document that fills a whole block
    blocks[5, 0] = blocks[4, -1] = END  # a document of one token at the start of a block: nothing to predict
    losses = torch.rand(7, 4, generator=generator, dtype=torch.float64)
    tally = DocumentTally(END)
    for start in range(0, 7, batch_size):
        tally.add(blocks[start : start + batch_size], losses[start : start + batch_size])
    sums, counts = tally.result()
    expected_sums, expected_counts = naive(blocks.tolist(), losses.tolist())
    assert sums == pytest.approx(expected_sums)
    assert counts == expected_counts
    assert sum(counts) == losses.numel()


def test_written_and_read_back(tmp_path) -> None:
    tally = DocumentTally(END)
    tally.add(torch.tensor([[1, END, 2]]), torch.tensor([[0.5, 0.25]], dtype=torch.float64))
    assert read_document_losses(tmp_path) is None
    write_document_losses(tmp_path, tally, data_fingerprint="f", split="validation", blocks=1, dtype="float32")
    found = read_document_losses(tmp_path)
    assert found.conditions == ("f", "validation", 1, "float32")
    np.testing.assert_array_equal(found.losses, [0.5, 0.25])
    np.testing.assert_array_equal(found.targets, [1, 1])
    values = json.loads((tmp_path / DOCUMENTS_FILE).read_text())
    (tmp_path / DOCUMENTS_FILE).write_text(json.dumps({**values, "targets": [1]}))
    with pytest.raises(CoCoMixError, match="damaged"):
        read_document_losses(tmp_path)
