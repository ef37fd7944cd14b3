"""Next-token prediction (NTP): L = −(1/N) Σ_t log p(x_{t+1} | x_{≤t}) over the N target tokens of a step."""

from typing import Any

from torch import Tensor, cat, nn
from transformers import PreTrainedConfig

from cocomix.model import CoCoMixConfig, next_tokens
from cocomix.runtime.ignore import IGNORE
from cocomix.training.objectives.objective import Batch, LossTerm, Objective
from cocomix.training.objectives.schedule import Schedule

__all__ = ["NextToken", "count_targets"]


class NextToken(Objective):
    """The loss of a plain decoder, and the first term of every arm (paper Eq. 4).

    Args:
        config: the model's; a CoCoMix model need not return logits for its loss.
    """

    name = "ntp"

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(Schedule(value=1.0))
        self._settings = {"output_logits": False} if isinstance(config, CoCoMixConfig) else {}

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Tokens, and labels without those that stand for no target under an attention mask."""
        given = {name: batch.get(name) for name in ("input_ids", "attention_mask", "position_ids", "labels")}
        if given["attention_mask"] is not None:  # which a plain decoder's loss does not look at
            targets = next_tokens(batch["labels"], given["attention_mask"])
            given["labels"] = cat((batch["labels"][:, :1], targets[:, :-1]), dim=1)
        return {**given, "num_items_in_batch": 1, "use_cache": False, **self._settings}  # 1: sums, not averages

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Target tokens."""
        return {"ntp_loss": count_targets(batch)}

    def __call__(self, output: Any, batch: Batch, head: nn.Module | None) -> dict[str, LossTerm]:
        """`ntp_loss`, nats per target token."""
        loss = output.ntp_loss if "ntp_loss" in output else output.loss
        return {"ntp_loss": LossTerm(loss, count_targets(batch), self.weight)}


def count_targets(batch: Batch) -> Tensor:
    """How many tokens of a batch are predicted. []"""
    return next_tokens(batch["labels"], batch.get("attention_mask")).ne(IGNORE).sum()
