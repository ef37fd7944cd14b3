"""The steer view: the text with concepts turned, beside the untouched one, one after a hint, and the teacher's."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import gradio as gr
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cocomix.concepts import ConceptTeacher
from cocomix.evaluation import inference
from cocomix.explorer.parts import QUIET, View, message, named
from cocomix.explorer.subject import MOST_CHARACTERS, MOST_EDITS, MOST_VALUE, MOST_WORDS, Subject
from cocomix.interpret import (
    Sampling,
    concept_model,
    edit_effects,
    parse_steer,
    steering_candidates,
    teacher_steering,
    visible,
)
from cocomix.interpret.steering import continuation
from cocomix.model import ConceptEdit
from cocomix.runtime.errors import CoCoMixError

_DO = {"add": "+", "multiply": "=", "set to": ":=", "ban": ":ban"}
_POOL, _SUGGESTED = 16, 8  # concepts tried for a suggestion, one forward pass each; and shown
_COLUMNS = {
    "untouched": ("Untouched", ""),
    "steered": ("Steered: the same prompt, the concepts turned", "Choose a concept to turn."),
    "hinted": ("Prompted: nothing turned, the hint before the prompt", "Write a hint to see what words alone do."),
    "teacher": ("Teacher, the same latents of its dictionary turned", ""),
}
_IDLE = (gr.update(interactive=True), gr.update(interactive=False))  # the buttons Generate and Stop
_BUSY = (gr.update(interactive=False), gr.update(interactive=True))

Forward = Callable[[Tensor, Any], tuple[Tensor, Any]]
"""(tokens [1, seq], cache or None) → logits of the next token [vocab], float32, on the CPU, and the cache after it."""


def read_edits(subject: Subject, concept: str, do: str, by: float, more: str) -> list[ConceptEdit]:
    """The edits that the page's fields ask for: of one concept, and further ones as the command line writes them.

    Refused where a concept does not exist, an edit cannot be read, a value is out of range, or there are too many.
    """
    edits = []
    if concept.strip():
        amount = _DO[do] if do == "ban" else f"{_DO[do]}{by:g}".replace("+-", "-")
        edits.append(parse_steer(f"{subject.concept(concept)}{amount}"))
    edits += [parse_steer(part) for part in more.split()]
    if len(edits) > MOST_EDITS:
        raise CoCoMixError(f"{len(edits)} concepts are turned; {MOST_EDITS} at most can be turned at once.")
    for edit in edits:
        subject.concept(str(edit.concept))
        if abs(edit.value) > MOST_VALUE:
            raise CoCoMixError(
                f"concept {edit.concept} is turned by {edit.value:g}; stay between -{MOST_VALUE:g} and {MOST_VALUE:g}."
            )
    return edits


def steer_view(subject: Subject, query: gr.Textbox) -> tuple[View, list[Any], Callable[[str], list[Any]]]:
    """Build the view inside the tab that is open; also returns fields, and what turns a named concept in them."""
    with gr.Row():
        with gr.Column(scale=3, min_width=280):
            about = f"Enter generates; up to {subject.tokens} tokens with what follows"
            size: dict[str, Any] = {"max_lines": 6, "max_length": MOST_CHARACTERS}
            prompt = gr.Textbox("The function returns", label="Prompt", info=about, elem_id="cx-prompt", **size)
            with gr.Row():
                size = {"max_length": MOST_WORDS, "min_width": 120}
                concept = gr.Textbox(label="Concept to turn", info="number or words", elem_id="cx-turned", **size)
                do = gr.Radio(list(_DO), value="add", label="Do", info="to its logit", min_width=200)
            by = gr.Slider(-MOST_VALUE, MOST_VALUE, 5.0, step=0.1, label="By", elem_id="cx-by", buttons=[])
            suggest = gr.Button("Suggest concepts for this prompt", size="sm")
            about = "Suggested: what is added to the logit, its effect, tokens that become likelier"
            suggested = gr.Radio([], label=about, visible=False, elem_id="cx-suggested")
        with gr.Column(scale=2, min_width=280):
            about = "words put before the prompt, nothing turned: what steering must beat"
            hint = gr.Textbox(label="Hint", info=about, max_length=MOST_WORDS, elem_id="cx-hint")
            with gr.Accordion("Further concepts, sampling", open=False):
                about = "as for cocomix generate --steer, spaces between: 97:ban 412+3 8=2@20"
                more = gr.Textbox(label="Further edits", info=about, max_length=MOST_WORDS)
                default = min(60, subject.new_tokens)
                tokens = gr.Slider(1, subject.new_tokens, default, step=1, precision=0, label="Tokens", buttons=[])
                temperature = gr.Slider(0, 3, 0.8, step=0.1, label="Temperature", buttons=[])
                top_k = gr.Number(50, label="Top-k (0 = all)", precision=0, minimum=0, maximum=10**6)
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1)
            with gr.Row():
                run, stop = gr.Button("Generate", variant="primary"), gr.Button("Stop", interactive=False)
    said, texts = gr.HTML(elem_id="cx-steer-said", js_on_load=None), []
    for names in (("untouched", "steered"), ("hinted", "teacher")):
        with gr.Row():
            look: dict[str, Any] = {"color_map": {"differs": "orange"}, "show_inline_category": False, "min_width": 280}
            texts += [
                gr.HighlightedText([("Press Generate.", None)], label=_COLUMNS[name][0], elem_id=f"cx-{name}", **look)
                for name in names
            ]

    def show(text: str, wanted: str, do: str, by: float, more: str, hint: str, *how: Any) -> Iterator[list[Any]]:
        edits = read_edits(subject, wanted, do, by, more)
        new_tokens, temperature, top_k, seed = how
        sampling = Sampling(new_tokens, temperature, top_k or None, seed)
        grown: dict[str, str] = {}
        for count, grown in enumerate(grow_texts(subject, text, edits, hint, sampling)):
            told = message(f"{count} of {new_tokens} tokens…")
            yield [told, *_columns(subject, text, grown), *_BUSY]
        yield [_told(subject, text, grown, edits), *_columns(subject, text, grown), *_IDLE]

    def propose(text: str) -> list[Any]:
        try:
            input_ids = subject.encode(text)
            with subject.lock:
                found = steering_candidates(subject.model, subject.tokenizer, input_ids, pool=_POOL)[:_SUGGESTED]
        except CoCoMixError as error:
            return [message(error, "error"), gr.skip()]
        names = subject.names(effect.concept for effect in found)
        options = []
        for effect in found:
            likelier = " ".join(visible(token) for token, _ in effect.raised[:4])
            told = f"{named(effect.concept, names)} · + {effect.amount:.1f} · {effect.divergence:.3f} nats · {likelier}"
            options.append((told, f"{effect.concept}+{min(effect.amount, MOST_VALUE):.1f}"))
        told = "" if found else message("no concept is predicted at only some of these tokens; write a longer prompt.")
        return [told, gr.update(choices=options, value=None, visible=bool(found))]

    def turned(wanted: str, amount: float | None = None) -> list[Any]:
        chosen = subject.concept(wanted)
        card = None if subject.atlas is None else subject.atlas.card(chosen)
        if amount is None:
            amount = min((card and card.effect_amount) or 5.0, MOST_VALUE)
        words = subject.names([chosen])[chosen] if card is None else ", ".join(word for word, _ in card.terms)
        return [str(chosen), "add", amount, words]

    def taken(chosen: str) -> list[Any]:
        edit = parse_steer(chosen)
        return turned(str(edit.concept), edit.value)

    fields = [concept, do, by, hint]
    parameters = {"prompt": prompt, "concept": concept, "do": do, "by": by, "more": more, "hint": hint}
    parameters |= {"tokens": tokens, "temperature": temperature, "top_k": top_k, "seed": seed}
    view = View("steer", parameters, said, [*texts, run, stop], show, query, subject)
    growing = gr.on([run.click, prompt.submit], **view.again(trigger_mode="once"))
    stop.click(None, cancels=[growing], api_visibility="private").then(
        lambda: [message("stopped."), *_IDLE], None, [said, run, stop], **QUIET
    )
    suggest.click(propose, prompt, [said, suggested], concurrency_id="model", api_visibility="private")
    suggested.input(taken, suggested, fields, **QUIET)
    return view, fields, turned


def _columns(subject: Subject, prompt: str, texts: dict[str, str]) -> list[Any]:
    """What the four columns show; where a text parts from the untouched one, its rest is marked."""
    shown: list[Any] = []
    for name, (_, missing) in _COLUMNS.items():
        if name not in texts:
            shown.append([(missing or str(subject.teacher), None)])
            continue
        text, untouched = texts[name], texts["untouched"]
        same = next((at for at, letter in enumerate(text) if untouched[at : at + 1] != letter), len(text))
        shown.append([(prompt + text[:same], None), *([(text[same:], "differs")] if text[same:] else [])])
    return shown


def _told(subject: Subject, prompt: str, texts: dict[str, str], edits: list[ConceptEdit]) -> str:
    """For each edit, whether it acts on the untouched text, and if not, why and what would."""
    if not edits:
        return message("nothing is turned; choose a concept.")
    input_ids = subject.encode(prompt + texts["untouched"])
    with subject.lock:
        found = edit_effects(subject.model, input_ids, edits)
    told = "".join(message(effect, "info" if effect.acts else "error") for effect in found)
    same = texts["steered"] == texts["untouched"] and any(effect.acts for effect in found)
    return told + (message("the steered text is the same nevertheless: add more, or try another seed.") if same else "")


def choose_token(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Sample a token from logits [vocab] by adding Gumbel noise and taking the largest.

    Our choice over inverting the cumulative distribution: with the same noise, two models whose distributions are alike
    choose the same token, so that texts of the same seed part only where steering changes something.
    """
    if sampling.temperature == 0:
        return int(logits.argmax())
    scores = logits.double() / sampling.temperature
    uniform = torch.rand(len(scores), generator=generator, dtype=torch.float64)
    if sampling.top_k is not None and sampling.top_k < len(scores):
        scores = scores.masked_fill(scores < scores.topk(sampling.top_k).values[-1], float("-inf"))
    return int((scores - (-uniform.log()).log()).argmax())


