"""Students: configuration, model, cache and accounting. Importing this room registers the Auto classes."""

from transformers import AutoConfig, AutoModelForCausalLM

from cocomix.model.accounting import Accounting, account
from cocomix.model.cache import CoCoMixCache
from cocomix.model.configuration import CoCoMixConfig
from cocomix.model.edits import ConceptEdit, ConceptIntervention
from cocomix.model.from_pretrained import from_pretrained_backbone, plain_decoder
from cocomix.model.mixing import MIXINGS, Concepts, Layout, Mixing
from cocomix.model.modeling import CoCoMixForCausalLM, predicts_concepts
from cocomix.model.output import CoCoMixOutput
from cocomix.model.targets import FullTargets, TopTargets, next_tokens

__all__ = [
    "MIXINGS",
    "Accounting",
    "CoCoMixCache",
    "CoCoMixConfig",
    "CoCoMixForCausalLM",
    "CoCoMixOutput",
    "ConceptEdit",
    "ConceptIntervention",
    "Concepts",
    "FullTargets",
    "Layout",
    "Mixing",
    "TopTargets",
    "account",
    "from_pretrained_backbone",
    "next_tokens",
    "plain_decoder",
    "predicts_concepts",
]

AutoConfig.register("cocomix", CoCoMixConfig, exist_ok=True)
AutoModelForCausalLM.register(CoCoMixConfig, CoCoMixForCausalLM, exist_ok=True)
