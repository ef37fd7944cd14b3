"""Does steering work, and better than a prompt? Texts are generated, and the teacher's dictionary reads them all.

Three arms continue the same prompts: the *student* with a concept's logit edited (paper section 5.3), the *teacher*
with the concept's latent edited, and the student with the concept's words put before the *prompt*. Every text is
scored for every concept, so that the control of a concept is the texts in which the others were turned.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from cocomix.evaluation.pages import signed
from cocomix.evaluation.statistics import document_interval, wilcoxon_p
from cocomix.interpret.atlas_pass import Array
from cocomix.interpret.effects import Strengths
from cocomix.interpret.inspection import concept_model
from cocomix.interpret.run_teacher import TextReader
from cocomix.interpret.steering import FACTOR_LIMIT, Sampling, continue_tokens, teacher_steering
from cocomix.model import CoCoMixForCausalLM, ConceptEdit
from cocomix.model.edits import check_edits
from cocomix.runtime.console import progress
from cocomix.runtime.errors import CoCoMixError

Arm = Literal["student", "teacher", "prompt"]
ARMS: tuple[Arm, ...] = get_args(Arm)
Turn = Literal["add", "scale"]


@dataclass(frozen=True)
class SteerEvalSettings:
    """What is generated and how it is counted.

    Attributes:
        concepts: concepts to turn, at least two; none = the `num_concepts` most frequent (`Strengths.usable`).
        num_concepts: how many to choose.
        turn: what a factor does: `"add"` adds so many times `turning_amounts`, which brings a concept in whatever the
            sign of its logit; `"scale"` multiplies, as the paper does, and turns a negative logit the wrong way.
        factors: at least three different ones, with the one that changes nothing: 0 (`"add"`) or 1 (`"scale"`).
        prompts: prompts from the validation split, the same for every concept; at least two.
        new_tokens: length of each continuation, in the tokens of the model that writes it; the end-of-document token is
            never drawn, so that all are equally long.
        fluency: the factor compared with prompts may raise the teacher's perplexity at most so many times.
        temperature: of the sampling; 0 = always the likeliest token.
        top_k: sample among so many tokens.
        batch_size: texts per batch; the sampled texts depend on it.
        seed: of sampling and intervals.
    """

    concepts: tuple[int, ...] = ()
    num_concepts: int = 16
    turn: Turn = "add"
    factors: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 4.0)
    prompts: int = 8
    prompt_tokens: int = 16
    new_tokens: int = 32
    fluency: float = 1.5
    temperature: float = 1.0
    top_k: int | None = 50
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.turn not in get_args(Turn):
            raise CoCoMixError(f"turn={self.turn!r} is not one of {', '.join(get_args(Turn))}.")
        _ = self.sampling  # which refuses numbers that no text can be generated with
        if len(set(self.factors)) != len(self.factors) or len(self.factors) < 3 or self.neutral not in self.factors:
            raise CoCoMixError(
                f"factors={list(self.factors)} must be at least three different numbers, with {self.neutral:g}, which "
                f"changes nothing with turn={self.turn!r}."
            )
        if not all(abs(factor) <= FACTOR_LIMIT for factor in self.factors):
            raise CoCoMixError(f"every factor must be a number between -{FACTOR_LIMIT:.0f} and {FACTOR_LIMIT:.0f}.")
        if len(set(self.concepts)) != len(self.concepts) or len(self.concepts) == 1:
            raise CoCoMixError("name at least two concepts, each once: one is the other's control.")
        least = {"num_concepts": 2, "prompts": 2, "prompt_tokens": 1, "new_tokens": 4, "batch_size": 1, "fluency": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise CoCoMixError(f"{name}={getattr(self, name)} must be at least {smallest}.")

    @property
    def sampling(self) -> Sampling:
        """How the texts' tokens are chosen."""
        return Sampling(self.new_tokens, self.temperature, self.top_k, self.seed)

    @property
    def neutral(self) -> float:
        """The factor that changes nothing."""
        return 0.0 if self.turn == "add" else 1.0


@dataclass(frozen=True)
class SteerMeasurements:
    """Every text and what was measured of it."""

    settings: SteerEvalSettings
    # one per text: arm, turned, factor, prompt, tokens of the model that wrote it; loss (nats per token of the
    # unsteered teacher, NaN where it can read nothing new), distinct_2 (share of distinct pairs of neighbouring tokens)
    # and activation, the mean over the new tokens of each concept as the teacher's labeller counts it
    # (`TeacherLabeller.present`)
    rows: list[dict[str, Any]] = field(repr=False)

    def of(self, arm: Arm, name: str) -> Array:
        """A measure of an arm's texts. [turned, factors, prompts]; activation [turned, factors, prompts, measured]"""
        values = np.array([row[name] for row in self.rows if row["arm"] == arm])
        return values.reshape(len(self.settings.concepts), -1, self.settings.prompts, *values.shape[1:])


