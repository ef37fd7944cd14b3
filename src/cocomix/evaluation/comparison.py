"""The result of a comparison: rows of numbers, and the same as text, Markdown, CSV and JSON."""

import csv
import io
from dataclasses import asdict, dataclass
from typing import Any

from cocomix.evaluation.downstream_table import DownstreamTable
from cocomix.evaluation.formatting import NOTHING, duration, markdown_table, markdown_text, percent, si, signed
from cocomix.evaluation.reach import Reach
from cocomix.evaluation.statistics import Interval, PairedTest
from cocomix.training import CurvePoint

__all__ = [
    "COLUMNS",
    "DOCUMENT_COLUMNS",
    "REACH_COLUMNS",
    "SETTING_COLUMNS",
    "Comparison",
    "ComparisonRow",
    "Saving",
]


@dataclass(frozen=True)
class Saving:
    """Shares saved against the baseline on the way to its final loss, means over seeds; below 0 = more was needed.

    Attributes:
        tokens: of the training tokens.
        tokens_interval: its 95% interval over seeds; `None` for one seed.
        flops: of the student's training FLOPs.
        flops_with_teacher: with the teacher's work counted on both sides; `None` where it is not known.
        seconds: of the training wall clock.
    """

    tokens: float
    tokens_interval: Interval | None
    flops: float
    flops_with_teacher: float | None
    seconds: float


@dataclass(frozen=True)
class ComparisonRow:
    """One arm in the table. Numbers that differ between seeds are means.

    Attributes:
        name: the arm's name.
        kind: objective and what sets the arm apart, e.g. `cocomix, residual`, with how its labels were chosen where
            that is not the default.
        seeds: seeds of its runs.
        parameters: all of them.
        active_parameters: those that take part in a token's forward pass (paper section 3).
        learning_rate: the largest of the schedule; `None` in runs that did not record it.
        concept_loss_weight: λ; `None` without concepts or where it was not recorded.
        steps: optimizer steps.
        training_flops_per_token: by formula, forward and backward.
        tokens: training tokens seen by each run.
        losses: final validation losses by seed, nats per token.
        validation_loss: their mean.
        loss_interval: 95% t-interval of the mean; `None` for one seed.
        perplexity: exp(validation_loss).
        training_flops: all of one run's.
        flops_with_teacher: with the teacher's work for one run; `None` where it is not known.
        seconds: training wall clock, evaluation left out.
        tokens_per_second: tokens / seconds.
        difference: final loss minus the baseline's, seed by seed, averaged; below 0 = better.
        difference_interval: its 95% interval over seeds.
        reached: how many seeds reach the baseline's final loss.
        reach: where they reach it, averaged; `None` unless all do.
        flops_with_teacher_to_reach: `reach.flops` with the teacher's work.
        saving: what reaching it saves; `None` unless all seeds do.
        documents: test against the baseline on validation documents; `None` where it could not be made.
    """

    name: str
    kind: str
    seeds: tuple[int, ...]
    parameters: int
    active_parameters: int
    learning_rate: float | None
    concept_loss_weight: float | None
    steps: int
    training_flops_per_token: float
    tokens: int
    losses: tuple[float, ...]
    validation_loss: float
    loss_interval: Interval | None
    perplexity: float
    training_flops: float
    flops_with_teacher: float | None
    seconds: float
    tokens_per_second: float
    difference: float
    difference_interval: Interval | None
    reached: int
    reach: Reach | None
    flops_with_teacher_to_reach: float | None
    saving: Saving | None
    documents: PairedTest | None


COLUMNS = (
    "run",
    "kind",
    "seeds",
    "loss",
    "perplexity",
    "difference",
    "FLOPs",
    "with teacher",
    "wall-clock",
    "tokens/s",
)
"""Headings of the results; FLOPs are those of training, the loss is on the validation split in nats per token."""

SETTING_COLUMNS = ("run", "params", "active", "λ", "learning rate", "steps", "tokens", "FLOPs/token")
"""Headings of what was trained."""

