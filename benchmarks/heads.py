"""The two heads of a student: the memory they move beyond their products, and their share of a step."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.ratios import Section, ratio
from benchmarks.settings import Settings, Shape
from benchmarks.timing import alternate
from benchmarks.workload import LABELS_PER_POSITION, adamw, random_model, student_loss, training_step
from cocomix.model.fused_head import fused_head
from cocomix.model.targets import SetCrossEntropy

__all__ = ["measure"]

_COPIED = {"cpu": 2**24, "cuda": 2**30}  # bytes: larger than any cache


def measure(settings: Settings) -> Section:
    """Both heads forward and backward, their matrix products alone, a copy, and a step of the same batch."""
    shape, dtype, device = replace(settings.sizes.main, accumulation=1), settings.dtypes[0], settings.device
    positions = shape.batch * shape.context
    student = random_model(shape.student, device)
    source = torch.zeros(2**16 if settings.fast else _COPIED[device], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    outputs = {"concept head": shape.concepts, "next-token head": shape.vocabulary}
    contestants: dict[str, Callable[[], object]] = {
        "step": training_step(student, student_loss(student, shape, device), settings, dtype, adamw(student), 1),
        "copy": lambda: target.copy_(source),
    }
    for name, width in outputs.items():
        topk = shape.concept_topk if name == "concept head" else 0
        work = _head(shape, positions, width, topk, dtype, settings)
        contestants |= {name: work[0], f"compiled {name}": work[1], f"{name}, products": work[2]}
    seconds = alternate(contestants, settings.rounds, device)

    case = f"{shape.name}, {dtype}, {positions:,} positions"
    ratios = []
    for name, width in outputs.items():
        for kind in (name, f"compiled {name}"):
            moved = _moved(seconds[kind], seconds[f"{name}, products"], seconds["copy"], 2 * source.numel())
            logits = [float(positions * width)] * len(moved)
            goal = "≤ 20" if device != "cpu" and kind != name else ""
            ratios.append(ratio(case, f"{kind}: bytes ÷ logit", moved, logits, "bytes", target=goal))
        ratios.append(ratio(case, f"{name} ÷ step", seconds[name], seconds["step"]))
    return Section(
        "Heads",
        "Concept head (with its top-k) and next-token head, forward and backward, as they are and by `torch.compile`, "
        "which fuses what lies between their products (recipes for GPUs compile the whole model). *Bytes ÷ logit*: the "
        "time that a head takes beyond its three products, in bytes that a plain copy reads and writes meanwhile.",
        {"shape": asdict(shape), "dtype": dtype},
        ratios,
        settings.notes,
    )


def _moved(head: Sequence[float], products: Sequence[float], copy: Sequence[float], copied: int) -> list[float]:
    """Bytes that could be moved in the time beyond the products, round by round; one byte where there is none."""
    each = zip(head, products, copy, strict=True)
    return [max(1.0, (whole - alone) * copied / one) for whole, alone, one in each]


def _head(
    shape: Shape, positions: int, width: int, topk: int, dtype: str, settings: Settings
) -> tuple[Callable[[], None], Callable[[], None], Callable[[], None]]:
    """A head's forward and backward pass, the same compiled, and its three products alone."""
    device = settings.device
    generator = torch.Generator().manual_seed(7)
    kind = getattr(torch, dtype)
    hidden = torch.randn(positions, shape.width, generator=generator).to(device=device, dtype=kind)
    weight = (torch.randn(width, shape.width, generator=generator) / shape.width**0.5).to(device=device, dtype=kind)
    entries = LABELS_PER_POSITION if topk else 1
    labels = torch.randint(width, (positions, entries), generator=generator).to(device)
    rows, matrix = hidden.clone().requires_grad_(True), weight.clone().requires_grad_(True)

    def loss() -> Tensor:
        return fused_head(rows, matrix, None, SetCrossEntropy(labels), topk).loss_sum

    def head(of: Callable[[], Tensor]) -> None:
        of().backward()
        rows.grad = matrix.grad = None

    compiled = torch.compile(loss, backend="eager" if settings.fast else "inductor")

    chunk = max(1, 2**28 // (4 * width))  # as many logits at once as a head holds on a small device

    def products() -> None:
        total = torch.zeros_like(weight)
        for some in torch.split(hidden, chunk):
            logits = some @ weight.T
            logits @ weight  # the gradient of the hidden states
            total.addmm_(logits.T, some)  # the gradient of the weight

    return partial(head, loss), partial(head, compiled), products
