"""The result of a comparison: data frames, whose columns columns.yaml describes; as JSON, and as tables.

The tables are the same on the page, in the terminal and in table.md.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from operator import attrgetter
from typing import Any

import pandas as pd
import yaml

from cocomix.evaluation.downstream import downstream_table
from cocomix.evaluation.loss_slices import SLICES
from cocomix.evaluation.pages import NOTHING, Table, duration, percent, si, signed

RELIANCE = ("mean", "shuffle", "shuffle_same_token", "token_table", "oracle")
"""Replacements of the concepts that a comparison shows; `zero` is out of distribution and stays in the evaluations."""

STUDENTS = (3, 10)
"""How many students may share labels, probabilities and a dictionary in the tables of cost."""

COSTS = ("tokens", "flops", "seconds")
"""What a run's own training costs."""

ALL_COSTS = (*COSTS, "total_flops", "flops_from_nothing", *(f"flops_of_{students}" for students in STUDENTS))
"""With what came before it."""

FRAMES = ("runs", "arms", "words", "baselines", "scaling", "curves")
"""The data frames of a comparison."""

FORMAT_VERSION = 3
"""Of its JSON."""


_TEXTS = ("arm", "kind", "objective", "device", "like_baseline", "slice", "value", "likeness", "baseline", "axis")
COLUMN_TYPES = {"annealed": "boolean", "seeds": "array", **{name: ["string", "null"] for name in _TEXTS}}
"""JSON types of columns that hold no numbers."""


@cache
def columns() -> dict[str, dict[str, str]]:
    """What each column holds, of each of `FRAMES`: those of columns.yaml, and costs and intervals beside them."""
    text = files("cocomix.evaluation").joinpath("columns.yaml").read_text(encoding="utf-8")
    told: dict[str, dict[str, str]] = yaml.safe_load(text)
    both = told["runs and arms"]
    for kind, others in told["replaced by"].items():
        both[kind] = f"Rise of the loss, nats, when concepts are replaced by {others}"
        interval = f"end of the rise's 95% interval over documents when concepts are replaced by {others}"
        both |= {f"{kind}_low": f"Lower {interval}", f"{kind}_high": f"Upper {interval}"}
    ratios = {f"{cost}_ratio": f"{cost} over the baseline's." for cost in (*ALL_COSTS, "active_parameters")}
    spent = {"flops": "training FLOPs", "total_flops": "FLOPs, teacher and dictionary included,"}
    share = "Share of the baseline's {} saved at a loss no worse; empty if not stated."
    saved = {f"{cost}_saved": share.format(spent.get(cost, cost)) for cost in ALL_COSTS}
    return told | {"runs": both | told["runs"], "arms": both | told["arms"] | ratios | saved}


def json_schema() -> dict[str, Any]:
    """JSON Schema of `Comparison.to_json`, which `cocomix compare --json` prints; it changes only with its version.

    It names, types and describes the columns of every frame; what is empty is null in JSON.
    """

    def rows(frame: str) -> dict[str, Any]:
        described = {
            name: {"type": COLUMN_TYPES.get(name, ["number", "null"]), "description": what}
            for name, what in columns()[frame].items()
        }
        return {"type": "array", "items": _whole(described)}

    def mapping(kind: str, what: str) -> dict[str, Any]:
        return {"type": "object", "additionalProperties": {"type": kind}, "description": what}

    return _whole(
        {
            "format_version": {"const": FORMAT_VERSION},
            "baseline": {"type": "string", "description": "Arm that the others are measured against."},
            "shared": mapping("string", "What all runs share."),
            "references": mapping("number", "Losses of n-gram models on the tokens of loss, nats per token."),
            "curve_references": mapping("number", "The same on the tokens of curves."),
            "notes": {"type": "array", "items": {"type": "string"}, "description": "How to read the numbers."},
            **{frame: rows(frame) for frame in FRAMES},
            "downstream": {"type": ["object", "null"], "description": "Arm → column → number; null if not measured."},
        }
    )


