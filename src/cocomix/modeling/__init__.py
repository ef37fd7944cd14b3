"""Students: configuration, model, cache and accounting. Importing this room registers the Auto classes."""

from transformers import AutoConfig, AutoModelForCausalLM

from cocomix.modeling.accounting import Accounting, account
from cocomix.modeling.cache import CoCoMixCache
from cocomix.modeling.configuration import CoCoMixConfig, Mixing
from cocomix.modeling.edits import ConceptEdit
from cocomix.modeling.from_pretrained import from_pretrained_backbone
from cocomix.modeling.modeling import CoCoMixForCausalLM, CoCoMixOutput, predicts_concepts

__all__ = [
    "Accounting",
    "CoCoMixCache",
    "CoCoMixConfig",
    "CoCoMixForCausalLM",
    "CoCoMixOutput",
    "ConceptEdit",
    "Mixing",
    "account",
    "from_pretrained_backbone",
    "predicts_concepts",
]

AutoConfig.register("cocomix", CoCoMixConfig, exist_ok=True)
AutoModelForCausalLM.register(CoCoMixConfig, CoCoMixForCausalLM, exist_ok=True)
