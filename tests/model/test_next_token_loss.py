"""The next-token loss without logits, against the loss of all logits."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cocomix.model import next_tokens
from cocomix.model.fused_head import Head, HeadOutput, fused_head
from cocomix.model.targets import SetCrossEntropy, divisor
from cocomix.runtime.ignore import IGNORE
from tests.model.factories import VOCAB, concepts, student, tokens
from tests.model.largest import largest_tensor

WIDTH = 16


def case(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, nn.Linear, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(3, 7, WIDTH, dtype=dtype, requires_grad=True)
    head = nn.Linear(WIDTH, VOCAB, bias=False, dtype=dtype)
    labels = torch.randint(VOCAB, (3, 7))
    labels[0, :3] = IGNORE
    mask = torch.ones(3, 7, dtype=torch.int64)
    mask[1, :2] = 0
    return hidden, head, labels, mask


def loss_of_hidden(
    hidden: torch.Tensor,
    head: nn.Linear,
    labels: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    num_items: torch.Tensor | int | None = None,
    chunk_size: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    targets = next_tokens(labels, attention_mask)
    fused = Head(WIDTH, head.out_features, bias=False, chunk_size=chunk_size, softcap=softcap)
    fused.weight = head.weight
    summed = fused(hidden.flatten(0, 1), SetCrossEntropy(targets.reshape(-1, 1)), 0).loss_sum
    return summed / divisor(targets.ne(IGNORE), num_items)


def loss_of_logits(
    logits: torch.Tensor,
    labels: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    num_items: torch.Tensor | int | None = None,
) -> torch.Tensor:
    targets = next_tokens(labels, attention_mask)
    summed = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")
    return summed / divisor(targets.ne(IGNORE), num_items)


def capped(logits: torch.Tensor, softcap: float | None) -> torch.Tensor:
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("chunk", [1, 5, 100, None])
@pytest.mark.parametrize("num_items", [None, 11, torch.tensor(11)])
@pytest.mark.parametrize("padded", [True, False])
def test_equals_the_loss_of_logits_in_value_and_gradients(
    chunk: int | None, num_items: int | torch.Tensor | None, padded: bool, softcap: float | None
) -> None:
    hidden, head, labels, mask = case()
    attention_mask = mask if padded else None
    results = []
    for loss in (
        loss_of_hidden(hidden, head, labels, attention_mask, num_items, chunk, softcap),
        loss_of_logits(capped(head(hidden), softcap), labels, attention_mask, num_items),
    ):
        gradients = torch.autograd.grad(2.5 * loss, (hidden, head.weight))
        results.append((loss, *gradients))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_bfloat16_sums_in_float32() -> None:
    hidden, head, labels, mask = case()
    exact = loss_of_logits(head(hidden), labels, mask)
    with torch.autocast("cpu", torch.bfloat16):
        fused = loss_of_hidden(hidden, head, labels, mask)
        plain = loss_of_logits(head(hidden), labels, mask)
    assert fused.dtype == torch.float32
    torch.testing.assert_close(fused, plain, rtol=1e-6, atol=1e-6)  # the same rounded logits, summed alike
    torch.testing.assert_close(fused, exact, rtol=2e-2, atol=2e-2)
    gradient, expected = (torch.autograd.grad(loss, head.weight)[0] for loss in (fused, exact))
    assert gradient.dtype == torch.float32
    torch.testing.assert_close(gradient, expected, rtol=5e-2, atol=5e-3)


def test_no_target_at_all_is_a_loss_of_zero() -> None:
    hidden, head, labels, mask = case()
    loss = loss_of_hidden(hidden, head, labels.fill_(IGNORE), mask)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])  # the last caps its logits
def test_a_model_gives_the_same_losses_and_gradients_without_logits(family: str) -> None:
    model = student(family)
    results = []
    for output_logits in (False, True):
        model.zero_grad()
        output = model(tokens(), labels=tokens(), concept_labels=concepts(), output_logits=output_logits)
        assert (output.logits is not None) == output_logits
        output.loss.backward()
        results.append([output.ntp_loss, output.concept_loss, *(p.grad for p in model.parameters())])
    for without, with_logits in zip(*results, strict=True):
        torch.testing.assert_close(without, with_logits, rtol=1e-4, atol=1e-6)


def test_the_chunk_size_changes_no_result_and_reaches_both_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(*args: object) -> HeadOutput:
        seen.append(args[5])
        return fused_head(*args)

    monkeypatch.setattr("cocomix.model.fused_head.fused_head", spy)
    batch = {"labels": tokens(), "concept_labels": concepts(), "output_logits": False}
    losses = [student("gpt2", head_chunk_size=size)(tokens(), **batch).loss for size in (3, None)]
    torch.testing.assert_close(*losses)
    assert seen == [3, 3, None, None]


def test_the_vocabulary_logits_are_never_held() -> None:
    """No tensor of [batch·seq, vocab] or more elements is made in the forward and backward pass of the loss."""
    hidden, head = torch.randn(4, 64, WIDTH, requires_grad=True), nn.Linear(WIDTH, 500, bias=False)
    labels = torch.randint(500, (4, 64))
    largest = largest_tensor(lambda: loss_of_hidden(hidden, head, labels, chunk_size=16).backward())
    assert 500 * 16 <= largest < 500 * 32  # a chunk's logits, of all 256 positions' 500 each


@pytest.mark.parametrize("output_logits", [True, False])
def test_a_batch_without_targets_has_a_loss_of_zero(output_logits: bool) -> None:
    """Not NaN, which a micro-batch of padding alone would spread over a whole step."""
    labels = torch.full_like(tokens(), IGNORE)
    output = student("gpt2")(tokens(), labels=labels, output_logits=output_logits)
    output.loss.backward()
    assert output.ntp_loss.item() == 0.0
