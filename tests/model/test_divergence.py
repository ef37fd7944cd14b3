"""The chunked distillation loss against KL divergences written out, in values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from cocomix.model import FullTargets, TopTargets
from cocomix.model.fused_head import Head, fused_head
from cocomix.model.targets import BagOfWords, Divergence, SetCrossEntropy, divisor
from tests.model.factories import student, tokens

BATCH, SEQ, D, D_TEACHER = 2, 5, 6, 7


def naive_kl(student_logits: Tensor, teacher_logits: Tensor, counted: Tensor) -> Tensor:
    """Mean over counted positions of Σ_v p_v (log p_v − log q_v), one position and one token at a time."""
    total, count = torch.zeros(()), 0
    for q_row, p_row, used in zip(
        student_logits.flatten(0, 1), teacher_logits.flatten(0, 1), counted.flatten(), strict=True
    ):
        if used:
            p, q = p_row.softmax(-1), q_row.softmax(-1)
            total = total + sum(p[v] * (p[v].log() - q[v].log()) for v in range(len(p)))
            count += 1
    return total / max(count, 1)


def naive_top_kl(student_logits: Tensor, ids: Tensor, log_probs: Tensor, counted: Tensor) -> Tensor:
    """The same over K tokens and one outcome for all others."""
    total, count = torch.zeros(()), 0
    rows = zip(student_logits.flatten(0, 1), ids.flatten(0, 1), log_probs.flatten(0, 1), strict=True)
    for (q_row, kept, log_p), used in zip(rows, counted.flatten(), strict=True):
        if used:
            p, q = log_p.exp(), q_row.softmax(-1)
            outside = torch.ones(len(q), dtype=torch.bool)
            outside[kept] = False
            p = torch.cat((p, 1 - p.sum(0, keepdim=True)))
            q = torch.cat((q[kept], q[outside].sum(0, keepdim=True)))
            total = total + (p * (p.log() - q.log())).sum()
            count += 1
    return total / max(count, 1)


def problem(vocab: int, teacher_vocab: int, seed: int) -> tuple[Tensor, Tensor, FullTargets, Tensor]:
    """hidden and weight (wanting gradients), a teacher, and which positions count."""
    generator = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(BATCH, SEQ, D, generator=generator), torch.randn(vocab, D, generator=generator)
    states = torch.randn(BATCH, SEQ, D_TEACHER, generator=generator)
    head, bias = (
        torch.randn(teacher_vocab, D_TEACHER, generator=generator),
        torch.randn(teacher_vocab, generator=generator),
    )
    counted = torch.rand(BATCH, SEQ, generator=generator) < 0.7
    return hidden.requires_grad_(), weight.requires_grad_(), FullTargets(states, head, bias), counted


def teacher_logits(targets: FullTargets) -> Tensor:
    assert targets.weight is not None
    return F.linear(targets.states, targets.weight, targets.bias)


def top(targets: FullTargets, k: int) -> TopTargets:
    best = teacher_logits(targets).log_softmax(-1).topk(k, dim=-1)
    return TopTargets(best.indices, best.values, complete=k == teacher_logits(targets).shape[-1])


def distillation_loss(
    hidden: Tensor,
    weight: Tensor | None,
    targets: FullTargets | TopTargets,
    counted: Tensor,
    num_items: int | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """The divergence averaged over counted positions, as a head with this weight gives it; from logits without one."""
    loss, flat = Divergence.of_batch(targets, counted), hidden.flatten(0, 1)
    if weight is None:
        summed = fused_head(flat, None, None, loss, chunk_size=chunk_size).loss_sum
    else:
        head = Head(weight.shape[1], weight.shape[0], bias=False, chunk_size=chunk_size)
        summed = torch.func.functional_call(head, {"weight": weight}, (flat, loss, 0)).loss_sum
    return summed / divisor(counted, num_items)


def assert_same(ours: Tensor, theirs: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    gradients = (torch.autograd.grad(2.5 * loss, inputs, retain_graph=True) for loss in (ours, theirs))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), chunk=st.integers(1, 11), vocab=st.integers(3, 12), extra=st.integers(0, 3))
def test_the_whole_distribution(seed: int, chunk: int, vocab: int, extra: int) -> None:
    """Also a student whose vocabulary is padded beyond the teacher's."""
    hidden, weight, targets, counted = problem(vocab + extra, vocab, seed)
    teacher = F.pad(teacher_logits(targets), (0, extra), value=-1e4)
    counted[0, 0] = True
    logits = hidden @ weight.T
    expected = F.kl_div(logits.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    expected = expected[counted].mean()
    assert_same(distillation_loss(hidden, weight, targets, counted, chunk_size=chunk), expected, [hidden, weight])
    from_logits = distillation_loss(logits, None, FullTargets(teacher_logits(targets)), counted, chunk_size=chunk)
    assert_same(from_logits, expected, [hidden, weight])


def test_the_formula_token_by_token() -> None:
    hidden, weight, targets, counted = problem(9, 9, 1)
    expected = naive_kl(hidden @ weight.T, teacher_logits(targets), counted)
    assert_same(distillation_loss(hidden, weight, targets, counted), expected, [hidden, weight])


@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("chunk", [1, 4, None])
def test_the_largest_probabilities_and_the_rest(k: int, chunk: int | None) -> None:
    hidden, weight, targets, counted = problem(9, 9, 2)
    few = top(targets, k)
    expected = naive_top_kl(hidden @ weight.T, few.ids, few.log_probs, counted)
    found = distillation_loss(hidden, weight, few, counted, chunk_size=chunk)
    assert_same(found, expected, [hidden, weight])
    exact = distillation_loss(hidden, weight, targets, counted)
    if k == 8:  # the rest is one token
        torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-6)
    else:  # lumping outcomes together loses divergence
        assert found < exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_all_probabilities_are_the_whole_distribution(dtype: torch.dtype) -> None:
    """Stored in float16 too, where they no longer add up to 1."""
    hidden, weight, targets, counted = problem(9, 9, 3)
    every = top(targets, 9)
    found = distillation_loss(hidden, weight, every._replace(log_probs=every.log_probs.to(dtype)), counted)
    exact = distillation_loss(hidden, weight, targets, counted)
    torch.testing.assert_close(found, exact, rtol=1e-5 if dtype == torch.float32 else 5e-3, atol=1e-6)


