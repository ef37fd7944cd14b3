"""A corpus streamed from Parquet shards, with prepared data beside it: tokenizer, sizes and validation blocks."""

from collections.abc import Sequence

from cocomix.artifacts import fingerprint_json
from cocomix.data.splits import VALIDATION
from cocomix.data.stream_blocks import StreamBlocks, StreamSource
from cocomix.data.stream_shards import find_shards
from cocomix.data.tokenizer import plain_encoder
from cocomix.data.tokens import Tokens

__all__ = ["StreamedData"]


class StreamedData(Tokens):
    """Prepared validation blocks, and training blocks that are made while training.

    There is no split `train`: how many blocks there are is not known before all is read. `blocks` gives them.

    Attributes:
        stream_shards: the Parquet files, in order.
        lanes: how many row groups are read side by side.
    """

    def __init__(self, heldout: Tokens, patterns: Sequence[str], *, text_column: str, lanes: int) -> None:
        """Find the shards and read their footers.

        Args:
            heldout: gives tokenizer, block size and validation blocks; its training blocks are not used.
            patterns: see `find_shards`.
            text_column: of the shards.
            lanes: how many row groups to read side by side, if there are so many.

        Raises:
            CoCoMixError: as `find_shards`.
        """
        self.stream_shards = find_shards(patterns, text_column)
        self.heldout = heldout
        self.text_column = text_column
        self._row_groups = tuple(group for shard in self.stream_shards for group in shard.row_groups)
        self.lanes = min(lanes, len(self._row_groups))
        identity = {
            "heldout": heldout.manifest.fingerprint,
            "footers": [shard.sha256 for shard in self.stream_shards],
            "text_column": text_column,
            "lanes": self.lanes,
        }
        changes = {
            "fingerprint": fingerprint_json({"stream": identity}),
            "splits": {VALIDATION: heldout.manifest.splits[VALIDATION]},
        }
        super().__init__(heldout.path, heldout.manifest.model_copy(update=changes))

    @property
    def documents(self) -> int:
        """Rows of all shards, those without text among them."""
        return sum(group.rows for group in self._row_groups)

    def blocks(self, count: int, seed: int) -> StreamBlocks:
        """The first so many training blocks.

        Args:
            count: how many.
            seed: of the order.
        """
        source = StreamSource(
            row_groups=self._row_groups,
            text_column=self.text_column,
            encoder=plain_encoder(self.tokenizer()),
            eos_token_id=self.manifest.eos_token_id,
            bos_token_id=self.manifest.bos_token_id,
            block_size=self.manifest.block_size,
            lanes=self.lanes,
            seed=seed,
        )
        return StreamBlocks(source, count)
