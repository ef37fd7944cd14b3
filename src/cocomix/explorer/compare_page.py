"""The compare view: the run's validation curves beside those of other runs."""

import gradio as gr

from cocomix.explorer.compare_markup import comparison_curves, comparison_table, single_run
from cocomix.explorer.plots import AXES
from cocomix.explorer.subject import Subject

__all__ = ["compare_page"]


def compare_page(subject: Subject) -> None:
    """Build the view inside the tab that is open."""
    run, comparison = subject.run, subject.comparison
    names = [run.manifest.name] if comparison is None else list(comparison.arms["arm"])
    with gr.Row():
        axis = gr.Radio(
            [(label, field) for field, label in AXES.items()], value="tokens", label="Against", elem_id="cx-axis"
        )
        chosen = gr.CheckboxGroup(names, value=names, label="Runs", elem_id="cx-runs", visible=comparison is not None)
    plot = gr.HTML(comparison_curves(run, comparison, names, "tokens"), elem_id="cx-curves", js_on_load=None)
    gr.HTML(
        single_run(run) if comparison is None else comparison_table(comparison), elem_id="cx-table", js_on_load=None
    )

    def draw(names: list[str], field: str) -> str:
        return comparison_curves(run, comparison, names, field)

    gr.on([axis.change, chosen.change], draw, [chosen, axis], plot, show_progress="hidden", api_visibility="private")
