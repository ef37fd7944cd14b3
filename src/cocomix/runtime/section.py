"""The base of every class of settings or results: frozen, without unknown fields; and what to say of one not valid."""

import difflib
import re
from collections.abc import Iterator, Mapping
from inspect import Parameter, getdoc, signature
from pathlib import Path
from typing import Any, Self, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cocomix.runtime.errors import CoCoMixError


class Record(BaseModel):
    """Something recorded, such as a result: frozen, without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def read(cls, file: Path, remedy: str) -> Self:
        """Read one from a JSON file; of one not valid the first wrong field is named, and the `remedy`."""
        try:
            return cls.model_validate_json(file.read_bytes())
        except ValidationError as error:
            at = ".".join(map(str, error.errors()[0]["loc"]))
            raise CoCoMixError(f"{file} is damaged or of another version at {at}; {remedy}.") from error


class Section(Record):
    """Settings, such as a part of a recipe."""

    model_config = ConfigDict(protected_namespaces=(), ser_json_inf_nan="constants")

    @classmethod
    def field_names(cls) -> Iterator[str]:
        """Dotted names of all fields, those of sections inside this section too, as they are written."""
        for name, info in cls.model_fields.items():
            yield name
            for inner in _sections(info.annotation):
                yield from (f"{name}.{field}" for field in inner.field_names())


def describe_validation_error(
    error: ValidationError, root: type[Section] | None = None, other_words: Mapping[str, str] | None = None
) -> str:
    """Pydantic's findings as one clause, field by field.

    `root` is the class of settings, to name the field that an unknown one may have meant; `other_words` names fields by
    what else people call them.
    """
    names = [] if root is None else list(root.field_names())
    parts = []
    for finding in error.errors():
        field = ".".join(str(part) for part in finding["loc"])
        if finding["type"] == "extra_forbidden":
            parts.append(f"{field} is not a known field{meant(field, names, other_words)}")
        elif finding["type"] == "missing":
            parts.append(f"{field} is missing")
        else:
            message = finding["msg"].removeprefix("Value error, ")
            parts.append(f"{field}: {message}" if field else message)
    return "; ".join(parts)


def meant(field: str, names: list[str], other_words: Mapping[str, str] | None = None) -> str:
    """` (did you mean …?)` for a misspelt field: one of the same section, of another section, or by another word."""
    section, _, word = field.rpartition(".")
    if other_words and word in other_words:
        return f" (did you mean {other_words[word]}?)"
    siblings = [name for name in names if name.rpartition(".")[0] == section]
    elsewhere = [name for name in names if name.rpartition(".")[2] == word]
    near = difflib.get_close_matches(field, siblings, n=1, cutoff=0.7) or elsewhere[:1]
    near = near or difflib.get_close_matches(field, names, n=1, cutoff=0.7)
    return f" (did you mean {near[0]}?)" if near else ""


def settings_of(kind: type) -> dict[str, Any]:
    """The arguments of a class as fields of a section: types, bounds, defaults and, from its docstring, descriptions.

    As `pydantic.create_model` takes them, type and `Field` by name; those without a default are required.
    """
    texts = re.findall(r"^    (\w+): (.*?)(?=^    \w+: |^    \*\*|^\S)", getdoc(kind) or "", re.MULTILINE | re.DOTALL)
    descriptions = {name: " ".join(text.split()) for name, text in texts}
    types = get_type_hints(kind.__init__, include_extras=True)  # type: ignore[misc]
    return {
        name: (types[name], Field(default=_default(parameter), description=descriptions.get(name)))
        for name, parameter in signature(kind).parameters.items()
        if parameter.kind is not Parameter.VAR_KEYWORD
    }


def _default(parameter: Parameter) -> Any:
    return ... if parameter.default is Parameter.empty else parameter.default


def _sections(annotation: Any) -> Iterator[type[Section]]:
    """The settings classes in a field's type, e.g. in `TeacherConfig | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in get_args(annotation):
        yield from _sections(part)
