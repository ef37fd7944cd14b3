"""What objectives beside next-token prediction have in common: tokens further ahead, and the student's states."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from cocomix.model import CoCoMixConfig, next_tokens
from cocomix.model.backbone import build_halves
from cocomix.model.fused_head import Head
from cocomix.runtime.ignore import IGNORE
from cocomix.training.objectives.objective import Batch, SingleTerm


class OnLogits(SingleTerm):
    """An objective that reads the logits of all positions, which it has the model return."""

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """A plain decoder returns them unasked."""
        return {"output_logits": True} if isinstance(self.model.config, CoCoMixConfig) else {}


class OwnHead(SingleTerm):
    """An objective with a head as wide as the vocabulary, on the state that the language-model head reads."""

    reads_states = True

    def build_head(self, config: PreTrainedConfig) -> Head:
        """V·d parameters, which start as those of the model's own head would."""
        head = Head(config.hidden_size, config.vocab_size, bias=False)
        nn.init.normal_(head.weight, std=decoder_config(config).initializer_range)
        return head


def tokens_ahead(batch: Mapping[str, Any], count: int) -> Tensor:
    """The tokens x_{t+1} … x_{t+count} that position t may be asked for. [batch, seq, count] int64

    From the first that is no target (padding, another document, the end of the block) on they are `IGNORE`.
    """
    ahead = [next_tokens(batch["labels"], batch.get("attention_mask"))]
    for _ in range(count - 1):
        following = next_tokens(ahead[-1], None)  # of position t + 1
        ahead.append(following.masked_fill(ahead[-1] == IGNORE, IGNORE))
    return torch.stack(ahead, -1)


def first_occurrences(ahead: Tensor) -> Tensor:
    """`tokens_ahead` without what has come before at the same position: each token once."""
    earlier = (ahead.unsqueeze(-1) == ahead.unsqueeze(-2)).tril(-1).any(-1)  # [batch, seq, count]
    return ahead.masked_fill(earlier, IGNORE)


def last_states(output: Any) -> Tensor:
    """What the language-model head reads. [batch, seq, d_model]"""
    states: Tensor = output.last_hidden_state if "ntp_loss" in output else output.hidden_states[-1]
    return states


def states_after(output: Any, config: PreTrainedConfig, blocks: int) -> Tensor:
    """The residual stream after so many blocks, 0 for the embeddings; in the upper half, where tokens are read."""
    states: tuple[Tensor, ...] = output.hidden_states
    if not isinstance(config, CoCoMixConfig) or blocks <= config.insert_layer:
        return states[blocks]
    width = config.positions_per_token
    return states[blocks + 1][:, width - 1 :: width]  # the upper half's own input comes between


def decoder_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of the decoder that a model is, or is made of."""
    return config.backbone if isinstance(config, CoCoMixConfig) else config


def own_block(config: PreTrainedConfig) -> nn.Module:
    """A block of the decoder's kind with a final norm, a decoder by itself; called with `inputs_embeds`."""
    decoder = decoder_config(config)
    block: nn.Module = build_halves(decoder, decoder.num_hidden_layers - 1, 1, None)[1]
    return block


def masks_of(batch: Batch) -> dict[str, Tensor]:
    """What says which positions of a batch see one another, as decoders take it."""
    return {name: batch[name] for name in ("attention_mask", "position_ids") if batch.get(name) is not None}


def models_head(model: PreTrainedModel, *, frozen: bool = False) -> Head:
    """The language-model head as a `Head`, for states that are not the model's own; `frozen` without a gradient."""
    weight = model.get_output_embeddings().weight
    with torch.device("meta"):
        cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        head = Head(weight.shape[1], weight.shape[0], bias=False, softcap=cap)
    head.weight = nn.Parameter(weight.detach(), requires_grad=False) if frozen else weight
    return head


def head_flops(config: PreTrainedConfig) -> float:
    """FLOPs of training a vocabulary-wide head, per position: forward and twice that backward."""
    return 3.0 * 2.0 * float(config.hidden_size * config.vocab_size)
