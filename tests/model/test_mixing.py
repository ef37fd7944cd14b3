"""Prediction and mixing against transcriptions of Eq. 2 and Eq. 3."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from cocomix.model import CoCoMixForCausalLM
from cocomix.model.mixing.form import ConceptCompression
from tests.model.factories import (
    CONCEPTS,
    D_MODEL,
    MAIN_BACKBONES,
    MIXINGS,
    TOPK,
    concept_parameters,
    concepts,
    mix,
    student,
    tokens,
)


def hidden_states() -> Tensor:
    return 2.0 * torch.randn(2, 5, D_MODEL, generator=torch.Generator().manual_seed(9)) + 0.5


def naive_mix(model: CoCoMixForCausalLM, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """method.md sections 3 and 4, position by position, with a C-wide sparse vector. → mixed, z"""
    predictor, mixing = model.predictor, model.mixing
    weight, bias = predictor.head.weight, predictor.head.bias
    rows, all_logits = [], []
    for sequence in hidden:
        row, row_logits = [], []
        for h in sequence:
            mean, std = h.sum() / h.numel(), ((h - h.mean()) ** 2).sum().div(h.numel() - 1).sqrt()
            z = weight @ ((h - mean) / (std + 1e-5) - predictor.pre_bias) + bias
            row_logits.append(z)
            if mixing.name == "none":
                row.append(h)
                continue
            kept = z >= z.sort(descending=True).values[TOPK - 1]
            weights = z.masked_fill(~kept, float("-inf")).softmax(0) if mixing.softmax else torch.where(kept, z, 0.0)
            compressed = mixing.compression.weight.T @ weights + mixing.compression.bias
            paper = (compressed + predictor.pre_bias) * std + mean
            row += {
                "interleave": [h, paper],
                "residual": [h, h + std * compressed],
                "add": [h + paper - (0 if model.config.add_mean else mean)],
            }[mixing.name]
        rows.append(torch.stack(row))
        all_logits.append(torch.stack(row_logits))
    return torch.stack(rows), torch.stack(all_logits)


@pytest.mark.parametrize(
    ("mixing", "options"),
    [
        *((mixing, {}) for mixing in MIXINGS),
        ("add", {"add_mean": False}),
        *((mixing, {"concept_weights": "softmax"}) for mixing in MIXINGS if mixing != "none"),
    ],
)
def test_equals_the_formulas_in_values_and_gradients(mixing: str, options: dict[str, Any]) -> None:
    model, hidden = student("gpt2", 1, mixing, **options), hidden_states().requires_grad_()
    ours = model.predictor(hidden, output_logits=True)
    our_mixed = model.mixing(hidden, ours.concepts)
    mixed, z = naive_mix(model, hidden)
    torch.testing.assert_close(our_mixed, mixed, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.logits, z, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.concepts.values, z.topk(TOPK).values, rtol=1e-5, atol=1e-5)
    assert ours.loss_sum is None
    if mixing == "none":
        return
    inputs = [hidden, *concept_parameters(model)]
    direction = torch.randn(mixed.shape, generator=torch.Generator().manual_seed(1))
    fast = torch.autograd.grad((our_mixed * direction).sum(), inputs)
    slow = torch.autograd.grad((mixed * direction).sum(), inputs)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_interleaving_order_is_token_then_its_concept() -> None:
    model, hidden = student("gpt2", 1), hidden_states()
    mixed = mix(model, hidden)
    assert mixed.shape == (2, 10, D_MODEL)
    assert torch.equal(mixed[:, 0::2], hidden)
    alone = mix(model, hidden[:, 3:4])
    torch.testing.assert_close(mixed[:, 6:8], alone)


def test_values_keep_their_sign() -> None:
    """No ReLU: a position whose largest logits are negative still mixes them in."""
    model = student("gpt2", 1)
    with torch.no_grad():
        model.predictor.head.bias.fill_(-100.0)
    assert (model.predictor(hidden_states()).concepts.values < 0).all()
    assert not torch.equal(mix(model, hidden_states())[:, 1::2], mix(model, hidden_states() + 1.0)[:, 1::2])


def test_the_loss_is_summed_over_labelled_positions() -> None:
    model, hidden, labels = student("gpt2", 1), hidden_states(), concepts(2, 5)
    z = naive_mix(model, hidden)[1]
    expected = torch.zeros(())
    for logits, wanted in zip(z.flatten(0, 1), labels.flatten(0, 1), strict=True):
        used = wanted[wanted != -100]
        if len(used):
            expected = expected + sum(F.cross_entropy(logits, i) for i in used) / len(used)
    torch.testing.assert_close(model.predictor(hidden, labels).loss_sum, expected)
    torch.testing.assert_close(model.predictor(hidden, labels.int()).loss_sum, expected)


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 3),
    seq=st.integers(1, 5),
    k=st.integers(1, 7),
    c=st.integers(7, 30),
    d=st.integers(1, 8),
    seed=st.integers(0, 1000),
)
def test_sparse_compression_equals_the_dense_product(batch: int, seq: int, k: int, c: int, d: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    compression = ConceptCompression(c, d)
    with torch.no_grad():
        for parameter in compression.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    ids = torch.stack([torch.randperm(c, generator=generator)[:k] for _ in range(batch * seq)]).view(batch, seq, k)
    values = torch.randn(batch, seq, k, generator=generator, requires_grad=True)
    sparse = compression(ids, values)
    wide = torch.zeros(batch, seq, c).scatter(-1, ids, values)
    dense = wide @ compression.weight + compression.bias
    torch.testing.assert_close(sparse, dense, rtol=1e-5, atol=1e-5)
    inputs = [values, compression.weight, compression.bias]
    direction = torch.randn(dense.shape, generator=generator)
    fast = torch.autograd.grad((sparse * direction).sum(), inputs)
    slow = torch.autograd.grad((dense * direction).sum(), inputs)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mixing", ["interleave", "residual", "add"])
@pytest.mark.parametrize("family", MAIN_BACKBONES)
def test_interventions(family: str, mixing: str) -> None:
    model = student(family, 1, mixing)
    logits = model(tokens()).logits
    same = model(tokens(), concept_intervention=lambda ids, values: (ids, values))
    assert torch.equal(same.logits, logits)
    zeroed = model(tokens(), concept_intervention=lambda ids, values: (ids, torch.zeros_like(values)))
    assert (zeroed.logits - logits).abs().max() > 1e-2
    assert not zeroed.concept_values.any()
    oracle = model(
        tokens(),
        concept_intervention=lambda ids, values: (torch.full_like(ids[..., :2], CONCEPTS - 1), values[..., :2]),
    )
    assert oracle.concept_ids.shape == (2, 11, 2)
    assert (oracle.logits - logits).abs().max() > 1e-2


def test_prediction_only_never_builds_a_compression() -> None:
    model = student("gpt2", 1, "none")
    assert not list(model.mixing.parameters())
    shuffled = model(tokens(), concept_intervention=lambda ids, values: (ids.flip(1), values.flip(1)))
    assert torch.equal(shuffled.logits, model(tokens()).logits)
