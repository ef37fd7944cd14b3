"""Cosines of gradients: where they are known, and of a model's two losses by plain backward passes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from cocomix.evaluation.analyses import compare_gradients, gradient_cosines
from cocomix.runtime.errors import CoCoMixError
from tests.evaluation.conftest import BLOCK, CONCEPTS, Rows, cocomix_model, token_blocks

CPU = torch.device("cpu")


def test_cosines_of_linear_losses_are_those_of_their_vectors() -> None:
    """The gradient of w·a is a: 60° apart in one group, opposite in the other, and a third that one loss ignores."""
    one, two, three = (nn.Parameter(torch.randn(2)) for _ in range(3))
    at_60 = torch.tensor([0.5, 3**0.5 / 2])
    east = torch.tensor([1.0, 0.0])
    losses = [(one @ east * n + two @ at_60, one @ at_60 - 2 * two @ at_60 + three.sum()) for n in (1, 3)]
    found = {each.group: each for each in compare_gradients(losses, {"a": [one], "b": [two], "c": [three]}, weight=0.5)}
    assert set(found) == {"a", "b", "all"}
    assert (found["a"].cosine, found["a"].low, found["a"].high) == pytest.approx((0.5, 0.5, 0.5))
    assert (found["b"].cosine, found["b"].of_all) == pytest.approx((-1.0, -1.0))
    assert (found["a"].size, found["b"].size) == pytest.approx((0.5 * 2 / 4, 0.5 * 2))
    assert found["a"].parameters == 2
    products = [n * 0.5 - 2 for n in (1, 3)]  # over lengths of (n², 1) and of (1, 4) and the third's 2
    together = [product / np.sqrt((n * n + 1) * (1 + 4 + 2)) for product, n in zip(products, (1, 3), strict=True)]
    assert found["all"].cosine == pytest.approx(np.mean(together))
    assert found["all"].low <= found["all"].cosine <= found["all"].high
    assert found["all"].of_all == pytest.approx((4 * 0.5 * 2 - 2 * 4) / np.sqrt((16 + 4) * (4 + 16 + 8)))


def test_a_models_are_those_of_two_backward_passes() -> None:
    model, rows = cocomix_model(), token_blocks(4)
    labels = Rows("concept_labels", torch.randint(CONCEPTS, (4, BLOCK, 3), generator=torch.Generator().manual_seed(2)))
    blocks = SimpleNamespace(rows=rows, labels=labels)
    found = {each.group: each for each in gradient_cosines(model, blocks, batch_size=2, device=CPU)}
    assert list(found) == ["embeddings", "block 0", "predictor", "all"]
    each = []
    for rows_ in (slice(0, 2), slice(2, 4)):
        asked = {"ntp_loss": {"labels": rows.rows[rows_]}, "concept_loss": {"concept_labels": labels.rows[rows_]}}
        gradients = []
        for name, given in asked.items():
            model.zero_grad()
            getattr(model(rows.rows[rows_], **given), name).backward()
            gradients.append(torch.cat([weight.grad.flatten() for weight in model.lower.h.parameters()]))
        each.append(float(torch.cosine_similarity(*gradients, dim=0)))
    assert found["block 0"].cosine == pytest.approx(np.mean(each), abs=1e-5)
    assert all(-1 <= one.low <= one.cosine <= one.high <= 1 for one in found.values())
    prediction_only = gradient_cosines(cocomix_model("none"), blocks, batch_size=2, device=CPU)
    assert "predictor" not in {one.group for one in prediction_only}  # next tokens do not reach it
    with pytest.raises(CoCoMixError, match="1 batch"):
        gradient_cosines(model, blocks, batch_size=4, device=CPU)
