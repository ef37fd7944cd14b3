"""The report of a comparison: five sentences, one table, then what stands behind them; as one page and as files."""

import io
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from cocomix.artifacts import whole_folder, write_json, write_text
from cocomix.evaluation.comparison import Comparison, between, change, comparison_tables
from cocomix.evaluation.pages import Figure, Section, Table, markdown_text, percent, render_page, signed
from cocomix.runtime.errors import require_extra

if TYPE_CHECKING:
    import rich.console
    from matplotlib.axes import Axes

logger = logging.getLogger(__name__)

_TOKEN_SHARE = 0.8
"""Above this share of labels that the current token gives, concepts say little else (method: section 12); where a
static list recalls that share of what the token does, they hardly tell of the token either."""

_COMMON = 0.01  # kinds of tokens that are rarer are not spoken of


def found(comparison: Comparison) -> list[str]:
    """Five sentences: is the model any good, do concepts carry more than the token, are they used, what pays, where.

    They speak of the arm with concepts whose loss is lowest, or without one of the arm with the lowest loss, against
    the baseline. What was not measured is said not to have been.
    """
    arms = comparison.arms
    others = arms[arms["arm"] != comparison.baseline]
    with_concepts = others[others["recall"].notna() | others["shuffle"].notna() | (others["objective"] != "ntp")]
    among = with_concepts if len(with_concepts) else others
    best = next(among.nsmallest(1, "loss").itertuples())
    return [
        _is_it_good(comparison),
        _beyond_the_token(best),
        _is_it_used(best),
        _does_it_pay(comparison, best),
        _on_which_words(comparison, best),
    ]


def _is_it_good(comparison: Comparison) -> str:
    best = next(comparison.arms.nsmallest(1, "loss").itertuples())
    start = f"The lowest validation loss is {best.arm}'s, {best.loss:.3f} nats per token"
    if not comparison.references:
        return f"{start}; without n-gram references (`cocomix eval`) nothing says whether that is any good."
    grams = comparison.references
    told = (
        f"n-gram models of the training text reach {grams['bigram']:.3f} (bigram) and {grams['fourgram']:.3f} (4-gram)"
    )
    if bad := comparison.arms.loc[comparison.arms["loss"] > grams["bigram"], "arm"].tolist():
        who = "all runs" if len(bad) == len(comparison.arms) else ", ".join(bad)
        verb = "is" if len(bad) == 1 and who != "all runs" else "are"
        return (
            f"{start}, but {told}: {who} {verb} worse than a bigram table, and differences to such models say little."
        )
    better = best.loss < min(grams["bigram"], grams["fourgram"])
    verdict = "it is better than both" if better else "it is no better than the 4-gram"
    return f"{start}; {told}: {verdict}."


def _beyond_the_token(best: Any) -> str:
    if best.objective == "ntp":
        return "None of the other runs predicts concepts, so there is nothing to say of what concepts carry."
    parts = []
    if pd.notna(best.token_recall):
        mostly = "more than the token's identity"
        if max(best.token_recall, best.static_recall) > _TOKEN_SHARE:
            same = best.static_recall > _TOKEN_SHARE * best.token_recall
            mostly = "mostly the same few concepts everywhere" if same else "mostly the token's identity"
        parts.append(
            f"The labels are {mostly}: at 32, a static list recalls {percent(best.static_recall)} of them, a table of "
            f"the current token {percent(best.token_recall)}, and {best.arm} {percent(best.recall)}"
        )
    if pd.notna(best.shuffle_same_token):
        parts.append(
            f"concepts of another position of the same token cost it {change(best, 'shuffle_same_token')} nats, which "
            "is what the context adds"
        )
    return (
        f"{'; '.join(parts)}." if parts else f"How much {best.arm}'s concepts carry beyond the token was not measured."
    )


def _is_it_used(best: Any) -> str:
    if best.objective == "ntp" or pd.isna(best.shuffle):
        return "Whether a model uses its concepts was not measured (`cocomix eval`)."
    uses = "uses" if best.shuffle_low > 0 else "does not measurably use"  # nor without an interval: NaN
    average = f", their average {change(best, 'mean')}" if pd.notna(best.mean) else ""
    return (
        f"{best.arm} {uses} its concepts: those of any other position cost it {change(best, 'shuffle')} nats{average}."
    )


