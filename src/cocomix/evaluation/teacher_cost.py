"""What the teacher's work for a run costs in FLOPs, by formula: labels made once, and work inside training."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig

from cocomix.concepts import ConceptLabelStore, LabelManifest
from cocomix.errors import CoCoMixError
from cocomix.evaluation.runs import Run
from cocomix.modeling import account
from cocomix.modeling.accounting import build_model

__all__ = ["TeacherCost", "labelling_flops_per_token", "teacher_cost"]


@dataclass(frozen=True)
class TeacherCost:
    """The teacher's FLOPs for one run.

    Attributes:
        in_training: per training token, spent while training (online labels, distillation).
        for_labels: per labelled token, spent before training.
        labelled_tokens: tokens of the training split, each labelled once however often it is read.
    """

    in_training: float = 0.0
    for_labels: float = 0.0
    labelled_tokens: int = 0

    def at(self, tokens: float) -> float:
        """FLOPs spent by the time a run has seen `tokens` training tokens; unread labels are not counted."""
        return self.in_training * tokens + self.for_labels * min(tokens, self.labelled_tokens)


def teacher_cost(run: Run) -> TeacherCost | None:
    """The teacher's cost for a run; `None` where it cannot be known, because labels or teacher are gone."""
    manifest = run.manifest
    in_training = manifest.teacher_flops_per_token
    if in_training is None:
        if manifest.online_labels is not None:
            return None
        in_training = 0.0
    if manifest.labels is None:
        return TeacherCost(in_training)
    try:
        labels = ConceptLabelStore.open(Path(manifest.labels.path)).manifest
    except CoCoMixError:
        return None
    per_token = labelling_flops_per_token(labels)
    if per_token is None or labels.fingerprint != manifest.labels.fingerprint:
        return None
    blocks = sum(shard.blocks for shard in labels.splits["train"])
    return TeacherCost(in_training, per_token, blocks * labels.block_size)


def labelling_flops_per_token(labels: LabelManifest) -> float | None:
    """FLOPs per token of `cocomix label`; `None` where the teacher is no longer to be found.

    Attribution runs the whole teacher forward, and backward through the blocks above the hooked one and the head, with
    respect to activations only, which costs what their forward pass costs; the dictionary multiplies the state and the
    gradient with its C directions each. Other selections run the teacher up to the hooked block and encode once.
    """
    try:
        config = AutoConfig.from_pretrained(labels.teacher.name, local_files_only=True)
    except (OSError, ValueError):
        return None
    with torch.device("meta"):
        teacher = build_model(config)
        whole = account(teacher, labels.block_size).forward_flops_per_token
        head = 2.0 * int(teacher.get_output_embeddings().weight.numel())
    below = (whole - head) * (labels.layer + 1) / int(config.num_hidden_layers)
    dictionary = 2.0 * labels.num_concepts * int(config.hidden_size)
    if labels.settings.selection == "attribution":
        return whole + (whole - below) + 2.0 * dictionary
    return below + dictionary
