"""Teacher outputs for training beside labels: next-token distributions (KD) and hidden states (direct prediction).

The distributions come from the frozen teacher, run on every batch just before the student, or from a folder of what
it predicts (`cocomix distill`), whose manifest says of which kind that is; hidden states are never stored. An online
teacher runs in the training precision (our choice), in every process on its own rows; it is neither wrapped, nor
trained, nor saved, and its time is part of the run's seconds. As for labels, it reads whole blocks, also where the
student's documents do not see one another.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cocomix.artifacts import shown
from cocomix.concepts import FrozenDecoder, layer_normalize, model_fingerprint
from cocomix.data import Tokens
from cocomix.labelling import Concatenated, TeacherProbabilities, open_decoder
from cocomix.model import FullTargets, TopTargets
from cocomix.runtime.errors import CoCoMixError
from cocomix.training.corpora import open_beside
from cocomix.training.objectives import (
    Batch,
    ChunkLikelihood,
    Distillation,
    HiddenPrediction,
    Objective,
    Schedule,
    SortedDistillation,
)
from cocomix.training.recipe import RunConfig

_WORDS = {"top_k": "kd", "first_token": "kd of first-token marginals", "uld": "uld", "alm": "alm"}
"""By kind of stored targets."""


@dataclass(frozen=True)
class OnlineTeacher:
    """A frozen teacher that runs while the student trains."""

    decoder: FrozenDecoder  # on the device that trains, hooked at the block whose hidden states are asked for
    vocab_size: int  # of the tokenizer; what the teacher's head has beyond it is left out of its distributions
    dtype: torch.dtype | None = None  # autocast to it; float32 if None

    def distributions(self, batch: Batch) -> FullTargets:
        """Next-token distributions of a batch's rows."""
        states, head = self.decoder.predictions(batch["input_ids"], batch.get("attention_mask"), dtype=self.dtype)
        if head is None:
            return FullTargets(states[..., : self.vocab_size])
        dtype = self.dtype or head.weight.dtype
        bias = None if head.bias is None else head.bias[: self.vocab_size].to(dtype)
        return FullTargets(states.to(dtype), head.weight[: self.vocab_size].to(dtype), bias)

    def hidden_states(self, batch: Batch) -> Tensor:
        """Layer-normed output of the hooked block, without a dictionary's b_pre. [batch, seq, d_teacher], float32"""
        hidden = self.decoder.hidden_states(batch["input_ids"], batch.get("attention_mask"), dtype=self.dtype)
        return layer_normalize(hidden.float())[0]


@dataclass(frozen=True)
class Teaching:
    """What a recipe's teacher does while the student trains, labels left out."""

    objectives: tuple[Objective, ...] = ()  # the terms that the teacher adds
    stored: Concatenated[TeacherProbabilities] | None = None  # distributions to read beside the tokens
    hidden_size: int | None = None  # of the online teacher; `None` without one
    reference: dict[str, Any] | None = None  # for the run's manifest; `None` without distillation and hidden states

    @property
    def word(self) -> str:
        """What the distillation is called in an arm's name."""
        return "kd" if self.stored is None else _WORDS[self.stored.first.manifest.targets]


def open_teaching(recipe: RunConfig, data: Tokens, device: torch.device, dtype: torch.dtype | None = None) -> Teaching:
    """Load what a recipe's `distillation` and `prediction: hidden` ask for.

    Args:
        dtype: what an online teacher runs in; float32 if None.

    Raises:
        CoCoMixError: as `open_decoder` and `TeacherProbabilities.open`; stored distributions are of other tokens or of
            another vocabulary, or of another teacher than the recipe's.
    """
    distillation, weight = recipe.distillation, recipe.model.concept_loss_weight
    stored, online, reference = None, None, {}
    if recipe.target_folders:
        stored = _open_stored(recipe, data)
        reference = {"path": " + ".join(map(shown, recipe.target_folders)), "fingerprint": stored.fingerprint}
    hidden = recipe.predicts_hidden and weight.peak > 0
    if hidden or (distillation is not None and stored is None):
        assert recipe.teacher is not None  # the recipe was refused otherwise
        online = OnlineTeacher(open_decoder(data, recipe.teacher, device=device), data.manifest.vocab_size, dtype)
        reference["teacher"] = model_fingerprint(online.decoder.model)

    terms: list[Objective] = []
    if online is not None and hidden:
        flops = online.decoder.flops_per_token(data.manifest.block_size, up_to="layer")
        terms.append(HiddenPrediction(weight, online.hidden_states, flops))
    if distillation is not None and stored is not None:
        terms.append(_of_stored(distillation.weight, stored.first))
    elif distillation is not None and online is not None:
        flops = online.decoder.flops_per_token(data.manifest.block_size, up_to="head")
        terms.append(Distillation(distillation.weight, online.distributions, teacher_flops=flops))
    hidden_size = None if online is None else online.decoder.d_model
    return Teaching(tuple(terms), stored, hidden_size, reference or None)


def _of_stored(weight: Schedule, stored: TeacherProbabilities) -> Objective:
    if stored.manifest.targets == "alm":
        return ChunkLikelihood(weight)
    if stored.manifest.targets == "uld":
        return SortedDistillation(weight)

    def read(batch: Batch) -> TopTargets:
        return TopTargets(batch["teacher_ids"], batch["teacher_log_probs"], stored.complete)

    return Distillation(weight, read, ("teacher_ids", "teacher_log_probs"))


def _open_stored(recipe: RunConfig, data: Tokens) -> Concatenated[TeacherProbabilities]:
    """The distributions of one corpus, or of every corpus of a mixture."""
    stored = open_beside(TeacherProbabilities, recipe, recipe.target_folders, data)
    wanted = recipe.teacher and recipe.teacher.model
    for path, one in zip(recipe.target_folders, stored.parts, strict=True):
        if wanted is not None and wanted != one.manifest.teacher:
            raise CoCoMixError(
                f"the recipe's teacher.model is {wanted!r} but the probabilities in {path} are of "
                f"{one.manifest.teacher!r}; distill again or correct the recipe."
            )
    return stored