def _whole(properties: dict[str, Any]) -> dict[str, Any]:
    """An object with these properties, all of them, and no others."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


@dataclass(frozen=True)
class Comparison:
    """Arms side by side.

    Attributes:
        baseline: name of the arm that the others are measured against.
        runs: one row per run; this and the other frames have the columns of `columns`.
        arms: one row per arm, in the order given.
        words: differences from the baseline by kind of token.
        baselines: differences from NTP arms of equal FLOPs or parameters.
        references: losses of n-gram models on the tokens of `loss`, nats; empty where not measured.
        curve_references: the same on the tokens of `curves`; empty where others were evaluated.
        shared: what all runs share, label → value.
        downstream: of downstream tasks, from `downstream_numbers`; `None` where not all runs were measured alike.
    """

    baseline: str
    runs: pd.DataFrame
    arms: pd.DataFrame
    words: pd.DataFrame
    baselines: pd.DataFrame
    scaling: pd.DataFrame
    curves: pd.DataFrame
    references: Mapping[str, float]
    curve_references: Mapping[str, float]
    shared: Mapping[str, str]
    notes: tuple[str, ...]
    downstream: pd.DataFrame | None = None

    def mean_curves(self) -> dict[str, pd.DataFrame]:
        """Each arm's curve, averaged over its seeds at the token counts where all were evaluated; `low` and `high`."""
        made = {}
        for name, runs in self.curves.groupby("arm", sort=False):
            seeds = runs.groupby("tokens")["seed"].transform("count")
            points = runs[seeds == runs["seed"].nunique()].groupby("tokens")
            mean = points[["seconds", "flops", "loss"]].mean()
            made[str(name)] = mean.assign(low=points["loss"].min(), high=points["loss"].max()).reset_index()
        return made

    def to_json(self) -> dict[str, Any]:
        """Everything, unrounded; see `json_schema`."""
        frames = {name: getattr(self, name).to_json(orient="records", double_precision=15) for name in FRAMES}
        tasks = None if self.downstream is None else self.downstream.groupby(level=0, sort=False).mean()
        return {
            "format_version": FORMAT_VERSION,
            "baseline": self.baseline,
            "shared": dict(self.shared),
            "references": dict(self.references),
            "curve_references": dict(self.curve_references),
            "notes": list(self.notes),
            **{name: json.loads(text) for name, text in frames.items()},
            "downstream": None if tasks is None else tasks.to_dict("index"),
        }


Cell = Callable[[Any], str]
"""A cell's text from a row."""
Shown = tuple[str, str, Cell]
"""Heading of a column, the column of the frame that explains it (or nothing), and its cells."""


def comparison_tables(comparison: Comparison) -> dict[str, Table]:
    """The tables that have a row: result, cost, savings, baselines, scaling, concepts, words, downstream, trained."""
    base, arms = comparison.baseline, comparison.arms
    with_concepts = arms[arms["recall"].notna() | arms["shuffle"].notna()]
    saving = arms[arms[[f"{axis}_saved" for axis in (*COSTS, "total_flops")]].notna().any(axis=1)]
    better, saved = "nats per token, below 0 is better", "share of the baseline's, higher is better"
    times = "×{:.2f}".format
    run: Shown = ("run", "", attrgetter("arm"))
    kind: Shown = ("kind", "", attrgetter("kind"))
    difference = _plus_minus("difference")
    among_documents = _cell("p_documents_holm", lambda p: f"{p:.3f}" if p >= 0.001 else f"{p:.0e}")
    result: list[Shown] = [
        *(run, kind, ("seeds, n", "", lambda row: str(len(row.seeds)))),
        ("loss, nats per token, lower is better, ± 95% over seeds", "loss", _plus_minus("loss", "{:.3f}")),
        (
            f"difference, {better}, ± 95% over seeds",
            "difference",
            lambda row: "baseline" if row.arm == base else difference(row),
        ),
        ("interval, 95% over documents × seeds", "documents_low", lambda row: between(row, "documents")),
        ("p, Wilcoxon over documents, Holm", "p_documents_holm", among_documents),
    ]
    cost: list[Shown] = [
        run,
        ("like the baseline", "like_baseline", lambda row: row.like_baseline or NOTHING),
        ("tokens", "", _cost("tokens", si)),
        ("training FLOPs, × the baseline's", "flops", _cost("flops", si)),
        ("teacher, FLOPs", "teacher_flops", _cell("teacher_flops", si)),
        ("dictionary, FLOPs", "dictionary_flops", _cell("dictionary_flops", si)),
        ("all FLOPs of one student, × the baseline's", "total_flops", _cell("total_flops_ratio", times)),
        *(
            (f"of each of {n} that share what is stored", f"flops_of_{n}", _cell(f"flops_of_{n}_ratio", times))
            for n in STUDENTS
        ),
        ("time, × the baseline's", "seconds", _cost("seconds", duration)),
    ]
    savings: list[Shown] = [
        run,
        (f"tokens saved, {saved}", "", _cell("tokens_saved", percent)),
        (f"FLOPs saved, {saved}", "flops_saved", _cell("flops_saved", percent)),
        (f"all FLOPs saved, {saved}", "total_flops_saved", _cell("total_flops_saved", percent)),
        (f"time saved, {saved}", "", _cell("seconds_saved", percent)),
    ]
    concepts: list[Shown] = [
        run,
        ("static list's recall, at 32", "static_recall", _cell("static_recall", percent)),
        ("token table's recall, at 32", "token_recall", _cell("token_recall", percent)),
        ("model's recall, at 32, higher is better", "recall", _cell("recall", percent)),
        *((f"{name.replace('_', ' ')}, rise, nats", name, lambda row, n=name: change(row, n)) for name in RELIANCE),
    ]
    trained: list[Shown] = [
        run,
        ("parameters", "", _cell("parameters", si)),
        ("active", "active_parameters", _cell("active_parameters", si)),
        ("λ", "", _cell("concept_loss_weight", "{:g}".format)),
        ("learning rate", "learning_rate", _cell("learning_rate", "{:g}".format)),
        ("steps", "", _cell("steps", "{:,.0f}".format)),
        ("annealed", "annealed", lambda row: "yes" if row.annealed else "no"),
    ]
    baselines: list[Shown] = [
        *(run, ("likeness", "", attrgetter("likeness")), ("NTP run", "", attrgetter("baseline"))),
        ("ratio", "ratio", lambda row: f"×{row.ratio:.3f}"),
        (f"difference, {better}, ± 95% over seeds", "", _plus_minus("difference", high="high")),
    ]
    scaling: list[Shown] = [
        *(kind, ("cost", "", attrgetter("axis")), ("runs, n", "runs", lambda row: str(row.runs))),
        ("exponent, 95% interval", "exponent", lambda row: f"{row.exponent:.4f} ({row.low:.4f} … {row.high:.4f})"),
    ]
    heading = f"Loss, and its difference from {base}'s"
    recalled = "Recall of the labels, and rise of the loss without the right concepts"
    made = {
        "result": _table("arms", arms, result, heading, 2, int(arms["loss"].argmin())),
        "cost": _table("arms", arms, cost, "What each run cost", 2),
        "savings": _table("arms", saving, savings, f"What each run saved until it was as good as {base}"),
        "baselines": _table("baselines", comparison.baselines, baselines, "Against NTP runs within 3% of the cost", 3),
        "scaling": _table("scaling", comparison.scaling, scaling, "loss = a · cost^(−exponent), annealed runs", 2),
        "concepts": _table("arms", with_concepts, concepts, recalled),
        "words": _words(comparison, f"difference, {better} (95% over documents × seeds)"),
        "trained": _table("arms", arms, trained, "What was trained"),
    }
    if comparison.downstream is not None:
        made["downstream"] = downstream_table(comparison.downstream)
    return {name: table for name, table in made.items() if table.rows}


