"""What a batch of generated texts is like: how much of a concept is in it, how fluent and how varied it is."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from cocomix.concepts import ConceptLabeller, ConceptTeacher
from cocomix.evaluation import inference
from cocomix.evaluation.inference import token_losses

__all__ = ["MEASURES", "distinct_bigrams", "measure_texts", "repeated_fourgrams"]

MEASURES = {
    "activation": "mean activation of the concept in the teacher's dictionary, over the generated tokens",
    "following": "log-ratio of how often the generated tokens follow the labels and follow anything, nats per token",
    "label_rate": "share of the generated tokens (but the last) that the teacher labels with the concept",
    "student_loss": "loss of the generated tokens under the unsteered student, nats per token",
    "teacher_loss": "loss of the generated tokens under the unsteered teacher, nats per token",
    "distinct_2": "distinct pairs of neighbouring tokens, as a share of all pairs of a text",
    "repeated_4": "four-token sequences that the same text had before, as a share of all",
}
"""What is measured of every text, and how; `following` only where there are labels."""


def measure_texts(
    texts: Tensor,
    prompt_tokens: int,
    concepts: Sequence[int],
    *,
    student: PreTrainedModel,
    teacher: ConceptTeacher,
    labeller: ConceptLabeller,
    k: int,
    followers: Tensor | None = None,
) -> dict[str, NDArray[Any]]:
    """Measure the continuations of a batch of prompts.

    Args:
        texts: prompts of equal length with their continuations. int64 [batch, seq]
        prompt_tokens: length of the prompts; only what follows is measured.
        concepts: the concept to look for in each text. [batch]
        student: the model for `student_loss`, not steered.
        teacher: the model for `teacher_loss`, not steered; its dictionary finds the concepts.
        labeller: labels the texts as the run's were.
        k: labels per position.
        followers: for each text the scores of its concept by `follower_scores`, for `following`. [batch, vocab]

    Returns:
        float64 [batch] for each of `MEASURES`; `following` only if asked for.
    """
    wanted = torch.tensor(concepts, device=texts.device)[:, None, None]
    found = labeller.label(texts, k=k)
    labelled = (found.ids[:, prompt_tokens:-1] == wanted).any(-1)  # the last token has no label
    codes = teacher.dictionary.encode(teacher.decoder.hidden_states(texts)[:, prompt_tokens:])
    activation = (codes.values * (codes.ids == wanted)).sum(-1)  # [batch, new tokens]
    new = texts[:, prompt_tokens:].tolist()
    measured: dict[str, NDArray[Any]] = {
        "activation": activation.double().mean(-1).cpu().numpy(),
        "label_rate": labelled.double().mean(-1).cpu().numpy(),
        "student_loss": _loss(student, texts, prompt_tokens),
        "teacher_loss": _loss(teacher.decoder.model, texts, prompt_tokens),
        "distinct_2": np.array([distinct_bigrams(tokens) for tokens in new]),
        "repeated_4": np.array([repeated_fourgrams(tokens) for tokens in new]),
    }
    if followers is not None:
        scores = followers.to(texts.device).gather(1, texts[:, prompt_tokens:])
        measured["following"] = scores.double().mean(-1).cpu().numpy()
    return measured


def distinct_bigrams(tokens: Sequence[int]) -> float:
    """Share of distinct ones among all pairs of neighbours; 1 where there is no pair."""
    return _distinct(tokens, 2)


def repeated_fourgrams(tokens: Sequence[int]) -> float:
    """Share of four-token sequences that occurred before; 0 where there is none."""
    return 1.0 - _distinct(tokens, 4)


def _distinct(tokens: Sequence[int], size: int) -> float:
    grams = [tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def _loss(model: PreTrainedModel, texts: Tensor, prompt_tokens: int) -> NDArray[Any]:
    """Mean loss of the tokens after the prompt, in nats. float64 [batch]"""
    with inference(model, model.device, model.dtype):
        logits = model(input_ids=texts, use_cache=False).logits[:, prompt_tokens - 1 :]
        losses: NDArray[Any] = token_losses(logits, texts[:, prompt_tokens - 1 :]).mean(-1).numpy()
    return losses