def test_a_student_that_leaves_no_rest_is_told_of_it() -> None:
    logits = torch.tensor([[150.0, 149.0, 1.0, 0.0, -1.0]], requires_grad=True)  # q_R is e⁻¹⁴⁸: 0 in float32
    targets = TopTargets(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.3]]).log())
    found = fused_head(logits, None, None, Divergence(targets, torch.ones(1).bool())).loss_sum
    precise = logits.detach().double().requires_grad_()
    expected = naive_top_kl(precise[None], targets.ids[None], targets.log_probs[None].double(), torch.ones(1, 1).bool())
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0.0)
    gradients = torch.autograd.grad(found, logits)[0].double(), torch.autograd.grad(expected, precise)[0]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


def test_probabilities_that_leave_no_rest() -> None:
    """A teacher sure of one token, rounded to a sum of 1 or more."""
    hidden, weight, _, counted = problem(9, 9, 4)
    sure = TopTargets(torch.zeros(BATCH, SEQ, 2, dtype=torch.int64), torch.zeros(BATCH, SEQ, 2))
    sure.ids[..., 1] = 1
    sure.log_probs[..., 1] = -20.0
    found = distillation_loss(hidden, weight, sure, counted)
    gradients = torch.autograd.grad(found, [hidden, weight])
    assert found.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)
    expected = F.cross_entropy((hidden @ weight.T)[counted], torch.zeros(int(counted.sum()), dtype=torch.int64))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_an_equal_student_has_no_divergence() -> None:
    states, head = torch.randn(1, 4, D), torch.randn(9, D)
    same = distillation_loss(states.clone().requires_grad_(), head, FullTargets(states, head), torch.ones(1, 4).bool())
    assert same.item() == pytest.approx(0.0, abs=1e-6)