def measure_steering(
    student: CoCoMixForCausalLM,
    reader: TextReader,  # the teacher whose dictionary names the student's concepts; on the student's device
    prompts: Tensor,  # int64 [prompts, prompt_tokens]
    settings: SteerEvalSettings,
    strengths: Strengths,  # of all concepts; used with `turn="add"`
    # tokens put before the prompts in the arm `prompt`, for each of the settings' concepts; as many as have room
    words: Sequence[Sequence[int]],
    *,
    end: int | None,
    vocab_size: int,  # tokens of the tokenizer; others are not drawn
    head: int = 0,  # tokens that every prompt begins with and words come after: 1 for a begin-of-text token
) -> SteerMeasurements:
    """Generate the arms' texts for every concept, factor and prompt, and measure each text for every concept."""
    student = concept_model(student, mixing=True)
    check_measurable(student, reader, settings)
    concepts, prompts = settings.concepts, prompts.to(student.device)
    rows: list[dict[str, Any]] = []
    room = student.config.max_position_embeddings - settings.prompt_tokens - settings.new_tokens
    own = [torch.tensor(reader.begin(prompt), device=prompts.device) for prompt in prompts.tolist()]
    reader.check_length(max(map(len, own)) + settings.new_tokens)
    total = len(concepts) * (2 * len(settings.factors) + 1) * len(prompts)
    with progress("steering", total, "texts") as advance:
        for arm in ARMS:
            factors = (settings.neutral,) if arm == "prompt" else settings.factors
            units = {"student": strengths.logit, "teacher": strengths.latent}.get(arm)
            written = own if arm == "teacher" else list(prompts)
            drawn: dict[str, Any] = {"end": end, "vocab_size": vocab_size, "stop_at_end": False}
            if arm == "teacher" and reader.aligned is not None:
                drawn |= {"end": reader.aligned.teacher_end, "vocab_size": len(reader.aligned.teacher)}
            every = [(place, factor) for place in range(len(concepts)) for factor in factors]
            size = max(1, settings.batch_size // len(prompts))  # as many as fill a batch with all their prompts
            for number, first in enumerate(range(0, len(every), size)):
                cells = every[first : first + size]
                starts, edits = written * len(cells), list[ConceptEdit]()
                if units is None:
                    said = [prompts.new_tensor(words[place][:room]) for place, _ in cells]
                    starts = [torch.cat((one[:head], ids, one[head:])) for ids in said for one in prompts]
                else:
                    for cell, (place, factor) in enumerate(cells):
                        amount = factor * float(units[concepts[place]]) if settings.turn == "add" else factor
                        texts_of = tuple(range(cell * len(prompts), (cell + 1) * len(prompts)))
                        edits.append(ConceptEdit(concepts[place], settings.turn, amount, rows=texts_of))
                sampling = replace(settings.sampling, seed=settings.seed + number)
                # The same batch has the same random numbers in the arms student and teacher.
                writer: Any = nullcontext(student)
                if arm == "teacher":
                    writer, edits = teacher_steering(reader.teacher, edits), []
                with writer as model:
                    every_token = continue_tokens(model, starts, sampling, edits=edits, **drawn)
                new = every_token[:, max(map(len, starts)) :].tolist()
                given = [start.tolist() for start in written] * len(cells)
                read = reader.read_own if arm == "teacher" else reader.read  # without the words before
                texts = [read(before + after, len(before)) for before, after in zip(given, new, strict=True)]
                losses, present = reader.measure(texts, concepts)
                for index, (loss, found) in enumerate(zip(losses.tolist(), present, strict=True)):
                    place, factor = cells[index // len(prompts)]
                    pairs = list(pairwise(new[index]))
                    rows.append(
                        {
                            "arm": arm,
                            "turned": concepts[place],
                            "factor": factor,
                            "prompt": index % len(prompts),
                            "tokens": given[index] + new[index],
                            "loss": loss,
                            "distinct_2": len(set(pairs)) / len(pairs),
                            "activation": (found.sum(0) / max(1, len(found))).tolist(),
                        }
                    )
                advance(len(texts))
    return SteerMeasurements(settings, rows)


def check_measurable(student: CoCoMixForCausalLM, reader: TextReader, settings: SteerEvalSettings) -> None:
    """Refuse, before any work, a teacher, concepts and lengths of text that the student's steering cannot have."""
    known, teacher = student.config.num_concepts, reader.teacher
    if teacher.n_concepts != known:
        raise CoCoMixError(
            f"the dictionary {teacher.dictionary.name} has {teacher.n_concepts} concepts, but the model {known}; use "
            "the dictionary of its labels."
        )
    check_edits([ConceptEdit(concept) for concept in settings.concepts], known)
    context = student.config.max_position_embeddings
    if reader.aligned is None:
        context = min(context, reader.context)
    if settings.prompt_tokens + settings.new_tokens > context:
        raise CoCoMixError(
            f"{settings.prompt_tokens} tokens of prompt and {settings.new_tokens} new ones do not fit the context of "
            f"{context} tokens; lower --prompt-tokens or --new-tokens."
        )


class PairedDifference(NamedTuple):
    """The mean of a difference over concepts, and its 95% interval, by bootstrap over concepts."""

    mean: float
    low: float
    high: float
    # of Wilcoxon's signed-rank test, two-sided; `None` for fewer than 6 concepts, which cannot reach 0.05
    p_value: float | None
    positive: int  # concepts with a difference above 0
    concepts: int  # all

    @property
    def shown(self) -> bool:
        """Whether it is above 0 with p < 0.05."""
        return self.mean > 0 and self.p_value is not None and self.p_value < 0.05

    def __str__(self) -> str:
        """The numbers as they are quoted: difference, interval, p-value, count."""
        p_value = "" if self.p_value is None else f"Wilcoxon p = {self.p_value:.2g}, "
        interval = f"[{signed(self.low)}, {signed(self.high)}]"
        return f"{signed(self.mean)} {interval}, {p_value}above 0 for {self.positive} of {self.concepts} concepts"


def paired_difference(values: Array, *, seed: int = 0) -> PairedDifference:
    """Mean, interval and test of differences, one per concept. [concepts]"""
    low, high = document_interval(values, np.arange(len(values)), seed=seed)
    p_value = wilcoxon_p(values)
    tested, positive = None if np.isnan(p_value) else p_value, int((values > 0).sum())
    return PairedDifference(float(values.mean()), low, high, tested, positive, len(values))
