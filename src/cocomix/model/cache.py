"""The key-value cache of the two halves: the lower one holds t entries, the upper one t or 2t for each pass of it."""

from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from cocomix.runtime.errors import CoCoMixError


class CoCoMixCache(Cache):  # type: ignore[misc]
    """One cache for both halves of a CoCoMix model; every length it reports is in *tokens*.

    `layers` is the lower half's layers, the upper half's, those of every pass, and those beside the halves, so that
    what Hugging Face does to all layers alike (reorder for beams, repeat, select, reset) reaches all. Only lengths
    differ: removing n tokens removes n times the positions that a token takes there.

    Args:
        lower_config: configuration of the lower half (decides which layers slide).
        upper_config: configuration of the upper half.
        passes: entries of the upper half per token, 1 or 2, for every time it is run; see `Mixing.passes`.
        keeps: layers for what is kept of every token beside the halves; see `CoCoMixConfig.keeps`.

    Attributes:
        upper: the upper half's caches, one a pass.
        kept: these layers. [batch, 1, tokens, …] as keys and values
    """

    def __init__(
        self, lower_config: PreTrainedConfig, upper_config: PreTrainedConfig, passes: tuple[int, ...], keeps: int
    ) -> None:
        self.lower = DynamicCache(config=lower_config)
        self.upper = tuple(DynamicCache(config=upper_config) for _ in passes)
        self.passes = passes
        self.kept = tuple(DynamicLayer() for _ in range(keeps))
        halves = [layer for each in (self.lower, *self.upper) for layer in each.layers]
        super().__init__(layers=[*halves, *self.kept])

    @property
    def split(self) -> tuple[int, int, tuple[int, ...], int]:
        """Blocks below, blocks above, positions per token by pass, layers beside: model and cache agree here."""
        return len(self.lower.layers), len(self.upper[0].layers), self.passes, len(self.kept)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen so far, whichever layer is asked for."""
        return int(self.upper[0].get_seq_length()) // self.passes[0]

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Key length and offset, in tokens, of a mask over all tokens so far plus `query_length` new ones."""
        return self.get_seq_length() + query_length, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` tokens (Hugging Face's sign: never positive) in both halves."""
        self.lower.crop(tokens_to_remove)
        for width, upper in zip(self.passes, self.upper, strict=True):
            upper.crop(width * tokens_to_remove)
        for layer in self.kept:
            layer.crop(tokens_to_remove)

    def unless(self, given: Any) -> "CoCoMixCache":
        """The given cache, or this new one in place of none or of an empty stock cache that a caller prepared.

        One that holds entries of another model, or of another kind, is refused.
        """
        if isinstance(given, CoCoMixCache):
            if given.split != self.split:
                raise CoCoMixError(
                    f"past_key_values was made for another split (lower blocks, upper blocks, positions per token in "
                    f"each pass, layers beside the halves = {given.split}); pass this model's own earlier output, or "
                    "None."
                )
            return given
        if given is not None and given.get_seq_length() > 0:
            raise CoCoMixError(
                f"past_key_values is a filled {type(given).__name__}, but a CoCoMix model needs the CoCoMixCache of "
                "its own earlier output; pass that, or None."
            )
        return self


class NothingCached(Cache):  # type: ignore[misc]
    """Keeps nothing: keys and values go on as they come.

    Without a mask and without a cache, Hugging Face's decoders compare position ids to find packed documents, and wait
    for the accelerator to know the answer; compiled, they build the whole mask instead. Where positions are known to
    run from 0 to seq − 1, this stands in for "there are no earlier tokens" and spares both.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keys and values as they are; without layers, the base class counts no token before them."""
        return key_states, value_states
