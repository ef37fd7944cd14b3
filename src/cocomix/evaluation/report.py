"""The report of a comparison: one HTML page, the curves as PNG, the table as Markdown, CSV and JSON."""

import logging
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from cocomix.artifacts import whole_folder, write_json, write_text
from cocomix.evaluation.comparison import (
    COLUMNS,
    DOCUMENT_COLUMNS,
    REACH_COLUMNS,
    SETTING_COLUMNS,
    Comparison,
    ComparisonRow,
)
from cocomix.evaluation.figures import AXES, DARK, LIGHT, draw_curves, drawn_names
from cocomix.evaluation.formatting import NOTHING, duration, percent, signed
from cocomix.evaluation.page import Block, Image, Page, Paragraph, Points, Section, Table
from cocomix.evaluation.reach import reach
from cocomix.evaluation.reliance import RunReliance
from cocomix.evaluation.run_evaluation import evaluations_of
from cocomix.runtime.errors import require_extra
from cocomix.training import Run

__all__ = ["REPORT_FILE", "recorded_sections", "reliance_section", "summary", "write_report"]

logger = logging.getLogger(__name__)

REPORT_FILE = "report.html"
"""Name of the page within the report's folder."""

_DESCRIPTIONS = {
    "ntp": "next-token prediction only",
    "ntp, matched": "next-token prediction only, as many active parameters",
    "ntp, matched, kd": "knowledge distillation, as many active parameters",
    "cocomix": "CoCoMix, the paper's form",
    "cocomix, residual": "CoCoMix, residual form",
    "cocomix, add": "CoCoMix, concepts added",
    "cocomix, prediction only": "concepts predicted, not mixed in",
    "cocomix, mixing only": "CoCoMix without the concept loss",
    "pause": "a learned vector in the concepts' place",
}
"""What a run is, for readers who do not know our words; others are shown in ours."""

_MOST_VERDICTS = 5
"""Of more arms than this, only the best are spoken of."""

_EVEN = 0.0005
"""Losses closer than this are called equal: they agree in the three decimals that are shown."""


def write_report(
    comparison: Comparison,
    output: Path,
    *,
    title: str = "CoCoMix and its baseline",
    sections: Sequence[Section] = (),
) -> Path:
    """Write a comparison as a folder: report.html, loss_vs_{tokens,flops,seconds}.png, table.{md,csv,json}.

    Args:
        comparison: from `compare`.
        output: the folder to create; it appears when it is whole.
        title: heading of the page.
        sections: shown after the curves, e.g. concept reliance, an inspected text, generations, commands.

    Returns:
        The page, `output`/report.html.

    Raises:
        CoCoMixError: `output` exists or cannot be written to.
    """
    require_extra("report", "matplotlib", "scipy", purpose="a report")
    images: list[Block] = []
    with whole_folder(output) as folder:
        for axis in AXES:
            light = draw_curves(comparison, axis, LIGHT)
            (folder / f"{axis.file}.png").write_bytes(light)
            alt = f"Validation loss of {', '.join(drawn_names(comparison))} against training {axis.field}"
            images.append(Image(light, alt=alt, dark_png=draw_curves(comparison, axis, DARK)))
        write_text(folder / "table.md", comparison.to_markdown())
        write_text(folder / "table.csv", comparison.to_csv())
        write_json(folder / "table.json", comparison.to_json())
        page = Page(
            title=title,
            summary=summary(comparison),
            sections=(*_result_sections(comparison, images), *sections, _conditions_section(comparison)),
            footer=f"Made by cocomix {version('cocomix')} from the runs' own logs.",
        )
        write_text(folder / REPORT_FILE, page.html())
    logger.info(f"report: {output / REPORT_FILE}")
    return output / REPORT_FILE


def summary(comparison: Comparison) -> list[str]:
    """What won and by how much, in plain sentences made from the numbers, either way."""
    base = comparison.baseline_row
    best = min(comparison.rows, key=lambda row: row.validation_loss)
    if best.difference > -_EVEN:
        head = f"The baseline, {base.name}, has the lowest validation loss: {base.validation_loss:.3f} nats per token."
    else:
        head = (
            f"{best.name} has the lowest validation loss: {best.validation_loss:.3f} nats per token against "
            f"{base.validation_loss:.3f} of the baseline, {base.name}."
        )
    others = comparison.others
    sentences = [head]
    if len(others) > _MOST_VERDICTS:
        better = sum(row.difference <= -_EVEN for row in others)
        others = tuple(sorted(others, key=lambda row: row.validation_loss)[:3])
        sentences.append(f"{better} of {len(comparison.others)} arms end below the baseline; the best three:")
    sentences += [_verdict(row, comparison) for row in others]
    seeds = {len(row.seeds) for row in comparison.rows}
    if seeds == {1}:
        sentences.append("One run with one seed each: small differences may be chance.")
    else:
        counts = str(seeds.pop()) if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
        sentences.append(f"Means over {counts} seeds; ± and ranges are 95% intervals over them.")
    return sentences


