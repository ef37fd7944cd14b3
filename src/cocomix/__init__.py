"""cocomix: pretrain language models that predict and mix continuous concepts (CoCoMix, arXiv 2502.08524).

Importing the package registers the model type `cocomix` with transformers' Auto classes and does nothing else. Names
that need more than the model are imported when they are first used.
"""

import logging
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from cocomix.model import (
    CoCoMixConfig,
    CoCoMixForCausalLM,
    CoCoMixOutput,
    ConceptEdit,
    from_pretrained_backbone,
)
from cocomix.runtime.errors import CoCoMixError

if TYPE_CHECKING:
    from cocomix.concepts import ConceptDictionary, ConceptLabels, ConceptTeacher
    from cocomix.training import CoCoMixTrainer

__all__ = [
    "CoCoMixConfig",
    "CoCoMixError",
    "CoCoMixForCausalLM",
    "CoCoMixOutput",
    "CoCoMixTrainer",
    "ConceptDictionary",
    "ConceptEdit",
    "ConceptLabels",
    "ConceptTeacher",
    "__version__",
    "from_pretrained_backbone",
]

__version__ = version("cocomix")

logging.getLogger(__name__).addHandler(logging.NullHandler())  # a library is silent unless its user sets up logging

_ON_FIRST_USE = {
    "CoCoMixTrainer": "cocomix.training",
    "ConceptDictionary": "cocomix.concepts",
    "ConceptLabels": "cocomix.concepts",
    "ConceptTeacher": "cocomix.concepts",
}


def __getattr__(name: str) -> Any:
    if name in _ON_FIRST_USE:
        return getattr(import_module(_ON_FIRST_USE[name]), name)
    raise AttributeError(f"module 'cocomix' has no attribute {name!r}")