def test_divisors() -> None:
    hidden, weight, targets, counted = problem(9, 9, 5)
    mean = distillation_loss(hidden, weight, targets, counted)
    total = distillation_loss(hidden, weight, targets, counted, num_items=1)
    torch.testing.assert_close(total, mean * counted.sum())
    nothing = distillation_loss(hidden, weight, targets, torch.zeros_like(counted))
    assert nothing.item() == 0.0


def test_no_more_than_a_chunk_of_either_sides_logits_is_held() -> None:
    vocab, chunk = 500, 8
    hidden, weight = torch.randn(4, 32, D, requires_grad=True), torch.randn(vocab, D)
    targets = FullTargets(torch.randn(4, 32, D), torch.randn(vocab, D))
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else (result,):
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.numel())
            return result

    with Watch():
        distillation_loss(hidden, weight, targets, torch.ones(4, 32).bool(), chunk_size=chunk).backward()
    assert vocab * chunk <= largest < (vocab + 32) * chunk


@pytest.mark.parametrize("mixing", ["interleave", "pause"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])  # the second caps its logits
def test_a_models_loss_is_that_of_its_logits(family: str, mixing: str) -> None:
    model = student(family, 1, mixing)
    logits = model(tokens()).logits
    generator = torch.Generator().manual_seed(7)
    targets = FullTargets(torch.randn(logits.shape, generator=generator))
    counted = torch.ones(tokens().shape).bool()
    counted[:, -1] = False
    expected = naive_kl(logits, targets.states, counted)
    for output_logits in (True, False):
        losses = {"kd": Divergence.of_batch(targets, counted)}
        output = model(tokens(), labels=tokens(), head_losses=losses, output_logits=output_logits)
        torch.testing.assert_close(output.head_losses["kd"] / counted.sum(), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(output.loss, output.ntp_loss)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("wrapped", [False, True])  # as PEFT wraps a head: only its logits can be asked for
def test_several_losses_in_one_pass_are_those_of_several_passes(family: str, wrapped: bool) -> None:
    model = student(family, 1, "interleave").train()
    if wrapped:
        model.lm_head = nn.Sequential(model.lm_head)
    shape = (*tokens().shape, model.config.vocab_size)
    targets, counted = FullTargets(torch.randn(shape)), torch.rand(tokens().shape) < 0.7
    losses = {
        "kd": Divergence.of_batch(targets, counted),
        "ahead": SetCrossEntropy(torch.randint(model.config.vocab_size, (tokens().numel(), 2)), torch.rand(2)),
        "bag": BagOfWords(torch.arange(tokens().numel()).unsqueeze(-1) % 7),
    }
    weights = {name: torch.tensor(weight) for name, weight in (("kd", 0.3), ("ahead", 0.0), ("bag", 1e-6))}
    weights["ntp_loss"] = torch.ones(())
    found = []
    for once in (None, weights):
        asked = {"head_losses": losses, "head_weights": once, "output_logits": False, "num_items_in_batch": 7}
        output = model(tokens(), labels=tokens(), **asked)
        terms = {**output.head_losses, "ntp_loss": output.ntp_loss}
        whole = 2.5 * sum(weights[name] * term for name, term in terms.items())
        gradients = torch.autograd.grad(whole, [*model.parameters()], allow_unused=True)
        found.append(({name: terms[name].detach() for name in weights}, gradients))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


def test_bfloat16_sums_in_float32() -> None:
    hidden, weight, targets, counted = problem(9, 9, 6)
    exact = distillation_loss(hidden, weight, targets, counted)
    with torch.autocast("cpu", torch.bfloat16):
        found = distillation_loss(hidden, weight, targets, counted)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=3e-2, atol=3e-2)
    (gradient,) = torch.autograd.grad(found, weight)
    assert gradient.dtype == torch.float32
