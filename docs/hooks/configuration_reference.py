"""The page of recipes, plans and settings, from the pydantic models that read them."""

import json
import re
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import griffe
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

__all__ = ["Part", "configuration_page", "field_texts", "models_of"]

_INTRODUCTION = (
    "Made from the models that read these files, when this site was built. A recipe is YAML; `base: other.yaml` starts "
    "from another recipe, and `--set a.b=value` on the command line comes last. An unknown field, a value of the wrong "
    "type and a key that stands twice are refused."
)


class Part(NamedTuple):
    """A heading of the page, a sentence about it, and the model below it; models within it follow in their turn."""

    heading: str
    text: str
    model: type[BaseModel]


def configuration_page(parts: Sequence[Part], training_defaults: Mapping[str, Any]) -> str:
    """Markdown: a table of fields for every model, and what a recipe's `training:` section starts from."""
    package = griffe.load("cocomix")
    anchors = {part.model: _anchor(part.heading) for part in parts}
    for part in parts:
        anchors |= {model: _anchor(model.__name__) for model in models_of(part.model) if model not in anchors}
    sections, shown = ["# Configuration", _INTRODUCTION], {part.model for part in parts}
    for part in parts:
        sections += [f"## {part.heading}", part.text, _fields(part.model, package, anchors)]
        for model in models_of(part.model):
            if model not in shown:
                shown.add(model)
                sections += [f"### {model.__name__}", _summary(model), _fields(model, package, anchors)]
    rows = [(f"`{name}`", f"`{_value(value)}`") for name, value in training_defaults.items()]
    sections += [
        "## What training starts from",
        "Any field of `transformers.TrainingArguments` can stand under `training:`. These defaults differ from that "
        "class's own; most are the paper's settings.",
        _table(("field", "default"), rows),
        "",
    ]
    return "\n\n".join(sections)


def models_of(root: type[BaseModel]) -> list[type[BaseModel]]:
    """`root` and the models that its fields hold, each once, in the order in which they are met."""
    found = [root]
    for model in found:
        for field in model.model_fields.values():
            found += [inner for inner in _models_in(field.annotation) if inner not in found]
    return found


def field_texts(model: type[BaseModel], package: Any) -> dict[str, str]:
    """What the docstrings say of each field: the text below it, or its line under `Attributes:`."""
    texts: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if not base.__module__.startswith("cocomix"):
            continue
        source = package[f"{base.__module__}.{base.__name__}".removeprefix("cocomix.")]
        if source.docstring is not None:
            for section in griffe.Docstring(source.docstring.value, parent=source, parser="google").parsed:
                if section.kind is griffe.DocstringSectionKind.attributes:
                    texts |= {each.name: each.description for each in section.value}
        texts |= {name: each.docstring.value for name, each in source.attributes.items() if each.docstring}
    for name, field in model.model_fields.items():
        if field.description is not None:
            texts.setdefault(name, field.description)
        for inner in _models_in(field.annotation):
            texts.setdefault(name, _summary(inner))
    return {name: _sentence(texts[name]) for name in model.model_fields if name in texts}


def _sentence(text: str) -> str:
    """On one line, with a capital letter."""
    line = " ".join(text.split())
    return line[0].upper() + line[1:] if line[0].isascii() else line


def _summary(model: type[BaseModel]) -> str:
    """The docstring's text, without its list of fields."""
    return str(griffe.Docstring(model.__doc__ or "", parser="google").parsed[0].value)


def _fields(model: type[BaseModel], package: Any, anchors: Mapping[type[BaseModel], str]) -> str:
    texts = field_texts(model, package)
    rows = [
        (f"`{name}`", _type(field.annotation, anchors) + _limits(field), _default(field), texts[name])
        for name, field in model.model_fields.items()
    ]
    return _table(("field", "type", "default", "meaning"), rows)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models_in(inner)]


def _type(annotation: Any, anchors: Mapping[type[BaseModel], str]) -> str:
    """An annotation for people: models are links, choices are listed."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(each, anchors) for each in inner if each is not types.NoneType)
    if origin is Annotated:
        return _type(inner[0], anchors)
    if origin is Literal:
        return " or ".join(f"`{each}`" for each in inner)
    if origin is tuple:
        return f"list of {_type(inner[0], anchors)}"
    if origin is dict:
        return "mapping"
    if annotation in anchors:
        return f"[{annotation.__name__}](#{anchors[annotation]})"
    return {"str": "text", "bool": "true or false", "int": "integer", "float": "number", "Path": "path"}.get(
        annotation.__name__, annotation.__name__
    )


def _limits(field: FieldInfo) -> str:
    """The bounds that pydantic checks, e.g. ` ≥ 1`."""
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "entries ≥"}
    bounds = [
        f"{sign} {getattr(each, name)}" for each in field.metadata for name, sign in signs.items() if name in dir(each)
    ]
    return f", {', '.join(bounds)}" if bounds else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    assert value is not PydanticUndefined
    return "" if value is None or value in ({}, ()) else f"`{_value(value)}`"


def _value(value: Any) -> str:
    """As it can stand in YAML."""
    value = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return value if isinstance(value, str) else json.dumps(value)


def _anchor(heading: str) -> str:
    """As Python-Markdown's `toc` makes it."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip())


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
