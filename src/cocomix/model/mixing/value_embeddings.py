"""`mixing: values`, concept-indexed value embeddings: our form, after the value embeddings of modded-nanogpt."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel

from cocomix.model.mixing.compression import ConceptCompression
from cocomix.model.mixing.form import Concepts, Mixing
from cocomix.runtime.errors import CoCoMixError

__all__ = ["ConceptValues"]

_VALUE_PROJECTIONS = ("v_proj", "c_attn", "qkv_proj")
"""What makes an attention layer's values, in their last columns where queries and keys come out of it, too."""


class ValueTables(ConceptCompression):
    """One table of values E_l [n_concepts, d_v] for each upper block l, side by side."""

    def forward(self, ids: Tensor, values: Tensor) -> Tensor:
        """Σ_j softmax(values)_j · weight[ids_j] + bias. [batch, seq, upper blocks · d_v]"""
        return super().forward(ids, values.softmax(-1))


class ConceptValues(Mixing):
    """v_t + g_l·(Σ_j softmax(s)_j E_l[i_j] + b_l) in every upper block l, whose input is h_t.

    v_t are the values that the block's attention makes of its input, i_j and s_j the `concept_topk` chosen concepts and
    their logits, g_l a learned number that starts at 1. Lookups alone: no position and no matrix product is added. With
    `compression_init: zero` the model starts as the plain decoder. An intervention that sets all logits to 0 mixes the
    chosen concepts in equal shares.
    """

    name = "values"
    described = "concepts add to the values of the upper half's attention (our option)"
    arm = "values"

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        if config.prediction != "concepts":
            raise CoCoMixError(
                f"mixing='values' looks concepts up; prediction={config.prediction!r} needs another mixing."
            )
        blocks, d_v = _sizes(config)
        self.compression = ValueTables(config.num_concepts, blocks * d_v)
        self.gains = nn.Parameter(torch.ones(blocks))
        self._added: tuple[Tensor, ...] = ()  # of the forward pass that runs; checkpointed blocks read it once more

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to a forward pass, for copies."""
        return {**self.__dict__, "_added": ()}

    def attach(self, upper: PreTrainedModel) -> None:
        """See `Mixing.attach`.

        Raises:
            CoCoMixError: the backbone's attention has no projection whose last columns are its values.
        """
        found = [layer for name, layer in upper.named_modules() if name.rpartition(".")[2] in _VALUE_PROJECTIONS]
        if len(found) != len(self.gains):
            raise CoCoMixError(
                f"mixing='values' does not know how a {upper.config.model_type} backbone makes its values; use another "
                "mixing, or a backbone like gpt2 or llama."
            )
        for block, layer in enumerate(found):
            layer.register_forward_hook(partial(self._add, block))

    def mix(self, hidden: Tensor, compressed: Tensor, concepts: Concepts) -> Tensor:
        """The hidden states, after noting what is added to each block's values."""
        tables = compressed.view(*compressed.shape[:2], len(self.gains), -1) * self.gains.unsqueeze(-1)
        self._added = tables.to(hidden.dtype).unbind(-2)
        return hidden

    def readout(self, hidden: Tensor) -> Tensor:
        """See `Mixing.readout`."""
        if not torch.is_grad_enabled():
            self._added = ()
        return hidden

    def _add(self, block: int, layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        added = self._added[block]  # [batch, seq, d_v]
        return output + F.pad(added, (output.shape[-1] - added.shape[-1], 0)).to(output.dtype)

    @classmethod
    def flops_per_token(cls, config: PreTrainedConfig) -> float:
        """Of k rows of each block's table; see `Mixing.flops_per_token`."""
        blocks, d_v = _sizes(config)
        return float(2 * config.concept_topk * blocks * d_v)


def _sizes(config: PreTrainedConfig) -> tuple[int, int]:
    """Upper blocks, and the width of the values of one."""
    backbone = config.backbone
    heads = getattr(backbone, "num_key_value_heads", None) or backbone.num_attention_heads
    head_dim = getattr(backbone, "head_dim", None) or backbone.hidden_size // backbone.num_attention_heads
    return config.num_hidden_layers - config.insert_layer, heads * head_dim
