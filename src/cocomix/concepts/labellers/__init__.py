"""The built-in kinds of labellers, one file each with its configuration."""

from cocomix.concepts.labellers.activation import ActivationConfig, ActivationLabeller
from cocomix.concepts.labellers.attribution import AttributionConfig, AttributionLabeller
from cocomix.concepts.labellers.random import RandomConfig, RandomLabeller
from cocomix.concepts.labellers.teacher_labeller import TeacherLabeller, TeacherLabellerConfig
from cocomix.concepts.labellers.token_lookup import TokenLookupConfig, TokenLookupLabeller

__all__ = [
    "ActivationConfig",
    "ActivationLabeller",
    "AttributionConfig",
    "AttributionLabeller",
    "RandomConfig",
    "RandomLabeller",
    "TeacherLabeller",
    "TeacherLabellerConfig",
    "TokenLookupConfig",
    "TokenLookupLabeller",
]
