"""The key-value cache of the two halves: the lower one holds t entries, the upper one t or 2t."""

from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer


class CoCoMixCache(Cache):  # type: ignore[misc]
    """One cache for both halves of a CoCoMix model; every length it reports is in *tokens*.

    `layers` is the lower half's layers, the upper half's and the kept states, so that what Hugging Face does to all
    layers alike (reorder for beams, repeat, select, reset) reaches all. Only lengths differ: removing n tokens removes
    `positions_per_token`·n entries of the upper half.

    Args:
        lower_config: configuration of the lower half (decides which layers slide).
        upper_config: configuration of the upper half.
        positions_per_token: entries of the upper half per token, 1 or 2.
        keeps_states: also keep the lower half's outputs, for a form of mixing that `feeds_back`.
    """

    def __init__(
        self,
        lower_config: PreTrainedConfig,
        upper_config: PreTrainedConfig,
        positions_per_token: int,
        keeps_states: bool = False,
    ) -> None:
        self.lower = DynamicCache(config=lower_config)
        self.upper = DynamicCache(config=upper_config)
        self.positions_per_token = positions_per_token
        self.states = DynamicLayer() if keeps_states else None  # [batch, 1, tokens, d_model] as keys, no values
        kept = () if self.states is None else (self.states,)
        super().__init__(layers=[*self.lower.layers, *self.upper.layers, *kept])

    @property
    def split(self) -> tuple[int, int, int, bool]:
        """Blocks below, blocks above, positions per token, states kept: a model and its cache agree here."""
        return len(self.lower.layers), len(self.upper.layers), self.positions_per_token, self.states is not None

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen so far, whichever layer is asked for."""
        return int(self.upper.get_seq_length()) // self.positions_per_token

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Key length and offset, in tokens, of a mask over all tokens so far plus `query_length` new ones."""
        return self.get_seq_length() + query_length, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` tokens (Hugging Face's sign: never positive) in both halves."""
        self.lower.crop(tokens_to_remove)
        self.upper.crop(self.positions_per_token * tokens_to_remove)
        if self.states is not None:
            self.states.crop(tokens_to_remove)

    @property
    def is_compileable(self) -> bool:
        """False: the cache grows."""
        return False


class NothingCached(Cache):  # type: ignore[misc]
    """Keeps nothing: keys and values go on as they come.

    Without a mask and without a cache, Hugging Face's decoders compare position ids to find packed documents, and wait
    for the accelerator to know the answer; compiled, they build the whole mask instead. Where positions are known to
    run from 0 to seq − 1, this stands in for "there are no earlier tokens" and spares both.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keys and values as they are."""
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """No token came before."""
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Queries start at position 0."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """As many keys as queries, from position 0."""
        return query_length, 0
