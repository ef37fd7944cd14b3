"""A run opened for measuring: its data, its labels and the blocks of a split, as its model reads them."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Subset

from cocomix.artifacts import is_there
from cocomix.data import TRAIN, VALIDATION, DocumentBlocks, MixedData, Tokens, begin_of_text, warn_of_overlap
from cocomix.data import positions_of_rows as document_depths
from cocomix.evaluation.inference import MapDataset
from cocomix.evaluation.references import ContextTokens
from cocomix.labelling import Concatenated, Labels
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import Run
from cocomix.training.corpora import block_order
from cocomix.training.online import DICTIONARY, TEACHER
from cocomix.training.recipe import load_recipe

logger = logging.getLogger(__name__)

Integers = NDArray[np.int64]


def open_run_data(run: Run, path: Path | None = None) -> Tokens:
    """The data to measure a run on; refused where it is not there, has changed, or has another tokenizer.

    Args:
        path: other prepared data, of the run's tokenizer; by default the run's own, which must be unchanged.
    """
    trained_on, mixture = run.manifest.data, run.manifest.data.mixture
    own = [Path(trained_on.path)] if mixture is None else [Path(part.path) for part in mixture]
    if path is None and not all(map(is_there, own)):
        raise CoCoMixError(
            f"the data of the run {run.manifest.name} is no longer at {trained_on.path}; say where it is with --data."
        )
    if path is None and mixture is not None:
        data: Tokens = MixedData([Tokens.open(folder) for folder in own], [part.share for part in mixture])
    else:
        data = Tokens.open(path or own[0])
    if data.manifest.tokenizer_fingerprint != trained_on.tokenizer_fingerprint:
        raise CoCoMixError(
            f"{data.path} was prepared with another tokenizer than the run {run.manifest.name}; prepare it with the "
            f"tokenizer in {run.path}."
        )
    if path is None and data.manifest.fingerprint != trained_on.fingerprint:
        raise CoCoMixError(
            f"{data.path} has changed since the run {run.manifest.name} was trained on it; name it with --data to "
            "evaluate on it all the same."
        )
    if path is not None:
        with suppress(CoCoMixError):  # the data of the run need not be there
            warn_of_overlap([Tokens.open(folder) for folder in own], [data])
        if begin_of_text(run.tokenizer()) != data.manifest.bos_token_id:
            logger.warning(
                f"the blocks of {path} begin otherwise than those that {run.manifest.name} was trained on: only one of "
                "the two was prepared with --prepend-bos."
            )
    return data


def run_labels(run: Run) -> Labels | None:
    """The stored labels of a run (of a mixture, of its first corpus); `None` where there are none, or others by now."""
    try:
        return own_labels(run).first
    except CoCoMixError:
        return None


def open_run_labels(
    run: Run, data: Tokens, num_concepts: int, path: Path | None = None, *, without: str
) -> Concatenated[Labels] | None:
    """The labels asked for, or the run's own where they fit; otherwise none, with a warning.

    Args:
        num_concepts: of the run's model; labels that do not belong to it or to the data are refused.
        without: what is left out where there are none, for the warning.

    Returns:
        The labels of the data's blocks; of a mixture, those of every corpus, one after another.
    """
    parts = data.parts if isinstance(data, MixedData) else (data,)
    if path is not None and len(parts) > 1:
        raise CoCoMixError(
            f"{path} holds labels of one corpus, and this run's data are {len(parts)}; leave --labels out."
        )
    if path is not None:
        found = Concatenated([Labels.open(path)])
    else:
        try:
            if data.manifest.fingerprint != run.manifest.data.fingerprint:
                raise CoCoMixError(f"the run has no labels of {data.path}; name some with --labels.")
            found = own_labels(run)
        except CoCoMixError as error:
            logger.warning(f"no {without}: {error}")
            return None
    for labels, part in zip(found.parts, parts, strict=True):
        labels.require_tokens(part)
        labels.require_concepts(num_concepts)
    return found


def own_labels(run: Run) -> Concatenated[Labels]:
    """The labels a run was trained with; refused where there are none, or they are gone or others by now."""
    reference, mixture = run.manifest.labels, run.manifest.data.mixture
    made = run.manifest.online_labels
    if made is not None and made.labels["kind"] == "online":
        raise CoCoMixError(
            "the run's labels were of its own states while it trained; make those of its end with `cocomix label "
            f"{run.manifest.data.path} --kind activation --teacher {run.path / TEACHER} --dictionary "
            f"{run.path / DICTIONARY} --output LABELS` and name them with --labels."
        )
    if reference is None:
        raise CoCoMixError("the run was trained without stored labels; name some with --labels.")
    folders = [reference.path] if mixture is None else [part.labels or reference.path for part in mixture]
    if gone := [folder for folder in folders if not is_there(Path(folder))]:
        raise CoCoMixError(f"the run's labels are no longer at {gone[0]}; name them with --labels.")
    found = Concatenated([Labels.open(folder) for folder in folders])
    if found.fingerprint != reference.fingerprint:
        raise CoCoMixError(f"the labels at {reference.path} are not those of the run; name its own with --labels.")
    return found


@dataclass(frozen=True)
class RunBlocks:
    """The blocks of a split as a run's model reads them."""

    # `input_ids`; with document masks also `position_ids`, and `labels` without each document's first token
    rows: MapDataset
    labels: MapDataset | None  # concept labels of the same blocks, or `None`
    data: Tokens
    block_size: int
    limited: bool  # whether there are fewer blocks than the split has
    _masks: bool = field(repr=False)
    _gaps: Integers = field(repr=False)

    @cached_property
    def ids(self) -> Integers:
        """Tokens. [blocks, block_size]"""
        rows = [self.rows[index]["input_ids"].numpy() for index in range(len(self.rows))]
        return np.array(rows, dtype=np.int64).reshape(-1, self.block_size)

    @cached_property
    def depth(self) -> Integers:
        """Tokens before each that the model sees; 0: it is not predicted. [blocks, block_size]"""
        return _depths(self.ids, self.data, self._masks)

    @cached_property
    def documents(self) -> Integers:
        """Number of each token's document. An end-of-document token belongs to the document that it ends.

        Where blocks between two that stand side by side were left out, another document is taken to begin.
        """
        meta = self.data.manifest
        ends = self.ids == meta.eos_token_id
        if meta.bos_token_id is not None:
            ends[:, 0] = False
        flat = ends.ravel().astype(np.int64)
        found: Integers = (flat.cumsum() - flat).reshape(ends.shape) + self._gaps[:, None]
        return found


