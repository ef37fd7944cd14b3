"""Token blocks made while training, from the Parquet shards of a corpus too large to prepare.

The row groups of all shards are read in `lanes`. The r-th row group to be read is, in pass r // n over the n row
groups, the one that a permutation puts at r % n; lane l reads row groups l, l + lanes, l + 2 · lanes, … and packs their
documents one after another, each followed by the end-of-document token, as `cocomix prepare` does (and with what the
blocks of the data beside it begin with). Block b of the run is block b // lanes of lane b % lanes. So every block is a
function of the shards, the seed and its number alone; whoever needs some of the lanes reads only those; and to go on
with a lane, it is enough to know at which token of which document its next block begins.

Lanes hold different amounts of text, so that one may begin another pass while another lane ends the one before.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch.utils.data import Dataset, get_worker_info

from cocomix.data.parquet import open_parquet, row_batches
from cocomix.data.permutation import permuted
from cocomix.data.reading import clean_text, pieces, text_of
from cocomix.data.stream_shards import RowGroup, open_shard
from cocomix.data.tokenizer import encode_batch
from cocomix.runtime.errors import CoCoMixError

__all__ = ["Mark", "StreamBlocks", "StreamSource"]

Tokens = NDArray[np.int64]


class Mark(NamedTuple):
    """Where a lane's next block begins.

    Attributes:
        block: its number in the lane.
        turn: of the row group: its place among those of all passes.
        row: of the document, in the row group.
        token: of the document.
    """

    block: int
    turn: int
    row: int
    token: int


@dataclass(frozen=True)
class StreamSource:
    """What is streamed; picklable.

    Attributes:
        row_groups: of all shards.
        text_column: holds the text.
        encoder: from `plain_encoder`.
        eos_token_id: put after every document.
        bos_token_id: put at the beginning of every block, if there is one.
        block_size: tokens per block.
        lanes: how many row groups are read side by side, at most as many as there are.
        seed: of the order of row groups.
    """

    row_groups: tuple[RowGroup, ...]
    text_column: str
    encoder: Tokenizer
    eos_token_id: int
    bos_token_id: int | None
    block_size: int
    lanes: int
    seed: int

    def row_group(self, turn: int) -> RowGroup:
        """The row group whose turn it is, counted through all passes."""
        number, place = divmod(turn, len(self.row_groups))
        return self.row_groups[int(permuted(np.asarray([place]), len(self.row_groups), self.seed, 0, number)[0])]

    def documents(self, turn: int, first_row: int) -> Iterator[tuple[int, Tokens]]:
        """Row and tokens of every document of a row group from `first_row` on; rows without text are left out."""
        group = self.row_group(turn)
        where, row = f"{group.url}, row group {group.number}", 0
        with open_shard(group.url) as stream:
            file = open_parquet(group.url, stream, self.text_column)
            for values in row_batches(where, file, self.text_column, [group.number]):
                wanted = range(max(row, first_row), row + len(values))
                rows = [text_of(values[at - row], self.text_column, f"{where}, row {at}: ") for at in wanted]
                texts = [clean_text(text, where)[0] for text in rows]
                for at, tokens in zip(wanted, self._encoded(texts), strict=True):
                    if len(tokens):
                        yield at, tokens
                row += len(values)

    def require_text(self) -> None:
        """Read until there is a document.

        Raises:
            CoCoMixError: there is none in any row group.
        """
        one_pass = range(len(self.row_groups))
        if not any(True for turn in one_pass for _ in self.documents(turn, 0)):
            raise CoCoMixError(
                f"the stream holds no text: the column {self.text_column!r} is empty in every row; name another with "
                "text_column."
            )

    def _encoded(self, texts: Sequence[str]) -> Iterator[Tokens]:
        """Tokens of each text with the end-of-document token; none where there is only white space."""
        parts = [list(pieces(text)) if text and not text.isspace() else [] for text in texts]
        encoded = self._encode([piece for part in parts for piece in part])
        for part in parts:
            tokens = [token for _ in part for token in next(encoded)]
            yield np.asarray([*tokens, self.eos_token_id] if part else [], dtype=np.int64)

    def _encode(self, texts: list[str]) -> Iterator[list[int]]:
        if get_worker_info() is None:
            return encode_batch(self.encoder, texts)
        # Threads of the process that a loader worker was forked from are not there any more.
        return (self.encoder.encode(text, add_special_tokens=False).ids for text in texts)


class _Lane:
    """One lane, block after block.

    Args:
        source: what is streamed.
        start: where to begin.
    """

    def __init__(self, source: StreamSource, start: Mark) -> None:
        self.mark = start
        self._source = source
        self._documents = self._from(start)
        self._tokens = np.empty(0, dtype=np.int64)

    def next_block(self) -> Tokens:
        """The block that `mark` tells of, and move on. [block_size]"""
        block = np.empty(self._source.block_size, dtype=np.int64)
        number, turn, row, token = self.mark
        filled = 0
        if self._source.bos_token_id is not None:
            block[0], filled = self._source.bos_token_id, 1
        while filled < len(block):
            while token >= len(self._tokens):
                turn, row, token, self._tokens = next(self._documents)
            taken = self._tokens[token : token + len(block) - filled]
            block[filled : filled + len(taken)] = taken
            filled, token = filled + len(taken), token + len(taken)
        self.mark = Mark(number + 1, turn, row, token)
        return block

    def _from(self, start: Mark) -> Iterator[tuple[int, int, int, Tokens]]:
        """Turn, row, first wanted token and tokens of every document from a mark on, without end."""
        turn, row, token, empty = start.turn, start.row, start.token, 0
        while True:
            empty += 1
            for found, tokens in self._source.documents(turn, row):
                yield turn, found, token if found == row else 0, tokens
                empty = 0
            if empty > len(self._source.row_groups):
                self._source.require_text()
                empty = 0
            turn, row, token = turn + self._source.lanes, 0, 0


class StreamBlocks(Dataset[dict[str, Any]]):
    """So many blocks of a stream, by number, as a map-style data set; picklable.

    Reading on is cheap. Reading back, or far ahead, starts its lane again: at the last mark that `start_at` gave, or at
    its beginning.

    Args:
        source: what is streamed.
        blocks: how many.
    """

    def __init__(self, source: StreamSource, blocks: int) -> None:
        self.source = source
        self.blocks = blocks
        self._marks: dict[int, Mark] = {}
        self._lanes: dict[int, _Lane] = {}

    def __len__(self) -> int:
        return self.blocks

    def start_at(self, marks: Sequence[Sequence[int]]) -> None:
        """Let the lanes begin where they once were.

        Args:
            marks: a `Mark` of every lane, in order.
        """
        self._marks = {lane: Mark(*mark) for lane, mark in enumerate(marks)}
        self._lanes = {}

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`input_ids` int64 [block_size]; `reached`, the number of the lane and its `Mark` after the block, int64 [5].

        Raises:
            CoCoMixError: a shard cannot be read, or a row holds no text.
        """
        if not 0 <= index < self.blocks:
            raise IndexError(f"block {index} of {self.blocks}")
        block, number = divmod(index, self.source.lanes)
        lane = self._lane(number, block)
        while lane.mark.block < block:
            lane.next_block()
        tokens = lane.next_block()
        return {"input_ids": torch.from_numpy(tokens), "reached": np.asarray([number, *lane.mark], dtype=np.int64)}

    def _lane(self, number: int, block: int) -> _Lane:
        """The lane, at the block or before it."""
        open_lane = self._lanes.get(number)
        mark = self._marks.get(number, Mark(0, number, 0, 0))
        if mark.block > block:
            mark = Mark(0, number, 0, 0)
        if open_lane is None or not mark.block <= open_lane.mark.block <= block:
            open_lane = self._lanes[number] = _Lane(self.source, mark)
        return open_lane

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files behind: another process opens its own."""
        return {**self.__dict__, "_lanes": {}}
