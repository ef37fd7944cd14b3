"""Texts side by side from one prompt and seed: untouched, steered, after a hint, and the teacher steered alike."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cocomix.concepts import ConceptTeacher
from cocomix.evaluation import inference
from cocomix.explorer.subject import Subject
from cocomix.interpret import Sampling, concept_model, teacher_steering
from cocomix.interpret.steering import continuation
from cocomix.model import ConceptEdit
from cocomix.runtime.errors import CoCoMixError

Forward = Callable[[Tensor, Any], tuple[Tensor, Any]]
"""(tokens [1, seq], cache or None) → logits of the next token [vocab], float32, on the CPU, and the cache after it."""


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
    prompt, and `teacher` is the teacher's with the same edits of its dictionary's latents.

    Raises:
        CoCoMixError: the model mixes no concepts in, or the prompt is empty or, with the hint, too long.
    """
    room, untouched = sampling.max_new_tokens, student_forward(subject, ())
    tokens = subject.encode(prompt, room=room).cpu()
    columns = {"untouched": (untouched, tokens)}
    if edits:
        concept_model(subject.model, mixing=True)
        columns["steered"] = (student_forward(subject, edits), tokens)
    if hint.strip():
        try:
            columns["hinted"] = (untouched, subject.encode(f"{hint.strip()}\n{prompt}", room=room).cpu())
        except CoCoMixError as error:
            raise CoCoMixError(f"with the hint, {error}") from error
    if isinstance(subject.teacher, ConceptTeacher):
        columns["teacher"] = (_teacher_forward(subject, subject.teacher, edits), tokens)
    growing = {name: continue_text(*column, subject.tokenizer, sampling) for name, column in columns.items()}
    texts = dict.fromkeys(growing, "")
    yield dict(texts)
    for _ in range(room):
        grown = {name: text for name, column in growing.items() if (text := next(column, None)) is not None}
        if not grown:
            return
        texts |= grown
        yield dict(texts)


def student_forward(subject: Subject, edits: Sequence[ConceptEdit]) -> Forward:
    """The run's model with edits of its concept logits."""

    def forward(tokens: Tensor, cache: Any) -> tuple[Tensor, Any]:
        with subject.computing() as model:
            settings: dict[str, Any] = {"past_key_values": cache, "concept_edits": tuple(edits)}
            output = model(tokens.to(model.device), use_cache=True, logits_to_keep=1, **settings)
            return output.logits[0, -1].float().cpu(), output.past_key_values

    return forward


def _teacher_forward(subject: Subject, teacher: ConceptTeacher, edits: Sequence[ConceptEdit]) -> Forward:
    """The teacher with the same edits of its dictionary's latents."""
    model = teacher.decoder.model

    def forward(tokens: Tensor, cache: Any) -> tuple[Tensor, Any]:
        with subject.lock, inference(model, model.device, model.dtype), teacher_steering(teacher, edits):
            output = model(tokens.to(model.device), past_key_values=cache, use_cache=True, logits_to_keep=1)
            return output.logits[0, -1].float().cpu(), output.past_key_values

    return forward