def continue_text(
    forward: Forward, prompt: Tensor, tokenizer: PreTrainedTokenizerBase, sampling: Sampling
) -> Iterator[str]:
    """The continuation of a prompt [1, seq] so far, after every further token; ends with the document."""
    generator = torch.Generator().manual_seed(sampling.seed)
    tokens, chosen, cache = prompt, prompt[0].tolist(), None
    for count in range(sampling.max_new_tokens):
        logits, cache = forward(tokens, cache)
        token = choose_token(logits[: len(tokenizer)], sampling, generator)
        if token == tokenizer.eos_token_id:
            return
        chosen.append(token)
        tokens = torch.tensor([[token]])
        text = continuation(tokenizer, prompt[0], torch.tensor(chosen))
        # A character whose last byte is still to come would flicker.
        yield text if count + 1 == sampling.max_new_tokens else text.rstrip("\ufffd")


def grow_texts(
    subject: Subject, prompt: str, edits: Sequence[ConceptEdit], hint: str, sampling: Sampling
) -> Iterator[dict[str, str]]:
    """The continuations of a prompt after every token, by column. Closing the iterator stops the work.

    `untouched` and, with edits, `steered` are the student's, `hinted` is the untouched student's after the hint and the
    prompt, and `teacher` is the teacher's with the same edits of its dictionary's latents. Refused where the model
    mixes no concepts in, or the prompt is empty or, with the hint, too long.
    """
    room, untouched = sampling.max_new_tokens, forward_of(subject, ())
    tokens = subject.encode(prompt, room=room).cpu()
    columns = {"untouched": (untouched, tokens)}
    if edits:
        concept_model(subject.model, mixing=True)
        columns["steered"] = (forward_of(subject, edits), tokens)
    if hint.strip():
        try:
            columns["hinted"] = (untouched, subject.encode(f"{hint.strip()}\n{prompt}", room=room).cpu())
        except CoCoMixError as error:
            raise CoCoMixError(f"with the hint, {error}") from error
    if isinstance(subject.teacher, ConceptTeacher):
        columns["teacher"] = (forward_of(subject, edits, subject.teacher), tokens)
    growing = {name: continue_text(*column, subject.tokenizer, sampling) for name, column in columns.items()}
    texts = dict.fromkeys(growing, "")
    yield dict(texts)
    for _ in range(room):
        grown = {name: text for name, column in growing.items() if (text := next(column, None)) is not None}
        if not grown:
            return
        texts |= grown
        yield dict(texts)


def forward_of(subject: Subject, edits: Sequence[ConceptEdit], teacher: ConceptTeacher | None = None) -> Forward:
    """The run's model with edits of its concept logits, or the teacher with those of its dictionary's latents."""

    def forward(tokens: Tensor, cache: Any) -> tuple[Tensor, Any]:
        asked: dict[str, Any] = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
        steered: Any = nullcontext(subject.model) if teacher is None else teacher_steering(teacher, edits)
        asked |= {"concept_edits": tuple(edits)} if teacher is None else {}
        with subject.lock, steered as model, inference(model, model.device, model.dtype):
            output = model(tokens.to(model.device), **asked)
            return output.logits[0, -1].float().cpu(), output.past_key_values

    return forward