def _does_it_pay(comparison: Comparison, best: Any) -> str:
    """Per token, FLOP, second: a lower loss for no more pays, a higher one for no less does not, the rest is open.

    FLOPs are those of the student's training; what a teacher adds to them is said after.
    """
    base = comparison.baseline
    over = "difference" if pd.isna(best.documents_low) else "documents"
    low, high = (getattr(best, f"{over}_{end}") for end in ("low", "high"))
    told = f"{signed(best.difference)} nats against {base}" + ("" if pd.isna(low) else f" ({between(best, over)})")
    if pd.isna(low) or low <= 0 <= high:
        return f"Whether {best.arm} pays is not decided: {told}, and chance is not ruled out."
    better = best.difference < 0
    sure: list[str] = []
    unsure: list[str] = []
    for unit, axis in (("token", "tokens"), ("FLOP of its own", "flops"), ("second", "seconds")):
        ratio = getattr(best, f"{axis}_ratio")
        equal = abs(ratio - 1) <= 0.03
        (sure if equal or (ratio < 1) == better else unsure).append(unit if equal else f"{unit} (×{ratio:.2f})")
    verdict = f"It {'pays' if better else 'does not pay'} per {_listed(sure)}" if sure else ""
    if unsure:
        verdict += f"{'; whether' if sure else 'Whether'} it pays per {_listed(unsure)} is open"
    others = [
        f"against {row.baseline}, of as many FLOPs a token, {signed(row.difference)}"
        for row in comparison.baselines.itertuples()
        if (row.arm, row.likeness) == (best.arm, "iso-FLOP") and row.baseline != base
    ]
    if best.total_flops_ratio > 1.03 * best.flops_ratio:
        verdict += f". With the teacher's work it costs ×{best.total_flops_ratio:.1f} of {base}'s FLOPs"
    return f"{best.arm}: {'; '.join([told, *others])}. {verdict}."


def _listed(units: list[str]) -> str:
    return " and ".join(", ".join(units).rsplit(", ", 1))


def _on_which_words(comparison: Comparison, best: Any) -> str:
    mine = comparison.words[(comparison.words["arm"] == best.arm) & (comparison.words["slice"] == "token_class")]
    if mine.empty:
        return "On which words the runs differ was not measured (`cocomix eval` of every run)."
    common = mine[mine["tokens"] >= _COMMON * mine["tokens"].sum()]
    ranked = list(common.sort_values("difference").itertuples())
    least, most = (f"{row.value} ({signed(row.difference)}, {between(row)})" for row in (ranked[0], ranked[-1]))
    return f"Against {comparison.baseline}, {best.arm} does best on {least} and worst on {most}, in nats per token."


def write_report(
    comparison: Comparison, output: Path, *, title: str = "Runs compared", sections: Sequence[Section] = ()
) -> Path:
    """Write a comparison as a folder: report.html, loss_vs_{tokens,flops,seconds}.png, table.{md,csv,json}.

    Args:
        output: the folder to create, which appears when it is whole; refused where it exists or cannot be written to.
        sections: shown before the protocol, e.g. an inspected text, generations, commands.

    Returns:
        The page, `output`/report.html.
    """
    require_extra("report", "matplotlib", purpose="a report")
    tables, sentences = comparison_tables(comparison), found(comparison)
    with whole_folder(output) as folder:
        figures, names = [], ", ".join(drawn_names(comparison))
        for axis in AXES:
            light, dark = (draw_curves(comparison, axis, dark=dark) for dark in (False, True))
            (folder / f"loss_vs_{axis}.png").write_bytes(light)
            figures.append(Figure(light, dark, alt=f"Validation loss of {names} against {AXES[axis]}"))
        parts = [markdown_text(sentence) for sentence in sentences]
        parts += [table.markdown() for table in tables.values()]
        parts.append("\n".join(f"- {markdown_text(note)}" for note in comparison.notes if note))
        write_text(folder / "table.md", "\n\n".join(parts) + "\n")
        write_text(folder / "table.csv", comparison.arms.to_csv(index=False, lineterminator="\n"))
        write_json(folder / "table.json", comparison.to_json())
        losses = [(f"{name} loss, nats", f"{loss:.3f}") for name, loss in comparison.references.items()]
        shared = Table(("what", "value"), [*comparison.shared.items(), *losses], "Shared by all runs", text_columns=2)
        notes = [note for note in comparison.notes if note]
        protocol: Section = {"heading": "Protocol", "tables": [shared, tables["trained"]], "notes": notes}
        page = [*_result_sections(comparison, tables, figures), *sections, protocol]
        write_text(folder / "report.html", render_page(title, sentences, page))
    logger.info(f"report: {output / 'report.html'}")
    return output / "report.html"


