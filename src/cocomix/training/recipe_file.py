"""What a recipe file says before it is validated; nothing here imports PyTorch."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cocomix.artifacts import MANIFEST, fingerprint_json, read_json, shown, url_of
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.packaged import recipes_folder
from cocomix.runtime.yaml_text import parse_yaml

logger = logging.getLogger(__name__)

_OLD = {"attribution", "dictionary"}
_SETTINGS = {"attribution": ("activation", "gradient", "sign"), "activation": (), "random": ("seed",)}
"""Of the old `attribution` section: what each `selection` reads beside k and dtype."""


class MissingRecipe(CoCoMixError):
    """There is no such recipe or plan; if one of that name comes with cocomix, the message says how to copy it."""


def recipe_values(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of a recipe or plan and those of its bases, with `a.b=value` assignments (values in YAML) over them.

    Raises:
        CoCoMixError: a file is missing or no YAML mapping, or an assignment is none.
    """
    values = _with_base(path, seen=())
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise CoCoMixError(f"--set {override} is not of the form section.field=value.")
        _assign(values, key.split("."), parse_yaml(text, f"--set {override}"))
    return values


def recipe_fingerprint(values: Mapping[str, Any]) -> str:
    """Of a recipe as it is written, which a run's manifest keeps to recognise it."""
    return fingerprint_json({"recipe": values})


def finished_run(output: Path, values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The manifest of a run that these values asked for, if it is there and what it read has not changed.

    `None` where that cannot be told at once, as of a mixture or of tokens at a URL; `train` then finds out.
    """
    data = values.get("data")
    manifest, tokens = output / MANIFEST, Path(str(data)) / MANIFEST
    if url_of(output) is not None or not isinstance(data, str) or not (manifest.is_file() and tokens.is_file()):
        return None
    found: dict[str, Any] = read_json(manifest)
    if found.get("kind") != "run" or found.get("recipe_fingerprint") != recipe_fingerprint(values):
        return None
    if found.get("identity", {}).get("data") != read_json(tokens).get("fingerprint") or made_anew(found):
        return None
    logger.info(f"{shown(output)} is this run, finished: nothing to do")
    return found


def made_anew(run: Mapping[str, Any]) -> tuple[str, ...]:
    """What a run's manifest says it read, of `labels` and `teaching`, in whose folder there is something else now.

    Of what is gone, and of a mixture, it cannot be told.
    """
    found = []
    for role in ("labels", "teaching"):
        part = run.get(role) or {}
        file = Path(part.get("path") or "") / MANIFEST
        if part.get("path") and file.is_file() and read_json(file).get("fingerprint") != part["fingerprint"]:
            found.append(role)
    return tuple(found)


def _with_base(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    path = path.resolve()
    if path in seen:
        raise CoCoMixError(f"{path} is its own base, through {seen[-1]}; break the circle.")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        names = (path.stem, f"{path.parent.name}/{path.stem}")  # recipes/demo.yaml, recipes/arms/pause.yaml
        shipped = next((name for name in names if (recipes_folder() / f"{name}.yaml").is_file()), None)
        how = f"{shipped}` copies the shipped one" if shipped else "--list` lists the recipes that come with cocomix"
        raise MissingRecipe(f"{path} does not exist; `cocomix init {how}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CoCoMixError(f"{path} cannot be read: {error}.") from None
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise CoCoMixError(f"{path} is no recipe and no plan: it must be a YAML mapping of fields, such as tokens:.")
    base = values.pop("base", None)
    if base is None:
        return values
    return merged(_with_base(path.parent / str(base), (*seen, path)), values)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, key by key in mappings that both have."""
    result = dict(base)
    for key, value in over.items():
        below = _as_mapping(key, result.get(key))
        both_mappings = isinstance(value, Mapping) and isinstance(below, Mapping)
        result[key] = merged(below, value) if both_mappings else value
    return result


def _assign(values: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = _as_mapping(key, values.get(key))
        values[key] = inner if isinstance(inner, dict) else {}
        values = values[key]
    values[keys[-1]] = value


def _as_mapping(key: str, value: Any) -> Any:
    """A section that may be given as one word, as the mapping that this is short for: `labels: FOLDER`."""
    return {"path": value} if key == "labels" and isinstance(value, str) and value != "online" else value


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
