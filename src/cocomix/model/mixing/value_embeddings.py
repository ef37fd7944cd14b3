"""`mixing: values` and `mixing: token_values`: what is looked up adds to the values of the upper half's attention."""

import math
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel

from cocomix.model.bigram import AddsToBlocks
from cocomix.model.mixing.form import Concepts, Layout, Mixing
from cocomix.runtime.errors import CoCoMixError

_VALUE_PROJECTIONS = ("v_proj", "c_attn", "qkv_proj")
"""What makes an attention layer's values, in their last columns where queries and keys come out of it, too."""
_GATE_WIDTH, _GATE_LIMIT = 12, 3.0  # channels that a gate reads, and its largest value; nanochat's


class _Values(AddsToBlocks, Mixing):
    """Base: h_t enters the upper half, and hooks add to the values of every `step`-th block up to the last.

    `forward` holds what is added, [batch, seq, d_v] for each of these blocks.
    """

    step: ClassVar[int] = 1

    def readout(self, hidden: Tensor) -> Tensor:
        self.forget()
        return hidden

    def attach(self, lower: PreTrainedModel, upper: PreTrainedModel) -> None:
        """See `Mixing.attach`; refuses attention that has no projection whose last columns are its values."""
        found = [layer for name, layer in upper.named_modules() if name.rpartition(".")[2] in _VALUE_PROJECTIONS]
        if len(found) != upper.config.num_hidden_layers:
            raise CoCoMixError(
                f"mixing={self.name!r} does not know how a {upper.config.model_type} backbone makes its values; use "
                "another mixing, or a backbone like gpt2 or llama."
            )
        for place, layer in enumerate(found[:: -self.step][::-1]):
            layer.register_forward_hook(partial(self._add, place))

    def _add(self, place: int, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        added = self._gated(place, inputs[0], self._added[place])
        return output + F.pad(added, (output.shape[-1] - added.shape[-1], 0)).to(output.dtype)

    def _gated(self, place: int, entering: Tensor, added: Tensor) -> Tensor:
        return added

    @classmethod
    def _sizes(cls, config: PreTrainedConfig) -> tuple[int, int, int]:
        """Blocks whose values grow, heads of the values, and width of a head."""
        backbone = config.backbone
        heads = getattr(backbone, "num_key_value_heads", None) or backbone.num_attention_heads
        head_dim = getattr(backbone, "head_dim", None) or backbone.hidden_size // backbone.num_attention_heads
        return -(-(config.num_hidden_layers - config.insert_layer) // cls.step), heads, head_dim


class ConceptValues(_Values):
    """v_t + g_l·(Σ_j softmax(s)_j E_l[i_j] + b_l) in every upper block l: our form, after value embeddings of tokens.

    v_t are the values that the block's attention makes of its input, i_j and s_j the `concept_topk` chosen concepts and
    their logits, g_l a learned number that starts at 1. Lookups alone: no position and no matrix product is added. With
    `compression_init: zero` the model starts as the plain decoder. An intervention that sets all logits to 0 mixes the
    chosen concepts in equal shares.
    """

    name = "values"
    described = "concepts add to the values of the upper half's attention (our option)"
    arm = "values"
    like_hidden = False

    def __init__(self, config: PreTrainedConfig) -> None:
        if config.prediction != "concepts":
            raise CoCoMixError(
                f"mixing='values' looks concepts up; with prediction={config.prediction!r} use another mixing."
            )
        super().__init__(config)
        self.softmax = True
        self.gains = nn.Parameter(torch.ones(self._sizes(config)[0]))

    def mix(self, hidden: Tensor, compressed: Tensor, concepts: Concepts) -> Tensor:
        """The hidden states; what is added to each block's values is held."""
        tables = compressed.view(*compressed.shape[:2], len(self.gains), -1) * self.gains.unsqueeze(-1)
        tables = tables.to(hidden.dtype)  # [batch, seq, blocks, d_v]
        self.hold(tables.unbind(-2), tables)
        return hidden

    @classmethod
    def compressed_width(cls, config: PreTrainedConfig) -> int:
        """Of the tables E_l, which lie side by side."""
        return math.prod(cls._sizes(config))


class TokenValues(_Values):
    """v_t + 3σ(W_l x_t)·E_l[token_t] in every second upper block l: value embeddings (nanochat), without concepts.

    x_t are the first twelve channels of what the block's attention reads; W_l gives a number for each head of values. A
    peer for plain decoders: with `insert_layer: 0` the upper half is the whole of one.
    """

    name = "token_values"
    described = "a table of token embeddings adds to the attention's values, without concepts (nanochat)"
    arm = "token values"
    predicts = mixes_in = False
    reads_tokens = True
    step = 2

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        blocks, self.heads, head_dim = self._sizes(config)
        self.table = nn.Embedding(config.vocab_size, blocks * self.heads * head_dim)
        nn.init.normal_(self.table.weight, std=config.backbone.initializer_range)
        width = min(_GATE_WIDTH, config.hidden_size)
        self.gates = nn.ModuleList(nn.Linear(width, self.heads, bias=False) for _ in range(blocks))

    def forward(self, hidden: Tensor, concepts: Concepts | None, layout: Layout | None = None) -> Tensor:
        """The hidden states, after looking the tokens up."""
        assert layout is not None
        assert layout.tokens is not None  # the model has seen to it
        rows = self.table(layout.tokens)
        self.hold(rows.view(*rows.shape[:2], len(self.gates), -1).unbind(-2), rows)
        return hidden

    def token_tables(self) -> tuple[nn.Embedding, ...]:
        return (self.table,)

    def _gated(self, place: int, entering: Tensor, added: Tensor) -> Tensor:
        gate = self.gates[place]
        strength = _GATE_LIMIT * gate(entering[..., : gate.in_features]).sigmoid()  # [batch, seq, heads]
        by_head = added.view(*added.shape[:2], self.heads, -1)
        stronger: Tensor = (strength.unsqueeze(-1) * by_head).flatten(-2)
        return stronger

    @classmethod
    def flops_per_token(cls, config: PreTrainedConfig, block_size: int | None = None) -> float:
        """Of the gates; see `Mixing.flops_per_token`."""
        blocks, heads, _ = cls._sizes(config)
        return float(2 * blocks * heads * min(_GATE_WIDTH, config.hidden_size))

    @classmethod
    def unread_parameters(cls, config: PreTrainedConfig) -> int:
        """All rows but one; see `Mixing.unread_parameters`."""
        blocks, heads, head_dim = cls._sizes(config)
        return int((config.vocab_size - 1) * blocks * heads * head_dim)