def shown(comparison: Comparison) -> "rich.console.Group":
    """Sentences, tables and notes for a terminal, the same numbers as on the page."""
    from rich.console import Group
    from rich.text import Text

    sentences = [Text(sentence.replace("`", "") + "\n") for sentence in found(comparison)]
    notes = [Text("- " + note.replace("`", ""), style="dim") for note in comparison.notes if note]
    tables = (replace(table, meanings={}).rich() for table in comparison_tables(comparison).values())  # page has them
    return Group(*sentences, *tables, *notes)


def _result_sections(comparison: Comparison, tables: dict[str, Table], figures: Sequence[Figure]) -> list[Section]:
    left_out = len(comparison.arms) - len(drawn_names(comparison))
    drawn = f" {left_out} more arms, which end higher, are in the tables." if left_out else ""
    curves = (
        "Lower is better, further left is cheaper. Dashed: the baseline. Thin lines: n-gram models of the same "
        "training text on the same tokens, which may be fewer than those of the tables. Bands span the seeds. Before a "
        "run ends its learning rate has not come down, so curves that cross on the way say nothing of what is saved."
        f"{drawn}"
    )
    sections: list[Section] = [
        {"heading": "Result", "tables": [tables["result"]]},
        {"heading": "Loss during training", "text": [curves], "figures": figures},
    ]
    for heading, names in (
        ("What it cost", ("cost", "savings", "baselines", "scaling")),
        ("What the concepts are worth", ("concepts",)),
        ("On which words", ("words",)),
        ("Downstream tasks", ("downstream",)),
    ):
        if shown := [tables[name] for name in names if name in tables]:
            sections.append({"heading": heading, "tables": shown})
    return sections


class Theme(NamedTuple):
    """Colours of a figure: background, text and baseline, helper lines, the other runs (Okabe and Ito's hues)."""

    background: str
    ink: str
    faint: str
    series: tuple[str, ...]


LIGHT = Theme("#ffffff", "#333a45", "#d9dde3", ("#0072b2", "#d55e00", "#009e73", "#a8447f", "#b07d00", "#3a8fc7"))
DARK = Theme("#171b21", "#d5dae1", "#3a424e", ("#56b4e9", "#ff8f4d", "#3cc9a0", "#e79ac5", "#f0c14b", "#9ccff0"))


AXES = {"tokens": "training tokens", "flops": "training FLOPs", "seconds": "training seconds"}
"""What curves are drawn against: columns of `Comparison.curves`, and what they are called."""

_MARKERS = "os^Dv"
_MOST_CURVES = 9


def drawn_names(comparison: Comparison) -> list[str]:
    """The arms whose curves are drawn: the baseline first, then the others; of many, those that end lowest."""
    others = comparison.arms[comparison.arms["arm"] != comparison.baseline]
    kept = set(others.nsmallest(_MOST_CURVES - 1, "loss")["arm"])
    return [comparison.baseline, *(name for name in others["arm"] if name in kept)]


