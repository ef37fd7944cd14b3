"""The steer view: sliders for concepts, and texts that grow side by side."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import gradio as gr

from cocomix.explorer.continuation import Sampling
from cocomix.explorer.limits import LIMITS
from cocomix.explorer.look import block_script
from cocomix.explorer.markup import empty, message
from cocomix.explorer.steer_markup import progress, suggestions, text_columns
from cocomix.explorer.steer_slots import Slots, slots
from cocomix.explorer.steer_state import SteerState, make_sampling, steer
from cocomix.explorer.subject import Subject
from cocomix.interpret import steering_candidates
from cocomix.runtime.errors import CoCoMixError

__all__ = ["SteerPage", "steer_page"]

_EXAMPLE = "The function returns"
_POOL = 16  # concepts tried for a suggestion, one forward pass each
_SHOW_LINK = "(query) => { const link = location.origin + location.pathname + '?' + query; \
history.replaceState(null, '', link); return link; }"


class SteerPage(NamedTuple):
    """The parts that other views refer to."""

    slots: Slots
    suggested: gr.HTML
    said: gr.HTML
    restored: list[Any]  # what `restore` fills

    def restore(self, subject: Subject, query: Mapping[str, str]) -> list[Any]:
        """Values of `restored` from a link's query; nothing changes, and a sentence says why, if it cannot be read."""
        try:
            state = SteerState.from_query(query, subject)
        except CoCoMixError as error:
            return [message(f"this link cannot be used: {error}", "error"), *[gr.skip()] * (len(self.restored) - 1)]
        sampling = state.sampling
        return [
            message("the state of the link is restored; press Generate."),
            state.prompt,
            sampling.new_tokens,
            sampling.temperature,
            sampling.top_k or 0,
            sampling.seed,
            *self.slots.filled(state.edits),
        ]


def steer_page(subject: Subject) -> SteerPage:
    """Build the view inside the tab that is open."""
    default = Sampling(new_tokens=min(60, subject.limits.new_tokens))
    with gr.Row():
        with gr.Column(scale=3):
            prompt = gr.Textbox(
                _EXAMPLE,
                label="Prompt",
                info=f"Enter generates, Shift+Enter starts a line; {subject.limits.tokens} tokens with the continuation",
                max_lines=6,
                max_length=LIMITS.prompt_characters,
                elem_id="cx-steer-prompt",
            )
            rows = slots(subject)
            with gr.Row():
                add = gr.Button("Add a concept", size="sm", elem_id="cx-add")
                suggest = gr.Button("Suggest concepts for this prompt", size="sm", elem_id="cx-suggest")
        with gr.Column(scale=2, min_width=320):
            with gr.Row():
                tokens = gr.Slider(
                    1, subject.limits.new_tokens, default.new_tokens, step=1, label="Tokens", min_width=140
                )
                temperature = gr.Slider(
                    0, LIMITS.temperature, default.temperature, step=0.1, label="Temperature", min_width=140
                )
            with gr.Row():
                top_k = gr.Number(default.top_k, label="Top-k (0 = all)", precision=0, min_width=140)
                seed = gr.Number(default.seed, label="Seed", precision=0, min_width=140, elem_id="cx-seed")
            with gr.Row():
                run = gr.Button("Generate", variant="primary", elem_id="cx-run")
                stop = gr.Button("Stop", interactive=False, elem_id="cx-stop")
            link = gr.Textbox(
                label="Link to this state", interactive=False, max_lines=1, buttons=["copy"], elem_id="cx-link"
            )
            query = gr.Textbox(visible=False)
    suggested = gr.HTML(elem_id="cx-suggested", js_on_load=block_script())
    said = gr.HTML(elem_id="cx-steer-said", js_on_load=None)
    texts = gr.HTML(
        empty("Choose concepts and press Generate. × works where a concept is predicted, + everywhere."),
        elem_id="cx-texts",
        js_on_load=None,
    )
    sampling_inputs = [tokens, temperature, top_k, seed]
    no_teacher = subject.teacher if isinstance(subject.teacher, str) else ""

    def read_state(text: str, *values: Any) -> SteerState:
        return SteerState(text, rows.edits(subject, values[4:]), make_sampling(subject, *values[:4]))

    def make_link(*values: Any) -> str:
        try:
            return read_state(*values).to_query()
        except CoCoMixError:
            return gr.skip()  # type: ignore[no-any-return]  # the texts say what is wrong

    def generate(*values: Any) -> Iterator[tuple[Any, ...]]:
        running, waiting = gr.update(interactive=True), gr.update(interactive=False)
        try:
            state = read_state(*values)
            for grown in steer(subject, state):
                bar = progress(grown.tokens, state.sampling.new_tokens)
                yield bar, text_columns(state, grown, no_teacher), waiting, running
            yield message(f"{grown.tokens} tokens, seed {state.sampling.seed}."), gr.skip(), running, waiting
        except CoCoMixError as error:
            yield message(str(error), "error"), gr.skip(), running, waiting

    def stopped() -> tuple[Any, ...]:
        return message("stopped."), gr.update(interactive=True), gr.update(interactive=False)

    def propose(text: str) -> str:
        try:
            input_ids = subject.encode(text)
            with subject.lock:
                found = steering_candidates(subject.model, subject.tokenizer, input_ids, pool=_POOL)
        except CoCoMixError as error:
            return message(str(error), "error")
        return suggestions(found, subject.names([one.effect.concept for one in found]))

    add.click(rows.one_more, rows.inputs, rows.outputs, show_progress="hidden", api_visibility="private")
    everything = [prompt, *sampling_inputs, *rows.inputs]
    triggers = [run.click, prompt.submit]
    gr.on(triggers, make_link, everything, query, show_progress="hidden", api_visibility="private").then(
        None, query, link, js=_SHOW_LINK, api_visibility="private"
    )
    growing = gr.on(
        triggers,
        generate,
        everything,
        [said, texts, run, stop],
        concurrency_id="model",
        show_progress="hidden",
        trigger_mode="once",
        api_visibility="private",
    )
    stop.click(None, cancels=[growing], api_visibility="private").then(
        stopped, None, [said, run, stop], show_progress="hidden", api_visibility="private"
    )
    suggest.click(propose, prompt, suggested, concurrency_id="model", api_visibility="private")
    return SteerPage(rows, suggested, said, [said, prompt, *sampling_inputs, *rows.outputs])
