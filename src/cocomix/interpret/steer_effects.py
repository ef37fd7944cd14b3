"""Does steering work? Concepts are turned by many factors, and the texts that follow are measured.

Three arms are generated from the same prompts: the *student* with the concept's logit edited (paper section 5.3), the
*control*, the student with another concept edited, and the *teacher*, with the concept's latent edited. In each, the
measured concept is the same.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cocomix.concepts import ConceptLabeller, ConceptTeacher
from cocomix.interpret.generation import check_sampling, continue_tokens
from cocomix.interpret.inspection import concept_model
from cocomix.interpret.steering import FACTOR_LIMIT
from cocomix.interpret.survey import ConceptSurvey
from cocomix.interpret.teacher_steering import teacher_steering
from cocomix.interpret.text_measures import MEASURES, measure_texts
from cocomix.model import CoCoMixForCausalLM, ConceptEdit
from cocomix.model.edits import check_edits
from cocomix.runtime.console import progress
from cocomix.runtime.errors import CoCoMixError

__all__ = [
    "ARMS",
    "Arm",
    "Choice",
    "SteerEvalSettings",
    "SteerMeasurements",
    "Turn",
    "check_measurable",
    "measure_steering",
]

Arm = Literal["student", "control", "teacher"]
ARMS: tuple[Arm, ...] = get_args(Arm)
Turn = Literal["add", "scale"]
Choice = Literal["persistent", "frequent"]


@dataclass(frozen=True)
class SteerEvalSettings:
    """What is generated and how it is counted.

    Attributes:
        concepts: concepts to turn; none = chosen by `choose_concepts`.
        num_concepts: how many to choose.
        choice: which: those that persist longest (`ConceptSurvey.persistence`) or those that label most tokens. Our
            choice: a concept of single tokens is over once it is said, and cannot be kept in a text.
        turn: what a factor does: `"add"` adds so many times the value that the concept's logit (the teacher's latent)
            usually has where it is mixed in (is active), `"scale"` multiplies by it, as the paper does. Our choice: a
            logit is mostly negative where the concept is not mixed in, so that scaling by −10 turns it on there.
        factors: at least three different ones; without effect are 0 (`"add"`) and 1 (`"scale"`).
        prompts: prompts from the validation split, the same for every concept; at least two.
        prompt_tokens: length of each prompt.
        new_tokens: length of each continuation; the end-of-document token is never drawn, so that all are equally long.
        temperature: of the sampling; 0 = always the likeliest token.
        top_k: sample among so many tokens.
        batch_size: texts per batch; the sampled texts depend on it.
        resamples: of bootstrap and permutation.
        seed: of sampling, controls and statistics.
    """

    concepts: tuple[int, ...] = ()
    num_concepts: int = 16
    choice: Choice = "persistent"
    turn: Turn = "add"
    factors: tuple[float, ...] = (-10.0, -5.0, -2.0, -1.0, 0.0, 1.0, 2.0, 5.0, 10.0)
    prompts: int = 8
    prompt_tokens: int = 16
    new_tokens: int = 32
    temperature: float = 1.0
    top_k: int | None = 50
    batch_size: int = 32
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in (("choice", get_args(Choice)), ("turn", get_args(Turn))):
            if getattr(self, name) not in choices:
                raise CoCoMixError(f"{name}={getattr(self, name)!r} is not one of {', '.join(choices)}.")
        check_sampling(self.new_tokens, self.temperature, self.top_k)
        if len(set(self.factors)) != len(self.factors) or len(self.factors) < 3:
            raise CoCoMixError(f"factors={list(self.factors)} must be at least three different numbers.")
        if not all(abs(factor) <= FACTOR_LIMIT for factor in self.factors):
            raise CoCoMixError(f"every factor must be a number between -{FACTOR_LIMIT:.0f} and {FACTOR_LIMIT:.0f}.")
        if len(set(self.concepts)) != len(self.concepts):
            raise CoCoMixError("a concept is named twice; name each once.")
        least = {
            "num_concepts": 1,
            "prompts": 2,
            "prompt_tokens": 1,
            "new_tokens": 4,
            "batch_size": 1,
            "resamples": 100,
        }
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise CoCoMixError(f"{name}={getattr(self, name)} must be at least {smallest}.")


@dataclass(frozen=True)
class SteerMeasurements:
    """Everything that was measured, text by text.

    Attributes:
        settings: how.
        concepts: the concepts measured, and turned in the arms student and teacher.
        controls: the concept turned in the control arm, for each of them.
        values: for each arm and each of `measures`, [concepts, factors, prompts].
    """

    settings: SteerEvalSettings
    concepts: tuple[int, ...]
    controls: tuple[int, ...]
    values: dict[Arm, dict[str, NDArray[Any]]] = field(repr=False)

    @property
    def measures(self) -> tuple[str, ...]:
        """Those of `MEASURES` that were measured: all, or all but `following`."""
        return tuple(name for name in MEASURES if name in self.values["student"])


def measure_steering(
    student: CoCoMixForCausalLM,
    teacher: ConceptTeacher,
    labeller: ConceptLabeller,
    k: int,
    prompts: Tensor,
    settings: SteerEvalSettings,
    *,
    end: int | None,
    vocab_size: int,
    survey: ConceptSurvey | None = None,
    followers: Tensor | None = None,
) -> SteerMeasurements:
    """Generate the three arms' texts for every concept, factor and prompt, and measure each text.

    Args:
        student: a CoCoMix model that mixes its concepts in.
        teacher: whose dictionary names the student's concepts; on the student's device.
        labeller: labels texts as the student's were.
        k: labels per position.
        prompts: int64 [prompts, prompt_tokens].
        settings: which concepts (at least one) and how.
        end: the end-of-document token.
        vocab_size: tokens of the tokenizer; others are not drawn.
        survey: what logits and latents usually are; needed to add to them.
        followers: scores of the settings' concepts by `follower_scores`, to measure `following`. [concepts, vocab]

    Raises:
        CoCoMixError: the student has no concepts, the teacher another number of them, a concept does not exist, the
            survey is missing or found no positive logit, or prompt and continuation do not fit the shorter of the two
            contexts.
    """
    student = concept_model(student, mixing=True)
    check_measurable(student, teacher, settings)
    if not settings.concepts:
        raise CoCoMixError("there is no concept to turn; name some, or let choose_concepts find them.")
    if settings.turn == "add" and survey is None:
        raise CoCoMixError("adding to logits needs a survey of what they usually are; see survey_concepts.")
    if settings.turn == "add" and survey is not None and not bool((survey.logit > 0).any()):
        raise CoCoMixError(
            "the model mixes no concept in with a positive logit, so there is no usual value to add; use --turn scale."
        )
    concepts, controls = settings.concepts, _controls(student.config.num_concepts, settings)
    shape = (len(concepts), len(settings.factors), len(prompts))
    names = [name for name in MEASURES if name != "following" or followers is not None]
    values: dict[Arm, dict[str, NDArray[Any]]] = {arm: {name: np.zeros(shape) for name in names} for arm in ARMS}
    prompts = prompts.to(student.device)
    with progress("steering", math.prod(shape) * len(ARMS), "texts") as advance:
        for arm in ARMS:
            turned = controls if arm == "control" else concepts
            units = _units(arm, settings, survey)
            for number, cells in enumerate(_batches(settings, len(prompts))):
                together = prompts.repeat(len(cells), 1)  # [cells · prompts, prompt_tokens]
                edits = [
                    ConceptEdit(
                        turned[concept],
                        settings.turn,
                        settings.factors[factor] * (1.0 if units is None else float(units[turned[concept]])),
                        rows=tuple(range(place * len(prompts), (place + 1) * len(prompts))),
                    )
                    for place, (concept, factor) in enumerate(cells)
                ]
                texts = _continued(arm, student, teacher, together, edits, settings, number, end, vocab_size)
                places = [concept for concept, _ in cells for _ in range(len(prompts))]
                measured = measure_texts(
                    texts,
                    settings.prompt_tokens,
                    [concepts[place] for place in places],
                    student=student,
                    teacher=teacher,
                    labeller=labeller,
                    k=k,
                    followers=None if followers is None else followers[places],
                )
                for name, found in measured.items():
                    for (concept, factor), row in zip(cells, found.reshape(len(cells), -1), strict=True):
                        values[arm][name][concept, factor] = row
                advance(len(texts))
    return SteerMeasurements(settings, concepts, controls, values)


def _continued(
    arm: Arm,
    student: CoCoMixForCausalLM,
    teacher: ConceptTeacher,
    prompts: Tensor,
    edits: Sequence[ConceptEdit],
    settings: SteerEvalSettings,
    number: int,
    end: int | None,
    vocab_size: int,
) -> Tensor:
    """Steered continuations; the same batch has the same random numbers in every arm. [batch, seq]"""
    shared: dict[str, Any] = {
        "end": end,
        "max_new_tokens": settings.new_tokens,
        "temperature": settings.temperature,
        "top_k": settings.top_k,
        "seed": settings.seed + number,
        "stop_at_end": False,
        "vocab_size": vocab_size,
    }
    mask = torch.ones_like(prompts)
    if arm != "teacher":
        return continue_tokens(student, prompts, mask, edits=edits, **shared)
    with teacher_steering(teacher, edits) as model:
        return continue_tokens(model, prompts, mask, **shared)


def _units(arm: Arm, settings: SteerEvalSettings, survey: ConceptSurvey | None) -> Tensor | None:
    """What a factor of 1 adds, for every concept; `None` where factors multiply. [n_concepts]"""
    if settings.turn == "scale" or survey is None:
        return None
    return survey.latent if arm == "teacher" else survey.logit


def _batches(settings: SteerEvalSettings, prompts: int) -> Iterator[list[tuple[int, int]]]:
    """(concept, factor) places, as many at a time as fill a batch with all their prompts."""
    cells = [(concept, factor) for concept in range(len(settings.concepts)) for factor in range(len(settings.factors))]
    size = max(1, settings.batch_size // prompts)
    for start in range(0, len(cells), size):
        yield cells[start : start + size]


def _controls(num_concepts: int, settings: SteerEvalSettings) -> tuple[int, ...]:
    """For each concept another one: of those measured where there are others, so that it is as frequent; else any."""
    generator = np.random.default_rng(settings.seed)
    pool = settings.concepts if len(settings.concepts) > 1 else range(num_concepts)
    return tuple(int(generator.choice([other for other in pool if other != concept])) for concept in settings.concepts)


def check_measurable(student: CoCoMixForCausalLM, teacher: ConceptTeacher, settings: SteerEvalSettings) -> None:
    """Refuse what cannot be measured, before any work.

    Raises:
        CoCoMixError: as `measure_steering`, but for the missing survey.
    """
    known = student.config.num_concepts
    if teacher.n_concepts != known:
        raise CoCoMixError(
            f"the dictionary {teacher.dictionary.name} has {teacher.n_concepts} concepts, but the model {known}; use "
            "the dictionary of its labels."
        )
    check_edits([ConceptEdit(concept) for concept in settings.concepts], known)
    if known < 2:
        raise CoCoMixError("a model of a single concept has no other one to compare it with.")
    context = min(model.config.get_text_config().max_position_embeddings for model in (student, teacher.decoder.model))
    if settings.prompt_tokens + settings.new_tokens > context:
        raise CoCoMixError(
            f"{settings.prompt_tokens} tokens of prompt and {settings.new_tokens} new ones do not fit the context of "
            f"{context} tokens; lower --prompt-tokens or --new-tokens."
        )
