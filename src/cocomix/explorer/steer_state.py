"""The steer view's state and texts: one prompt and seed, unsteered, steered, and the teacher steered alike."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast, get_args
from urllib.parse import urlencode

from torch import Tensor

from cocomix.evaluation import inference
from cocomix.explorer.continuation import Forward, Sampling, continue_tokens
from cocomix.explorer.limits import LIMITS, whole_number
from cocomix.explorer.subject import Subject
from cocomix.explorer.teacher_side import TeacherSide
from cocomix.interpret import concept_model, teacher_steering
from cocomix.model import ConceptEdit
from cocomix.model.edits import Operation
from cocomix.runtime.errors import CoCoMixError

__all__ = ["SteerState", "SteerTexts", "make_edit", "make_sampling", "steer", "student_forward", "teacher_forward"]


@dataclass(frozen=True)
class SteerState:
    """Everything that decides the texts of the steer view; two equal states give equal texts."""

    prompt: str
    edits: tuple[ConceptEdit, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)

    def to_query(self) -> str:
        """The state as the query of a link."""
        edits = ",".join(
            f"{edit.concept}:{edit.operation}" + ("" if edit.operation == "ban" else f":{edit.value:g}")
            for edit in self.edits
        )
        sampling = self.sampling
        return urlencode(
            {
                "view": "steer",
                "prompt": self.prompt,
                "edits": edits,
                "tokens": sampling.new_tokens,
                "temperature": f"{sampling.temperature:g}",
                "top_k": sampling.top_k or 0,
                "seed": sampling.seed,
            }
        )

    @classmethod
    def from_query(cls, values: Mapping[str, str], subject: Subject) -> "SteerState":
        """Read a link's query; what it leaves out has its default.

        Raises:
            CoCoMixError: a value is out of range, or an edit cannot be read.
        """
        default = Sampling()
        edits = []
        for part in filter(None, values.get("edits", "").split(",")):
            concept, _, rest = part.partition(":")
            operation, _, value = rest.partition(":")
            edits.append(make_edit(subject, concept, operation, value))
        if len(edits) > LIMITS.edits:
            raise CoCoMixError(f"the link turns {len(edits)} concepts; {LIMITS.edits} at most can be turned at once.")
        return cls(
            prompt=values.get("prompt", "")[: LIMITS.prompt_characters],
            edits=tuple(edits),
            sampling=make_sampling(
                subject,
                values.get("tokens", min(default.new_tokens, subject.limits.new_tokens)),
                values.get("temperature", default.temperature),
                values.get("top_k", default.top_k),
                values.get("seed", default.seed),
            ),
        )


class SteerTexts(NamedTuple):
    """The texts so far, after the prompt.

    Attributes:
        unsteered: the student's.
        steered: the student's, with the edits.
        teacher: the teacher's, with the same edits of its dictionary's latents; `None` where it is not at hand.
        tokens: how many tokens the longest has.
    """

    unsteered: str
    steered: str
    teacher: str | None
    tokens: int


def make_edit(subject: Subject, concept: object, operation: str, value: object) -> ConceptEdit:
    """An edit from what somebody typed.

    Raises:
        CoCoMixError: there is no such concept or operation, or the value is no number within ±20.
    """
    index = subject.concept(concept)
    if operation not in get_args(Operation):
        raise CoCoMixError(
            f"cannot {operation[:40]!r} concept {index}; choose one of {', '.join(get_args(Operation))}."
        )
    if operation == "ban":
        return ConceptEdit(index, "ban")
    return ConceptEdit(
        index,
        cast(Operation, operation),
        _number(value, f"the value for concept {index}", -LIMITS.value, LIMITS.value),
    )


def make_sampling(subject: Subject, new_tokens: object, temperature: object, top_k: object, seed: object) -> Sampling:
    """Settings of the sampling from what somebody typed; top_k 0 or nothing = among all tokens.

    Raises:
        CoCoMixError: a number is out of range.
    """
    among = whole_number(top_k or 0, "top-k", 0, 10**6)
    return Sampling(
        new_tokens=whole_number(new_tokens, "the number of tokens", 1, subject.limits.new_tokens),
        temperature=_number(temperature, "the temperature", 0, LIMITS.temperature),
        top_k=among or None,
        seed=whole_number(seed, "the seed", 0, LIMITS.seed),
    )


def _number(value: object, what: str, smallest: float, largest: float) -> float:
    try:
        number = float(str(value).strip())
    except ValueError:
        number = math.nan
    if not smallest <= number <= largest:
        raise CoCoMixError(f"{what} must be a number from {smallest:g} to {largest:g}.")
    return number


def steer(subject: Subject, state: SteerState) -> Iterator[SteerTexts]:
    """The texts of a state after every token, side by side. Closing the iterator stops the work.

    Raises:
        CoCoMixError: the model mixes no concepts in, or the prompt is empty or too long for it or for the teacher.
    """
    if state.edits:
        concept_model(subject.model, mixing=True)
    prompt = subject.encode(state.prompt, room=state.sampling.new_tokens)
    forwards: list[Forward] = [student_forward(subject, ()), student_forward(subject, state.edits)]
    if isinstance(subject.teacher, TeacherSide):
        forwards.append(teacher_forward(subject.teacher, state.edits))
    columns = [continue_tokens(forward, subject.tokenizer, prompt.cpu(), state.sampling) for forward in forwards]
    texts = [""] * len(columns)
    yield _texts(texts, 0)
    for number in range(1, state.sampling.new_tokens + 1):
        grown = [next(column, None) for column in columns]
        if all(text is None for text in grown):
            return
        texts = [text if new is None else new for text, new in zip(texts, grown, strict=True)]
        yield _texts(texts, number)


def _texts(texts: Sequence[str], tokens: int) -> SteerTexts:
    return SteerTexts(texts[0], texts[1], texts[2] if len(texts) > 2 else None, tokens)


def student_forward(subject: Subject, edits: tuple[ConceptEdit, ...]) -> Forward:
    """The run's model with edits of its concept logits."""

    def forward(tokens: Tensor, cache: Any) -> tuple[Tensor, Any]:
        with subject.computing() as model:
            output = model(
                input_ids=tokens.to(model.device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
                concept_edits=edits,
            )
            assert output.logits is not None
            return output.logits[0, -1].float().cpu(), output.past_key_values

    return forward


def teacher_forward(side: TeacherSide, edits: tuple[ConceptEdit, ...]) -> Forward:
    """The teacher with the same edits of its dictionary's latents."""

    def forward(tokens: Tensor, cache: Any) -> tuple[Tensor, Any]:
        model = side.teacher.decoder.model
        with side.lock, inference(model, model.device, model.dtype), teacher_steering(side.teacher, edits):
            output = model(input_ids=tokens.to(model.device), past_key_values=cache, use_cache=True, logits_to_keep=1)
            return output.logits[0, -1].float().cpu(), output.past_key_values

    return forward
