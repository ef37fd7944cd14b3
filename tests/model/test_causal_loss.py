"""The plain decoder's loss against the one of transformers."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.loss.loss_utils import ForCausalLMLoss

from cocomix.model.fused_head import causal_loss, fused_head
from cocomix.model.targets import SetCrossEntropy
from tests.model.factories import VOCAB, plain, tokens
from tests.model.largest import largest_tensor


@pytest.mark.parametrize("items", [None, 7])
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_it_is_that_of_transformers(family: str, items: int | None) -> None:
    model, labels = plain(family), tokens(3, 9)
    labels[0, :4] = -100
    found = []
    for loss in (ForCausalLMLoss, causal_loss):
        model.loss_function = loss
        model.zero_grad()
        value = model(input_ids=tokens(3, 9), labels=labels, num_items_in_batch=items, use_cache=False).loss
        value.backward()
        found.append((value.detach(), {name: weight.grad.clone() for name, weight in model.named_parameters()}))
    torch.testing.assert_close(found[1][0], found[0][0])
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_no_float32_copy_of_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest float32 tensor is a chunk's; of transformers' loss all logits."""
    monkeypatch.setattr("cocomix.model.fused_head.chunk_bytes", lambda device: 4 * VOCAB * 8)
    labels = tokens(4, 64)

    def work(loss: object) -> int:
        logits = torch.randn(4, 64, VOCAB, dtype=torch.bfloat16, requires_grad=True)
        return largest_tensor(lambda: loss(logits, labels, vocab_size=VOCAB).backward(), torch.float32)

    assert work(causal_loss) <= 8 * VOCAB
    assert work(ForCausalLMLoss) == 4 * 64 * VOCAB


class Strides(TorchDispatchMode):
    """Notes the row strides of what products read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if "mm" in func.__name__:
            matrices = [arg for arg in (*args, *(kwargs or {}).values()) if isinstance(arg, Tensor) and arg.dim() == 2]
            self.seen |= {max(matrix.stride()) for matrix in matrices}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_read_and_write_aligned_rows(dtype: torch.dtype) -> None:
    """Of a vocabulary of odd size, such as GPT-2's 50,257; forward and backward."""
    hidden, weight = (torch.randn(rows, 16, dtype=dtype, requires_grad=True) for rows in (12, 257))
    with Strides() as strides:
        fused_head(hidden, weight, None, SetCrossEntropy(torch.zeros(12, 1, dtype=torch.int64))).loss_sum.backward()
    assert strides.seen
    assert all(stride % 16 == 0 for stride in strides.seen)


def test_what_lies_in_uninitialised_memory_does_not_matter() -> None:
    """Deterministic algorithms fill it with NaN, which bfloat16 products on CPUs with AMX read behind a row's end."""
    hidden, weight = (torch.randn(rows, 32, dtype=torch.bfloat16, requires_grad=True) for rows in (72, 61))
    torch.use_deterministic_algorithms(True)
    try:
        fused_head(hidden, weight, None, SetCrossEntropy(torch.zeros(72, 1, dtype=torch.int64))).loss_sum.backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert hidden.grad is not None
    assert weight.grad is not None
    assert bool(hidden.grad.isfinite().all() & weight.grad.isfinite().all())
