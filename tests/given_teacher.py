"""A labeller by attribution around a teacher of this process, as a kind of its own."""

from typing import Any, ClassVar, Literal

from cocomix.concepts import AttributionLabeller, ConceptTeacher, LabellerConfig, register_labeller

__all__ = ["GivenConfig", "given"]

_TEACHERS: dict[str, ConceptTeacher] = {}


class GivenConfig(LabellerConfig):
    """Settings of `given`."""

    kind: Literal["given"] = "given"
    name: str
    """What `given` returned."""


@register_labeller("given")
class GivenLabeller(AttributionLabeller):
    """The labels of a teacher that was given."""

    config_type: ClassVar[Any] = GivenConfig

    @classmethod
    def build(cls, config: GivenConfig, **options: Any) -> AttributionLabeller:  # type: ignore[override]
        return AttributionLabeller(_TEACHERS[config.name])


def given(teacher: ConceptTeacher) -> str:
    """The name under which a configuration finds a teacher."""
    name = str(len(_TEACHERS))
    _TEACHERS[name] = teacher
    return name
