"""Comparing runs: what each arm reached, against the baseline, over seeds and document by document.

Like is compared with like: runs on other data, another tokenizer or block size, of another length or precision, or
evaluated on other blocks are refused, not warned about (house rule).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cocomix.evaluation.arms import Arm, choose_baseline, group
from cocomix.evaluation.comparison import Comparison, ComparisonRow, Saving
from cocomix.evaluation.downstream_table import downstream_table
from cocomix.evaluation.formatting import si
from cocomix.evaluation.reach import Reach, reach
from cocomix.evaluation.run_evaluation import evaluations_of
from cocomix.evaluation.run_inputs import run_labels
from cocomix.evaluation.statistics import MINIMAL_DOCUMENTS, PairedTest, holm, paired_test, t_interval
from cocomix.evaluation.teacher_flops import TeacherCost, label_words, teacher_cost
from cocomix.runtime.errors import require_extra
from cocomix.training import Run

__all__ = ["compare"]


def compare(runs: Sequence[Run], baseline: str | None = None) -> Comparison:
    """Put runs side by side. Runs of one name and different seeds are one arm.

    Args:
        runs: of at least two names.
        baseline: name of the arm to measure against; by default the `ntp` arm. Of several `ntp` arms the one whose
            active parameters are nearest the mean of the other arms' is taken, and the notes say so.

    Raises:
        CoCoMixError: fewer than two arms, a name and seed twice, no such baseline, or runs that must not be compared;
            the two runs and the values in which they differ are named.
    """
    require_extra("report", "matplotlib", "scipy", purpose="a comparison")
    arms = group(runs)
    chosen, reason = choose_baseline(arms, baseline)
    costs = {arm.name: teacher_cost(arm.runs[0]) for arm in arms}
    tests, documents_note = _document_tests(arms, chosen)
    downstream, downstream_note = downstream_table(arms)
    rows = tuple(_row(arm, chosen, costs[arm.name], costs[chosen.name], tests.get(arm.name)) for arm in arms)
    manifest = chosen.manifest
    return Comparison(
        rows=rows,
        baseline=chosen.name,
        notes=(reason, *_notes(arms, chosen, rows), documents_note, downstream_note),
        curves={arm.name: arm.curve for arm in arms},
        seed_curves={arm.name: tuple(run.curve for run in arm.runs) for arm in arms},
        conditions={
            "data": manifest.data.fingerprint[:16],
            "tokenizer": manifest.data.tokenizer_fingerprint[:16],
            "block size": f"{manifest.data.block_size} tokens",
            "training tokens": f"{manifest.tokens:,}",
            "training precision": manifest.training_dtype,
            "validation blocks": f"{manifest.evaluation_blocks:,}",
            "evaluation precision": manifest.evaluation_dtype,
        },
        downstream=downstream,
    )


@dataclass(frozen=True)
class _SeedResult:
    """One run against its partner: the difference of the final losses, and both ways to the partner's final loss."""

    difference: float
    needed: Reach | None
    partner_needed: Reach


def _row(
    arm: Arm,
    baseline: Arm,
    cost: TeacherCost | None,
    baseline_cost: TeacherCost | None,
    test: PairedTest | None,
) -> ComparisonRow:
    manifest = arm.manifest
    results = []
    for run, partner in zip(arm.runs, arm.partners(baseline), strict=True):
        target = partner[-1].loss
        partner_needed = reach(partner, target)
        assert partner_needed is not None  # a curve reaches its own last point
        results.append(_SeedResult(run.curve[-1].loss - target, reach(run.curve, target), partner_needed))
    found = [(result.needed, result.partner_needed) for result in results if result.needed is not None]
    losses = tuple(run.manifest.final.eval_loss for run in arm.runs)
    seconds = fmean(run.manifest.seconds for run in arm.runs)
    whole = len(found) == len(results)
    flops = manifest.tokens * manifest.flops_per_token.training
    return ComparisonRow(
        name=arm.name,
        kind=_kind(arm),
        seeds=arm.seeds,
        parameters=manifest.parameters.total,
        active_parameters=manifest.parameters.active,
        learning_rate=manifest.learning_rate,
        concept_loss_weight=manifest.concept_loss_weight,
        steps=manifest.steps,
        training_flops_per_token=manifest.flops_per_token.training,
        tokens=manifest.tokens,
        losses=losses,
        validation_loss=fmean(losses),
        loss_interval=t_interval(losses),
        perplexity=math.exp(fmean(losses)),
        training_flops=flops,
        flops_with_teacher=None if cost is None else flops + cost.at(manifest.tokens),
        seconds=seconds,
        tokens_per_second=manifest.tokens / seconds,
        difference=fmean(result.difference for result in results),
        difference_interval=t_interval([result.difference for result in results]),
        reached=len(found),
        reach=_mean_reach([needed for needed, _ in found]) if whole else None,
        flops_with_teacher_to_reach=_flops_with_teacher([needed for needed, _ in found], cost) if whole else None,
        saving=_saving(found, cost, baseline_cost) if whole else None,
        documents=test,
    )


