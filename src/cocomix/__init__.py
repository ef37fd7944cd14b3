"""cocomix: pretrain language models that predict and mix continuous concepts (CoCoMix, arXiv 2502.08524).

Importing the package registers the model type `cocomix` with transformers' Auto classes and does nothing else.
"""

from importlib.metadata import version

from cocomix.errors import CoCoMixError
from cocomix.modeling import CoCoMixConfig, CoCoMixForCausalLM, CoCoMixOutput, ConceptEdit

__all__ = [
    "CoCoMixConfig",
    "CoCoMixError",
    "CoCoMixForCausalLM",
    "CoCoMixOutput",
    "ConceptEdit",
    "__version__",
]

__version__ = version("cocomix")
