"""What a run got from its teacher: which labels, and what these, other teaching and the dictionary cost in FLOPs.

A teacher, or weights to start from, may be a run itself: `flops_from_nothing` counts what led to a run, too.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cocomix.concepts import Dictionary
from cocomix.evaluation.run_inputs import own_labels, run_labels
from cocomix.labelling import LabelsManifest, StoredManifest, TeacherProbabilities
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import Run
from cocomix.training.recipe import load_recipe

_Read = tuple[StoredManifest, int]
"""What was stored of a corpus, and of how many of its tokens a run read it."""


def teacher_flops(run: Run, *, shared: bool = False) -> float | None:
    """The teacher's FLOPs for a run, by formula; `None` where they cannot be known, because what it made is gone.

    Work while training (online labels, distillation, hidden states) counts until its weight is 0 for good. Of what was
    written before training each token counts once, however often it is read, and only as far as the run read: of labels
    of everything for a λ that ends at a quarter of the run, a quarter counts. What labels and probabilities that were
    made together would each have needed of the teacher counts once, too, and so does the first pass of labels that have
    one, all of it. Of a mixture it is the sum over its corpora. `shared`: only what was written before training, which
    other students can read, too.
    """
    manifest = run.manifest
    while_training = () if shared else (manifest.extra_flops or {}).values()
    total = sum(extra.of_teacher * min(extra.tokens, manifest.tokens) for extra in while_training)
    if manifest.online_labels is not None and not shared:
        total += manifest.online_labels.fit_flops
    corpora, size = manifest.data.mixture, manifest.data.block_size
    drawn = [manifest.tokens] if corpora is None else [corpus.blocks * size for corpus in corpora]
    labels, targets = list[_Read](), list[_Read]()
    try:
        if manifest.labels is not None:
            found = [one.manifest for one in own_labels(run).parts]
            labels = _read(found, manifest.labels.tokens or drawn)
            total += sum(made.fit_flops for made, (_, tokens) in zip(found, labels, strict=True) if tokens)
        if manifest.teaching is not None and manifest.teaching.path is not None:
            folders = [Path(manifest.teaching.path)]
            if corpora is not None:
                folders = list(load_recipe(run.path / "recipe.yaml").target_folders)
            stored = [TeacherProbabilities.open(folder).manifest for folder in folders]
            targets = _read(stored, manifest.teaching.tokens or drawn)
    except CoCoMixError:
        return None
    total += sum(made.flops_per_token * tokens for made, tokens in (*labels, *targets))
    for (labelled, some), (taught, others) in zip(labels, targets, strict=False):  # there may be only one kind
        if labelled.shared_pass is not None and labelled.shared_pass == taught.shared_pass:
            total -= labelled.shared_pass.flops_per_token * min(some, others)
    return total


def _read(stored: Sequence[StoredManifest], drawn: Sequence[int]) -> list[_Read]:
    return [(made, min(made.tokens("train"), tokens)) for made, tokens in zip(stored, drawn, strict=True)]


def dictionary_flops(run: Run) -> float | None:
    """What fitting the dictionary of a run's labels cost; 0 where it read none, `None` where that is not recorded."""
    if (settings := _labelling(run)) is None:
        return None
    place = (settings.get("dictionary") or {}).get("path")
    if place is None:
        return 0.0 if "dictionary" not in settings else None
    try:
        report = Dictionary.open(place).manifest.report
    except CoCoMixError:
        return None
    return None if report is None else report.flops


def _labelling(run: Run) -> Mapping[str, Any] | None:
    """How the labels that a run read were made, as in a recipe; empty if it read none, `None` where they are gone."""
    manifest = run.manifest
    if manifest.labels_until == 0:  # the weight of concepts was 0
        return {}
    if manifest.online_labels is not None:
        return manifest.online_labels.labels
    if manifest.labels is None:
        return {}
    labels = run_labels(run)
    return None if labels is None else labels.manifest.labels


def flops_from_nothing(run: Run) -> float | None:
    """FLOPs of a run and of every run before it: training, teacher's work and dictionary of each, counted once.

    A run comes from the runs that its weights started from and that taught it, and these from theirs; `None` where
    something came from what is no run at hand, such as a model of the hub.
    """
    led, todo, total = set[Path](), [run.path], 0.0
    while todo:
        if (place := todo.pop().resolve()) in led:
            continue
        led.add(place)
        try:
            one = Run.open(place)
        except CoCoMixError:
            return None
        of_teacher, of_dictionary = teacher_flops(one), dictionary_flops(one)
        if of_teacher is None or of_dictionary is None:
            return None
        total += one.manifest.training_flops + of_teacher + of_dictionary
        todo += _sources(one)
    return total


def _sources(run: Run) -> list[Path]:
    """Where the weights that a run started from and the teachers of its labels, distributions and states are."""
    recipe, made = load_recipe(run.path / "recipe.yaml"), _labelling(run) or {}
    teachers = [getattr(each, "teacher", None) for each in recipe.auxiliary.values()]
    if recipe.predicts_hidden or (recipe.distillation is not None and not recipe.target_folders):
        teachers.append(recipe.teacher)
    names = [recipe.model.pretrained, (made.get("teacher") or {}).get("model")]
    names += [one.model for one in teachers if one is not None]
    names += [TeacherProbabilities.open(folder).manifest.teacher for folder in recipe.target_folders]
    return [Path(name) for name in names if name is not None]


def label_words(labels: LabelsManifest) -> str:
    """How labels were chosen where that is not the default, e.g. `sign logprob`; empty for the default."""
    default = {"kind": "attribution", "activation": "latent", "gradient": "sequence", "sign": "loss"}
    chosen = {name: labels.labels.get(name, value) for name, value in default.items()}
    return " ".join(f"{name} {value}" for name, value in chosen.items() if value != default[name])