REACH_COLUMNS = ("run", "tokens", "saved", "FLOPs", "saved", "with teacher", "saved", "wall-clock", "saved")
"""Headings of what each run needs to reach the baseline's final loss."""

DOCUMENT_COLUMNS = ("run", "difference", "95% interval", "better on", "p (Wilcoxon)", "p (Holm)")
"""Headings of the paired test on validation documents."""


@dataclass(frozen=True)
class Comparison:
    """Arms side by side.

    Attributes:
        rows: one per arm, in the order given.
        baseline: name of the arm the others are measured against.
        notes: how to read the numbers, one sentence each: choices made and differences between the runs.
        curves: each arm's validation curve (mean over seeds), by name.
        seed_curves: the curves of its runs, by name.
        conditions: what all runs share, label → value.
        downstream: downstream tasks; `None` where not all runs were measured alike, and the notes say why.
    """

    rows: tuple[ComparisonRow, ...]
    baseline: str
    notes: tuple[str, ...]
    curves: dict[str, tuple[CurvePoint, ...]]
    seed_curves: dict[str, tuple[tuple[CurvePoint, ...], ...]]
    conditions: dict[str, str]
    downstream: DownstreamTable | None = None

    @property
    def baseline_row(self) -> ComparisonRow:
        """The baseline's row."""
        return next(row for row in self.rows if row.name == self.baseline)

    @property
    def others(self) -> tuple[ComparisonRow, ...]:
        """Every row but the baseline's."""
        return tuple(row for row in self.rows if row.name != self.baseline)

    def cells(self) -> list[tuple[str, ...]]:
        """The results as text, one tuple per arm, in the order of `COLUMNS`."""
        return [
            (
                row.name,
                row.kind,
                str(len(row.seeds)),
                f"{row.validation_loss:.3f}{_plus_minus(row.loss_interval)}",
                f"{row.perplexity:,.1f}",
                "baseline"
                if row.name == self.baseline
                else signed(row.difference) + _plus_minus(row.difference_interval),
                si(row.training_flops),
                NOTHING if row.flops_with_teacher is None else si(row.flops_with_teacher),
                duration(row.seconds),
                f"{row.tokens_per_second:,.0f}",
            )
            for row in self.rows
        ]

    def setting_cells(self) -> list[tuple[str, ...]]:
        """What was trained as text, one tuple per arm, in the order of `SETTING_COLUMNS`."""
        return [
            (
                row.name,
                si(row.parameters),
                si(row.active_parameters),
                NOTHING if row.concept_loss_weight is None else f"{row.concept_loss_weight:g}",
                NOTHING if row.learning_rate is None else f"{row.learning_rate:g}",
                f"{row.steps:,}",
                si(row.tokens),
                si(row.training_flops_per_token),
            )
            for row in self.rows
        ]

    def reach_cells(self) -> list[tuple[str, ...]]:
        """What every other arm needs to reach the baseline's final loss, in the order of `REACH_COLUMNS`."""
        cells = []
        for row in self.others:
            if row.reach is None or row.saving is None:
                seeds = f" by {len(row.seeds) - row.reached} of {len(row.seeds)} seeds" if row.reached else ""
                cells.append((row.name, f"not reached{seeds}", *[NOTHING] * 7))
                continue
            bound = "≤ " if row.reach.at_first_evaluation else ""
            teacher = row.flops_with_teacher_to_reach
            with_teacher = row.saving.flops_with_teacher
            cells.append(
                (
                    row.name,
                    bound + si(row.reach.tokens),
                    _share(row.saving.tokens) + _range(row.saving.tokens_interval),
                    bound + si(row.reach.flops),
                    _share(row.saving.flops),
                    NOTHING if teacher is None else bound + si(teacher),
                    NOTHING if with_teacher is None else _share(with_teacher),
                    bound + duration(row.reach.seconds),
                    _share(row.saving.seconds),
                )
            )
        return cells

    def document_cells(self) -> list[tuple[str, ...]]:
        """The test on documents as text, in the order of `DOCUMENT_COLUMNS`; empty where it could not be made."""
        return [
            (
                row.name,
                signed(row.documents.difference),
                f"{signed(row.documents.low)} … {signed(row.documents.high)}",
                percent(row.documents.better),
                _p_value(row.documents.p_value),
                _p_value(row.documents.adjusted_p_value),
            )
            for row in self.others
            if row.documents is not None
        ]

    def to_markdown(self) -> str:
        """The tables and the notes as Markdown."""
        parts = [
            markdown_table(COLUMNS, self.cells()),
            f"To reach the final loss of {markdown_text(self.baseline)}:",
            markdown_table(REACH_COLUMNS, self.reach_cells()),
        ]
        if documents := self.document_cells():
            parts += [f"Against {markdown_text(self.baseline)} on the validation documents:"]
            parts += [markdown_table(DOCUMENT_COLUMNS, documents)]
        if self.downstream is not None:
            parts += ["Downstream tasks:", markdown_table(self.downstream.columns, self.downstream.cells)]
        parts += ["What was trained:", markdown_table(SETTING_COLUMNS, self.setting_cells())]
        parts.append("\n".join(f"- {markdown_text(note)}" for note in self.notes))
        return "\n\n".join(parts) + "\n"

    def to_csv(self) -> str:
        """Everything in the rows, unrounded, as CSV, one line per arm."""
        stream = io.StringIO()
        rows = [_flat(row) for row in self.rows]
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return stream.getvalue()

    def _downstream(self) -> dict[str, dict[str, float]]:
        """Arm → column → number."""
        assert self.downstream is not None
        return {name: dict(zip(self.downstream.columns[1:], row, strict=True)) for name, row in self.downstream.rows}

    def to_json(self) -> dict[str, Any]:
        """Everything, unrounded, as JSON."""
        return {
            "baseline": self.baseline,
            "conditions": self.conditions,
            "notes": list(self.notes),
            "rows": [asdict(row) for row in self.rows],
            "downstream": None if self.downstream is None else self._downstream(),
            "curves": {name: [asdict(point) for point in curve] for name, curve in self.curves.items()},
        }


