"""What a run got from its teacher: which labels, and what they and work inside training cost in FLOPs, by formula."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from cocomix.concepts.decoder import decoder_blocks
from cocomix.evaluation.opened_run import Run
from cocomix.labelling import ConceptLabelStore, LabelManifest, LabelSettings, TeacherProbabilities
from cocomix.labelling.labels import LabelShard
from cocomix.model.accounting import build_model
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.flops import block_flops

__all__ = ["TeacherCost", "label_words", "run_labels", "teacher_cost"]


@dataclass(frozen=True)
class TeacherCost:
    """The teacher's FLOPs for one run.

    Attributes:
        in_training: per training token, spent while training (online labels, distillation, hidden states).
        stored: what was written before training, as (FLOPs per token, tokens of the training split): each token is
            worked on once, however often it is read.
    """

    in_training: float = 0.0
    stored: tuple[tuple[float, int], ...] = ()

    def at(self, tokens: float) -> float:
        """FLOPs by the time a run has seen `tokens` training tokens; what it has not read yet is not counted."""
        return self.in_training * tokens + sum(flops * min(tokens, count) for flops, count in self.stored)


def teacher_cost(run: Run) -> TeacherCost | None:
    """The teacher's cost for a run; `None` where it cannot be known, because what it made or it itself is gone."""
    manifest = run.manifest
    in_training = manifest.teacher_flops_per_token
    if in_training is None:
        if manifest.online_labels is not None:
            return None
        in_training = 0.0
    stored = []
    if manifest.labels is not None:
        labels = run_labels(run)
        teacher = None if labels is None else _teacher(labels.teacher.name)
        if labels is None or teacher is None:
            return None
        stored.append((_labelling_flops(teacher, labels), _training_tokens(labels.splits, labels.block_size)))
    if manifest.teaching is not None and manifest.teaching.path is not None:
        try:
            found = TeacherProbabilities.open(Path(manifest.teaching.path)).manifest
        except CoCoMixError:
            return None
        teacher = _teacher(found.teacher.name)
        if teacher is None:
            return None
        stored.append((_forward_flops(teacher, found.block_size), _training_tokens(found.splits, found.block_size)))
    return TeacherCost(in_training, tuple(stored))


def run_labels(run: Run) -> LabelManifest | None:
    """What the stored labels of a run are; `None` where it had none or they are no longer there."""
    reference = run.manifest.labels
    if reference is None:
        return None
    try:
        found = ConceptLabelStore.open(Path(reference.path)).manifest
    except CoCoMixError:
        return None
    return found if found.fingerprint == reference.fingerprint else None


def label_words(settings: LabelSettings) -> str:
    """How labels were chosen where that is not the default, e.g. `sign logprob`; empty for the default."""
    default = LabelSettings().model_dump()
    chosen = settings.model_dump(include={"selection", "activation", "gradient", "sign"})
    return " ".join(f"{name} {value}" for name, value in chosen.items() if value != default[name])


def _training_tokens(splits: Mapping[str, tuple[LabelShard, ...]], block_size: int) -> int:
    return sum(shard.blocks for shard in splits["train"]) * block_size


def _teacher(name: str) -> PreTrainedModel | None:
    """The teacher's shape, without weights; `None` where it is no longer to be found."""
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError):
        return None
    with torch.device("meta"):
        return build_model(config)


def _forward_flops(teacher: PreTrainedModel, block_size: int) -> float:
    head = 2.0 * int(teacher.get_output_embeddings().weight.numel())
    return float(block_flops(decoder_blocks(teacher), teacher.config, block_size)) + head


def _labelling_flops(teacher: PreTrainedModel, labels: LabelManifest) -> float:
    """FLOPs per token of `cocomix label`.

    Attribution runs the whole teacher forward, and backward from the loss to the hooked block with respect to
    activations alone, which costs what the forward pass of that part costs; the dictionary multiplies the hidden state
    with its C directions, and with `activation: pre` the gradient too. Other selections stop at the hooked block.
    """
    blocks = nn.ModuleList(list(decoder_blocks(teacher))[: labels.layer + 1])
    below = float(block_flops(blocks, teacher.config, labels.block_size))
    dictionary = 2.0 * labels.num_concepts * int(teacher.config.hidden_size)
    if labels.settings.selection != "attribution":
        return below + dictionary
    whole = _forward_flops(teacher, labels.block_size)
    return whole + (whole - below) + dictionary * (2 if labels.settings.activation == "pre" else 1)