def _kind(arm: Arm) -> str:
    """What sets an arm apart, in a few words."""
    manifest = arm.manifest
    words = manifest.arm
    if words is None:  # a run from before arms were recorded
        words = manifest.objective if manifest.mixing in (None, "interleave") else f"cocomix, {manifest.mixing}"
    labels = run_labels(arm.runs[0])
    if labels is None:
        return words
    chosen = label_words(labels.manifest)
    return f"{words}, labels: {chosen}" if chosen else words


def _mean_reach(reaches: Sequence[Reach]) -> Reach:
    return Reach(
        tokens=fmean(each.tokens for each in reaches),
        flops=fmean(each.flops for each in reaches),
        seconds=fmean(each.seconds for each in reaches),
        at_first_evaluation=any(each.at_first_evaluation for each in reaches),
    )


def _flops_with_teacher(reaches: Sequence[Reach], cost: TeacherCost | None) -> float | None:
    return None if cost is None else fmean(each.flops + cost.at(each.tokens) for each in reaches)


def _saving(
    found: Sequence[tuple[Reach, Reach]], cost: TeacherCost | None, baseline_cost: TeacherCost | None
) -> Saving:
    """Shares saved by each seed, averaged."""
    tokens = [1.0 - needed.tokens / base.tokens for needed, base in found]
    with_teacher = None
    if cost is not None and baseline_cost is not None:
        with_teacher = fmean(
            1.0 - (needed.flops + cost.at(needed.tokens)) / (base.flops + baseline_cost.at(base.tokens))
            for needed, base in found
        )
    return Saving(
        tokens=fmean(tokens),
        tokens_interval=t_interval(tokens),
        flops=fmean(1.0 - needed.flops / base.flops for needed, base in found),
        flops_with_teacher=with_teacher,
        seconds=fmean(1.0 - needed.seconds / base.seconds for needed, base in found),
    )


class _DocumentLosses(NamedTuple):
    """Summed losses and numbers of predicted tokens of every document of an evaluation."""

    conditions: tuple[Any, ...]
    losses: NDArray[np.float64]
    targets: NDArray[np.float64]


def _document_losses(run: Run) -> _DocumentLosses | None:
    """Of a run's newest evaluation; `None` where there is none."""
    for evaluation in evaluations_of(run)[:1]:
        grouped = evaluation.token_losses().groupby("document")["loss"]
        losses = grouped.sum().to_numpy(np.float64)
        return _DocumentLosses(evaluation.conditions, losses, grouped.size().to_numpy(np.float64))
    return None