def _flat(row: ComparisonRow) -> dict[str, Any]:
    """A row whose nested parts are columns of their own."""
    values = asdict(row)
    for nested in ("loss_interval", "difference_interval", "reach", "saving", "documents"):
        values.pop(nested)
    values["seeds"] = " ".join(map(str, row.seeds))
    values["losses"] = " ".join(map(repr, row.losses))
    for name, interval in (("loss", row.loss_interval), ("difference", row.difference_interval)):
        values[f"{name}_low"] = None if interval is None else interval.low
        values[f"{name}_high"] = None if interval is None else interval.high
    for axis in ("tokens", "flops", "seconds"):
        values[f"{axis}_to_baseline_loss"] = None if row.reach is None else getattr(row.reach, axis)
        values[f"{axis}_saved"] = None if row.saving is None else getattr(row.saving, axis)
    tokens_interval = None if row.saving is None else row.saving.tokens_interval
    values["tokens_saved_low"] = None if tokens_interval is None else tokens_interval.low
    values["tokens_saved_high"] = None if tokens_interval is None else tokens_interval.high
    values["flops_with_teacher_saved"] = None if row.saving is None else row.saving.flops_with_teacher
    for field in PairedTest.__dataclass_fields__:
        values[f"documents_{field}"] = None if row.documents is None else getattr(row.documents, field)
    return {name: "" if value is None else value for name, value in values.items()}


def _plus_minus(interval: Interval | None) -> str:
    return "" if interval is None else f" ± {interval.half_width:.3f}"


def _range(interval: Interval | None) -> str:
    return "" if interval is None else f" ({percent(interval.low)} … {percent(interval.high)})"


def _share(share: float) -> str:
    """Share saved against the baseline, or how much more is needed."""
    return percent(share) if share >= 0 else f"{percent(-share)} more"


def _p_value(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"
