"""Knowledge distillation (KD): L = (1/N) Σ_t KL(p_teacher(· | x_{≤t}) ‖ p_student(· | x_{≤t})) over N target tokens.

The paper adds it, times λ_KD, to next-token prediction and to pause tokens; any arm may have it.
"""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig

from cocomix.model import CoCoMixConfig, FullTargets, TopTargets, next_tokens
from cocomix.model.fused_head import Divergence, fused_head
from cocomix.runtime.ignore import IGNORE
from cocomix.training.objectives.ntp import count_targets
from cocomix.training.objectives.objective import Batch, LossTerm, Objective
from cocomix.training.objectives.schedule import Schedule

__all__ = ["Distillation"]


class Distillation(Objective):
    """The KL divergence, weighted by λ_KD. A CoCoMix model computes it in its head; a plain decoder gives its logits.

    Args:
        weight: λ_KD.
        config: of the student.
        targets: the teacher's next-token distributions of a batch.
        needs: columns that `targets` reads.
        teacher_flops: per token, where `targets` runs a teacher.
    """

    name = "kd"

    def __init__(
        self,
        weight: Schedule,
        config: PreTrainedConfig,
        targets: Callable[[Batch], FullTargets | TopTargets],
        needs: Iterable[str] = (),
        teacher_flops: float = 0.0,
    ) -> None:
        super().__init__(weight)
        self.in_head, self.targets = isinstance(config, CoCoMixConfig), targets
        self.needs, self.teacher_flops = frozenset(needs), teacher_flops

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """The teacher's distributions, for a head that reads them; see `Objective`."""
        return {"teacher_targets": self.targets(batch)} if self.in_head else {}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Target tokens."""
        return {"kd_loss": count_targets(batch)}

    def __call__(self, output: Any, batch: Batch, head: nn.Module | None) -> dict[str, LossTerm]:
        """`kd_loss`, nats per target token."""
        if self.in_head:
            summed = output.kd_loss
        else:
            counted = next_tokens(batch["labels"], batch.get("attention_mask")).ne(IGNORE)
            divergence = Divergence.of_batch(self.targets(batch), counted)
            summed = fused_head(output.logits.flatten(0, 1), None, None, divergence).loss_sum
        return {"kd_loss": LossTerm(summed, count_targets(batch), self.weight)}

    def extra_flops_per_token(self, config: PreTrainedConfig) -> float:
        """The teacher's forward pass; see `Objective`."""
        return self.teacher_flops