def _verdict(row: ComparisonRow, comparison: Comparison) -> str:
    """One arm against the baseline: the final losses, and what the better one needs to reach the other's."""
    base = comparison.baseline_row
    if abs(row.difference) < _EVEN:
        ending = f"ends level with the baseline ({row.validation_loss:.3f})"
    else:
        side = "below" if row.difference < 0 else "above"
        spread = "" if row.difference_interval is None else f" (± {row.difference_interval.half_width:.3f})"
        ending = f"ends {abs(row.difference):.3f}{spread} nats {side} the baseline ({row.validation_loss:.3f})"
    if row.saving is not None:
        saved = row.saving
        interval = saved.tokens_interval
        spread = "" if interval is None else f" ({percent(interval.low)} … {percent(interval.high)} saved)"
        cost = _cost(saved.tokens, saved.flops, saved.seconds, spread)
        return f"{row.name} {ending}; it reaches the baseline's final loss with {cost}."
    if row.reached:
        some = f"{row.reached} of its {len(row.seeds)} seeds reach"
        return f"{row.name} {ending}; {some} the baseline's final loss."
    own = reach(comparison.curves[row.name], comparison.curves[row.name][-1].loss)
    other = reach(comparison.curves[base.name], comparison.curves[row.name][-1].loss)
    if own is None or other is None:
        return f"{row.name} {ending} and does not reach the baseline's final loss."
    shares = (1 - other.tokens / own.tokens, 1 - other.flops / own.flops, 1 - other.seconds / own.seconds)
    return (
        f"{row.name} {ending} and does not reach the baseline's final loss; the baseline reaches {row.name}'s with "
        f"{_cost(*shares)}."
    )


def _cost(tokens: float, flops: float, seconds: float, spread: str = "") -> str:
    """Shares saved, in words."""
    return (
        f"{_relative(tokens, 'fewer')} tokens{spread}, {_relative(flops, 'fewer')} training FLOPs and "
        f"{_relative(seconds, 'less')} training time"
    )


def _relative(share: float, smaller: str) -> str:
    if abs(share) < 0.0005:
        return "as many" if smaller == "fewer" else "as much"
    return f"{percent(abs(share))} {smaller if share > 0 else 'more'}"


def _result_sections(comparison: Comparison, images: Sequence[Block]) -> tuple[Section, ...]:
    losses = [row.validation_loss for row in comparison.rows]
    table = Table(
        [COLUMNS[0], *COLUMNS[2:]],
        [(name, *numbers) for name, _, *numbers in comparison.cells()],
        marked=losses.index(min(losses)),
        remarks=[_DESCRIPTIONS.get(row.kind, row.kind) for row in comparison.rows],
        caption="Loss is validation loss in nats per token; FLOPs are those of training (M = 10⁶, T = 10¹²), without "
        "and with the teacher's work. The shaded run has the lowest loss.",
    )
    needed = Table(
        REACH_COLUMNS,
        comparison.reach_cells(),
        caption=f"What each run needs to reach the final loss of {comparison.baseline}",
    )
    tables: list[Block] = [table, needed]
    if documents := comparison.document_cells():
        caption = f"Against {comparison.baseline} on the same validation documents, nats per token"
        tables.append(Table(DOCUMENT_COLUMNS, documents, caption=caption))
    if comparison.downstream is not None:
        caption = "Downstream tasks: perplexity, and accuracy in percent"
        tables.append(Table(comparison.downstream.columns, comparison.downstream.cells, caption=caption))
    bands = " Where an arm has several seeds, the line is their mean and the band spans them."
    several = any(len(row.seeds) > 1 for row in comparison.rows)
    left_out = len(comparison.rows) - len(drawn_names(comparison))
    bands = bands if several else ""
    if left_out:
        bands += f" Drawn are the baseline and the arms with the lowest final losses; {left_out} more are in the table."
    return (
        Section("Result", (*tables, Points(comparison.notes))),
        Section(
            "Validation loss during training",
            (
                Paragraph(
                    "The same runs against three costs. Lower is better; further left is cheaper. The thin line is the "
                    f"baseline's final loss.{bands}",
                ),
                *images,
            ),
        ),
        Section("What was trained", (Table(SETTING_COLUMNS, comparison.setting_cells()),)),
    )


def _conditions_section(comparison: Comparison) -> Section:
    rows = list(comparison.conditions.items())
    rows += [(f"training time of {row.name}", duration(row.seconds)) for row in comparison.rows]
    return Section("Shared by all runs", (Table(("what", "value"), rows, text_columns=2),))


def recorded_sections(runs: Sequence[Run]) -> list[Section]:
    """What `cocomix eval` left beside the runs: concept reliance, where any has it."""
    reliances = {}
    for run in runs:
        for evaluation in evaluations_of(run)[:1]:
            if evaluation.reliance is not None:
                reliances[f"{run.manifest.name}, seed {run.manifest.seed}"] = evaluation.reliance
    return [reliance_section(reliances)] if reliances else []


def reliance_section(reliances: dict[str, RunReliance]) -> Section:
    """Concept reliance of several runs as a section of the report.

    Args:
        reliances: run name → its measurement.
    """
    kinds = list(dict.fromkeys(kind for each in reliances.values() for kind in each.kinds))
    rows = [
        (name, *(signed(each.kinds[kind].nats) if kind in each.kinds else NOTHING for kind in kinds))
        for name, each in reliances.items()
    ]
    return Section(
        "Do the models use their concepts?",
        (
            Paragraph(
                "Validation loss after replacing the concepts that are mixed in, minus the untouched loss, in nats per "
                "token: above 0, the replacement hurts."
            ),
            Table(("run", *(kind.replace("_", " ") for kind in kinds)), rows),
        ),
    )
