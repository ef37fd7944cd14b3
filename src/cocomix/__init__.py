"""cocomix: pretrain language models that predict and mix continuous concepts (CoCoMix, arXiv 2502.08524).

Importing the package loads neither PyTorch nor transformers: the public names are imported when they are first used.
The model type `cocomix` is registered with transformers' Auto classes by `import cocomix.model`, by the first use of a
model class, and by `import cocomix` where transformers is imported already.
"""

import logging
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.lazy import lazily

if TYPE_CHECKING:
    from cocomix.concepts import ConceptDictionary, ConceptLabels, ConceptTeacher
    from cocomix.model import CoCoMixConfig, CoCoMixForCausalLM, CoCoMixOutput, ConceptEdit, from_pretrained_backbone
    from cocomix.training import CoCoMixTrainer

    __version__: str

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

logging.getLogger(__name__).addHandler(logging.NullHandler())  # a library is silent unless its user sets up logging


_public = lazily(__name__)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("cocomix")
    return _public(name)


if "transformers" in sys.modules:  # so that its Auto classes know the model type from here on
    import_module("cocomix.model")
