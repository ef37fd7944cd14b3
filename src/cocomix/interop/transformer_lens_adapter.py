"""A student in TransformerLens (3.3 or later), which finds the adapter by its entry points.

Hooks: `embed`, `blocks.I` (before the concepts are predicted), `upper.J` (after; positions_per_token places a token;
of its last pass where a form runs the upper half more than once), `ln_final`, `unembed`, and at the mixing

  mixing.hook_in         the hidden state that concepts are predicted from. [batch, seq, d_model]
  mixing.hook_concepts   concept logits where they are among the top k, 0 elsewhere. [batch, seq, n_concepts]
  mixing.hook_out        the upper half's input. [batch, mixed_seq, d_model]

What a hook returns for `hook_concepts` is mixed in, with as many concepts as it leaves other than 0.
"""

from typing import Any

import torch
from torch import Tensor
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
from transformer_lens.model_bridge.generalized_components import EmbeddingBridge, OpaqueBlockBridge, UnembeddingBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

from cocomix.model import CoCoMixForCausalLM
from cocomix.model.backbone import backbone_of
from cocomix.model.mixing import Concepts, Layout


class CoCoMixArchitectureAdapter(ArchitectureAdapter):  # type: ignore[misc]
    """Where the parts of a `CoCoMixForCausalLM` of any backbone are. Weights stay as they are: nothing is folded."""

    supports_compatibility_mode = False
    supports_fold_ln = False
    applicable_phases: list[int] = []  # noqa: RUF012 - TransformerLens reads this class attribute

    def __init__(self, cfg: TransformerBridgeConfig) -> None:
        super().__init__(cfg)
        self.weight_processing_conversions: dict[str, Any] = {}
        self.component_mapping: dict[str, Any] = {}  # the family is known once there is a model

    def prepare_model(self, hf_model: CoCoMixForCausalLM) -> None:
        """Name the parts by the backbone's own attributes."""
        names = backbone_of(hf_model.config.backbone)
        self.component_mapping |= {
            "embed": EmbeddingBridge(name=f"lower.{names.token_embedding}"),
            "blocks": OpaqueBlockBridge(name=f"lower.{names.blocks}", config=self.cfg),
            "mixing": MixingBridge("mixing", self.cfg, hf_model.config.num_concepts),
            "upper": OpaqueBlockBridge(name=f"upper.{names.blocks}", config=self.cfg),
            "ln_final": GeneralizedComponent(name=f"upper.{names.final_norm}", config=self.cfg),
            "unembed": UnembeddingBridge(name="lm_head"),
        }


class MixingBridge(GeneralizedComponent):  # type: ignore[misc]
    """Wraps a form of mixing; see the module's docstring."""

    def __init__(self, name: str, config: TransformerBridgeConfig, num_concepts: int) -> None:
        super().__init__(name, config)
        self.num_concepts = num_concepts
        self.hook_concepts = HookPoint()

    def forward(self, hidden: Tensor, concepts: Concepts | None, layout: Layout | None = None) -> Tensor:
        """As `Mixing.forward`."""
        hidden = self.hook_in(hidden)
        if concepts is not None and concepts.ids is not None and self.hook_concepts.has_hooks():
            concepts = self._hooked(concepts)
        mixed: Tensor = self.hook_out(self.original_component(hidden, concepts, layout))
        return mixed

    def _hooked(self, concepts: Concepts) -> Concepts:
        """Show the concepts as one value each, which is large, and so only where a hook looks."""
        assert concepts.ids is not None
        batch, seq, _ = concepts.ids.shape
        shown = concepts.values.new_zeros(batch, seq, self.num_concepts).scatter(-1, concepts.ids, concepts.values)
        edited = self.hook_concepts(shown.clone())  # hooks may write into what they are given
        if torch.equal(edited, shown):  # bit for bit as without the hook
            return concepts
        most = max(1, int(edited.ne(0).sum(-1).max()))
        ids = edited.abs().topk(most, dim=-1).indices
        return concepts._replace(ids=ids, values=edited.gather(-1, ids))
