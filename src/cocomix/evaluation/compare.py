"""Comparing runs: one table, and what each run needs to reach the baseline's final loss.

Like is compared with like: runs on other data, another tokenizer, another block size or evaluated in another precision
or on other blocks are refused, not warned about (house rule). Runs of different length may be compared, and the notes
say so.
"""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from cocomix.errors import CoCoMixError
from cocomix.evaluation.formatting import NOTHING, duration, percent, si, signed
from cocomix.evaluation.runs import CurvePoint, Run

__all__ = ["COLUMNS", "Comparison", "ComparisonRow", "Reach", "compare", "reach"]


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


@dataclass(frozen=True)
class ComparisonRow:
    """One run in the table.

    Attributes:
        name: the run's name.
        objective: `"ntp"` or `"cocomix"`.
        mixing: how concepts are mixed in; `None` for a run without concepts.
        parameters: all of them.
        active_parameters: those that take part in a token's forward pass (paper section 3).
        training_flops_per_token: by formula, forward and backward.
        tokens: training tokens seen.
        validation_loss: final, nats per token.
        perplexity: exp(validation_loss).
        training_flops: all of the run's.
        seconds: training wall clock, evaluation left out.
        tokens_per_second: tokens / seconds.
        difference: validation_loss minus the baseline's; below 0 = better.
        reach: where its curve reaches the baseline's final loss; `None` = not reached.
    """

    name: str
    objective: str
    mixing: str | None
    parameters: int
    active_parameters: int
    training_flops_per_token: float
    tokens: int
    validation_loss: float
    perplexity: float
    training_flops: float
    seconds: float
    tokens_per_second: float
    difference: float
    reach: Reach | None

    @property
    def kind(self) -> str:
        """Objective and mixing in one word or two, e.g. `cocomix, interleave`."""
        return self.objective if self.mixing is None else f"{self.objective}, {self.mixing}"


COLUMNS = (
    "run",
    "kind",
    "params",
    "active",
    "FLOPs/token",
    "tokens",
    "loss",
    "perplexity",
    "difference",
    "FLOPs",
    "wall-clock",
    "tokens/s",
)
"""Column headings of the table; FLOPs are those of training, the loss is on the validation split in nats per token."""


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        rows: one per run, in the order given.
        baseline: name of the run the others are measured against.
        notes: how to read the numbers, one sentence each: choices made and differences between the runs.
        curves: each run's validation curve, by name.
        conditions: what all runs share, label → value.
    """

    rows: tuple[ComparisonRow, ...]
    baseline: str
    notes: tuple[str, ...]
    curves: dict[str, tuple[CurvePoint, ...]]
    conditions: dict[str, str]

    @property
    def baseline_row(self) -> ComparisonRow:
        """The baseline's row."""
        return next(row for row in self.rows if row.name == self.baseline)

    def cells(self) -> list[tuple[str, ...]]:
        """The table as text, one tuple per run, in the order of `COLUMNS`."""
        return [
            (
                row.name,
                row.kind,
                si(row.parameters),
                si(row.active_parameters),
                si(row.training_flops_per_token),
                si(row.tokens),
                f"{row.validation_loss:.3f}",
                f"{row.perplexity:,.1f}",
                "baseline" if row.name == self.baseline else signed(row.difference),
                si(row.training_flops),
                duration(row.seconds),
                f"{row.tokens_per_second:,.0f}",
            )
            for row in self.rows
        ]

    def reach_cells(self) -> list[tuple[str, ...]]:
        """For every other run: its name, then tokens, FLOPs and seconds to the baseline's final loss with savings."""
        base = self.baseline_row.reach
        assert base is not None  # a curve reaches its own last point
        cells = []
        for row in self.rows:
            if row.name == self.baseline:
                continue
            if row.reach is None:
                cells.append((row.name, *["not reached", NOTHING] * 3))
                continue
            bound = "≤ " if row.reach.at_first_evaluation else ""
            cells.append(
                (
                    row.name,
                    bound + si(row.reach.tokens),
                    _saving(row.reach.tokens, base.tokens),
                    bound + si(row.reach.flops),
                    _saving(row.reach.flops, base.flops),
                    bound + duration(row.reach.seconds),
                    _saving(row.reach.seconds, base.seconds),
                )
            )
        return cells

    def to_markdown(self) -> str:
        """The table, what each run needs to reach the baseline's final loss, and the notes, as Markdown."""
        parts = [_markdown_table(COLUMNS, self.cells())]
        if len(self.rows) > 1:
            heading = ("run", "tokens", "saved", "FLOPs", "saved", "wall-clock", "saved")
            parts.append(f"To reach the final loss of {_markdown(self.baseline)}:")
            parts.append(_markdown_table(heading, self.reach_cells()))
        parts.append("\n".join(f"- {_markdown(note)}" for note in self.notes))
        return "\n\n".join(parts) + "\n"

    def to_csv(self) -> str:
        """The table with unrounded numbers as CSV, one line per run."""
        stream = io.StringIO()
        rows = [self._flat(row) for row in self.rows]
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return stream.getvalue()

    def to_json(self) -> dict[str, Any]:
        """Everything, unrounded, as JSON."""
        return {
            "baseline": self.baseline,
            "conditions": self.conditions,
            "notes": list(self.notes),
            "rows": [asdict(row) for row in self.rows],
            "curves": {name: [asdict(point) for point in curve] for name, curve in self.curves.items()},
        }

    def _flat(self, row: ComparisonRow) -> dict[str, Any]:
        values = asdict(row)
        values.pop("reach")
        for axis in ("tokens", "flops", "seconds"):
            values[f"{axis}_to_baseline_loss"] = "" if row.reach is None else getattr(row.reach, axis)
        return values


