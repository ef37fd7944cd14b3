"""Knowledge distillation (KD): L = (1/N) Σ_t KL(p_teacher(· | x_{≤t}) ‖ p_student(· | x_{≤t})) over N target tokens.

The paper adds it, times λ_KD, to next-token prediction and to pause tokens; any arm may have it. A teacher of another
tokenizer (`cocomix distill --kind first_token`) says nothing at some positions; N is the number of the others.
"""

from collections.abc import Callable, Iterable

from torch import Tensor

from cocomix.model.targets import Divergence, FullTargets, HeadLoss, TopTargets
from cocomix.training.objectives.objective import Batch, Schedule, SingleTerm


class Distillation(SingleTerm):
    """The KL divergence, nats per target token, weighted by λ_KD.

    Args:
        weight: λ_KD.
        targets: the teacher's next-token distributions of a batch.
        needs: columns that `targets` reads.
        teacher_flops: per token, where `targets` runs a teacher.
    """

    name = "kd"

    def __init__(
        self,
        weight: Schedule,
        targets: Callable[[Batch], FullTargets | TopTargets],
        needs: Iterable[str] = (),
        teacher_flops: float = 0.0,
    ) -> None:
        super().__init__(weight)
        self.targets = targets
        self.needs, self.teacher_flops = frozenset(needs), teacher_flops

    def head_losses(self, batch: Batch) -> dict[str, HeadLoss]:
        return {"kd_loss": Divergence.of_batch(self.targets(batch), self.counted(batch))}

    def counted(self, batch: Batch) -> Tensor:
        """Target tokens, of which the teacher says something."""
        counted = super().counted(batch)
        return counted & batch["teacher_log_probs"][..., 0].isfinite() if self.needs else counted
