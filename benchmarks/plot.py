"""The benchmark results as one image: every ratio with its range, and the growth curves."""

import io
from collections.abc import Mapping
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks.ratios import Ratio

__all__ = ["draw"]

_INK, _FAINT, _FLOPS = "#333a45", "#d9dde3", "#d55e00"
_HUES = ("#0072b2", "#d55e00", "#009e73", "#a8447f", "#b07d00", "#3a8fc7")  # Okabe and Ito's, colour-blind safe
_ROW = 0.24  # inches
_AXES = {
    "concepts": "concepts C",
    "context": "context (tokens)",
    "insert_layer": "insert layer",
}


def draw(sections: Mapping[str, Mapping[str, Any]]) -> bytes:
    """A PNG: dots are medians, bars reach from minimum to maximum, ticks are the ratios by FLOPs."""
    ratios = {section["title"]: [Ratio(**values) for values in section["ratios"]] for section in sections.values()}
    dots = [(title, ratio) for title, each in ratios.items() for ratio in each if not ratio.axis]
    curves = [ratio for each in ratios.values() for ratio in each if ratio.axis]
    names = [name for name in _AXES if any(ratio.axis == name for ratio in curves)]
    hues = dict(zip(dict.fromkeys(ratio.quantity for ratio in curves), _HUES, strict=False))
    titles = {title for title, _ in dots}
    upper = _ROW * (len(dots) + 2 * len(titles)) + 1.0 if dots else 0.0
    lower = 4.2 if names else 0.0
    height = max(2.0, upper + lower)
    figure = Figure(figsize=(13.0, height), dpi=130, facecolor="white")
    FigureCanvasAgg(figure)
    if dots:
        axes = figure.add_axes((0.47, (lower + 0.65) / height, 0.50, (upper - 0.95) / height))
        _draw_dots(axes, dots)
    for index, name in enumerate(names):
        width = 0.9 / len(names)
        axes = figure.add_axes((0.05 + index * width, 1.35 / height, width - 0.05, 2.4 / height))
        _draw_curves(axes, name, [ratio for ratio in curves if ratio.axis == name], hues)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw_dots(axes: Axes, dots: list[tuple[str, Ratio]]) -> None:
    ticks: list[float] = []
    labels: list[str] = []
    line, previous = 0.0, ""
    for title, ratio in dots:
        if title != previous:
            line += 1.0 if previous else 0.0
            axes.annotate(
                title,
                xy=(0, line),
                xytext=(-8, 0),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
                va="center",
                fontsize=9.5,
                fontweight="bold",
                color=_INK,
            )
            line, previous = line + 1.0, title
        axes.plot([ratio.minimum, ratio.maximum], [line, line], color=_HUES[0], linewidth=2.2, alpha=0.5)
        axes.plot([ratio.median], [line], "o", color=_HUES[0], markersize=5)
        if ratio.by_flops is not None:
            axes.plot([ratio.by_flops], [line], "|", color=_FLOPS, markersize=10, markeredgewidth=2)
        axes.annotate(
            f"{ratio.median:.2f}",
            xy=(max(ratio.maximum, ratio.by_flops or 0.0), line),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=_INK,
        )
        ticks.append(line)
        labels.append(f"{ratio.case}: {ratio.quantity}")
        line += 1.0
    axes.set_yticks(ticks, labels, fontsize=8)
    axes.set_ylim(line, -0.8)
    axes.set_xscale("log")
    low = min(min(ratio.minimum, ratio.by_flops or ratio.minimum) for _, ratio in dots)
    high = max(max(ratio.maximum, ratio.by_flops or ratio.maximum) for _, ratio in dots)
    axes.set_xlim(low / 1.3, high * 1.6)
    wanted = [base * 10.0**power for power in range(-4, 4) for base in (1, 2, 5)]
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in wanted if low / 1.3 <= tick <= high * 1.6]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.axvline(1.0, color=_INK, linewidth=0.8)
    axes.set_xlabel("ratio (log scale)", fontsize=9, color=_INK)
    handles = [
        axes.plot([], [], "o-", color=_HUES[0], linewidth=2.2, alpha=0.7, label="median, minimum to maximum")[0],
        axes.plot([], [], "|", color=_FLOPS, markersize=10, markeredgewidth=2, label="by FLOPs")[0],
    ]
    axes.legend(handles=handles, fontsize=8, frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2)
    _dress(axes, "x")


def _draw_curves(axes: Axes, name: str, ratios: list[Ratio], hues: Mapping[str, str]) -> None:
    for quantity in dict.fromkeys(ratio.quantity for ratio in ratios):
        hue = hues[quantity]
        points = sorted((ratio for ratio in ratios if ratio.quantity == quantity), key=lambda ratio: ratio.x or 0.0)
        xs = [point.x or 0.0 for point in points]
        medians = [point.median for point in points]
        ends = (
            [point.median - point.minimum for point in points],
            [point.maximum - point.median for point in points],
        )
        axes.errorbar(xs, medians, yerr=ends, fmt="o-", color=hue, markersize=4.5, linewidth=1.7, label=quantity)
        formula = [point.by_flops for point in points if point.by_flops is not None]
        if len(formula) == len(points):
            axes.plot(xs, formula, ":", color=hue, linewidth=1.5)
    values = sorted({ratio.x or 0.0 for ratio in ratios})
    if name != "insert_layer":
        axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(values))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_ylim(bottom=0)
    axes.set_xlabel(_AXES[name], fontsize=9, color=_INK)
    axes.set_ylabel("ratio", fontsize=9, color=_INK)
    axes.set_title("Growth; dotted: by FLOPs", fontsize=9, loc="left", color=_INK)
    axes.legend(fontsize=7.5, frameon=False, loc="upper left", bbox_to_anchor=(-0.02, -0.2))
    _dress(axes, "y")


def _dress(axes: Axes, grid: Literal["x", "y"]) -> None:
    """No box, light grid along one direction."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.grid(axis=grid, color=_FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="both", colors=_INK)
