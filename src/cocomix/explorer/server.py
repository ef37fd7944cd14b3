"""The page of four views, and serving it: on this machine alone unless asked otherwise, then behind a password."""

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from threading import Event
from typing import Any

import gradio as gr

from cocomix.evaluation.formatting import markdown_text, si
from cocomix.explorer.compare_view import compare_view
from cocomix.explorer.concept_view import concept_view
from cocomix.explorer.guard import USER, SecurityHeaders, login, names_of
from cocomix.explorer.parts import QUIET, check_run, message
from cocomix.explorer.steer_view import steer_view
from cocomix.explorer.subject import LIMITS, Subject
from cocomix.explorer.text_view import text_view
from cocomix.runtime.errors import CoCoMixError

logger = logging.getLogger(__name__)

_SESSIONS = 200


def serve(subject: Subject, **where: Any) -> None:
    """Serve the page until Ctrl-C. Arguments and errors as in `serving`."""
    with serving(subject, **where) as address:
        logger.info(f"the explorer of {subject.run.manifest.name} is at {address}; Ctrl-C ends it.")
        if where.get("password") is not None:
            logger.info(f"the user name is {USER}.")
        try:
            Event().wait()
        except KeyboardInterrupt:
            logger.info("the explorer has ended.")


@contextmanager
def serving(
    subject: Subject,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    password: str | None = None,
    allowed_hosts: Sequence[str] = (),
) -> Iterator[str]:
    """Serve the page from a thread while the block runs; yields its address.

    Args:
        password: asked for where it is given.
        allowed_hosts: names the page answers to beside the host's own; see `names_of`.

    Raises:
        CoCoMixError: the port is taken, the host is not this machine's, or an allowed host is no name.
    """
    names = names_of(host, allowed_hosts)
    _refuse_taken(host, port)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from cocomix.explorer.server import build_app, style_sheet, theme

    app = build_app(subject)
    options: dict[str, Any] = {}
    if password is not None:
        options["auth"] = login(password)
    _, address, _ = app.launch(
        server_name=host,
        server_port=port,
        share=False,
        inbrowser=False,
        prevent_thread_lock=True,
        quiet=True,
        show_error=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=[],
        max_file_size=1,
        app_kwargs={
            "middleware": [
                Middleware(SecurityHeaders, names=names),
                Middleware(TrustedHostMiddleware, allowed_hosts=names, www_redirect=False),
            ]
        },
        max_threads=LIMITS.running + 16,
        state_session_capacity=_SESSIONS,
        theme=theme(),
        css=style_sheet(),
        **options,
    )
    try:
        yield address
    finally:
        app.close()


def _refuse_taken(host: str, port: int) -> None:
    """Say in words that a port cannot be served on, before anything is built."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError as error:
        raise CoCoMixError(
            f"cannot serve on {host}, port {port} ({error.strerror}); choose another --port or --host."
        ) from error


_SHOW_LINK = """(query) => {
  const link = location.origin + location.pathname + "?" + query;
  history.replaceState(null, "", link);
  return link;
}"""


def build_app(subject: Subject) -> gr.Blocks:
    """The page as Gradio blocks, with its queue; `serve` launches it."""
    limits, app = subject.limits, gr.Blocks(title=f"{subject.run.manifest.name} · cocomix", analytics_enabled=False)
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
            values_read = [
                (component.value or "") if value == gr.skip() else value
                for component, value in zip(text.parameters.values(), values["text"], strict=True)
            ]
            try:
                *_, found = text.show(*values_read)
            except CoCoMixError as error:
                found = [message(error, "error"), *[gr.skip()] * len(text.results)]
            return {
                query: text.link(values_read) if name == "text" else gr.skip(),
                tabs: gr.skip() if name == "text" else gr.Tabs(selected=name),  # it is open already
                told: said,
                **{
                    component: value
                    for view in views.values()
                    for component, value in zip(view.parameters.values(), values[view.name], strict=True)
                },
                **dict(zip([text.said, *text.results], found, strict=True)),
            }

        parameters = {component for view in views.values() for component in view.parameters.values()}
        outputs = list({query, tabs, told, *parameters, text.said, *text.results})
        app.load(restore, None, outputs, concurrency_id="model", **QUIET)
        chosen, coloured = concept.parameters["concept"], text.parameters["concept"]
        colour.click(lambda one: [gr.Tabs(selected="text"), one], chosen, [tabs, coloured], **QUIET)
        steer_it.click(lambda one: [gr.Tabs(selected="steer"), *turned(one)], chosen, [tabs, *fields], **QUIET)
    app.queue(max_size=limits.waiting, default_concurrency_limit=limits.running, api_open=False)
    return app


def theme() -> gr.themes.Base:
    """Neutral greys, one accent colour, and fonts of the system, so that nothing is fetched."""
    sizes, colours, font = gr.themes.sizes, gr.themes.colors, gr.themes.Font
    return gr.themes.Base(
        primary_hue=colours.indigo,
        neutral_hue=colours.slate,
        spacing_size=sizes.spacing_sm,
        radius_size=sizes.radius_sm,
        text_size=sizes.text_md,
        font=[font(name) for name in ("system-ui", "Segoe UI", "Noto Sans", "DejaVu Sans", "sans-serif")],
        font_mono=[font(name) for name in ("ui-monospace", "Menlo", "DejaVu Sans Mono", "monospace")],
    )


def style_sheet() -> str:
    """The page's CSS."""
    return files(__package__).joinpath("explorer.css").read_text(encoding="utf-8")


def _header(subject: Subject) -> str:
    manifest = subject.run.manifest
    facts = (
        f"{manifest.objective}, {manifest.mixing}",
        f"{subject.num_concepts:,} concepts",
        f"{si(manifest.parameters.total)} parameters",
        f"{manifest.final.eval_loss:.3f} nats per token",
        "with an atlas" if subject.atlas is not None else "without an atlas",
    )
    return f"# {markdown_text(manifest.name)}\n{' · '.join(map(markdown_text, facts))}"
