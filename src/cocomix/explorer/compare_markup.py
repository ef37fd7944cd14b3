"""HTML of the compare view: validation curves and the table."""

from collections.abc import Collection

from cocomix.evaluation import Comparison, CurvePoint, Run
from cocomix.evaluation.comparison_tables import comparison_tables
from cocomix.evaluation.formatting import duration, si
from cocomix.explorer.markup import empty, escaped, message, table
from cocomix.explorer.plots import curves

__all__ = ["comparison_curves", "comparison_table", "single_run"]


def comparison_curves(run: Run, comparison: Comparison | None, chosen: Collection[str], axis: str) -> str:
    """The chosen runs' curves; the run's own where there is no comparison."""
    lines = {run.manifest.name: list(run.curve)}
    if comparison is not None:
        fields = ["tokens", "seconds", "flops", "loss"]
        curves_of = comparison.mean_curves().items()
        lines = {name: [CurvePoint(*point) for point in curve[fields].to_numpy()] for name, curve in curves_of}
    shown = {name: line for name, line in lines.items() if name in chosen}
    if not shown:
        return empty("Choose at least one run.")
    return curves(shown, axis, None if comparison is None else comparison.baseline)


def comparison_table(comparison: Comparison) -> str:
    """Loss and cost of each run, and the notes."""
    notes = "".join(f"<li>{escaped(note)}</li>" for note in comparison.notes)
    shown = comparison_tables(comparison)
    tables = "".join(
        f"<h4>{escaped(shown[name].caption)}</h4>{table(shown[name].headings, shown[name].rows)}"
        for name in ("result", "cost")
    )
    return f"{tables}<ul class='cx-notes'>{notes}</ul>"


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
