"""The last block at concept positions only, against the same block left as it is."""

import copy
from unittest import mock

import pytest
import torch
from torch import nn

from cocomix.model import CoCoMixForCausalLM
from cocomix.model.backbone import SUPPORTED_BACKBONES, backbone_of
from tests.model.factories import D_MODEL, concepts, student, student_config, tokens


def untouched(model: CoCoMixForCausalLM) -> CoCoMixForCausalLM:
    """A twin that computes every position of every block."""
    with mock.patch("cocomix.model.backbone.compute_last_block_at_concepts"):
        config = copy.deepcopy(model.config)
        config._attn_implementation = model.config._attn_implementation
        twin = CoCoMixForCausalLM(config).eval()
    twin.load_state_dict(model.state_dict())
    return twin


def last_block(model: CoCoMixForCausalLM) -> nn.Module:
    block: nn.Module = getattr(model.upper, backbone_of(model.config.backbone).blocks)[-1]
    return block


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("family", SUPPORTED_BACKBONES)
def test_equals_the_untouched_block_in_logits_and_gradients(family: str, attn: str) -> None:
    model = student(family, 1, attn=attn)
    mask = torch.ones(2, 11, dtype=torch.int64)
    mask[1, :4] = 0
    outputs, gradients = [], []
    for each in (model, untouched(model)):
        output = each(tokens(), attention_mask=mask, labels=tokens(), concept_labels=concepts(), use_cache=False)
        output.loss.backward()
        outputs.append(output)
        gradients.append({name: parameter.grad for name, parameter in each.named_parameters()})
    real = mask.bool()
    torch.testing.assert_close(outputs[0].logits[real], outputs[1].logits[real], rtol=1e-4, atol=1e-5)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("family", SUPPORTED_BACKBONES)
def test_cached_steps_equal_the_untouched_blocks(family: str) -> None:
    model = student(family, 2)
    twin = untouched(model)
    generated = [
        each.generate(tokens(), max_new_tokens=6, do_sample=False, output_logits=True, return_dict_in_generate=True)
        for each in (model, twin)
    ]
    torch.testing.assert_close(generated[0].sequences, generated[1].sequences)
    torch.testing.assert_close(generated[0].logits, generated[1].logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mixing", ["interleave", "residual"])
@pytest.mark.parametrize("family", SUPPORTED_BACKBONES)
def test_projection_and_feed_forward_see_one_position_per_token(family: str, mixing: str) -> None:
    """Every linear layer of the last block but the projections to queries, keys and values."""
    model = student(family, 1, mixing)
    seen: dict[str, int] = {}
    attention = backbone_of(model.config.backbone).attention
    for name, layer in last_block(model).named_modules():
        if isinstance(getattr(layer, "weight", None), nn.Parameter) and layer.weight.dim() == 2:
            layer.register_forward_hook(lambda _m, args, _o, name=name: seen.update({name: args[0].shape[1]}))
    model(tokens())
    projection = f"{attention}.{backbone_of(model.config.backbone).output_projection}"
    whole = {name for name, positions in seen.items() if positions == 22}
    halved = {name for name, positions in seen.items() if positions == 11}
    assert whole | halved == set(seen)
    assert projection in halved
    assert whole == {name for name in seen if name.startswith(attention) and name != projection}
    assert any("mlp" in name for name in halved)


def test_the_half_keeps_its_shapes_and_repeats_each_concepts_state() -> None:
    model = student("gpt2", 1)
    output = model(tokens(batch=3), output_hidden_states=True)
    final = output.hidden_states[-1]
    assert final.shape == (3, 22, D_MODEL)
    assert torch.equal(final[:, 0::2], final[:, 1::2])


@pytest.mark.parametrize("mixing", ["add", "none"])
def test_without_interleaving_nothing_is_hooked(mixing: str) -> None:
    model = CoCoMixForCausalLM(student_config("llama", 1, mixing))
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.upper.modules())
