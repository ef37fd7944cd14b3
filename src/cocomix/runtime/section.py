"""The base of every settings class: frozen, without unknown fields."""

from pydantic import BaseModel, ConfigDict, ValidationError

__all__ = ["Section", "describe_validation_error"]


class Section(BaseModel):
    """A part of a recipe: frozen, without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), ser_json_inf_nan="constants")


def describe_validation_error(error: ValidationError) -> str:
    """Pydantic's findings as one clause, field by field."""
    parts = []
    for finding in error.errors():
        field = ".".join(str(part) for part in finding["loc"])
        if finding["type"] == "extra_forbidden":
            parts.append(f"{field} is not a known field")
        elif finding["type"] == "missing":
            parts.append(f"{field} is missing")
        else:
            message = finding["msg"].removeprefix("Value error, ")
            parts.append(f"{field}: {message}" if field else message)
    return "; ".join(parts)
