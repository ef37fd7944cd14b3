"""The tables that are shown of a comparison: on the page, in the terminal and in table.md."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cocomix.evaluation.comparison import COLUMNS, RELIANCE, STUDENTS, Comparison
from cocomix.evaluation.formatting import NOTHING, duration, percent, si, signed
from cocomix.evaluation.pages import Table

if TYPE_CHECKING:
    from pandas import DataFrame

_SLICES = {"token_class": "kind of token", "seen": "seen in the context", "frequency": "times in the training text"}

Shown = tuple[str, str, Callable[[Any], str]]
"""Heading of a column, the column of the frame that explains it (or nothing), and a cell's text from a row."""


def comparison_tables(comparison: Comparison) -> dict[str, Table]:
    """By subject, those that have a row: result, cost, baselines, scaling, concepts, words, downstream, trained."""
    base, arms = comparison.baseline, comparison.arms
    with_concepts = arms[arms["recall"].notna() | arms["shuffle"].notna()]
    better, saved = "nats per token, below 0 is better", "share of the baseline's, higher is better"
    result: list[Shown] = [
        ("run", "", lambda row: row.arm),
        ("kind", "", lambda row: row.kind),
        ("seeds, n", "", lambda row: str(len(row.seeds))),
        (
            "loss, nats per token, lower is better, ± 95% over seeds",
            "loss",
            lambda row: _plus_minus(row, "loss", "{:.3f}"),
        ),
        (
            f"difference, {better}, ± 95% over seeds",
            "difference",
            lambda row: "baseline" if row.arm == base else _plus_minus(row, "difference"),
        ),
        ("interval, 95% over documents × seeds", "documents_low", lambda row: _between(row, "documents")),
        ("p, Wilcoxon over documents, Holm", "p_documents_holm", lambda row: _cell(row, "p_documents_holm", _p_value)),
    ]
    cost: list[Shown] = [
        ("run", "", lambda row: row.arm),
        ("like the baseline", "like_baseline", lambda row: row.like_baseline or NOTHING),
        ("tokens", "", lambda row: _cost(row, "tokens", si)),
        ("training FLOPs, × the baseline's", "flops", lambda row: _cost(row, "flops", si)),
        ("teacher, FLOPs", "teacher_flops", lambda row: _cell(row, "teacher_flops", si)),
        ("dictionary, FLOPs", "dictionary_flops", lambda row: _cell(row, "dictionary_flops", si)),
        ("all FLOPs of one student, × the baseline's", "total_flops", lambda row: _all(row, "total_flops")),
        *(
            (
                f"of each of {count} that share what is stored",
                f"flops_of_{count}",
                lambda row, n=count: _all(row, f"flops_of_{n}"),
            )
            for count in STUDENTS
        ),
        ("time, × the baseline's", "seconds", lambda row: _cost(row, "seconds", duration)),
        (f"tokens saved, {saved}", "", lambda row: _cell(row, "tokens_saved", percent)),
        (f"FLOPs saved, {saved}", "flops_saved", lambda row: _cell(row, "flops_saved", percent)),
        (f"all FLOPs saved, {saved}", "total_flops_saved", lambda row: _cell(row, "total_flops_saved", percent)),
        (f"time saved, {saved}", "", lambda row: _cell(row, "seconds_saved", percent)),
    ]
    concepts: list[Shown] = [
        ("run", "", lambda row: row.arm),
        ("static list's recall, at 32", "static_recall", lambda row: _cell(row, "static_recall", percent)),
        ("token table's recall, at 32", "token_recall", lambda row: _cell(row, "token_recall", percent)),
        ("model's recall, at 32, higher is better", "recall", lambda row: _cell(row, "recall", percent)),
        *((f"{kind.replace('_', ' ')}, rise, nats", kind, lambda row, k=kind: change(row, k)) for kind in RELIANCE),
    ]
    trained: list[Shown] = [
        ("run", "", lambda row: row.arm),
        ("parameters", "", lambda row: si(row.parameters)),
        ("active", "active_parameters", lambda row: si(row.active_parameters)),
        ("λ", "", lambda row: _cell(row, "concept_loss_weight", "{:g}".format)),
        ("learning rate", "learning_rate", lambda row: _cell(row, "learning_rate", "{:g}".format)),
        ("steps", "", lambda row: f"{row.steps:,.0f}"),
        ("annealed", "annealed", lambda row: "yes" if row.annealed else "no"),
    ]
    baselines: list[Shown] = [
        ("run", "", lambda row: row.arm),
        ("likeness", "", lambda row: row.likeness),
        ("NTP run", "", lambda row: row.baseline),
        ("ratio", "ratio", lambda row: f"×{row.ratio:.3f}"),
        (f"difference, {better}, ± 95% over seeds", "", lambda row: _plus_minus(row, "difference", high="high")),
    ]
    scaling: list[Shown] = [
        ("kind", "", lambda row: row.kind),
        ("cost", "", lambda row: row.axis),
        ("runs, n", "runs", lambda row: str(row.runs)),
        ("exponent, 95% interval", "exponent", lambda row: f"{row.exponent:.4f} ({row.low:.4f} … {row.high:.4f})"),
    ]
    made = {
        "result": _table(
            "arms", arms, result, f"Loss, and its difference from {base}'s", 2, int(arms["loss"].argmin())
        ),
        "cost": _table("arms", arms, cost, "What each run cost and saved", 2),
        "baselines": _table("baselines", comparison.baselines, baselines, "Against NTP runs within 3% of the cost", 3),
        "scaling": _table("scaling", comparison.scaling, scaling, "loss = a · cost^(−exponent), annealed runs", 2),
        "concepts": _table(
            "arms", with_concepts, concepts, "Recall of the labels, and rise of the loss without the right concepts"
        ),
        "words": _words(comparison, f"difference, {better} (95% over documents × seeds)"),
        "trained": _table("arms", arms, trained, "What was trained"),
    }
    if comparison.downstream is not None:
        made["downstream"] = Table(comparison.downstream.columns, comparison.downstream.cells, "Downstream tasks")
    return {name: table for name, table in made.items() if table.rows}


