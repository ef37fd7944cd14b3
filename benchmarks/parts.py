"""Single parts of the training step: concept head, compression and next-token loss, each against plainer forms."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.naive import naive_compression, naive_head
from benchmarks.ratios import Section, ratio
from benchmarks.settings import Settings, Shape
from benchmarks.timing import alternate
from benchmarks.workload import LABELS_PER_POSITION
from cocomix.model.fused_head import Head, fused_head, loss_sums
from cocomix.model.mixing.form import ConceptCompression
from cocomix.model.targets import Divergence, SetCrossEntropy, TopTargets, next_tokens
from cocomix.runtime.ignore import IGNORE

__all__ = ["head_work", "measure_compression", "measure_head", "measure_lm_head"]


def measure_head(settings: Settings) -> Section:
    """The fused head against all logits held and four cross-entropies, forward and backward."""
    shape, dtype = settings.sizes.main, settings.dtypes[0]
    positions = shape.batch * shape.context
    seconds = alternate(head_work(shape, positions, dtype, settings.device), settings.rounds, settings.device)
    return Section(
        "Concept head",
        "Concept logits, their top-k and the concept loss, forward and backward: the fused head in seconds of the "
        "naive one. Both need the same three matrix products, so by FLOPs the ratio is 1.",
        {"shape": asdict(shape), "positions": positions, "dtype": dtype},
        [
            ratio(
                f"{dtype}, {positions:,} positions, C = {shape.concepts:,}",
                "fused head ÷ naive head",
                seconds["fused"],
                seconds["naive"],
                by_flops=1.0,
            )
        ],
    )


def head_work(shape: Shape, positions: int, dtype: str, device: str) -> dict[str, Callable[[], None]]:
    """Forward and backward of the fused and of the naive head on the same tensors; logits have variance 2."""
    generator = torch.Generator().manual_seed(4)
    kind = getattr(torch, dtype)

    def leaf(*size: int, scale: float = 1.0) -> Tensor:
        drawn = scale * torch.randn(size, generator=generator)
        return drawn.to(device=device, dtype=kind).requires_grad_(True)

    hidden, bias = leaf(positions, shape.width), leaf(shape.concepts)
    weight = leaf(shape.concepts, shape.width, scale=shape.width**-0.5)
    labels = torch.randint(shape.concepts, (positions, LABELS_PER_POSITION), generator=generator).to(device)
    towards = torch.randn(positions, shape.concept_topk, generator=generator).to(device=device, dtype=kind)

    def finish(values: Tensor, loss: Tensor) -> None:
        ((values * towards).sum() + loss).backward()
        for tensor in (hidden, weight, bias):
            tensor.grad = None

    def fused() -> None:
        head = fused_head(hidden, weight, bias, SetCrossEntropy(labels), shape.concept_topk)
        finish(head.values, head.loss_sum / positions)

    def naive() -> None:
        logits = F.linear(hidden, weight, bias)
        finish(logits.topk(shape.concept_topk, dim=-1).values, naive_head(logits, labels))

    return {"fused": fused, "naive": naive}


def measure_compression(settings: Settings) -> Section:
    """The sparse compression against two plainer ways to write it, forward and backward."""
    shape, device = settings.sizes.main, settings.device
    generator = torch.Generator().manual_seed(5)
    compression = ConceptCompression(shape.concepts, shape.width).to(device)
    nn.init.normal_(compression.weight)
    logits = torch.randn(shape.batch, shape.context, shape.concepts, generator=generator).to(device)
    values, ids = logits.topk(shape.concept_topk, dim=-1)
    values.requires_grad_(True)
    logits.requires_grad_(True)
    towards = torch.randn(shape.batch, shape.context, shape.width, generator=generator).to(device)

    def finish(compressed: Tensor) -> None:
        (compressed * towards).sum().backward()
        for tensor in (compression.weight, values, logits):
            tensor.grad = None

    seconds = alternate(
        {
            "bags": lambda: finish(compression(ids, values)),
            "gathered": lambda: finish((values.unsqueeze(-1) * compression.weight[ids]).sum(-2)),
            "dense": lambda: finish(naive_compression(logits, compression.weight, shape.concept_topk)),
        },
        settings.rounds,
        device,
    )
    case = f"float32, {shape.batch} × {shape.context} tokens, C = {shape.concepts:,}, k = {shape.concept_topk}"
    return Section(
        "Compression",
        "W_comp·s and its gradients: the embedding bag in seconds of gathered rows that are weighted and summed, and "
        "of the dense product (whose top-k mask is part of it).",
        {"shape": asdict(shape)},
        [
            ratio(case, "embedding bag ÷ gathered rows", seconds["bags"], seconds["gathered"], by_flops=1.0),
            ratio(case, "embedding bag ÷ dense product", seconds["bags"], seconds["dense"]),
        ],
    )


def measure_lm_head(settings: Settings) -> Section:
    """The chunked next-token loss against all logits held and against PyTorch's, forward and backward."""
    shape, device, dtype = settings.sizes.short, settings.device, settings.dtypes[0]
    generator = torch.Generator().manual_seed(6)
    kind = getattr(torch, dtype)
    head = Head(shape.width, shape.vocabulary, bias=False).to(device=device, dtype=kind)
    hidden = torch.randn(shape.batch, shape.context, shape.width, generator=generator)
    hidden = hidden.to(device=device, dtype=kind).requires_grad_(True)
    tokens = torch.randint(shape.vocabulary, (shape.batch, shape.context), generator=generator).to(device)
    options = nn.LinearCrossEntropyOptions()

    def finish(loss: Tensor) -> None:
        loss.backward()
        head.weight.grad = hidden.grad = None

    def chunked_by_torch() -> None:
        rows, targets = hidden[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
        finish(F.linear_cross_entropy(rows, head.weight, targets, options=options))

    following = next_tokens(tokens, None).flatten()

    def chunked() -> None:
        loss = SetCrossEntropy(following.unsqueeze(1))
        finish(fused_head(hidden.flatten(0, 1), head.weight, None, loss).loss_sum / len(following))

    likeliest = torch.randn(len(following), 32, generator=generator).log_softmax(-1).to(device) - 0.1
    ids = torch.randint(shape.vocabulary, (len(following), 32), generator=generator).to(device)
    divergence = Divergence(TopTargets(ids, likeliest), following != IGNORE)

    def distilled(together: bool) -> None:
        losses = {"kd": divergence, "ntp": SetCrossEntropy(following.unsqueeze(1))}
        weights = dict.fromkeys(losses, torch.tensor(1 / len(following), device=device))
        sums = loss_sums(head, hidden, None, losses, weights if together else None)
        finish(sum(weights[name] * loss for name, loss in sums.items()))

    seconds = alternate(
        {
            "chunked": chunked,
            "one pass": partial(distilled, True),
            "two passes": partial(distilled, False),
            "plain": lambda: finish(F.cross_entropy(head(hidden).float().flatten(0, 1), following)),
            "torch": chunked_by_torch,
        },
        settings.rounds,
        device,
    )
    case = f"{dtype}, {shape.batch} × {shape.context} tokens, vocabulary {shape.vocabulary:,}"
    return Section(
        "Next-token loss",
        "Vocabulary logits and cross-entropy, forward and backward: cocomix's chunks in seconds of all logits held, "
        "and of PyTorch's chunked `linear_cross_entropy`. With a teacher's 32 likeliest tokens as a second loss: one "
        "pass over the logits in seconds of two.",
        {"shape": asdict(shape), "dtype": dtype},
        [
            ratio(case, "chunks ÷ all logits", seconds["chunked"], seconds["plain"], by_flops=1.0),
            ratio(case, "chunks ÷ PyTorch's chunks", seconds["chunked"], seconds["torch"], by_flops=1.0),
            ratio(case, "two losses, one pass ÷ two", seconds["one pass"], seconds["two passes"], by_flops=0.5),
        ],
    )