def draw_curves(comparison: Comparison, axis: str, *, dark: bool = False) -> bytes:
    """Validation loss of the arms against one axis, as PNG.

    The baseline is dashed in the text's colour. Curves are labelled at the right edge, in the order in which they end.
    Of several seeds the mean is drawn within a band from the lowest to the highest. The first, steep part of training
    may lie above the upper edge, n-gram models below the lower one unless a run ends above them.
    """
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import EngFormatter

    theme = DARK if dark else LIGHT
    figure = Canvas(figsize=(9.0, 4.6), dpi=160, facecolor=theme.background)
    axes = figure.add_axes((0.085, 0.14, 0.63, 0.74))
    ends: list[tuple[float, str, str]] = []
    late: list[float] = []
    curves = comparison.mean_curves()
    for number, name in enumerate(drawn_names(comparison)):
        curve = curves[name]
        colour = theme.ink if number == 0 else theme.series[(number - 1) % len(theme.series)]
        marker = "" if number == 0 else _MARKERS[(number - 1) % len(_MARKERS)]
        line: dict[str, Any] = {"color": colour, "linestyle": (0, (4, 2)) if number == 0 else "-", "linewidth": 1.9}
        every = max(1, len(curve) // 12)
        axes.plot(curve[axis], curve["loss"], **line, marker=marker, markersize=4.5, markevery=every)
        axes.plot(curve[axis].iloc[-1:], curve["loss"].iloc[-1:], marker="o", markersize=5.5, color=colour)
        axes.fill_between(curve[axis], curve["low"], curve["high"], color=colour, alpha=0.18, linewidth=0)
        ends.append((float(curve["loss"].iloc[-1]), name, colour))
        late += curve.loc[curve["tokens"] >= 0.2 * curve["tokens"].max(), "loss"].tolist()
    bigram = comparison.curve_references.get("bigram", math.inf)
    low = min([*late, *([bigram] if bigram < max(ends)[0] else [])])
    margin = 0.06 * (max(late) - low) or 0.1
    axes.set_ylim(low - margin, max(late) + margin)
    axes.set_xlim(left=0)
    for name, loss in comparison.curve_references.items():
        if low - margin < loss < max(late) + margin:
            axes.axhline(loss, color=theme.ink, linewidth=0.7, alpha=0.6, zorder=0)
            ends.append((loss, name, theme.ink))
    _label_ends(axes, ends)
    dress(axes, theme)
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.set_title(f"Against {AXES[axis]}", loc="left", fontsize=13, fontweight="bold", color=theme.ink, pad=12)
    axes.set_xlabel(AXES[axis], fontsize=11, color=theme.ink, labelpad=7)
    axes.set_ylabel("validation loss, nats per token", fontsize=11, color=theme.ink, labelpad=8)
    return png(figure)


def png(figure: "object") -> bytes:
    """A figure's bytes, the same for the same figure."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", facecolor=figure.get_facecolor(), metadata={"Software": None})  # type: ignore[attr-defined]
    return stream.getvalue()


def _label_ends(axes: "Axes", ends: list[tuple[float, str, str]]) -> None:
    """Names at the right edge, at their curve's final loss, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    gap, height = min(0.075, 0.95 / len(ends)), -1.0
    for above, (loss, name, colour) in zip(reversed(range(len(ends))), sorted(ends), strict=True):
        height = max(min(max((loss - low) / (high - low), 0.0), 1.0), height + gap)
        shown_at = min(height, 1.0 - gap * above)  # room for the names above
        shown = "".join(letter if letter.isprintable() else "?" for letter in name)
        axes.annotate(
            shown if len(shown) <= 24 else shown[:23] + "…",
            xy=(1.0, shown_at), xytext=(10, 0), xycoords="axes fraction", textcoords="offset points", va="center",
            fontsize=10.5, color=colour, parse_math=False, annotation_clip=False,
        )  # fmt: skip


def dress(axes: "Axes", theme: Theme) -> None:
    """Calm axes: no box, a light horizontal grid, text in the theme's ink."""
    from matplotlib.ticker import MaxNLocator

    axes.set_facecolor(theme.background)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(theme.ink)
    axes.grid(axis="y", color=theme.faint, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="both", colors=theme.ink, labelsize=10.5, length=0)
    axes.tick_params(axis="x", length=4)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7))
