"""Runs grouped into arms (one name, several seeds), and which of them may be compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from cocomix.evaluation.formatting import si
from cocomix.evaluation.reach import mean_curve
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import CurvePoint, Run, RunManifest

__all__ = ["Arm", "choose_baseline", "group"]


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seed alone.

    Attributes:
        runs: at least one, by rising seed.
    """

    runs: tuple[Run, ...]

    @property
    def manifest(self) -> RunManifest:
        """The first seed's manifest; everything but seed, seconds and losses is the same in all."""
        return self.runs[0].manifest

    @property
    def name(self) -> str:
        """The name that its runs share."""
        return self.manifest.name

    @property
    def seeds(self) -> tuple[int, ...]:
        """Its seeds, rising."""
        return tuple(run.manifest.seed for run in self.runs)

    @property
    def curve(self) -> tuple[CurvePoint, ...]:
        """Mean of its runs' validation curves."""
        return mean_curve([run.curve for run in self.runs])

    def partners(self, other: "Arm") -> list[tuple[CurvePoint, ...]]:
        """For each of its runs, the curve of `other` to measure it against.

        That of the same seed where `other` has all of this arm's seeds, because runs of one seed see the same blocks in
        the same order; otherwise the mean curve.
        """
        by_seed = {run.manifest.seed: run.curve for run in other.runs}
        if by_seed.keys() >= set(self.seeds):
            return [by_seed[seed] for seed in self.seeds]
        return [other.curve] * len(self.runs)


def group(runs: Sequence[Run]) -> tuple[Arm, ...]:
    """Put runs of one name together.

    Raises:
        CoCoMixError: fewer than two arms; a name and seed twice; runs of one arm that differ in more than the seed, or
            runs that must not be compared. The two runs and the values in which they differ are named.
    """
    for one, other in combinations(runs, 2):
        _refuse_twins(one, other)
        _refuse_unlike(one, other)
    by_name: dict[str, list[Run]] = {}
    for run in runs:
        by_name.setdefault(run.manifest.name, []).append(run)
    if len(by_name) < 2:
        raise CoCoMixError(
            f"a comparison needs at least two runs of different names, but {len(by_name)} was given; name another run."
        )
    return tuple(Arm(tuple(sorted(found, key=lambda run: run.manifest.seed))) for found in by_name.values())


def choose_baseline(arms: Sequence[Arm], name: str | None) -> tuple[Arm, str]:
    """The arm to measure against, and why in one sentence.

    Args:
        arms: from `group`.
        name: of the baseline; by default the `ntp` arm, of several the one whose active parameters are nearest the
            mean of the others'.

    Raises:
        CoCoMixError: no arm has this name, or none is `ntp`.
    """
    names = ", ".join(arm.name for arm in arms)
    if name is not None:
        for arm in arms:
            if arm.name == name:
                return arm, f"Baseline: {name}, as asked for."
        raise CoCoMixError(f"there is no run named {name!r} to be the baseline; the runs are {names}.")
    plain = [arm for arm in arms if arm.manifest.objective == "ntp"]
    if not plain:
        raise CoCoMixError(f"none of the runs has the objective ntp; choose the baseline with --baseline: {names}.")
    if len(plain) == 1:
        return plain[0], f"Baseline: {plain[0].name}, the only run trained on next tokens alone."
    active = [arm.manifest.parameters.active for arm in arms if arm.manifest.objective != "ntp"]
    if not active:
        return plain[0], f"Baseline: {plain[0].name}, the first of the runs."
    mean = sum(active) / len(active)
    nearest = min(plain, key=lambda arm: abs(arm.manifest.parameters.active - mean))
    return nearest, (
        f"Baseline: {nearest.name}, of the ntp runs the one whose active parameters are nearest the others' "
        f"mean of {si(mean)}."
    )


def _refuse_twins(one: Run, other: Run) -> None:
    """Runs of one name must differ in their seed, and in nothing else."""
    a, b = one.manifest, other.manifest
    if a.name != b.name:
        return
    if a.seed == b.seed:
        raise CoCoMixError(
            f"two runs are named {a.name!r} with seed {a.seed} ({one.path} and {other.path}); name each run once, or "
            "rename one of them."
        )
    for what, first, second in (
        ("objective", a.objective, b.objective),
        ("mixing", a.mixing, b.mixing),
        ("parameters", a.parameters.total, b.parameters.total),
        ("learning rate", a.learning_rate, b.learning_rate),
        ("λ", a.concept_loss_weight, b.concept_loss_weight),
        ("weights", a.weights or b.weights, b.weights or a.weights),
        ("labels", a.labels and a.labels.fingerprint[:16], b.labels and b.labels.fingerprint[:16]),
    ):
        if first != second:
            raise CoCoMixError(
                f"{one.path} and {other.path} are both named {a.name!r} but differ in their {what} ({first} and "
                f"{second}), so they are not two seeds of one arm; give them different names."
            )


def _refuse_unlike(one: Run, other: Run) -> None:
    a, b = one.manifest, other.manifest
    for what, first, second in (
        ("tokenizer", a.data.tokenizer_fingerprint[:16], b.data.tokenizer_fingerprint[:16]),
        ("block size", a.data.block_size, b.data.block_size),
        ("data", a.data.fingerprint[:16], b.data.fingerprint[:16]),
        ("first blocks", a.data.first_blocks, b.data.first_blocks),
        ("document masks", a.document_masks, b.document_masks),
        ("training tokens", f"{a.tokens:,}", f"{b.tokens:,}"),
        ("training precision", a.training_dtype, b.training_dtype),
        ("evaluation precision", a.evaluation_dtype, b.evaluation_dtype),
        ("number of validation blocks", a.evaluation_blocks, b.evaluation_blocks),
    ):
        if first != second:
            raise CoCoMixError(
                f"runs {a.name!r} and {b.name!r} differ in their {what} ({first} and {second}), so their losses cannot "
                "be compared; compare runs that share it."
            )
