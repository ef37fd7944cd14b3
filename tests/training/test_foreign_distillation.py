"""ULD and ALM: what leaves them at 0, and where their gradients go."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cocomix.runtime.ignore import IGNORE
from cocomix.training.objectives import ChunkLikelihood, NextToken, Objective, Schedule, SortedDistillation, loss_terms
from cocomix.training.objectives.alm import TEMPERATURE
from cocomix.training.objectives.objective import SingleTerm
from tests.model.factories import student, tokens

ONE = Schedule(value=1.0)


def term(objective: Objective, logits: Tensor, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Sum and count of the term that an objective makes of logits."""
    output = type("Output", (), {"logits": logits})
    (found,) = objective(output, batch, None).values()
    (count,) = objective.counts(batch).values()
    assert int(found.count) == int(count)
    return found.sum, found.count


def chunked(logits: Tensor, ids: Tensor, lengths: list[int]) -> dict[str, Any]:
    """A batch of one row in chunks of so many tokens, 0 = a gap of one, with the likelihoods that the logits give."""
    losses = F.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none").detach()
    batch = {
        "labels": ids,
        "teacher_log_probs": torch.full(ids.shape, -torch.inf),
        "teacher_lengths": torch.zeros_like(ids),
    }
    place = 0
    for length in lengths:
        if length:
            batch["teacher_log_probs"][0, place] = -losses[place : place + length].sum()
            batch["teacher_lengths"][0, place] = length
        place += max(1, length)
    return batch


@pytest.fixture
def drawn() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, 8, 11, generator=generator), torch.randint(11, (1, 8), generator=generator)


def test_alm_is_0_for_equal_likelihoods_and_the_binary_divergence_otherwise(drawn: tuple[Tensor, Tensor]) -> None:
    logits, ids = drawn
    batch = chunked(logits, ids, [2, 0, 1, 3])
    found, count = term(ChunkLikelihood(ONE), logits, batch)
    assert int(count) == 3
    assert float(found) == pytest.approx(0, abs=1e-5)
    batch["teacher_log_probs"] -= 1.5
    found, _ = term(ChunkLikelihood(ONE), logits, batch)
    expected = 0.0
    for place in (0, 3, 4):
        p, q = (torch.exp((batch["teacher_log_probs"][0, place] + more) / TEMPERATURE).double() for more in (0.0, 1.5))
        expected += float(TEMPERATURE * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()))
    assert float(found) == pytest.approx(expected, rel=1e-3)
    assert expected > 0.1


def test_alms_gradient_goes_through_the_chunks_likelihood_alone(drawn: tuple[Tensor, Tensor]) -> None:
    logits, ids = drawn
    batch = chunked(logits, ids, [2, 0, 1, 3])
    batch["teacher_log_probs"] -= 1.5
    logits.requires_grad_()
    found, _ = term(ChunkLikelihood(ONE), logits, batch)
    (gradient,) = torch.autograd.grad(found, logits)
    direction = F.one_hot(ids[0, 1:], 11) - logits[0, :-1].detach().softmax(-1)  # of the log-likelihood of the text
    scale = (gradient[0, :-1] * direction).sum(-1) / direction.square().sum(-1)
    torch.testing.assert_close(gradient[0, :-1], scale[:, None] * direction)  # no other direction: no other token
    assert scale[0] == pytest.approx(float(scale[1]), rel=1e-4)
    assert scale[4:7].std() < 1e-4
    assert (scale[[0, 3, 4]] > 0).all()  # the student is surer of the text than the teacher
    assert (gradient[0, [2, 7]] == 0).all()  # between chunks, and after the last


def test_a_chunk_counts_if_all_its_tokens_are_targets(drawn: tuple[Tensor, Tensor]) -> None:
    logits, ids = drawn
    batch = chunked(logits, ids, [2, 0, 1, 3])
    batch["labels"] = ids.clone()
    batch["labels"][0, 5] = IGNORE  # in the last chunk
    assert int(ChunkLikelihood(ONE).counts(batch)["alm_loss"]) == 2
    batch["teacher_lengths"][0, 4] = 4  # goes on beyond the block
    assert int(ChunkLikelihood(ONE).counts(batch)["alm_loss"]) == 2


def test_uld_is_0_for_equal_models_and_blind_to_which_token_is_which(drawn: tuple[Tensor, Tensor]) -> None:
    logits, ids = drawn
    batch = {"labels": ids, "teacher_log_probs": logits.log_softmax(-1).topk(4, dim=-1).values}
    batch["teacher_log_probs"][0, 3] = -torch.inf  # no common end
    objective = SortedDistillation(ONE)
    found, count = term(objective, logits, batch)
    assert int(count) == 6  # neither it nor the last
    assert float(found) == pytest.approx(0, abs=1e-5)
    other = 2 * logits
    found, _ = term(objective, other, batch)
    permuted, _ = term(objective, other[..., torch.randperm(11, generator=torch.Generator().manual_seed(2))], batch)
    assert float(found) == pytest.approx(float(permuted), rel=1e-5)
    whole = (other.softmax(-1).sort(descending=True).values - logits.softmax(-1).sort(descending=True).values).abs()
    assert 0 < float(found) <= float(whole[0, [0, 1, 2, 4, 5, 6]].sum()) + 1e-5


@pytest.mark.parametrize("kind", ["uld", "alm"])
def test_both_go_with_a_model_whose_logits_never_leave_it(kind: str) -> None:
    model = student("gpt2", 1)
    shape = tokens().shape
    batch: dict[str, Any] = {"input_ids": tokens(), "labels": tokens()}
    if kind == "uld":
        objective: SingleTerm = SortedDistillation(ONE)
        batch["teacher_log_probs"] = torch.full((*shape, 3), -2.0)
    else:
        objective = ChunkLikelihood(ONE)
        batch |= {"teacher_log_probs": torch.full(shape, -9.0), "teacher_lengths": torch.ones(shape, dtype=torch.long)}
    objective.model = model
    terms, _ = loss_terms((NextToken(model.config), objective), model, batch)
    assert int(terms[f"{kind}_loss"].count) == tokens()[:, 1:].numel()
    terms[f"{kind}_loss"].sum.backward()
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0
