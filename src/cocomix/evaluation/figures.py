"""Validation curves as PNG images, one per axis: tokens, FLOPs, seconds.

Figures are drawn on `Figure` objects with the Agg canvas; matplotlib's global state is neither read nor changed.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cocomix.evaluation.comparison import Comparison
from cocomix.training import CurvePoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["AXES", "DARK", "LIGHT", "CurveAxis", "Theme", "draw_curves", "drawn_names", "dress"]


@dataclass(frozen=True)
class Theme:
    """Colours of a figure.

    Attributes:
        background: of the whole image.
        ink: text, axes and the baseline's curve.
        faint: grid and helper lines.
        series: curves of the runs other than the baseline, Okabe and Ito's colour-blind-safe hues.
    """

    background: str
    ink: str
    faint: str
    series: tuple[str, ...]


LIGHT = Theme("#ffffff", "#333a45", "#d9dde3", ("#0072b2", "#d55e00", "#009e73", "#a8447f", "#b07d00", "#3a8fc7"))
DARK = Theme("#171b21", "#d5dae1", "#3a424e", ("#56b4e9", "#ff8f4d", "#3cc9a0", "#e79ac5", "#f0c14b", "#9ccff0"))

_MARKERS = "os^Dv"


@dataclass(frozen=True)
class CurveAxis:
    """What a curve is drawn against.

    Attributes:
        field: field of `CurvePoint`.
        file: file name without its ending.
        title: heading of the figure.
        label: axis label; the unit of the chosen scale takes the place of `{unit}`.
        scales: (size, unit) from large to small; the first that the largest value exceeds is used.
    """

    field: str
    file: str
    title: str
    label: str
    scales: tuple[tuple[float, str], ...]


AXES = (
    CurveAxis(
        "tokens",
        "loss_vs_tokens",
        "Per training token",
        "training tokens{unit}",
        ((1e9, " (billions)"), (1e6, " (millions)"), (1e3, " (thousands)"), (0, "")),
    ),
    CurveAxis(
        "flops",
        "loss_vs_flops",
        "Per floating-point operation",
        "training FLOPs ({unit})",
        (*((10.0**power, f"$10^{{{power}}}$") for power in range(24, 3, -3)), (0, "count")),
    ),
    CurveAxis(
        "seconds",
        "loss_vs_seconds",
        "Per second on this machine",
        "training wall-clock ({unit})",
        ((7200, "hours"), (180, "minutes"), (0, "seconds")),
    ),
)


_MOST_CURVES = 9


def drawn_names(comparison: Comparison) -> list[str]:
    """The arms whose curves are drawn: the baseline first, then the others; of many, those that end lowest."""
    others = [name for name in comparison.curves if name != comparison.baseline]
    kept = sorted(others, key=lambda name: comparison.curves[name][-1].loss)[: _MOST_CURVES - 1]
    return [comparison.baseline, *(name for name in others if name in kept)]


def draw_curves(comparison: Comparison, axis: CurveAxis, theme: Theme) -> bytes:
    """Validation loss of every run against one axis, as PNG.

    The baseline is dashed in the text colour; the others differ in hue and marker. Each curve is labelled at the right
    edge, in the order in which the curves end. The thin line is the baseline's final loss. Of several seeds the mean is
    drawn, within a band from the lowest to the highest. The first, steep part of training may lie above the upper edge.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 4.6), dpi=160, facecolor=theme.background)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.085, 0.14, 0.63, 0.74))
    size, unit = _scale(comparison, axis)
    names = drawn_names(comparison)
    ends: list[tuple[float, str, str]] = []
    for index, name in enumerate(names):
        curve = comparison.curves[name]
        xs = [getattr(point, axis.field) / size for point in curve]
        ys = [point.loss for point in curve]
        colour = theme.ink if index == 0 else theme.series[(index - 1) % len(theme.series)]
        style: dict[str, Any] = {"linestyle": (0, (4, 2)) if index == 0 else "-", "color": colour}
        if index > 0:
            style.update(marker=_MARKERS[(index - 1) % len(_MARKERS)], markersize=4.5, markevery=_every(len(xs)))
        axes.plot(xs, ys, linewidth=1.9, **style)
        axes.plot(xs[-1:], ys[-1:], marker="o", markersize=5.5, color=colour)
        if len(seeds := comparison.seed_curves[name]) > 1:
            axes.fill_between(xs, *_span(curve, seeds), color=colour, alpha=0.18, linewidth=0)
        ends.append((ys[-1], name, colour))
    final = comparison.curves[comparison.baseline][-1].loss
    axes.axhline(final, color=theme.ink, linewidth=0.7, alpha=0.5, zorder=0)
    axes.set_ylim(*_loss_range([comparison.curves[name] for name in names]))
    axes.set_xlim(left=0)
    _label_ends(axes, ends)
    dress(axes, theme)
    axes.set_title(axis.title, loc="left", fontsize=13, fontweight="bold", color=theme.ink, pad=12)
    axes.set_xlabel(axis.label.format(unit=unit), fontsize=11, color=theme.ink, labelpad=7)
    axes.set_ylabel("validation loss (nats per token)", fontsize=11, color=theme.ink, labelpad=8)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", facecolor=theme.background, metadata={"Software": None})
    return stream.getvalue()


