"""The chunked head against its slow twin: values, ids, loss and every gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from cocomix.model.fused_head import HeadOutput, fused_head
from cocomix.model.targets import SetCrossEntropy, accumulation_dtype, check_concept_labels
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.ignore import IGNORE
from tests.model.largest import largest_tensor

BF16_TOLERANCE = (
    2e-2  # bf16 keeps 8 bits: products of unit-sized terms differ by up to about 1% between summation orders
)


def naive_head(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor | None, k: int) -> HeadOutput:
    """The slow twin of `fused_head`: all logits at once, plain autograd."""
    logits = F.linear(hidden, weight, bias)  # [N, width]
    values, ids = logits.topk(k, dim=-1)
    scores = logits.to(accumulation_dtype(logits))
    if labels is None:
        return HeadOutput(values, ids, scores.new_zeros(()))
    used = labels != IGNORE  # [N, k_attr]
    picked = scores.gather(-1, labels.clamp_min(0)) * used
    mean_picked = picked.sum(-1) / used.sum(-1).clamp_min(1)
    per_position = torch.logsumexp(scores, dim=-1) - mean_picked
    return HeadOutput(values, ids, (per_position * used.any(-1)).sum())


def problem(n: int, d: int, c: int, k_attr: int, ignored: float, seed: int, dtype: torch.dtype) -> list[Tensor]:
    """hidden, weight, bias (all wanting gradients) and labels; whole rows and single entries are ignored."""
    generator = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in ((n, d), (c, d), (c,)))
    labels = torch.randint(0, c, (n, k_attr), generator=generator)
    labels[torch.rand(n, k_attr, generator=generator) < ignored] = IGNORE
    labels[torch.rand(n, generator=generator) < ignored] = IGNORE
    return [hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), labels]


def concept_head(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor | None, k: int, chunk_size: int | None = None
) -> HeadOutput:
    return fused_head(hidden, weight, bias, None if labels is None else SetCrossEntropy(labels), k, chunk_size)


def gradients(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, inputs, retain_graph=True))


problems = {
    "n": st.integers(1, 13),
    "d": st.integers(1, 9),
    "c": st.integers(2, 40),
    "k": st.integers(1, 2),
    "k_attr": st.integers(1, 5),
    "ignored": st.sampled_from([0.0, 0.4, 1.0]),
    "chunk": st.integers(1, 14),
    "seed": st.integers(0, 10_000),
}


@settings(max_examples=60, deadline=None)
@given(**problems, use=st.sampled_from(["both", "values", "loss"]))
def test_equals_the_naive_head_in_values_and_gradients(
    n: int, d: int, c: int, k: int, k_attr: int, ignored: float, chunk: int, seed: int, use: str
) -> None:
    hidden, weight, bias, labels = problem(n, d, c, k_attr, ignored, seed, torch.float32)
    fast = concept_head(hidden, weight, bias, labels, k, chunk_size=chunk)
    slow = naive_head(hidden, weight, bias, labels, k)
    torch.testing.assert_close(fast.values, slow.values, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fast.loss_sum, slow.loss_sum, rtol=1e-5, atol=1e-5)
    z = torch.nn.functional.linear(hidden, weight, bias)
    torch.testing.assert_close(z.gather(-1, fast.ids), fast.values, rtol=1e-5, atol=1e-5)
    direction = torch.randn(n, k, generator=torch.Generator().manual_seed(seed))
    inputs = [hidden, weight, bias]

    def total(output: object) -> Tensor:
        values, _, loss = output
        parts = {"both": (values * direction).sum() + 0.7 * loss, "values": (values * direction).sum(), "loss": loss}
        return parts[use]

    for ours, theirs in zip(gradients(total(fast), inputs), gradients(total(slow), inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_as_one_compiled_region_it_computes_the_same() -> None:
    """Several chunks by Inductor, without a graph break: how a GPU runs it in a compiled model."""
    hidden, weight, bias, labels = problem(60, 16, 500, 4, 0.3, 0, torch.float32)
    inputs, direction = [hidden, weight, bias], torch.randn(60, 8, generator=torch.Generator().manual_seed(1))

    def total() -> Tensor:
        head = concept_head(hidden, weight, bias, labels, 8, chunk_size=30)
        return head.loss_sum + (head.values * direction).sum()

    compiled = torch.compile(total, fullgraph=True)()
    torch.testing.assert_close(compiled, total(), rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(gradients(compiled, inputs), gradients(total(), inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(**problems)
def test_bfloat16_stays_near_the_float32_result(
    n: int, d: int, c: int, k: int, k_attr: int, ignored: float, chunk: int, seed: int
) -> None:
    hidden, weight, bias, labels = problem(n, d, c, k_attr, ignored, seed, torch.bfloat16)
    fast = concept_head(hidden, weight, bias, labels, k, chunk_size=chunk)
    assert (fast.values.dtype, fast.loss_sum.dtype) == (torch.bfloat16, torch.float32)
    exact = [t.detach().float().requires_grad_() for t in (hidden, weight, bias)]
    slow = naive_head(*exact, labels, k)
    scale = 1 + d**0.5
    torch.testing.assert_close(fast.values.float(), slow.values, rtol=BF16_TOLERANCE, atol=BF16_TOLERANCE * scale)
    torch.testing.assert_close(fast.loss_sum, slow.loss_sum, rtol=BF16_TOLERANCE, atol=BF16_TOLERANCE * scale * n)
    # Rounding may choose other concepts where two are close, so the values' gradient is compared for the chosen ones.
    chosen = torch.nn.functional.linear(*exact).gather(-1, fast.ids)
    direction = torch.randn(n, k, generator=torch.Generator().manual_seed(seed))
    for of_ours, of_theirs in (
        (fast.loss_sum, slow.loss_sum),
        ((fast.values.float() * direction).sum(), (chosen * direction).sum()),
    ):
        for ours, theirs in zip(gradients(of_ours, [hidden, weight, bias]), gradients(of_theirs, exact), strict=True):
            assert ours.dtype == torch.bfloat16
            torch.testing.assert_close(ours.float(), theirs, rtol=4e-2, atol=BF16_TOLERANCE * scale)


@pytest.mark.parametrize("chunk", [2, 5])
def test_gradcheck_in_float64(chunk: int) -> None:
    hidden, weight, bias, labels = problem(5, 4, 9, 3, 0.3, 0, torch.float64)
    assert labels.eq(IGNORE).any()
    assert labels.ne(IGNORE).any()

    def values_and_loss(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        output = concept_head(*inputs, labels, 2, chunk_size=chunk)
        return output.values, output.loss_sum

    assert concept_head(hidden, weight, bias, labels, 2).loss_sum.dtype == torch.float64
    assert torch.autograd.gradcheck(values_and_loss, (hidden, weight, bias))


def test_torch_func_differentiates_it() -> None:
    hidden, weight, bias, labels = problem(6, 4, 9, 3, 0.3, 1, torch.float32)

    def loss(head: object, w: Tensor) -> Tensor:
        output = head(hidden.detach(), w, bias.detach(), labels, 2)
        return output.loss_sum + output.values.sum()

    ours = torch.func.grad(lambda w: loss(concept_head, w))(weight.detach())
    torch.testing.assert_close(ours, torch.func.grad(lambda w: loss(naive_head, w))(weight.detach()))


def test_without_labels_there_is_no_loss() -> None:
    hidden, weight, bias, _ = problem(7, 4, 20, 1, 0.0, 0, torch.float32)
    output = concept_head(hidden, weight, bias, None, 3, chunk_size=3)
    assert output.loss_sum.item() == 0.0
    ours = gradients(output.values.square().sum(), [hidden, weight, bias])
    slow = naive_head(hidden, weight, bias, None, 3)
    for a, b in zip(ours, gradients(slow.values.square().sum(), [hidden, weight, bias]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
def test_only_some_inputs_want_gradients(wanted: tuple[int, ...]) -> None:
    *inputs, labels = problem(7, 4, 20, 2, 0.2, 0, torch.float32)
    for index, tensor in enumerate(inputs):
        tensor.requires_grad_(index in wanted)
    chosen = [inputs[i] for i in wanted]
    ours = gradients(concept_head(*inputs, labels, 3, chunk_size=2).loss_sum, chosen)
    for a, b in zip(ours, gradients(naive_head(*inputs, labels, 3).loss_sum, chosen), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_equals_the_mean_of_one_cross_entropy_per_label() -> None:
    """Eq. 2 transcribed: (1/K_attr) Σ_i CE(z, i), which is what the released code computes K_attr times."""
    hidden, weight, bias, labels = problem(6, 4, 20, 4, 0.0, 0, torch.float32)
    z = torch.nn.functional.linear(hidden, weight, bias)
    per_label = [torch.nn.functional.cross_entropy(z, labels[:, i], reduction="sum") for i in range(4)]
    torch.testing.assert_close(concept_head(hidden, weight, bias, labels, 2).loss_sum, sum(per_label) / 4)


def test_repeated_labels_count_as_often_as_they_occur() -> None:
    hidden, weight, bias, labels = problem(6, 4, 20, 4, 0.0, 0, torch.float32)
    labels[:, 1:3] = labels[:, :1]
    ours = concept_head(hidden, weight, bias, labels, 2, chunk_size=4).loss_sum
    slow = naive_head(hidden, weight, bias, labels, 2).loss_sum
    torch.testing.assert_close(ours, slow)
    for a, b in zip(gradients(ours, [hidden, weight]), gradients(slow, [hidden, weight]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spread", [30.0, 1e4])
def test_logits_so_far_apart_that_their_softmax_underflows(spread: float) -> None:
    hidden, weight, bias, labels = problem(6, 4, 20, 3, 0.2, 0, torch.float32)
    results = []
    for head in (concept_head, naive_head):
        output = head(hidden, spread * weight, bias, labels, 2)
        results.append([output.loss_sum, *gradients(output.loss_sum, [hidden, weight, bias])])
    assert torch.softmax(torch.nn.functional.linear(hidden, spread * weight, bias), -1).eq(0).any()
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * spread)


def test_neither_all_logits_nor_a_row_per_chosen_concept_are_ever_held() -> None:
    hidden, weight, bias, labels = problem(64, 8, 300, 4, 0.0, 0, torch.float32)
    chunk, k = 16, 40

    def work() -> None:
        output = concept_head(hidden, weight, bias, labels, k, chunk_size=chunk)
        (output.values.sum() + output.loss_sum).backward()

    assert chunk * 300 <= largest_tensor(work) < 64 * min(300, 8 * k)
    assert largest_tensor(lambda: naive_head(hidden, weight, bias, labels, k)) == 64 * 300


@pytest.mark.parametrize(("value", "found"), [(9, "9"), (-1, "-1"), (4000, "4000")])
def test_labels_outside_the_concepts_are_refused_with_the_value(value: int, found: str) -> None:
    labels = torch.tensor([[3, IGNORE], [8, value]])
    with pytest.raises(CoCoMixError, match=f"concept label {found} .* 9 concepts"):
        check_concept_labels(labels, None, 9)
    check_concept_labels(torch.tensor([[0, IGNORE], [8, IGNORE]]), None, 9)
    check_concept_labels(torch.empty(0, 2, dtype=torch.int64), None, 9)
