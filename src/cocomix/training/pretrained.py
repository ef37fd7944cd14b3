"""Runs that go on from a pretrained model's weights (`model.pretrained` in a recipe)."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from cocomix.data import Tokens, tokenizer_fingerprint
from cocomix.model import CoCoMixConfig
from cocomix.model.accounting import build_model
from cocomix.model.from_pretrained import check_same_decoder, load_backbone_weights
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.hub import load_causal_lm, load_tokenizer
from cocomix.training.recipe import RunConfig


def check_pretrained(recipe: RunConfig, config: PreTrainedConfig, data: Tokens) -> None:
    """Refuse `model.pretrained` where its weights cannot go into the model, or read other tokens than the data's.

    Nothing but configuration and tokenizer is read, so that a run is refused before it begins.

    Args:
        config: of the model, see `model_config`.
    """
    name, revision = recipe.model.pretrained, recipe.model.revision
    if name is None:
        return
    try:
        tokenizer = tokenizer_fingerprint(load_tokenizer(name, revision))
    except CoCoMixError:  # without one, sizes are all there is
        tokenizer = data.manifest.tokenizer_fingerprint
    if tokenizer != data.manifest.tokenizer_fingerprint:
        raise CoCoMixError(
            f"model.pretrained {name} reads another tokenizer than the one {data.path} was prepared with "
            f"({data.manifest.tokenizer_name}); prepare the data with --tokenizer {name}."
        )
    backbone = config.backbone if isinstance(config, CoCoMixConfig) else config
    check_same_decoder(backbone, pretrained_config(name, revision, "model.pretrained"), name)


def build_student(recipe: RunConfig, config: PreTrainedConfig) -> PreTrainedModel:
    """The model a run starts with: new, or with `model.pretrained`'s weights under new concept layers."""
    model = build_model(config, recipe.model.attn_implementation)
    if recipe.model.pretrained is not None:
        load_backbone_weights(model, load_causal_lm(recipe.model.pretrained, revision=recipe.model.revision))
    return model


def pretrained_config(name: str, revision: str | None, field: str) -> PreTrainedConfig:
    """The configuration of a model on the hub, in a folder or in a GGUF file.

    Args:
        name: as in the recipe.
        field: where it stands in the recipe, for the refusal.
    """
    source, options = Path(name), {} if revision is None else {"revision": revision}
    if source.suffix == ".gguf":
        name, options = str(source.parent), {"gguf_file": source.name}
    try:
        config: Any = AutoConfig.from_pretrained(name, trust_remote_code=False, **options)
    except (OSError, ValueError, ImportError) as error:
        raise CoCoMixError(f"{field} {str(source)!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    return config
