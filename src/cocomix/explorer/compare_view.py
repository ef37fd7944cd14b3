"""The compare view: the run's validation curves beside those of other runs and of n-gram models."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr

from cocomix.evaluation import Table, evaluations_of
from cocomix.evaluation.comparison import comparison_tables
from cocomix.evaluation.pages import duration, markdown_text, si
from cocomix.evaluation.report import AXES
from cocomix.explorer.parts import View
from cocomix.explorer.subject import Subject
from cocomix.runtime.errors import CoCoMixError

_LOSS = "validation loss, nats per token"


def compare_view(subject: Subject, query: gr.Textbox) -> View:
    """Build the view inside the tab that is open."""
    import pandas as pd

    run, comparison = subject.run, subject.comparison
    curves = {run.manifest.name: pd.DataFrame(run.curve)} if comparison is None else comparison.mean_curves()
    references, problem = _references(subject)
    with gr.Row():
        axis = gr.Radio([(label, field) for field, label in AXES.items()], value="tokens", label="Against")
        runs = gr.CheckboxGroup(list(curves), value=list(curves), label="Runs")
    said = gr.HTML(js_on_load=None)
    plot = gr.LinePlot(x="x", y=_LOSS, color="run", height=440, buttons=[], elem_id="cx-curves")
    gr.Markdown(_table(subject) + problem, elem_id="cx-table")

    def show(axis: str, chosen: list[str]) -> Iterator[list[Any]]:
        if not chosen:
            raise CoCoMixError("no run is chosen; choose at least one.")
        shown = {name: curves[name] for name in curves if name in chosen}
        furthest = max(float(curve[axis].max()) for curve in shown.values())
        thousands = max(0, int(math.log10(max(furthest, 1)) // 3))  # of the axis' unit, so that its numbers are short
        lines = {name: curve.assign(x=curve[axis] / 1000**thousands) for name, curve in shown.items()}
        ends = [min(line["x"].min() for line in lines.values()), furthest / 1000**thousands]
        lines |= {name: pd.DataFrame({"x": ends, "loss": [loss, loss]}) for name, loss in references.items()}
        frame = pd.concat([line.assign(run=name) for name, line in lines.items()]).rename(columns={"loss": _LOSS})
        # The first, steep part of training may lie above the upper edge, as in the report's figures.
        late = [curve["loss"][curve["tokens"] >= 0.2 * curve["tokens"].max()] for curve in shown.values()]
        seen = [*pd.concat(late), *references.values()]
        margin = 0.06 * (max(seen) - min(seen)) or 0.1
        title = AXES[axis] + (f" / 10^{3 * thousands}" if thousands else "")
        limits = [min(seen) - margin, max(seen) + margin]
        yield ["", gr.LinePlot(frame[frame[_LOSS] <= limits[1]][["run", "x", _LOSS]], x_title=title, y_lim=limits)]

    view = View("compare", {"axis": axis, "runs": runs}, said, [plot], show, query, subject)
    gr.on([axis.change, runs.change], **view.again())
    return view


def _references(subject: Subject) -> tuple[dict[str, float], str]:
    """Losses of n-gram models on the validation tokens of the curves, as far as measured, and what went wrong."""
    found: Mapping[str, Any] = {} if subject.comparison is None else subject.comparison.curve_references
    try:
        evaluations, problem = evaluations_of(subject.run), ""
    except CoCoMixError as error:  # which the other views do not need
        evaluations, problem = [], f"\n\nWithout lines of n-gram models: {markdown_text(str(error))}"
    for one in evaluations:
        if not found and one.references is not None and one.data_fingerprint == subject.run.manifest.data.fingerprint:
            found = one.references.model_dump()
    # A unigram's line would lie so far above the others that the curves could not be told apart.
    return {name: found[name] for name in ("bigram", "trigram", "fourgram") if name in found}, problem


def _table(subject: Subject) -> str:
    """The comparison's tables, or what is known of the run alone and how to see it beside others."""
    run, manifest, comparison = subject.run, subject.run.manifest, subject.comparison
    if comparison is not None:
        tables = comparison_tables(comparison)
        escaped = (markdown_text(note).replace("\\`", "`") for note in comparison.notes)  # commands stand in backticks
        notes = "\n".join(f"- {note}" for note in escaped)
        return "\n\n".join(
            [*(tables[name].markdown() for name in ("result", "cost", "savings") if name in tables), notes]
        )
    facts = (
        ("final validation loss", f"{manifest.final.eval_loss:.3f} nats per token"),
        ("training tokens", si(manifest.tokens)),
        ("parameters, active", si(manifest.parameters.active)),
        ("training FLOPs per token", si(manifest.training_flops / manifest.tokens)),
        ("wall clock", duration(manifest.seconds)),
    )
    advice = f"To see it beside others: `cocomix explore {run.path} --compare OTHER_RUN`"
    return f"{Table(('of this run', manifest.name), facts).markdown()}\n\n{advice}"
