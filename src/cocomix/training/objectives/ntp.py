"""Next-token prediction (NTP): L = −(1/N) Σ_t log p(x_{t+1} | x_{≤t}) over the N target tokens of a step."""

from typing import Any

from torch import Tensor, cat
from transformers import PreTrainedConfig

from cocomix.model import CoCoMixConfig, next_tokens
from cocomix.training.objectives.objective import Batch, Schedule, SingleTerm


class NextToken(SingleTerm):
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

    def summed(self, output: Any, batch: Batch, head: Any) -> Tensor:
        """Nats; see `SingleTerm`."""
        loss: Tensor = output.ntp_loss if "ntp_loss" in output else output.loss
        return loss
