"""The benchmark results as one Markdown page."""

from collections.abc import Mapping
from typing import Any

from benchmarks.ratios import Ratio
from cocomix.evaluation.pages import duration

__all__ = ["render_page"]

_HEAD = """# Benchmarks on {device}

Every figure is a ratio of two measurements of the same run, formed round by round while both sides take turns; the
table shows its median, minimum and maximum over the rounds. *By FLOPs* is the same ratio by floating-point operations
of the matrix products (forward, and three times that for a training step): what is left if only arithmetic counted.
*Distance* is the measured median in units of it. *Target* is the goal that was set for this case. The last column
holds the two medians that were divided. The naive twin is a plain transcription of the method's formulas
(`benchmarks/naive.py`), which a test shows to compute what cocomix computes.
"""


def render_page(device: str, sections: Mapping[str, Mapping[str, Any]], figure: str) -> str:
    """The page of all sections of a results file, in its order."""
    parts = [_HEAD.format(device=device), f"![All ratios of this page]({figure})\n"]
    parts += [_section(section) for section in sections.values()]
    return "\n".join(parts)


def _section(section: Mapping[str, Any]) -> str:
    lines = [f"## {section['title']}", "", section["caption"], ""]
    if section["ratios"]:
        lines += [
            "| case | ratio | median | min – max | by FLOPs | distance | target | measured |",
            "|---|---|---:|---:|---:|---:|---:|---|",
        ]
        lines += [_row(Ratio(**values)) for values in section["ratios"]]
        lines.append("")
    lines += [f"- {note}" for note in section["notes"]]
    lines += ["", _provenance(section), ""]
    return "\n".join(lines)


def _row(ratio: Ratio) -> str:
    cells = [
        ratio.case,
        ratio.quantity,
        f"**{_number(ratio.median)}**",
        f"{_number(ratio.minimum)} – {_number(ratio.maximum)}",
        "" if ratio.by_flops is None else _number(ratio.by_flops),
        "" if ratio.distance is None else _number(ratio.distance),
        ratio.target,
        f"{_measure(ratio.numerator)} ÷ {_measure(ratio.denominator)} {ratio.unit}".rstrip(),
    ]
    return f"| {' | '.join(cells)} |"


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1 else f"{value:.2f}"


def _measure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _provenance(section: Mapping[str, Any]) -> str:
    machine = section["machine"]
    hardware = machine["accelerator"] or f"{machine['processor']} ({', '.join(machine['instructions']) or 'no AVX2'})"
    return (
        f"*{section['date']}, {section['rounds']} rounds, {duration(section['seconds'])}; {hardware}, "
        f"{machine['cores']} cores, {machine['threads']} threads, {machine['memory_gib']:.0f} GiB, load "
        f"{machine['load_at_start']} at the start; torch {machine['torch']}, transformers {machine['transformers']}, "
        f"cocomix {machine['cocomix']}, Python {machine['python']}; `{section['command']}`.*"
    )
