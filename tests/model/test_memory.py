"""The memory estimate against what autograd really keeps."""

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, LlamaConfig, PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN

from cocomix.model import CoCoMixConfig
from cocomix.model.accounting import build_model
from cocomix.model.backbone import backbone_of
from cocomix.model.memory import CudaAutocast, activation_bytes

BATCH, BLOCK = 2, 16
GPT2 = GPT2Config(
    vocab_size=50, n_embd=32, n_layer=5, n_head=2, n_positions=16, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
)
LLAMA = LlamaConfig(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=5,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=16,
)


def kept(decoder: PreTrainedModel, **inputs: Any) -> int:
    """Bytes of all storages that autograd keeps from the first block on, without parameters: the naive twin."""
    storages: dict[int, Tensor] = {}
    first = getattr(decoder, backbone_of(decoder.config).blocks)[0]
    first.register_forward_pre_hook(lambda *_: storages.clear())

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        decoder.train()(**inputs, use_cache=False)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in decoder.parameters()}
    return sum(tensor.untyped_storage().nbytes() for key, tensor in storages.items() if key not in parameters)


@pytest.mark.parametrize(("backbone", "excess"), [(GPT2, 0.05), (LLAMA, 0.2)], ids=["gpt2", "llama"])
@pytest.mark.parametrize("mixing", [None, "interleave", "add", "next_concept"])
@pytest.mark.parametrize("bf16", [False, True])
def test_it_is_what_autograd_keeps(backbone: PreTrainedConfig, excess: float, mixing: Any, bf16: bool) -> None:
    config = copy.deepcopy(backbone)
    if mixing is not None:
        config = CoCoMixConfig(config, insert_layer=2, num_concepts=8, concept_topk=2, mixing=mixing)
    estimate = activation_bytes(config, batch_size=BATCH, block_size=BLOCK, bf16=bf16)
    model = build_model(config)
    tokens = torch.zeros(BATCH, BLOCK, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), CudaAutocast() if bf16 else nullcontext():
        if mixing is None:
            naive = kept(model.base_model, input_ids=tokens)
        else:
            mixed = torch.zeros(BATCH, config.positions_per_token * BLOCK, 32, requires_grad=True)
            naive = kept(model.lower, input_ids=tokens) + kept(model.upper, inputs_embeds=mixed)
        if mixing == "next_concept":
            naive += kept(model.mixing.blocks, inputs_embeds=mixed[:, : BLOCK // config.chunk_tokens])
    assert 0.95 * naive <= estimate <= (1 + excess) * naive


def test_it_grows_with_the_batch_and_touches_nothing() -> None:
    before = GPT2.to_dict()
    one, two = (activation_bytes(GPT2, batch_size=size, block_size=BLOCK, bf16=False) for size in (1, 2))
    assert two == 2 * one
    assert GPT2.to_dict() == before


def test_float32_copies_of_autocast_on_cuda_are_counted() -> None:
    """GPT-2's own activation function cubes its input, which CUDA's autocast does in float32 and the CPU's does not."""
    written_out, one_kernel = copy.deepcopy(GPT2), copy.deepcopy(GPT2)
    written_out.activation_function, one_kernel.activation_function = "gelu_new", "gelu_pytorch_tanh"
    size = {"batch_size": BATCH, "block_size": BLOCK, "bf16": True}
    hidden = BATCH * BLOCK * 4 * GPT2.n_embd
    difference = activation_bytes(written_out, **size) - activation_bytes(one_kernel, **size)
    assert difference >= GPT2.n_layer * hidden * 3 * 4  # three more tensors in float32, by the CPU's rules none


def test_the_two_names_of_gelu_are_one_function() -> None:
    x = torch.linspace(-8, 8, 10_001)
    torch.testing.assert_close(ACT2FN["gelu_new"](x), ACT2FN["gelu_pytorch_tanh"](x), rtol=0, atol=1e-6)