def _span(mean: Sequence[CurvePoint], seeds: Sequence[Sequence[CurvePoint]]) -> tuple[list[float], list[float]]:
    """Lowest and highest loss of the seeds at each point of their mean curve."""
    losses = [{point.tokens: point.loss for point in curve} for curve in seeds]
    at = [[by_tokens[point.tokens] for by_tokens in losses] for point in mean]
    return [min(values) for values in at], [max(values) for values in at]


def _scale(comparison: Comparison, axis: CurveAxis) -> tuple[float, str]:
    """The divisor and unit that keep tick labels short."""
    largest = max(getattr(point, axis.field) for curve in comparison.curves.values() for point in curve)
    size, unit = next((size, unit) for size, unit in axis.scales if largest >= size)
    if axis.field == "seconds":
        size = {"hours": 3600.0, "minutes": 60.0}.get(unit, 1.0)
    return size or 1.0, unit


def _loss_range(curves: Sequence[Sequence[CurvePoint]]) -> tuple[float, float]:
    """Limits of the loss axis that show where the curves part: from a fifth of each curve on, with margins."""
    late = [point.loss for curve in curves for point in curve if point.tokens >= 0.2 * curve[-1].tokens]
    low, high = min(late), max(late)
    margin = 0.06 * (high - low) or 0.1
    return low - margin, high + margin


def _every(points: int) -> int:
    """Draw at most about a dozen markers."""
    return max(1, points // 12)


def _label_ends(axes: "Axes", ends: Sequence[tuple[float, str, str]]) -> None:
    """Final losses and names at the right edge, at their curve's final loss, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    gap = min(0.075, 0.95 / len(ends))
    heights: list[float] = []
    for loss, _, _ in sorted(ends):
        wanted = (min(max(loss, low), high) - low) / (high - low)
        heights.append(max(wanted, heights[-1] + gap) if heights else max(0.0, wanted))
    overshoot = max(0.0, heights[-1] - 1.0)
    for index in range(len(heights) - 1, -1, -1):  # push back down from the top edge
        ceiling = 1.0 if index == len(heights) - 1 else heights[index + 1] - gap
        heights[index] = min(heights[index], ceiling) if overshoot else heights[index]
    for height, (loss, name, colour) in zip(heights, sorted(ends), strict=True):
        axes.annotate(
            f"{loss:.3f}  {_shortened(name)}",
            xy=(1.0, height),
            xytext=(10, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            va="center",
            fontsize=10.5,
            color=colour,
            parse_math=False,
            annotation_clip=False,
        )


def _shortened(name: str) -> str:
    """A run name that fits the margin and draws nothing but itself."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in name)
    return shown if len(shown) <= 20 else shown[:19] + "…"


def dress(axes: "Axes", theme: Theme) -> None:
    """Calm axes: no box, a light horizontal grid, text in the theme's ink."""
    from matplotlib.ticker import MaxNLocator

    axes.set_facecolor(theme.background)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(theme.ink)
    axes.grid(axis="y", color=theme.faint, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="both", colors=theme.ink, labelsize=10.5, length=0)
    axes.tick_params(axis="x", length=4)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7))