def _table(
    name: str,
    frame: "DataFrame",
    shown: Sequence[Shown],
    caption: str,
    text_columns: int = 1,
    marked: int | None = None,
) -> Table:
    rows = [[show(row) for _, _, show in shown] for row in frame.itertuples()]
    meanings = {
        heading.partition(", ")[0]: COLUMNS[name][column][1].replace(": its lower end", "")
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
        cells = [f"{signed(by_arm[name].difference)} ({_between(by_arm[name])})" for name in names]
        rows.append((_SLICES.get(which, which), str(value), count, *cells))
    return Table(("by", "tokens", "n", *(f"{name}, {what}" for name in names)), rows, "Where the loss differs", {}, 2)


def known(value: Any) -> bool:
    """Whether there is a number."""
    return value is not None and value == value  # NaN is no number but itself


def change(row: Any, kind: str) -> str:
    """A rise of the loss by a replacement, with its interval."""
    if not known(getattr(row, kind)):
        return NOTHING
    between = f" ({_between(row, kind)})" if known(getattr(row, f"{kind}_low")) else ""
    return signed(getattr(row, kind)) + between


def _cell(row: Any, column: str, show: Callable[[Any], str]) -> str:
    return show(getattr(row, column)) if known(getattr(row, column)) else NOTHING


def _cost(row: Any, axis: str, show: Callable[[float], str]) -> str:
    return f"{show(getattr(row, axis))} (×{getattr(row, f'{axis}_ratio'):.2f})"


def _all(row: Any, axis: str) -> str:
    return f"×{getattr(row, f'{axis}_ratio'):.2f}" if known(getattr(row, axis)) else NOTHING


def _plus_minus(row: Any, column: str, form: str = "", high: str = "") -> str:
    mean, end = getattr(row, column), getattr(row, high or f"{column}_high")
    return (form.format(mean) if form else signed(mean)) + (f" ± {end - mean:.3f}" if known(end) else "")


def _between(row: Any, what: str = "") -> str:
    low, high = (getattr(row, f"{what}_{end}" if what else end) for end in ("low", "high"))
    return f"{signed(low)} … {signed(high)}" if known(low) else NOTHING


def _p_value(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"