def compare(runs: Sequence[Run], baseline: str | None = None) -> Comparison:
    """Put runs side by side.

    Args:
        runs: at least two, of different names.
        baseline: name of the run to measure against; by default the `ntp` run. Of several `ntp` runs the one whose
            active parameters are nearest the mean of the other runs' is taken, and the notes say so.

    Raises:
        CoCoMixError: fewer than two runs, a name twice, no such baseline, or runs that must not be compared; the two
            runs and the values in which they differ are named.
    """
    if len(runs) < 2:
        raise CoCoMixError(f"a comparison needs at least two runs, but {len(runs)} was given; name another run.")
    for one, other in combinations(runs, 2):
        _refuse_unlike(one, other)
    chosen, reason = _choose_baseline(runs, baseline)
    target = chosen.curve[-1].loss
    rows = tuple(_row(run, chosen, target) for run in runs)
    data = chosen.manifest.data
    return Comparison(
        rows=rows,
        baseline=chosen.manifest.name,
        notes=(reason, *_notes(runs, chosen)),
        curves={run.manifest.name: run.curve for run in runs},
        conditions={
            "data": data.fingerprint[:16],
            "tokenizer": data.tokenizer_fingerprint[:16],
            "block size": f"{data.block_size} tokens",
            "validation blocks": f"{chosen.manifest.evaluation_blocks:,}",
            "evaluation precision": chosen.manifest.evaluation_dtype,
        },
    )


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


def _refuse_unlike(one: Run, other: Run) -> None:
    a, b = one.manifest, other.manifest
    if a.name == b.name:
        raise CoCoMixError(
            f"two runs are named {a.name!r} ({one.path} and {other.path}); name each run once, or rename one of them."
        )
    for what, first, second in (
        ("tokenizer", a.data.tokenizer_fingerprint[:16], b.data.tokenizer_fingerprint[:16]),
        ("block size", a.data.block_size, b.data.block_size),
        ("data", a.data.fingerprint[:16], b.data.fingerprint[:16]),
        ("evaluation precision", a.evaluation_dtype, b.evaluation_dtype),
        ("number of validation blocks", a.evaluation_blocks, b.evaluation_blocks),
    ):
        if first != second:
            raise CoCoMixError(
                f"runs {a.name!r} and {b.name!r} differ in their {what} ({first} and {second}), so their losses cannot "
                "be compared; compare runs that share it."
            )


