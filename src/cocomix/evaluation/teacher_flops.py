"""What a run got from its teacher: which labels, and what these, other teaching and the dictionary cost in FLOPs."""

from collections.abc import Mapping
from typing import Any

from cocomix.concepts import Dictionary
from cocomix.evaluation.run_inputs import run_labels
from cocomix.labelling import LabelsManifest, TeacherProbabilities
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import Run

__all__ = ["dictionary_flops", "label_words", "teacher_flops"]


def teacher_flops(run: Run) -> float | None:
    """The teacher's FLOPs for a run, by formula; `None` where they cannot be known, because what it made is gone.

    Work while training (online labels, distillation, hidden states) counts until its weight is 0 for good. Of what was
    written before training each token counts once, however often it is read, and only as far as the run read.
    """
    manifest = run.manifest
    while_training = (manifest.extra_flops or {}).values()
    total = sum(extra.per_token * min(extra.tokens, manifest.tokens) for extra in while_training)
    try:
        if manifest.labels is not None:
            if (labels := run_labels(run)) is None:
                return None
            total += labels.manifest.flops_per_token * min(labels.manifest.tokens("train"), manifest.tokens)
        if manifest.teaching is not None and manifest.teaching.path is not None:
            found = TeacherProbabilities.open(manifest.teaching.path).manifest
            total += found.flops_per_token * min(found.tokens("train"), manifest.tokens)
    except CoCoMixError:
        return None
    return total


def dictionary_flops(run: Run) -> float | None:
    """What fitting the dictionary of a run's labels cost; 0 without labels, `None` where that is not recorded."""
    settings: Mapping[str, Any] | None = None
    if run.manifest.online_labels is not None:
        settings = run.manifest.online_labels.labels
    elif run.manifest.labels is not None:
        if (labels := run_labels(run)) is None:
            return None
        settings = labels.manifest.labels
    if settings is None:
        return 0.0
    place = (settings.get("dictionary") or {}).get("path")
    if place is None:
        return 0.0 if "dictionary" not in settings else None
    try:
        report = Dictionary.open(place).manifest.report
    except CoCoMixError:
        return None
    return None if report is None else report.flops


def label_words(labels: LabelsManifest) -> str:
    """How labels were chosen where that is not the default, e.g. `sign logprob`; empty for the default."""
    default = {"kind": "attribution", "activation": "latent", "gradient": "sequence", "sign": "loss"}
    chosen = {name: labels.labels.get(name, value) for name, value in default.items()}
    return " ".join(f"{name} {value}" for name, value in chosen.items() if value != default[name])
