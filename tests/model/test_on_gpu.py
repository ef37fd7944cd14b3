"""What a GPU computes against the CPU; nothing here runs without one."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor

from cocomix.model import CoCoMixForCausalLM
from tests.model.factories import CONCEPTS, MIXINGS, VOCAB
from tests.model.factories import student as make_student

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def make_batch(device: str = "cuda") -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCAB, (3, 16), generator=generator)
    labels = torch.randint(CONCEPTS, (3, 16, 4), generator=generator)
    return {"input_ids": tokens.to(device), "labels": tokens.to(device), "concept_labels": labels.to(device)}


def student_on_gpu() -> CoCoMixForCausalLM:
    return make_student("gpt2").cuda()


@pytest.mark.parametrize("mixing", MIXINGS)
def test_loss_and_gradients_are_the_cpus(mixing: str) -> None:
    student = make_student("gpt2", mixing=mixing)
    other = deepcopy(student).cuda()
    loss = student(**make_batch("cpu")).loss
    loss.backward()
    on_gpu = other(**make_batch()).loss
    on_gpu.backward()
    torch.testing.assert_close(on_gpu.cpu(), loss, rtol=1e-5, atol=1e-5)
    for (name, ours), theirs in zip(student.named_parameters(), other.parameters(), strict=True):
        if ours.grad is not None:
            torch.testing.assert_close(theirs.grad.cpu(), ours.grad, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_near_float32(dtype: torch.dtype) -> None:
    student, batch = student_on_gpu(), make_batch()
    exact = student(**batch).loss
    with torch.autocast("cuda", dtype):
        near = student(**batch).loss
    near.backward()
    assert near.item() == pytest.approx(exact.item(), rel=2e-2)
    assert all(weight.grad is None or bool(weight.grad.isfinite().all()) for weight in student.parameters())


def test_a_compiled_step_has_the_loss_of_the_plain_one() -> None:
    student, batch = student_on_gpu(), make_batch()
    assert torch.compile(student)(**batch).loss.item() == pytest.approx(student(**batch).loss.item(), rel=1e-4)
