"""The pass over the data: the student reads every block once, and the tally counts what it predicts."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Subset

from cocomix.data import TRAIN, VALIDATION, DocumentBlocks, TokenBlocks, Tokens
from cocomix.evaluation.inference import batches, count_blocks, inference
from cocomix.interpret.atlas_cards import AtlasSettings
from cocomix.interpret.atlas_tally import Tally
from cocomix.labelling import LabelBlocks, Labels
from cocomix.model import CoCoMixForCausalLM
from cocomix.runtime.console import progress
from cocomix.runtime.errors import CoCoMixError

__all__ = ["AtlasBlocks", "read_blocks"]


class AtlasBlocks(Dataset[dict[str, torch.Tensor]]):
    """The blocks an atlas reads, validation first, then training, with their labels where there are any.

    Args:
        data: prepared data.
        labels: of that data.
        tokens: how many tokens to read, in whole blocks; at least one block.
        document_masks: whether the documents of a block do not see one another, as when the model was trained.

    Raises:
        CoCoMixError: the data holds no block, or the labels cover others.
    """

    def __init__(self, data: Tokens, labels: Labels | None, tokens: int, *, document_masks: bool = False) -> None:
        self.block_size = data.manifest.block_size
        self._parts: list[tuple[str, TokenBlocks | DocumentBlocks, LabelBlocks | None]] = []
        for split in (VALIDATION, TRAIN):
            blocks: TokenBlocks | DocumentBlocks = data.split(split)
            if document_masks:
                blocks = DocumentBlocks(blocks, data.manifest.eos_token_id, data.manifest.bos_token_id)
            labelled = None if labels is None else labels.split(split)
            if labelled is not None and len(labelled) != len(blocks):
                raise CoCoMixError(
                    f"the labels cover {len(labelled)} blocks of {split} but the data has {len(blocks)}; label this "
                    "data set again."
                )
            self._parts.append((split, blocks, labelled))
        self.labelled = labels is not None
        self._count = min(sum(len(blocks) for _, blocks, _ in self._parts), max(1, tokens // self.block_size))

    def __len__(self) -> int:
        return self._count

    def locate(self, index: int) -> tuple[str, int]:
        """Split, and index within it, of a block."""
        split, _, _, row = self._find(index)
        return split, row

    def tokens(self, index: int) -> NDArray[np.int64]:
        """Tokens of a block. int64 [block_size]"""
        _, blocks, _, row = self._find(index)
        tokens: NDArray[np.int64] = blocks[row]["input_ids"].numpy()
        return tokens

    def scores(self, index: int) -> torch.Tensor:
        """Scores of a block's labels. float32 [block_size, k_attr]"""
        _, _, labels, row = self._find(index)
        assert labels is not None
        return labels.scores(row)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """`input_ids` int64 [block_size]; with labels `concept_labels` int64 [block_size, k_attr]; with
        `document_masks` what `DocumentBlocks` adds.
        """
        _, blocks, labels, row = self._find(index)
        return blocks[row] if labels is None else {**blocks[row], **labels[row]}

    def _find(self, index: int) -> tuple[str, TokenBlocks | DocumentBlocks, LabelBlocks | None, int]:
        if not 0 <= index < self._count:
            raise IndexError(f"block {index} of {self._count}")
        row = index
        for split, blocks, labels in self._parts:
            if row < len(blocks):
                return split, blocks, labels, row
            row -= len(blocks)
        raise AssertionError("the count covers the parts")


def read_blocks(
    model: CoCoMixForCausalLM,
    blocks: AtlasBlocks,
    settings: AtlasSettings,
    state: Path,
    *,
    device: torch.device,
    commit_tokens: int,
) -> Tally:
    """Let the student read the blocks and count what it predicts.

    The tally is written to `state` every `commit_tokens` tokens and at the end; a pass that finds it there goes on
    after its last block. Batches start at the same blocks either way, so the result is the same.

    Args:
        model: the student.
        blocks: what to read.
        settings: of the atlas.
        state: file of the tally.
        device: where to compute.
        commit_tokens: tokens between two writings.

    Raises:
        CoCoMixError: data, labels and model do not belong together.
    """
    batch_size = max(1, settings.batch_tokens // blocks.block_size)
    labelled = blocks if blocks.labelled else None
    total = count_blocks(model, blocks, labelled, batch_size, None)
    if state.exists():
        tally = Tally.load(state)
    else:
        tally = Tally.empty(model.config.num_concepts, bins=settings.bins, contexts=settings.contexts)
    done = int(tally.blocks[0])
    rest = Subset(blocks, range(done, total))
    labelled_rest = None if labelled is None else rest
    written = done
    with (
        inference(model, device),
        progress("reading", total * blocks.block_size, "tokens") as advance,
    ):
        advance(done * blocks.block_size)
        for batch in batches(model, rest, labelled_rest, count=total - done, batch_size=batch_size, device=device):
            output = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
            ids, values = output.concept_ids.cpu().numpy(), output.concept_values.float().cpu().numpy()
            tally.add_predictions(ids, values)
            here = len(ids)
            if batch.concept_labels is not None:
                scores = torch.stack([blocks.scores(index) for index in range(done, done + here)])
                tally.add_labels(batch.concept_labels.cpu().numpy(), scores.numpy(), ids)
            tally.finish_blocks(here)
            done += here
            advance(here * blocks.block_size)
            if (done - written) * blocks.block_size >= commit_tokens or done == total:
                tally.save(state)
                written = done
    return tally
