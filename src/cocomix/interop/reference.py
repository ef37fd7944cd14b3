"""Models of the authors' released code (facebookresearch/RAM, projects/cocomix), as ours and back: names and shapes."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import GPT2Config

from cocomix.model import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.runtime.errors import CoCoMixError

_CONCEPT_NAMES = {
    "predictor.pre_bias": "pre_bias",
    "predictor.head.weight": "concept_predictor.weight",
    "predictor.head.bias": "concept_predictor.bias",
    "mixing.compression.weight": "compress_layer.weight",
    "mixing.compression.bias": "compress_layer.bias",
}
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What DDP, torch.compile and FSDP put into names; the released trainer saves the wrapped model's."""
_BUFFERS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # causal masks that older versions of transformers saved
_BLOCK = re.compile(r"h\.(\d+)\.(.+)")
_NO_DROPOUT = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}


def from_reference_state_dict(
    state_dict: Mapping[str, Tensor],
    *,
    num_heads: int,
    insert_layer: int,
    concept_topk: int,
    concept_loss_weight: float = 0.1,
    gpt2_settings: Mapping[str, Any] | None = None,
) -> CoCoMixForCausalLM:
    """Build a model from a state dict of the released GPT-2 CoCoMix.

    Sizes are read off the tensors; what the released code keeps outside its checkpoint is passed in.

    Args:
        state_dict: tensors under the released names (`transformer.wte.weight`, `transformer.h.0.…`,
            `transformer.concept_predictor.weight` [n_concepts, d_model], `transformer.compress_layer.weight`
            [d_model, n_concepts], …), also with the prefixes that DDP, FSDP and torch.compile give them.
            `lm_head.weight` may be missing and is not read: the released model ties it to `wte`.
        num_heads: attention heads per block.
        insert_layer: 0-based index of the block whose input is mixed with the concepts.
        concept_topk: how many concept logits are kept (`concept_num` there).
        concept_loss_weight: λ (`lam_concept` there).
        gpt2_settings: further fields of `GPT2Config`, such as dropout; without any there is none.

    Returns:
        A float32 model in evaluation mode with the released model's logits.

    Raises:
        CoCoMixError: a tensor is missing, has another shape than the others ask for, or is not one of the released
            model's; or a setting does not fit the tensors.
    """
    tensors = _plain_names(state_dict)
    vocab_size, d_model = _shape(tensors, "wte.weight", 2)
    blocks = 1 + max((int(match[1]) for name in tensors if (match := _BLOCK.fullmatch(name))), default=0)
    sizes = {
        "vocab_size": vocab_size,
        "n_positions": _shape(tensors, "wpe.weight", 2)[0],
        "n_embd": d_model,
        "n_layer": blocks,
        "n_head": num_heads,
        "n_inner": _shape(tensors, "h.0.mlp.c_fc.bias", 1)[0],
    }
    if num_heads < 1 or d_model % num_heads:
        raise CoCoMixError(f"{num_heads} attention heads cannot share a width of {d_model}; check num_heads.")
    tokens = {"bos_token_id": vocab_size - 1, "eos_token_id": vocab_size - 1}
    config = CoCoMixConfig(
        backbone=GPT2Config(**{**tokens, **(_NO_DROPOUT if gpt2_settings is None else gpt2_settings), **sizes}),
        insert_layer=insert_layer,
        num_concepts=_shape(tensors, "concept_predictor.weight", 2)[0],
        concept_topk=concept_topk,
        concept_loss_weight=concept_loss_weight,
    )
    model = CoCoMixForCausalLM(config)
    model.load_state_dict(_renamed(tensors, model, insert_layer))
    model.eval()
    return model


