"""A table of pairs of tokens that adds to the residual stream (modded-nanogpt), in any student: `bigram_rows`."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import CacheLayerMixin

from cocomix.runtime.ignore import IGNORE

_OF_TOKEN, _OF_TOKEN_BEFORE = 36313, 27191
_FIRST_GAIN = 0.1


class AddsToBlocks(nn.Module):
    """Base of modules that look something up and add it to every block by hooks.

    It is held for one forward pass and its backward pass: checkpointed blocks read it once more, and all have been gone
    back through when the gradient reaches the rows that were looked up.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._added: tuple[Tensor, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to a forward pass, for copies."""
        return {**self.__dict__, "_added": ()}

    def hold(self, added: tuple[Tensor, ...], rows: Tensor) -> None:
        """Keep what each block adds, which was made of `rows`."""
        self._added = added
        if rows.requires_grad and not torch.compiler.is_compiling():
            rows.register_hook(self.forget)  # type: ignore[no-untyped-call]

    def forget(self, gradient: Tensor | None = None) -> None:
        """Let go of a forward pass that nothing is differentiated through, or that was, which gave a gradient."""
        if gradient is not None or not torch.is_grad_enabled():
            self._added = ()


class BigramTable(AddsToBlocks):
    """x_t += g_l·E[r_t] before every block l, with r_t = (36313·token_t XOR 27191·token_{t−1}) mod (R − 1).

    E has R rows; the last is that of tokens with none before them in their document. E starts at 0 and g_l at 0.1, so
    that the model starts as it would without. Lookups alone: no position and no matrix product is added. Where a token
    takes several places of a block, its first one is added to: h, not the concept.
    """

    def __init__(self, rows: int, d_model: int, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, d_model)
        nn.init.zeros_(self.table.weight)
        places = [block.register_forward_pre_hook(partial(self._add, place)) for place, block in enumerate(blocks)]
        self.gains = nn.Parameter(torch.full((len(places),), _FIRST_GAIN))

    def rows(self, tokens: Tensor, before: Tensor) -> Tensor:
        """The row of each pair, where −100 stands for no token before. [batch, seq], int64 each"""
        last = self.table.num_embeddings - 1
        hashed = (_OF_TOKEN * tokens) ^ (_OF_TOKEN_BEFORE * before)
        return (hashed % last).masked_fill(before == IGNORE, last)

    def forward(self, tokens: Tensor, positions: Tensor | None, kept: CacheLayerMixin | None) -> None:
        """Look up what the blocks of this forward pass will add; arguments as of `preceding`."""
        tokens = tokens.long()
        found = self.table(self.rows(tokens, preceding(tokens, positions, kept)))
        self.hold(tuple(gain * found for gain in self.gains), found)

    def _add(self, place: int, block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, added = inputs[0], self._added[place].to(inputs[0])
        width = hidden.shape[1] // added.shape[1]
        if width > 1:
            added = F.pad(added.unsqueeze(2), (0, 0, 0, width - 1)).flatten(1, 2)
        return (hidden + added, *inputs[1:])


def preceding(tokens: Tensor, positions: Tensor | None, kept: CacheLayerMixin | None) -> Tensor:
    """The token before each new one, −100 where its document or the text begins. [batch, seq], int64

    One token follows another if its position is one more: so neither padding nor another document, where positions keep
    documents apart, is a token before. Without `positions` [batch or 1, seq] they are 0 … seq − 1. `kept` is a layer of
    the cache that holds earlier tokens; these are added to it.
    """
    seq = tokens.shape[1]
    positions = torch.arange(seq, device=tokens.device).unsqueeze(0) if positions is None else positions
    positions = positions.expand_as(tokens)
    if kept is not None:
        whole = kept.update(tokens[:, None, :, None], positions[:, None, :, None])
        tokens, positions = (each[:, 0, :, 0] for each in whole)
    before = F.pad(tokens[:, :-1], (1, 0), value=IGNORE)
    follows = F.pad(positions[:, 1:] == positions[:, :-1] + 1, (1, 0), value=False)
    return before.masked_fill(~follows, IGNORE)[:, -seq:]
