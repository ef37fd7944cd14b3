"""HTML of the compare view: validation curves and the table."""

from collections.abc import Collection

from cocomix.evaluation import Comparison, Run
from cocomix.evaluation.comparison import COLUMNS, REACH_COLUMNS
from cocomix.evaluation.formatting import duration, si
from cocomix.explorer.markup import empty, escaped, message, table
from cocomix.explorer.plots import curves

__all__ = ["comparison_curves", "comparison_table", "single_run"]


def comparison_curves(run: Run, comparison: Comparison | None, chosen: Collection[str], axis: str) -> str:
    """The chosen runs' curves; the run's own where there is no comparison."""
    lines = {run.manifest.name: run.curve} if comparison is None else comparison.curves
    shown = {name: line for name, line in lines.items() if name in chosen}
    if not shown:
        return empty("Choose at least one run.")
    return curves(shown, axis, None if comparison is None else comparison.baseline)


def comparison_table(comparison: Comparison) -> str:
    """The table, what each run needs to reach the baseline's final loss, and the notes."""
    notes = "".join(f"<li>{escaped(note)}</li>" for note in comparison.notes)
    return (
        f"{table(COLUMNS, comparison.cells())}<h4>To reach the final loss of {escaped(comparison.baseline)}</h4>"
        f"{table(REACH_COLUMNS, comparison.reach_cells())}<ul class='cx-notes'>{notes}</ul>"
    )


def single_run(run: Run) -> str:
    """What is known of a run alone, and how to see it beside others."""
    manifest = run.manifest
    facts = (
        ("objective", manifest.objective if manifest.mixing is None else f"{manifest.objective}, {manifest.mixing}"),
        ("final validation loss", f"{manifest.final.eval_loss:.3f} nats per token"),
        ("training tokens", si(manifest.tokens)),
        ("parameters", f"{si(manifest.parameters.total)}, {si(manifest.parameters.active)} active"),
        ("training FLOPs per token", si(manifest.flops_per_token.training)),
        ("wall clock", duration(manifest.seconds)),
        ("seed", str(manifest.seed)),
    )
    advice = message(f"to see it beside others: cocomix explore {run.path} --compare OTHER_RUN")
    return advice + table(("", manifest.name), facts)