def _table(
    name: str,
    frame: pd.DataFrame,
    shown: Sequence[Shown],
    caption: str,
    text_columns: int = 1,
    marked: int | None = None,
) -> Table:
    rows = [[show(row) for _, _, show in shown] for row in frame.itertuples()]
    meanings = {
        heading.partition(", ")[0]: columns()[name][column].replace(": its lower end", "")
        for heading, column, _ in shown
        if column
    }
    return Table([heading for heading, *_ in shown], rows, caption, meanings, text_columns, marked)


def _words(comparison: Comparison, what: str) -> Table:
    names = [name for name in comparison.arms["arm"] if name != comparison.baseline]
    rows = []
    for (which, value), group in comparison.words.groupby(["slice", "value"], sort=False):
        by_arm = {row.arm: row for row in group.itertuples()}
        count = f"{group['tokens'].iloc[0]:,}"
        cells = [f"{signed(by_arm[name].difference)} ({between(by_arm[name])})" for name in names]
        rows.append((SLICES[which], str(value), count, *cells))
    return Table(("by", "tokens", "n", *(f"{name}, {what}" for name in names)), rows, "Where the loss differs", {}, 2)


def change(row: Any, kind: str) -> str:
    """A rise of the loss by a replacement, with its interval."""
    if pd.isna(getattr(row, kind)):
        return NOTHING
    interval = "" if pd.isna(getattr(row, f"{kind}_low")) else f" ({between(row, kind)})"
    return signed(getattr(row, kind)) + interval


def _cell(column: str, show: Callable[[Any], str]) -> Cell:
    return lambda row: NOTHING if pd.isna(getattr(row, column)) else show(getattr(row, column))


def _cost(axis: str, show: Callable[[float], str]) -> Cell:
    return lambda row: f"{show(getattr(row, axis))} (×{getattr(row, f'{axis}_ratio'):.2f})"


def _plus_minus(column: str, form: str = "", high: str = "") -> Cell:
    def cell(row: Any) -> str:
        mean, end = getattr(row, column), getattr(row, high or f"{column}_high")
        return (form.format(mean) if form else signed(mean)) + ("" if pd.isna(end) else f" ± {end - mean:.3f}")

    return cell


def between(row: Any, what: str = "") -> str:
    """An interval, or a dash where there is none."""
    low, high = (getattr(row, f"{what}_{end}" if what else end) for end in ("low", "high"))
    return NOTHING if pd.isna(low) else f"{signed(low)} … {signed(high)}"
