"""Models saved by the authors' released code (facebookresearch/RAM, projects/cocomix), as ours."""

from collections.abc import Mapping

from torch import Tensor
from transformers import GPT2Config

from cocomix.errors import CoCoMixError
from cocomix.modeling import CoCoMixConfig, CoCoMixForCausalLM

__all__ = ["from_reference_state_dict"]

_MIXER_NAMES = {
    "pre_bias": "mixer.pre_bias",
    "concept_predictor.weight": "mixer.predictor.weight",
    "concept_predictor.bias": "mixer.predictor.bias",
    "compress_layer.weight": "mixer.compression.weight",
    "compress_layer.bias": "mixer.compression.bias",
}


def from_reference_state_dict(
    state_dict: Mapping[str, Tensor],
    *,
    num_heads: int,
    insert_layer: int,
    concept_topk: int,
    concept_loss_weight: float = 0.1,
) -> CoCoMixForCausalLM:
    """Build a model from a state dict of the released GPT-2 CoCoMix.

    Sizes are read off the tensors; what the released code keeps outside its checkpoint is passed in.

    Args:
        state_dict: tensors under the released names (`transformer.wte.weight`, `transformer.h.0.…`,
            `transformer.concept_predictor.weight` [n_concepts, d_model], `transformer.compress_layer.weight`
            [d_model, n_concepts], …). `lm_head.weight` may be missing: it is tied to `wte`.
        num_heads: attention heads per block.
        insert_layer: 0-based index of the block whose input is mixed with the concepts.
        concept_topk: how many concept logits are kept (`concept_num` there).
        concept_loss_weight: λ (`lam_concept` there).

    Returns:
        A float32 model in evaluation mode with the released model's logits, without dropout.

    Raises:
        CoCoMixError: a tensor is missing or is not one of the released model's.
    """
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in state_dict.items()}
    tensors.pop("lm_head.weight", None)
    try:
        vocab_size, d_model = tensors["wte.weight"].shape
        positions = tensors["wpe.weight"].shape[0]
        num_concepts = tensors["concept_predictor.weight"].shape[0]
        inner = tensors["h.0.mlp.c_fc.bias"].shape[0]
    except KeyError as error:
        raise CoCoMixError(
            f"the state dict has no transformer.{error.args[0]}, so it is not a released CoCoMix GPT-2; "
            "pass the whole model's state dict."
        ) from None
    blocks = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("h."))
    backbone = GPT2Config(
        vocab_size=vocab_size,
        n_positions=positions,
        n_embd=d_model,
        n_layer=blocks,
        n_head=num_heads,
        n_inner=inner,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        bos_token_id=vocab_size - 1,
        eos_token_id=vocab_size - 1,
    )
    config = CoCoMixConfig(
        backbone=backbone,
        insert_layer=insert_layer,
        num_concepts=num_concepts,
        concept_topk=concept_topk,
        concept_loss_weight=concept_loss_weight,
    )
    model = CoCoMixForCausalLM(config)
    renamed = {_our_name(name, insert_layer): tensor for name, tensor in tensors.items()}
    renamed["mixer.compression.weight"] = renamed["mixer.compression.weight"].T.contiguous()
    renamed["lm_head.weight"] = renamed["lower.wte.weight"]
    result = model.load_state_dict(renamed, strict=False)
    if result.missing_keys or result.unexpected_keys:
        raise CoCoMixError(
            f"the state dict does not fit the released CoCoMix GPT-2: missing {result.missing_keys}, "
            f"not known {result.unexpected_keys}."
        )
    model.eval()
    return model


def _our_name(name: str, insert_layer: int) -> str:
    """A released name without its `transformer.` prefix → the name in `CoCoMixForCausalLM`."""
    if name in _MIXER_NAMES:
        return _MIXER_NAMES[name]
    if name.startswith("h."):
        _, index, rest = name.split(".", 2)
        block = int(index)
        return f"lower.h.{block}.{rest}" if block < insert_layer else f"upper.h.{block - insert_layer}.{rest}"
    return f"upper.{name}" if name.startswith("ln_f.") else f"lower.{name}"
