"""What this room asks of prepared tokens: shards of equal-length blocks, whoever prepared them."""

from typing import Any, Protocol

from numpy.typing import NDArray

__all__ = ["TokenShardLike"]


class TokenShardLike(Protocol):
    """A shard of prepared tokens."""

    @property
    def name(self) -> str:
        """Split and number, `train/00000`."""
        ...

    @property
    def num_blocks(self) -> int:
        """Rows."""
        ...

    def read(self) -> NDArray[Any]:
        """Token ids [num_blocks, block_size], any integer dtype."""
        ...
