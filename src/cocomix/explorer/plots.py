"""Small plots as inline SVG, coloured by the page's style sheet so that they follow light and dark."""

import math
from collections.abc import Mapping, Sequence

from cocomix.evaluation.formatting import duration, si
from cocomix.explorer.markup import escaped, number
from cocomix.training import CurvePoint

__all__ = ["AXES", "curves", "histogram"]

AXES = {"tokens": "training tokens", "flops": "training FLOPs", "seconds": "training wall clock"}
"""Fields of `CurvePoint` that curves are drawn against, with what they are called."""

_SERIES = 6


def histogram(edges: Sequence[float], counts: Sequence[int], what: str) -> str:
    """Bars of counts between edges, in bins of equal width; empty bins at either end are left out."""
    filled = [place for place, count in enumerate(counts) if count]
    if not filled:
        return ""
    first, last = filled[0], filled[-1] + 1
    counts, edges = counts[first:last], edges[first : last + 1]
    width, height, base = 320, 96, 78
    step, largest = width / len(counts), max(counts)
    bars = "".join(
        f'<rect x="{place * step + 0.5:.1f}" y="{base - (tall := 68 * count / largest):.1f}" '
        f'width="{max(step - 1, 1):.1f}" height="{tall:.1f}"><title>{number(edges[place])} to '
        f"{number(edges[place + 1])}: {count:,}</title></rect>"
        for place, count in enumerate(counts)
    )
    label = (
        f"{what}: {sum(counts):,} positions from {number(edges[0])} to {number(edges[-1])}, at most {largest:,} a bin"
    )
    return (
        f'<svg class="cx-plot cx-histogram" viewBox="0 0 {width} {height}" role="img" aria-label="{escaped(label)}">'
        f'{bars}<path d="M0 {base}.5H{width}"/>'
        f'<text x="0" y="{height - 3}">{number(edges[0])}</text>'
        f'<text x="{width}" y="{height - 3}" text-anchor="end">{number(edges[-1])}</text></svg>'
    )


def curves(lines: Mapping[str, Sequence[CurvePoint]], axis: str, baseline: str | None) -> str:
    """Validation loss of runs against a field of `CurvePoint`; the baseline is dashed.

    The first, steep part of training may lie above the upper edge, as in the report's figures.
    """
    width, height, left, right, top, bottom = 960, 400, 64, 190, 14, 46
    late = [point.loss for line in lines.values() for point in line if point.tokens >= 0.2 * line[-1].tokens]
    low, high = min(late), max(late)
    margin = 0.08 * (high - low) or 0.1
    low, high = low - margin, high + margin
    furthest = max(getattr(line[-1], axis) for line in lines.values()) or 1.0

    def x(value: float) -> float:
        return left + (width - left - right) * value / furthest

    def y(loss: float) -> float:
        return top + (height - top - bottom) * (high - loss) / (high - low)

    parts = [
        f'<path class="cx-grid" d="M{left} {y(tick):.1f}H{width - right}"/>'
        f'<text x="{left - 10}" y="{y(tick) + 4:.1f}" text-anchor="end">{number(tick, _digits(high - low))}</text>'
        for tick in _ticks(low, high)
    ]
    parts += [
        f'<text x="{x(tick):.1f}" y="{height - 24}" text-anchor="middle">{_unit(axis, tick)}</text>'
        for tick in _ticks(0, furthest)
    ]
    parts.append(
        f'<path class="cx-axis" d="M{left} {height - bottom}H{width - right}"/>'
        f'<text x="{(left + width - right) / 2:.0f}" y="{height - 4}" text-anchor="middle">{AXES[axis]}</text>'
        f'<clipPath id="cx-area"><rect x="{left}" y="{top}" width="{width - left - right + 6}" '
        f'height="{height - top - bottom}"/></clipPath>'
    )
    ends = []
    for place, (name, line) in enumerate(lines.items()):
        css = "cx-baseline" if name == baseline else f"cx-series-{place % _SERIES}"
        points = " ".join(f"{x(getattr(point, axis)):.1f},{y(point.loss):.1f}" for point in line)
        parts.append(f'<polyline class="{css}" clip-path="url(#cx-area)" points="{points}"/>')
        end = line[-1]
        parts.append(f'<circle class="{css}" cx="{x(getattr(end, axis)):.1f}" cy="{y(end.loss):.1f}" r="3.5"/>')
        ends.append((y(end.loss), name, css, end.loss))
    below = -math.inf
    for height_of_end, name, css, loss in sorted(ends):
        below = max(height_of_end + 4, below + 18)
        parts.append(
            f'<text class="{css}" x="{width - right + 14}" y="{below:.1f}">'
            f"{number(loss, 3)}  {escaped(name if len(name) <= 18 else name[:17] + '…')}</text>"
        )
    told = "; ".join(f"{name} ends at {number(line[-1].loss, 3)}" for name, line in lines.items())
    label = escaped(f"validation loss in nats per token against {AXES[axis]}: {told}")
    return (
        f'<svg class="cx-plot cx-curves" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">'
        f"{''.join(parts)}</svg>"
    )


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers within a range."""
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    return [step * place for place in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _digits(span: float) -> int:
    return max(0, 1 - math.floor(math.log10(span / 6)))


def _unit(axis: str, value: float) -> str:
    if value == 0:
        return "0"
    return duration(value) if axis == "seconds" else si(value)
