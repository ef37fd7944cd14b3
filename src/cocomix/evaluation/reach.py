"""Where validation curves come down to a loss, and the mean of several curves."""

from collections.abc import Sequence
from dataclasses import dataclass

from cocomix.training import CurvePoint

__all__ = ["Reach", "mean_curve", "reach"]


@dataclass(frozen=True)
class Reach:
    """Where a validation curve first comes down to a given loss.

    Attributes:
        tokens: training tokens needed.
        flops: training FLOPs needed.
        seconds: training wall clock needed.
        at_first_evaluation: the very first evaluation is already there, so that these numbers are upper bounds.
    """

    tokens: float
    flops: float
    seconds: float
    at_first_evaluation: bool


def reach(curve: Sequence[CurvePoint], loss: float) -> Reach | None:
    """Where a validation curve first reaches a loss, or `None`.

    Between the last evaluation above `loss` and the first one at or below it, loss is taken to fall linearly in tokens,
    and FLOPs and seconds to rise linearly with them.
    """
    for before, after in zip((None, *curve), curve, strict=False):
        if after.loss > loss:
            continue
        if before is None:
            return Reach(after.tokens, after.flops, after.seconds, at_first_evaluation=True)
        part = (before.loss - loss) / (before.loss - after.loss)
        return Reach(
            tokens=before.tokens + part * (after.tokens - before.tokens),
            flops=before.flops + part * (after.flops - before.flops),
            seconds=before.seconds + part * (after.seconds - before.seconds),
            at_first_evaluation=False,
        )
    return None


def mean_curve(curves: Sequence[Sequence[CurvePoint]]) -> tuple[CurvePoint, ...]:
    """The mean of several seeds' curves, at the token counts where all of them were evaluated.

    Args:
        curves: at least one, by rising token count, each ending at the same token count.
    """
    if len(curves) == 1:
        return tuple(curves[0])
    by_tokens = [{point.tokens: point for point in curve} for curve in curves]
    shared = sorted(set.intersection(*(set(points) for points in by_tokens)))
    count = len(curves)
    return tuple(
        CurvePoint(
            tokens=tokens,
            seconds=sum(points[tokens].seconds for points in by_tokens) / count,
            flops=sum(points[tokens].flops for points in by_tokens) / count,
            loss=sum(points[tokens].loss for points in by_tokens) / count,
        )
        for tokens in shared
    )
