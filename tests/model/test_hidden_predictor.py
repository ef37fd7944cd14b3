"""Direct prediction of hidden states against its formulas."""

from typing import Any

import pytest
import torch
from torch import Tensor

from cocomix.model import CoCoMixForCausalLM
from cocomix.model.predictor import hidden_distance
from tests.model.factories import D_MODEL, concept_parameters, student, tokens

D_TEACHER = 12


def hidden_student(mixing: str = "interleave", **changes: Any) -> CoCoMixForCausalLM:
    return student("llama", 1, mixing, prediction="hidden", teacher_hidden_size=D_TEACHER, **changes)


def states(seed: int = 5) -> Tensor:
    return torch.randn(2, 11, D_TEACHER, generator=torch.Generator().manual_seed(seed))


def naive_mix(model: CoCoMixForCausalLM, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """→ mixed, predicted; position by position."""
    predictor, mixing = model.predictor, model.mixing
    first, _, second = predictor.mlp
    rows, predictions = [], []
    for sequence in hidden:
        row, predicted_row = [], []
        for h in sequence:
            mean, std = h.mean(), ((h - h.mean()) ** 2).sum().div(h.numel() - 1).sqrt()
            x = (h - mean) / (std + 1e-5) - predictor.pre_bias
            inner = first.weight @ x + first.bias
            inner = 0.5 * inner * (1 + torch.erf(inner / 2**0.5))
            predicted = second.weight @ inner + second.bias
            predicted_row.append(predicted)
            if mixing.name == "none":
                row.append(h)
                continue
            compressed = mixing.compression.weight @ predicted + mixing.compression.bias
            paper = (compressed + predictor.pre_bias) * std + mean
            row += {"interleave": [h, paper], "residual": [h, h + std * compressed], "add": [h + paper]}[mixing.name]
        rows.append(torch.stack(row))
        predictions.append(torch.stack(predicted_row))
    return torch.stack(rows), torch.stack(predictions)


@pytest.mark.parametrize("mixing", ["interleave", "residual", "add", "none"])
def test_equals_the_formulas(mixing: str) -> None:
    model = hidden_student(mixing)
    hidden = 2.0 * torch.randn(2, 11, D_MODEL, generator=torch.Generator().manual_seed(9)) + 0.5
    mixed, predicted = naive_mix(model, hidden)
    counted = torch.ones(2, 11, dtype=torch.bool)
    counted[0, :4] = False
    ours = model.predictor(hidden, states(), counted)
    torch.testing.assert_close(model.mixing(hidden, ours.concepts), mixed, rtol=1e-4, atol=1e-4)
    expected = sum(((u - v) ** 2).mean() for u, v in zip(predicted[counted], states()[counted], strict=True))
    torch.testing.assert_close(ours.loss_sum, expected, rtol=1e-4, atol=1e-4)
    assert ours.concepts.ids is None
    assert model.predictor(hidden).loss_sum is None


def test_distances_by_hand() -> None:
    u, v = torch.tensor([[1.0, 2.0], [0.0, 3.0]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    assert hidden_distance(u, v, "l1").tolist() == [1.5, 1.0]
    assert hidden_distance(u, v, "l2").tolist() == [2.5, 2.0]
    cosine = 1 - 2 / (5**0.5 * 2)
    torch.testing.assert_close(hidden_distance(u, v, "cosine"), torch.tensor([cosine, 0.0]))


@pytest.mark.parametrize("kind", ["l1", "l2", "cosine"])
def test_the_models_loss(kind: str) -> None:
    model = hidden_student(hidden_loss=kind, concept_loss_weight=0.3)
    labels = tokens().clone()
    labels[0, :4] = -100  # position 3 is the first to have a target in the first row
    output = model(tokens(), labels=labels, hidden_targets=states())
    entering = model.lower(tokens()).last_hidden_state
    counted = torch.zeros(2, 11, dtype=torch.bool)
    counted[0, 3:10] = counted[1, :10] = True
    expected = hidden_distance(naive_mix(model, entering)[1], states(), kind)[counted].mean()
    torch.testing.assert_close(output.hidden_loss, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.loss, output.ntp_loss + 0.3 * output.hidden_loss)
    assert output.concept_loss is None
    assert output.concept_ids is None
    halves = [
        model(tokens()[row], labels=labels[row], hidden_targets=states()[row], num_items_in_batch=17)
        for row in (slice(0, 1), slice(1, 2))
    ]
    torch.testing.assert_close(halves[0].hidden_loss + halves[1].hidden_loss, output.hidden_loss)


def test_the_prediction_is_mixed_in_and_never_the_target() -> None:
    model = hidden_student()
    with_targets = model(tokens(), labels=tokens(), hidden_targets=states())
    assert torch.equal(with_targets.logits, model(tokens(), labels=tokens()).logits)
    with_targets.loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in concept_parameters(model))
