"""The page: four views, the ways from one to another, and links that reproduce each."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from cocomix.evaluation.pages import markdown_text, si
from cocomix.explorer.compare_view import compare_view
from cocomix.explorer.concept_view import concept_view
from cocomix.explorer.parts import QUIET, check_run, message
from cocomix.explorer.steer_view import steer_view
from cocomix.explorer.subject import RUNNING, WAITING, Subject
from cocomix.explorer.text_view import text_view
from cocomix.runtime.errors import CoCoMixError

_SHOW_LINK = """(query) => {
  const link = location.origin + location.pathname + "?" + query;
  history.replaceState(null, "", link);
  return link;
}"""


def build_app(subject: Subject) -> gr.Blocks:
    """The page as Gradio blocks, with its queue; `serve` launches it."""
    app = gr.Blocks(title=f"{subject.run.manifest.name} · cocomix", analytics_enabled=False)
    with app:
        gr.Markdown(_header(subject), elem_id="cx-header")
        told, query = gr.HTML(elem_id="cx-told", js_on_load=None), gr.Textbox(label="query", visible="hidden")
        with gr.Tabs() as tabs:
            with gr.Tab("Text", id="text") as text_tab:
                text = text_view(subject, query)
            with gr.Tab("Concept", id="concept") as concept_tab:
                concept, colour, steer_it = concept_view(subject, query)
            with gr.Tab("Steer", id="steer") as steer_tab:
                steer, fields, turned = steer_view(subject, query)
            with gr.Tab("Compare", id="compare") as compare_tab:
                compare = compare_view(subject, query)
        link = gr.Textbox(label="Link to what is shown", interactive=False, buttons=["copy"], elem_id="cx-link")
        query.change(None, query, link, js=_SHOW_LINK, api_visibility="private")
        # A view is computed when its tab is opened; a text is generated when it is asked for.
        for tab, view in ((concept_tab, concept), (compare_tab, compare)):
            tab.select(**view.again())
        read = text.again()

        def reopened(told: str, *given: Any) -> Iterator[list[Any]]:
            if told:
                yield from read["fn"](*given)
            else:  # Gradio selects the first tab as the page loads; `restore` fills it, with what the link asks for
                yield [gr.skip()] * len(read["outputs"])

        text_tab.select(**{**read, "fn": reopened, "inputs": [query, *read["inputs"]]})
        steer_tab.select(lambda *values: steer.link(values), list(steer.parameters.values()), query, **QUIET)

        views = {view.name: view for view in (text, concept, steer, compare)}

        def restore(request: gr.Request) -> dict[Any, Any]:
            asked = dict(request.query_params)
            values = {name: [gr.skip()] * len(view.parameters) for name, view in views.items()}
            name, said = "text", ""
            try:
                if asked.get("view") in views:
                    check_run(subject, asked)
                    name = asked["view"]
                    values[name] = views[name].restored(asked)
                    said = message("the link is restored; press Generate.") if name == "steer" else ""
            except CoCoMixError as error:
                name, said = "text", message(error, "error")
            # The text is read in the same answer: beside it, the slower of two answers would show the default.
            given = zip(text.parameters.values(), values["text"], strict=True)
            values_read = [(part.value or "") if value == gr.skip() else value for part, value in given]
            *_, (link_read, *found) = read["fn"](*values_read)
            filled: dict[Any, Any] = {
                query: link_read if name == "text" else gr.skip(),
                tabs: gr.skip() if name == "text" else gr.Tabs(selected=name),  # it is open already
                told: said,
            }
            for view in views.values():
                filled |= zip(view.parameters.values(), values[view.name], strict=True)
            return filled | dict(zip([text.said, *text.results], found, strict=True))

        parameters = {component for view in views.values() for component in view.parameters.values()}
        outputs = list({query, tabs, told, *parameters, text.said, *text.results})
        app.load(restore, None, outputs, concurrency_id="model", **QUIET)
        chosen, coloured = concept.parameters["concept"], text.parameters["concept"]
        colour.click(lambda one: [gr.Tabs(selected="text"), one], chosen, [tabs, coloured], **QUIET)
        steer_it.click(lambda one: [gr.Tabs(selected="steer"), *turned(one)], chosen, [tabs, *fields], **QUIET)
    app.queue(max_size=WAITING, default_concurrency_limit=RUNNING, api_open=False)
    return app


def theme() -> gr.themes.Base:
    """Neutral greys, one accent colour, and fonts of the system, so that nothing is fetched."""
    font = gr.themes.Font  # writes a name in quotes, with which `system-ui` and `ui-monospace` are no generic families
    return gr.themes.Base(
        primary_hue="indigo",
        neutral_hue="slate",
        spacing_size="sm",
        radius_size="sm",
        text_size="md",
        font=["system-ui", *map(font, ("Segoe UI", "Noto Sans", "DejaVu Sans", "sans-serif"))],
        font_mono=["ui-monospace", *map(font, ("Menlo", "DejaVu Sans Mono", "monospace"))],
    )


def _header(subject: Subject) -> str:
    manifest = subject.run.manifest
    facts = (
        f"{manifest.objective}, {manifest.mixing}",
        f"{subject.num_concepts:,} concepts",
        f"{si(manifest.parameters.total)} parameters",
        f"validation loss {manifest.final.eval_loss:.3f} nats per token",
        "with an atlas" if subject.atlas is not None else "without an atlas",
    )
    return f"# {markdown_text(manifest.name)}\n{' · '.join(map(markdown_text, facts))}"
