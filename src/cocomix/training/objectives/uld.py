"""Universal Logit Distillation (ULD, arXiv 2402.12030): L1 between sorted probabilities, whichever tokens they are of.

L = (1/N) Σ_t [Σ_{i≤K} |p_(i) − q_(i)| + |r_p − r_q|] over the N positions where a token of the student and one of the
teacher end at the same byte; p_(i) and q_(i) are the i-th largest probabilities of teacher and student. As in KD what
is not among the K largest is one more outcome, the rest r (our choice: a lower bound of the L1 over everything).
"""

from typing import Any

from torch import Tensor

from cocomix.training.objectives.ahead import OnLogits
from cocomix.training.objectives.objective import Batch


class SortedDistillation(OnLogits):
    """ULD on stored probabilities (`cocomix distill --kind uld`). The model's logits of all positions are held."""

    name = "uld"
    needs = frozenset({"teacher_log_probs"})

    def counted(self, batch: Batch) -> Tensor:
        """Positions with a target token and the teacher's probabilities."""
        known: Tensor = batch["teacher_log_probs"][..., 0].isfinite()
        return known & super().counted(batch)

    def summed(self, output: Any, batch: Batch, head: Any) -> Tensor:
        """`uld_loss`, 0 to 2 per position."""
        counted = self.counted(batch)
        teacher = batch["teacher_log_probs"][counted].float().exp()  # [N, K]
        student = output.logits[counted].float().softmax(-1).topk(teacher.shape[-1], dim=-1).values
        rest = (student.sum(-1) - teacher.sum(-1)).abs()
        distance: Tensor = (student - teacher).abs().sum(-1) + rest
        return distance.sum()
