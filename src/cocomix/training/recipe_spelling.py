"""Recipes of before, in the spelling of today."""

from collections.abc import Mapping, Sequence
from typing import Any

_OLD = {"attribution", "dictionary"}
_SETTINGS = {"attribution": ("activation", "gradient", "sign"), "activation": (), "random": ("seed",)}
"""Of the old `attribution` section: what each `selection` reads beside k and dtype."""


def with_new_spelling(values: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe in the spelling of today.

    Recipes used to say `labels: FOLDER` or `labels: online`, and beside it `teacher:`, `dictionary:` and
    `attribution: {selection: …}`. `teacher:` was that of distillation and of hidden states, too, for which it stays.
    """
    values = {name: value for name, value in values.items() if value is not None or name not in _OLD}
    labels = values.get("labels")
    if not _OLD & values.keys() and labels != "online":
        return values
    for name in _OLD & values.keys():
        if not isinstance(values[name], Mapping):
            raise ValueError(f"{name} must be a mapping, not {values[name]!r}")
    old = dict(values.pop("attribution", {}))
    dictionary = values.pop("dictionary", None)
    teacher = values.get("teacher")
    student = values.get("model")
    hidden = isinstance(student, Mapping) and student.get("prediction") == "hidden"
    if values.get("distillation") is None and not hidden:
        values.pop("teacher", None)
    if labels is None and not _has_corpora_with_labels(values.get("data")):
        return values  # nothing would read them
    made = dict(labels) if isinstance(labels, Mapping) else {} if labels in (None, "online") else {"path": labels}
    kind = old.pop("selection", made.get("kind", "attribution"))
    others = {name for each, names in _SETTINGS.items() if each != kind for name in names}
    old.pop("score_dtype", None)  # of the storage: an option of `cocomix label`
    if teacher is not None:
        made.setdefault("teacher", teacher)
    if dictionary is not None:  # as `attribution` does, it says something else than a newer recipe below it
        below = made.get("dictionary")
        made["dictionary"] = {**below, **dictionary} if isinstance(below, Mapping) else dictionary
    made = {**made, **old, "kind": kind}
    return {**values, "labels": {name: value for name, value in made.items() if name not in others}}


def _has_corpora_with_labels(data: Any) -> bool:
    corpora = data.get("mixture") if isinstance(data, Mapping) else None
    found = corpora if isinstance(corpora, Sequence) else ()
    return any(isinstance(corpus, Mapping) and corpus.get("labels") is not None for corpus in found)
