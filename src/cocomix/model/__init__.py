"""Students: configuration, model, cache and accounting. Importing this room registers the Auto classes."""

from transformers import AutoConfig, AutoModelForCausalLM

from cocomix.model.accounting import Accounting, account
from cocomix.model.cache import CoCoMixCache
from cocomix.model.configuration import CoCoMixConfig, Mixing
from cocomix.model.edits import ConceptEdit
from cocomix.model.from_pretrained import from_pretrained_backbone
from cocomix.model.modeling import CoCoMixForCausalLM, CoCoMixOutput, predicts_concepts

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