def _choose_baseline(runs: Sequence[Run], name: str | None) -> tuple[Run, str]:
    names = ", ".join(run.manifest.name for run in runs)
    if name is not None:
        for run in runs:
            if run.manifest.name == name:
                return run, f"Baseline: {name}, as asked for."
        raise CoCoMixError(f"there is no run named {name!r} to be the baseline; the runs are {names}.")
    plain = [run for run in runs if run.manifest.objective == "ntp"]
    if not plain:
        raise CoCoMixError(f"none of the runs has the objective ntp; choose the baseline with --baseline: {names}.")
    if len(plain) == 1:
        return plain[0], f"Baseline: {plain[0].manifest.name}, the only run trained on next tokens alone."
    active = [run.manifest.parameters.active for run in runs if run.manifest.objective != "ntp"]
    if not active:
        return plain[0], f"Baseline: {plain[0].manifest.name}, the first of the runs."
    mean = sum(active) / len(active)
    nearest = min(plain, key=lambda run: abs(run.manifest.parameters.active - mean))
    return nearest, (
        f"Baseline: {nearest.manifest.name}, of the ntp runs the one whose active parameters are nearest the others' "
        f"mean of {si(mean)}."
    )


def _row(run: Run, baseline: Run, target: float) -> ComparisonRow:
    manifest = run.manifest
    loss = manifest.final.eval_loss
    return ComparisonRow(
        name=manifest.name,
        objective=manifest.objective,
        mixing=manifest.mixing,
        parameters=manifest.parameters.total,
        active_parameters=manifest.parameters.active,
        training_flops_per_token=manifest.flops_per_token.training,
        tokens=manifest.tokens,
        validation_loss=loss,
        perplexity=math.exp(loss),
        training_flops=manifest.tokens * manifest.flops_per_token.training,
        seconds=manifest.seconds,
        tokens_per_second=manifest.tokens / manifest.seconds,
        difference=loss - baseline.manifest.final.eval_loss,
        reach=reach(run.curve, target),
    )


def _notes(runs: Sequence[Run], baseline: Run) -> list[str]:
    notes = [
        "Loss is nats per token on the validation split; a difference below 0 is better than the baseline.",
        "The baseline's final loss is reached where a run's validation curve first comes down to the last point of the "
        "baseline's curve; between two evaluations the curve is taken as a straight line in tokens.",
        "FLOPs and seconds are those of training the student; the teacher, its dictionary and the labelling, which a "
        "CoCoMix run needs once, are not in them, and evaluation is not in the seconds.",
        "Each row is one run with one seed; differences of the size that another seed makes mean nothing.",
    ]
    manifests = [run.manifest for run in runs]
    for what, values in (
        ("training tokens", [f"{m.tokens:,}" for m in manifests]),
        ("seeds", [str(m.seed) for m in manifests]),
        ("training precision", [m.training_dtype for m in manifests]),
        ("devices, so seconds do not compare", [m.device for m in manifests]),
        ("labels", [m.labels.fingerprint[:16] for m in manifests if m.labels is not None]),
    ):
        if len(set(values)) > 1:
            notes.append(f"The runs differ in {what}: {', '.join(dict.fromkeys(values))}.")
    online = [manifest.name for manifest in manifests if manifest.online_labels is not None]
    if online:
        notes.append(f"Labels were made while training by {', '.join(online)}; their seconds include the labelling.")
    own = reach(baseline.curve, baseline.curve[-1].loss)
    if own is not None and own.tokens < baseline.curve[-1].tokens:
        notes.append(
            f"The baseline itself first reaches its final loss after {si(own.tokens)} of its "
            f"{si(baseline.curve[-1].tokens)} tokens; savings are measured against that point."
        )
    return notes


def _saving(needed: float, base: float) -> str:
    """Share saved against the baseline, or how much more is needed."""
    if base <= 0:
        return NOTHING
    share = 1.0 - needed / base
    return f"{percent(share)}" if share >= 0 else f"{percent(-share)} more"


def _markdown(text: str) -> str:
    """Text that Markdown shows as it is, within a table cell too."""
    for sign in "\\`*_[]<>|#~":
        text = text.replace(sign, "\\" + sign)
    return " ".join(text.split())


def _markdown_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [
        "| " + " | ".join(heading) + " |",
        "|" + "|".join(" --- " if column == 0 else " ---: " for column in range(len(heading))) + "|",
    ]
    lines += ["| " + " | ".join(_markdown(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)
