"""What a run got from its teacher: which labels, and what they and work inside training cost in FLOPs, by formula."""

from dataclasses import dataclass
from pathlib import Path

from cocomix.labelling import Labels, LabelsManifest, TeacherProbabilities
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import Run

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
    """The teacher's cost for a run; `None` where it cannot be known, because what it made is gone."""
    manifest = run.manifest
    in_training = manifest.teacher_flops_per_token
    if in_training is None:
        if manifest.online_labels is not None:
            return None
        in_training = 0.0
    stored = []
    if manifest.labels is not None:
        if (labels := run_labels(run)) is None:
            return None
        stored.append((labels.manifest.flops_per_token, labels.manifest.tokens("train")))
    if manifest.teaching is not None and manifest.teaching.path is not None:
        try:
            found = TeacherProbabilities.open(manifest.teaching.path).manifest
        except CoCoMixError:
            return None
        stored.append((found.flops_per_token, found.tokens("train")))
    return TeacherCost(in_training, tuple(stored))


def run_labels(run: Run) -> Labels | None:
    """The stored labels of a run; `None` where it had none, or they are no longer there or are others."""
    reference = run.manifest.labels
    if reference is None:
        return None
    try:
        found = Labels.open(Path(reference.path))
    except CoCoMixError:
        return None
    return found if found.fingerprint == reference.fingerprint else None


def label_words(labels: LabelsManifest) -> str:
    """How labels were chosen where that is not the default, e.g. `sign logprob`; empty for the default."""
    default = {"kind": "attribution", "activation": "latent", "gradient": "sequence", "sign": "loss"}
    chosen = {name: labels.labels.get(name, value) for name, value in default.items()}
    return " ".join(f"{name} {value}" for name, value in chosen.items() if value != default[name])