def run_blocks(
    run: Run,
    data: Tokens,
    labels: Concatenated[Labels] | None,
    *,
    split: str = VALIDATION,
    block_size: int | None = None,
    limit_blocks: int | None = None,
) -> RunBlocks:
    """The blocks of a split, in order; refused where there is no such split, or it has no block of such a length.

    Args:
        run: says whether documents see one another, and the block length.
        block_size: tokens of a block; by default as in training, or the data's where they are shorter. Longer blocks
            of the data are cut, and what fills no block at the end of each is left out.
        limit_blocks: use only the first blocks; of a mixture, of each corpus its share.
    """
    meta, whole = data.manifest, data.split(split)
    size = min(run.manifest.data.block_size, meta.block_size) if block_size is None else block_size
    if not 2 <= size <= meta.block_size:
        raise CoCoMixError(
            f"block_size={size}: blocks of 2 to {meta.block_size} tokens can be cut from {data.path}; for longer ones "
            "prepare the data with a longer --block-size."
        )
    if limit_blocks is not None and limit_blocks < 1:
        raise CoCoMixError(f"limit_blocks={limit_blocks} must be at least 1; leave it out to use every block.")
    rows: Any = whole
    if size < meta.block_size:
        rows = _Cut(whole, size, meta.bos_token_id)
        if labels is not None:
            logger.warning("labels belong to whole blocks, so concept recall is left out where blocks are cut.")
            labels = None
    stored: Any = None if labels is None else labels.split(split)
    if stored is not None and len(stored) != len(whole):
        raise CoCoMixError(f"the labels cover {len(stored)} blocks but the data has {len(whole)}; label it again.")
    numbers: Sequence[int] = range(len(rows))
    if limited := limit_blocks is not None and limit_blocks < len(rows):
        mixed = isinstance(data, MixedData) and size == meta.block_size
        numbers = data.first_blocks(split, limit_blocks) if mixed else numbers[:limit_blocks]  # type: ignore[attr-defined]
        rows, stored = Subset(rows, numbers), None if stored is None else Subset(stored, numbers)
    masks = run.manifest.document_masks
    if masks:
        rows = DocumentBlocks(rows, meta.eos_token_id, meta.bos_token_id)
    gaps = np.cumsum((np.diff(np.asarray(numbers), prepend=0) > 1).astype(np.int64))
    return RunBlocks(rows, stored, data, size, limited, masks, gaps)


class _Cut(Dataset[dict[str, torch.Tensor]]):
    """Blocks cut into shorter ones, each of which begins with the same token as the long ones do, if any."""

    def __init__(self, blocks: MapDataset, size: int, bos_token_id: int | None) -> None:
        self.blocks, self.head = blocks, [] if bos_token_id is None else [bos_token_id]
        self.text = size - len(self.head)
        length = len(blocks[0]["input_ids"]) if len(blocks) else 0
        self.pieces = max((length - len(self.head)) // self.text, 0)

    def __len__(self) -> int:
        return len(self.blocks) * self.pieces

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        block, piece = divmod(index, self.pieces)
        text = self.blocks[block]["input_ids"][len(self.head) :][piece * self.text : (piece + 1) * self.text]
        return {"input_ids": torch.cat((torch.tensor(self.head, dtype=torch.int64), text))}


def training_tokens(run: Run, data: Tokens, most: int) -> ContextTokens:
    """The distinct training blocks that a run read, in the order in which it read them first: its first `most` tokens.

    Refused where the text is at a URL: what was streamed once must not be fetched as a whole to be counted.
    """
    if any(part.url is not None for part in (data.parts if isinstance(data, MixedData) else (data,))):
        raise CoCoMixError(
            f"the training text of {run.manifest.name} is at a URL, which is not fetched to be counted; copy it here."
        )
    recipe, blocks = load_recipe(run.path / "recipe.yaml"), data.split(TRAIN)
    seed = recipe.training.get("data_seed")
    order = block_order(recipe, data, run.manifest.seed if seed is None else int(seed))
    read = min(run.manifest.tokens // data.manifest.block_size, order.size)
    read = min(read, max(most // data.manifest.block_size, 1))
    numbers = np.unique(order.blocks(0, 0, read))
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    ids = np.concatenate([blocks.rows(int(some[0]), int(some[-1]) + 1) for some in runs])
    return ContextTokens(ids.ravel(), _depths(ids, data, run.manifest.document_masks).ravel())


def _depths(ids: Any, data: Tokens, masks: bool) -> Integers:
    if not masks:
        return np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    meta = data.manifest
    return document_depths(torch.from_numpy(ids.astype(np.int64)), meta.eos_token_id, meta.bos_token_id).numpy()
