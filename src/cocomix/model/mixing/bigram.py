"""`mixing: bigram`, a table of pairs of tokens that adds to the residual stream (modded-nanogpt), without concepts.

Before every upper block l, x_t += g_l·E[r_t] with r_t = (36313·token_t XOR 27191·token_{t−1}) mod (R − 1), of a hashed
table of R rows; the last row is that of tokens with none before them in their document. E starts at 0 and g_l at 0.1,
so that the model starts as the plain decoder. With `insert_layer: 0` every block is reached, as in the code.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from cocomix.model.backbone import backbone_of
from cocomix.model.mixing.adding import Adding
from cocomix.model.mixing.form import Concepts, Layout
from cocomix.model.positions import preceding
from cocomix.runtime.ignore import IGNORE

_OF_TOKEN, _OF_TOKEN_BEFORE = 36313, 27191
_ROWS_PER_TOKEN = 5
_FIRST_GAIN = 0.1


class BigramTable(Adding):
    """A peer for plain decoders; lookups alone: no position and no matrix product is added."""

    name = "bigram"
    described = "a hashed table of pairs of tokens adds to the residual stream, without concepts (modded-nanogpt)"
    arm = "bigram table"
    predicts = mixes_in = False
    reads_tokens = keeps = True

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.table = nn.Embedding(self._rows(config), config.hidden_size)
        nn.init.zeros_(self.table.weight)
        self.gains = nn.Parameter(torch.full((config.num_hidden_layers - config.insert_layer,), _FIRST_GAIN))

    def attach(self, lower: PreTrainedModel, upper: PreTrainedModel) -> None:
        """See `Mixing.attach`."""
        for place, block in enumerate(getattr(upper, backbone_of(upper.config).blocks)):
            block.register_forward_pre_hook(partial(self._add, place))

    def _add(self, place: int, block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs[0] + self._added[place].to(inputs[0]), *inputs[1:])

    def rows(self, tokens: Tensor, before: Tensor) -> Tensor:
        """The row of each pair, where −100 stands for no token before. [batch, seq], int64 each"""
        hashed = (_OF_TOKEN * tokens) ^ (_OF_TOKEN_BEFORE * before)
        last = self.table.num_embeddings - 1
        return (hashed % last).masked_fill(before == IGNORE, last)

    def forward(self, hidden: Tensor, concepts: Concepts | None, layout: Layout | None = None) -> Tensor:
        """The hidden states, after looking the pairs up."""
        assert layout is not None
        assert layout.tokens is not None  # the model has seen to it
        tokens = layout.tokens.long()
        added = self.table(self.rows(tokens, preceding(tokens, layout.positions, layout.cache)))
        self._added = tuple(gain * added for gain in self.gains)
        return hidden

    @classmethod
    def options(cls, config: Any) -> list[str]:
        rows = config.bigram_rows
        return [*super().options(config), *([f"{rows:,} rows"] if rows is not None else [])]

    @classmethod
    def unread_parameters(cls, config: PreTrainedConfig) -> int:
        """All rows but one; see `Mixing.unread_parameters`."""
        return int((cls._rows(config) - 1) * config.hidden_size)

    @staticmethod
    def _rows(config: PreTrainedConfig) -> int:
        rows: int = config.bigram_rows or _ROWS_PER_TOKEN * config.vocab_size
        return rows