def _document_tests(arms: Sequence[Arm], baseline: Arm) -> tuple[dict[str, PairedTest], str]:
    """A test of every other arm against the baseline, and how to read it or why there is none."""
    measured: dict[str, _DocumentLosses] = {}
    for arm in arms:
        found = [_document_losses(run) for run in arm.runs]
        losses = [each for each in found if each is not None]
        if len(losses) < len(found):
            return {}, (
                f"There is no test on documents: {arm.name} was not evaluated; measure every run with `cocomix eval "
                "RUN`."
            )
        if len({each.conditions for each in losses}) > 1:
            return {}, f"There is no test on documents: the seeds of {arm.name} were measured on different blocks."
        measured[arm.name] = losses[0]._replace(losses=np.mean([each.losses for each in losses], axis=0))
    base = measured[baseline.name]
    if any(each.conditions != base.conditions for each in measured.values()):
        return {}, "There is no test on documents: the runs were measured on different blocks or in other precisions."
    if len(base.targets) < MINIMAL_DOCUMENTS:
        return {}, f"There is no test on documents: {len(base.targets)} in the validation split tell too little."
    tests = {
        name: paired_test(each.losses, base.losses, base.targets)
        for name, each in measured.items()
        if name != baseline.name
    }
    adjusted = holm([test.p_value for test in tests.values()])
    tests = {
        name: replace(test, adjusted_p_value=p_value)
        for (name, test), p_value in zip(tests.items(), adjusted, strict=True)
    }
    return tests, (
        f"The test on documents compares the mean losses of {len(base.targets):,} validation documents (averaged over "
        "seeds): two-sided Wilcoxon signed-rank, Holm's correction over the arms, interval by resampling documents. It "
        "speaks of these trained models on other documents, not of other seeds."
    )


def _notes(arms: Sequence[Arm], baseline: Arm, rows: Sequence[ComparisonRow]) -> list[str]:
    notes = [
        "Loss is nats per token on the validation split; a difference below 0 is better than the baseline.",
        "The baseline's final loss is reached where a run's validation curve first comes down to the last point of the "
        "baseline's curve; between two evaluations the curve is taken as a straight line in tokens.",
        "FLOPs are those of training the student; \"with teacher\" adds the teacher's and the dictionary's work for "
        "labels (each label counted once, when it is first read) and inside training. Training the teacher and fitting "
        "the dictionary, and evaluation, are in neither; stored labels are not in the seconds.",
        *_seed_notes(arms, baseline),
    ]
    manifests = [arm.manifest for arm in arms]
    labels = {m.labels.fingerprint[:16]: None for m in manifests if m.labels is not None}
    devices = dict.fromkeys(run.manifest.device for arm in arms for run in arm.runs)
    for what, values in (("devices, so seconds do not compare", devices), ("labels", labels)):
        if len(values) > 1:
            notes.append(f"The runs differ in {what}: {', '.join(values)}.")
    online = [manifest.name for manifest in manifests if manifest.online_labels is not None]
    if online:
        notes.append(f"Labels were made while training by {', '.join(online)}; their seconds include the labelling.")
    unknown = [row.name for row in rows if row.flops_with_teacher is None]
    if unknown:
        notes.append(
            f"The teacher's FLOPs are not known for {', '.join(unknown)}: labels or teacher are not where they were."
        )
    own = reach(baseline.curve, baseline.curve[-1].loss)
    if own is not None and own.tokens < baseline.curve[-1].tokens:
        notes.append(
            f"The baseline itself first reaches its final loss after {si(own.tokens)} of its "
            f"{si(baseline.curve[-1].tokens)} tokens; savings are measured against that point."
        )
    return notes


def _seed_notes(arms: Sequence[Arm], baseline: Arm) -> list[str]:
    single = [arm.name for arm in arms if len(arm.seeds) == 1]
    if len(single) == len(arms):
        notes = ["Each row is one run with one seed; differences of the size that another seed makes mean nothing."]
    else:
        notes = ["± and ranges are 95% t-intervals over seeds."]
        if single:
            notes.append(f"One seed only, so without an interval: {', '.join(single)}.")
    unpaired = [arm.name for arm in arms if not set(arm.seeds) <= set(baseline.seeds)]
    if len(single) < len(arms):
        notes.append("Each seed is measured against the baseline's run of the same seed.")
    if unpaired:
        notes.append(
            f"The baseline lacks seeds of {', '.join(unpaired)}, which are measured against the baseline's mean curve; "
            "the baseline's own spread over seeds is then not in their intervals."
        )
    return notes
