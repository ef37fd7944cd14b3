"""What a forward pass of `CoCoMixForCausalLM` returns."""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput

from cocomix.model.cache import CoCoMixCache


@dataclass
class CoCoMixOutput(ModelOutput):  # type: ignore[misc]
    """Output of `CoCoMixForCausalLM`. Losses are in nats.

    Attributes:
        loss: ntp_loss + concept_loss_weight · (concept_loss or hidden_loss), as far as labels were given (Eq. 4). []
        ntp_loss: next-token cross-entropy, averaged over target tokens. []
        concept_loss: concept cross-entropy (Eq. 2), averaged over labelled positions. []
        hidden_loss: distance of predicted hidden states from the teacher's, averaged over target tokens; no nats. []
        head_losses: those that were asked for, by name, summed over positions; no part of `loss`. [] each
        logits: next-token logits, read at the concept positions where concepts are interleaved; `None` with
            `output_logits=False`. [batch, seq, vocab]
        concept_logits: z after edits, only with `output_concept_logits=True`. [batch, seq, n_concepts]
        concept_ids: the concepts mixed in at each token; `None` where the model has none. [batch, seq, k], int64
        concept_values: their logits. [batch, seq, k]
        shown: what the form of mixing has for an objective of its own, by name, with labels; mostly nothing.
        last_hidden_state: what the language-model head reads. [batch, seq, d_model]
        past_key_values: cache of both halves.
        hidden_states: lower half's, [batch, seq, d_model] each, then the upper half's, [batch, mixed_seq, d_model], of
            its last pass.
        attentions: likewise, lower then upper.
    """

    loss: Tensor | None = None
    ntp_loss: Tensor | None = None
    concept_loss: Tensor | None = None
    hidden_loss: Tensor | None = None
    head_losses: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    concept_logits: Tensor | None = None
    concept_ids: Tensor | None = None
    concept_values: Tensor | None = None
    shown: dict[str, Tensor] | None = None
    last_hidden_state: Tensor | None = None
    past_key_values: CoCoMixCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
