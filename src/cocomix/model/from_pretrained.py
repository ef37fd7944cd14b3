"""CoCoMix on top of a pretrained language model, and the plain decoder within a CoCoMix model."""

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from cocomix.model.accounting import build_model
from cocomix.model.backbone import split_state_dict
from cocomix.model.configuration import CoCoMixConfig, CompressionInit
from cocomix.model.modeling import CoCoMixForCausalLM
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.hub import load_causal_lm

_GELU = ("gelu_new", "gelu_pytorch_tanh")  # one function; the second is one kernel and keeps one tensor, not five
# Entries of a configuration that say how a decoder is stored, trained or asked, not what it computes.
_NOT_COMPUTED = (
    *("_name_or_path", "architectures", "attn_implementation", "dtype", "initializer_range", "summary_"),
    *("task_specific", "transformers_version", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id"),
)


def from_pretrained_backbone(
    source: str | Path | PreTrainedModel,
    insert_layer: int,
    *,
    num_concepts: int,
    mixing: str = "add",
    compression_init: CompressionInit = "zero",
    add_mean: bool = False,
    revision: str | None = None,
    attn_implementation: str | None = None,
    seed: int = 0,
    **settings: Any,
) -> CoCoMixForCausalLM:
    """A CoCoMix model whose decoder is a pretrained one and whose concept layers are new.

    With the defaults it starts as the pretrained model: `mixing="add"` adds nothing as long as the compression is
    zero. Interleaving cannot start neutral, because the upper half reads the next token at positions that it has never
    seen; results/continued has measurements.

    Args:
        source: hub name, folder or GGUF file of a causal LM of a supported family; or one that is loaded already,
            whose weights are copied.
        insert_layer: index of the block whose input is mixed with the concepts.
        num_concepts: C.
        mixing: as in `CoCoMixConfig`, and the next two, which have another default here for a neutral start.
        revision: branch, tag or commit on the hub; pin a commit.
        attn_implementation: attention kernel as transformers names it.
        seed: of the new layers' weights.
        **settings: any other argument of `CoCoMixConfig`.

    Returns:
        The model, in evaluation mode, in the pretrained model's dtype (float32 where it is loaded here).

    Raises:
        CoCoMixError: nothing can be loaded, the family is not supported, or a setting is out of range.
    """
    plain = source if isinstance(source, PreTrainedModel) else load_causal_lm(source, revision=revision)
    config = CoCoMixConfig(
        backbone=plain.config,
        insert_layer=insert_layer,
        num_concepts=num_concepts,
        mixing=mixing,
        compression_init=compression_init,
        add_mean=add_mean,
        **settings,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(config, attn_implementation)
    assert isinstance(model, CoCoMixForCausalLM)
    load_backbone_weights(model.to(plain.dtype), plain)
    model.generation_config = copy.deepcopy(plain.generation_config)
    model.eval()
    return model


def plain_decoder(model: CoCoMixForCausalLM) -> PreTrainedModel:
    """The plain causal LM that a model trained with `mixing="none"` is, without its predictor; the weights are copies.

    It predicts the same next tokens, is of a class of transformers and in evaluation mode. Our choice; the paper has no
    such export.

    Raises:
        CoCoMixError: next tokens depend on more than the decoder: concepts mixed in, further passes, a table of pairs.
    """
    config = model.config
    parts = {name.partition(".")[0] for name, _ in model.named_parameters()}
    if parts - {"lower", "upper", "lm_head", "predictor"} or config.form.passes(config) != (1,):
        raise CoCoMixError(
            f"this model is no plain decoder: its next tokens also depend on mixing: {config.mixing}"
            f"{' and bigram_rows' if config.bigram_rows else ''}; train one with mixing: none and without bigram_rows."
        )
    plain = build_model(config.backbone).to(model.dtype)
    weights = model.state_dict()
    for name, tensor in split_state_dict(plain, config.insert_layer).items():
        tensor.copy_(weights[name])
    plain.generation_config = copy.deepcopy(model.generation_config)
    plain.eval()
    return plain


def load_backbone_weights(model: PreTrainedModel, plain: PreTrainedModel) -> None:
    """Copy a plain decoder's weights into a CoCoMix model, whose concept layers stay, or into another plain decoder.

    Weights that do not fit are refused.
    """
    weights = plain.state_dict()
    if isinstance(model, CoCoMixForCausalLM):
        weights = split_state_dict(plain, model.config.insert_layer)
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
        faults = [f"they lack {name}" for name in missing if not name.startswith(("predictor.", "mixing."))]
        faults += [f"the model has no {name}" for name in unexpected]
    except RuntimeError as error:  # says which tensors have other shapes, one a line
        faults = [str(error).splitlines()[1].strip(" \t.")]
    if faults:
        raise CoCoMixError(
            f"the pretrained weights do not fit the model ({faults[0]}); use the pretrained model's own architecture."
        )


def check_same_decoder(config: PreTrainedConfig, pretrained: PreTrainedConfig, where: str) -> None:
    """Refuse pretrained weights of a decoder that computes something else than the one they are to be loaded into.

    Dropout, initialisation and token ids may differ, and two names of one activation function. `where` is what the user
    gave.
    """
    ours, theirs = config.to_dict(), pretrained.to_dict()
    for name in ("model_type", *sorted(ours)):
        if name.startswith(_NOT_COMPUTED) or "drop" in name or name not in theirs:
            continue
        if ours[name] != theirs[name] and (ours[name] not in _GELU or theirs[name] not in _GELU):
            raise CoCoMixError(
                f"model.backbone has {name} = {ours[name]!r}, but the pretrained {where} has {theirs[name]!r}; leave "
                "model.backbone out, or give it the pretrained model's own settings."
            )
