"""What a run got from its teacher: which labels, and what they and work inside training cost in FLOPs, by formula."""

from dataclasses import dataclass

from cocomix.evaluation.run_inputs import run_labels
from cocomix.labelling import LabelsManifest, TeacherProbabilities
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import Run

__all__ = ["TeacherCost", "label_words", "teacher_cost"]


@dataclass(frozen=True)
class TeacherCost:
    """The teacher's FLOPs for one run.

    Attributes:
        parts: (FLOPs per training token, up to so many tokens). Spent while training (online labels, distillation,
            hidden states): until the weight is 0 for good. Written before training: each token of the training split is
            worked on once, however often it is read.
    """

    parts: tuple[tuple[float, int], ...] = ()

    def at(self, tokens: float) -> float:
        """FLOPs by the time a run has seen `tokens` training tokens; what it has not read yet is not counted."""
        return sum(flops * min(tokens, count) for flops, count in self.parts)


def teacher_cost(run: Run) -> TeacherCost | None:
    """The teacher's cost for a run; `None` where it cannot be known, because what it made is gone."""
    manifest = run.manifest
    average = manifest.teacher_flops_per_token
    if average is None and manifest.online_labels is not None:
        return None
    parts = [(average, manifest.tokens)] if average else []  # of a run that does not say how long
    if manifest.extra_flops is not None:
        parts = [(extra.per_token, extra.tokens) for extra in manifest.extra_flops.values()]
    if manifest.labels is not None:
        if (labels := run_labels(run)) is None:
            return None
        parts.append((labels.manifest.flops_per_token, labels.manifest.tokens("train")))
    if manifest.teaching is not None and manifest.teaching.path is not None:
        try:
            found = TeacherProbabilities.open(manifest.teaching.path).manifest
        except CoCoMixError:
            return None
        parts.append((found.flops_per_token, found.tokens("train")))
    return TeacherCost(tuple(parts))


def label_words(labels: LabelsManifest) -> str:
    """How labels were chosen where that is not the default, e.g. `sign logprob`; empty for the default."""
    default = {"kind": "attribution", "activation": "latent", "gradient": "sequence", "sign": "loss"}
    chosen = {name: labels.labels.get(name, value) for name, value in default.items()}
    return " ".join(f"{name} {value}" for name, value in chosen.items() if value != default[name])
