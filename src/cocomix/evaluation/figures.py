"""Validation curves as PNG images, one per axis (tokens, FLOPs, seconds), with n-gram models as lines.

Figures are drawn on `Figure` objects, which write PNG with Agg; matplotlib's global state is neither read nor changed.
"""

import io
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from cocomix.evaluation.comparison import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Theme(NamedTuple):
    """Colours of a figure: background, text and baseline, helper lines, the other runs (Okabe and Ito's hues)."""

    background: str
    ink: str
    faint: str
    series: tuple[str, ...]


LIGHT = Theme("#ffffff", "#333a45", "#d9dde3", ("#0072b2", "#d55e00", "#009e73", "#a8447f", "#b07d00", "#3a8fc7"))
DARK = Theme("#171b21", "#d5dae1", "#3a424e", ("#56b4e9", "#ff8f4d", "#3cc9a0", "#e79ac5", "#f0c14b", "#9ccff0"))


class CurveAxis(NamedTuple):
    """What curves are drawn against: a column of `Comparison.curves`, its heading and unit."""

    field: str
    title: str
    unit: str


AXES = (
    CurveAxis("tokens", "Per training token", "training tokens"),
    CurveAxis("flops", "Per floating-point operation", "training FLOPs"),
    CurveAxis("seconds", "Per second on this machine", "training time, seconds"),
)
_MARKERS = "os^Dv"
_MOST_CURVES = 9


def drawn_names(comparison: Comparison) -> list[str]:
    """The arms whose curves are drawn: the baseline first, then the others; of many, those that end lowest."""
    others = comparison.arms[comparison.arms["arm"] != comparison.baseline]
    kept = set(others.nsmallest(_MOST_CURVES - 1, "loss")["arm"])
    return [comparison.baseline, *(name for name in others["arm"] if name in kept)]


def draw_curves(comparison: Comparison, axis: CurveAxis, *, dark: bool = False) -> bytes:
    """Validation loss of the arms against one axis, as PNG.

    The baseline is dashed in the text's colour. Curves are labelled at the right edge, in the order in which they end.
    Of several seeds the mean is drawn within a band from the lowest to the highest. The first, steep part of training
    may lie above the upper edge, n-gram models below the lower one unless a run ends above them.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    theme = DARK if dark else LIGHT
    figure = Figure(figsize=(9.0, 4.6), dpi=160, facecolor=theme.background)
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
        axes.plot(curve[axis.field], curve["loss"], **line, marker=marker, markersize=4.5, markevery=every)
        axes.plot(curve[axis.field].iloc[-1:], curve["loss"].iloc[-1:], marker="o", markersize=5.5, color=colour)
        axes.fill_between(curve[axis.field], curve["low"], curve["high"], color=colour, alpha=0.18, linewidth=0)
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
    axes.set_title(axis.title, loc="left", fontsize=13, fontweight="bold", color=theme.ink, pad=12)
    axes.set_xlabel(axis.unit, fontsize=11, color=theme.ink, labelpad=7)
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
    gap = min(0.075, 0.95 / len(ends))
    heights: list[float] = []
    for loss, *_ in sorted(ends):
        wanted = min(max((loss - low) / (high - low), 0.0), 1.0)
        heights.append(max(wanted, heights[-1] + gap) if heights else wanted)
    for index in range(len(heights) - 1, -1, -1):  # back down from the top edge
        heights[index] = min(heights[index], 1.0 - gap * (len(heights) - 1 - index))
    for height, (_, name, colour) in zip(heights, sorted(ends), strict=True):
        shown = "".join(letter if letter.isprintable() else "?" for letter in name)
        axes.annotate(
            shown if len(shown) <= 24 else shown[:23] + "…",
            xy=(1.0, height), xytext=(10, 0), xycoords="axes fraction", textcoords="offset points", va="center",
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