def to_reference_state_dict(model: CoCoMixForCausalLM) -> dict[str, Tensor]:
    """The state dict that the released code's `GPT2CoCoMixLMHeadModel` loads.

    Contiguous tensors under the released names, `transformer.…`; `lm_head.weight` is left out, as in the checkpoints
    that `save_pretrained` writes there.

    Raises:
        CoCoMixError: the model is not a GPT-2 with the paper's mixing and its head tied to its embedding, as there.
    """
    config = model.config
    kind = (config.backbone.model_type, config.mixing, config.prediction, config.concept_weights)
    if kind != ("gpt2", "interleave", "concepts", "logits"):
        raise CoCoMixError(
            f"the released code has only GPT-2 with interleaved concepts, and this is {config.backbone.model_type} "
            f"(mixing: {config.mixing}, prediction: {config.prediction}, concept_weights: {config.concept_weights}); "
            "there is no such checkpoint to write."
        )
    if not config.tie_word_embeddings:
        raise CoCoMixError(
            "the released code needs the language-model head tied to the embedding; train with tie_word_embeddings."
        )
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    tensors["mixing.compression.weight"] = tensors["mixing.compression.weight"].T
    if config.concept_rank is not None:  # its two factors are one matrix there
        tensors["predictor.head.weight"] = tensors["predictor.head.weight"] @ tensors.pop("predictor.reduction.weight")
    insert_layer = config.insert_layer
    return {f"transformer.{_their_name(name, insert_layer)}": each.contiguous() for name, each in tensors.items()}


def _plain_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Released names without wrappers and the leading `transformer.`, and nothing but parameters of their own."""
    names = {_WRAPPERS.sub("", name): tensor for name, tensor in state_dict.items()}
    names.pop("lm_head.weight", None)
    plain = {name.removeprefix("transformer."): tensor for name, tensor in names.items()}
    return {name: tensor for name, tensor in plain.items() if not _BUFFERS.fullmatch(name)}


def _shape(tensors: Mapping[str, Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    if name not in tensors:
        raise CoCoMixError(
            f"the state dict has no transformer.{name}, so it is not a released CoCoMix GPT-2; "
            "pass the whole model's state dict."
        )
    shape = tuple(tensors[name].shape)
    if len(shape) != dimensions:
        raise CoCoMixError(
            f"transformer.{name} has shape {list(shape)} and should have {dimensions} dimensions; this is not a "
            "checkpoint of the released CoCoMix GPT-2."
        )
    return shape


def _renamed(tensors: Mapping[str, Tensor], model: CoCoMixForCausalLM, insert_layer: int) -> dict[str, Tensor]:
    """Released tensors under our names; those that are missing, unknown or of another shape are refused by theirs."""
    expected = model.state_dict()
    ours = {_their_name(name, insert_layer): name for name in expected if name != "lm_head.weight"}
    if unknown := tensors.keys() - ours.keys():
        raise CoCoMixError(
            f"the state dict has transformer.{min(unknown)}, which the released CoCoMix GPT-2 does not; pass that "
            "model's state dict."
        )
    renamed = {}
    for name, own in ours.items():
        wanted = expected[own].T if name == "compress_layer.weight" else expected[own]
        if _shape(tensors, name, wanted.ndim) != tuple(wanted.shape):
            raise CoCoMixError(
                f"transformer.{name} has {tensors[name].numel()} entries in the shape {list(tensors[name].shape)}, and "
                f"the other tensors ask for {list(wanted.shape)}; the checkpoint is damaged or of another model."
            )
        renamed[own] = tensors[name].T.contiguous() if name == "compress_layer.weight" else tensors[name]
    return renamed | {"lm_head.weight": renamed["lower.wte.weight"]}


def _their_name(name: str, insert_layer: int) -> str:
    """A name in `CoCoMixForCausalLM` as the released code has it, without its `transformer.` prefix."""
    if name in _CONCEPT_NAMES:
        return _CONCEPT_NAMES[name]
    half, _, rest = name.partition(".")
    if half == "upper" and (match := _BLOCK.fullmatch(rest)):
        return f"h.{int(match[1]) + insert_layer}.{match[2]}"
    return rest
