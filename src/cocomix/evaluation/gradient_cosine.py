"""Do the concept loss and the next-token loss pull the same way? Cosines of their gradients on held-out text.

Only weights that both losses reach are compared: embeddings, the blocks below `insert_layer` and the predictor. Near 0
the losses do not touch each other, below 0 they compete for the weights. The gradient of a few blocks is noisy, which
draws the mean of the batches' cosines to 0; `of_all` is of the gradients of all blocks together.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cocomix.evaluation.inference import batches, require_measurable
from cocomix.evaluation.run_inputs import RunBlocks
from cocomix.evaluation.statistics import document_interval
from cocomix.model import CoCoMixForCausalLM
from cocomix.model.backbone import backbone_of
from cocomix.runtime.console import progress
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.ignore import IGNORE
from cocomix.runtime.section import Record

Losses = tuple[Tensor, Tensor]


class GradientCosine(Record):
    """Of one group of weights.

    Attributes:
        group: `embeddings`, `block N` (from 0), `predictor`, or `all` of them.
        cosine: of the two gradients of a batch, averaged over batches.
        low: lower end of its 95% interval over batches.
        high: upper end.
        of_all: cosine of the two gradients of all batches together.
        size: length of the concept loss's gradient, times λ, over that of the next-token loss's; of all batches.
    """

    group: str
    parameters: int
    cosine: float
    low: float
    high: float
    of_all: float
    size: float


def gradient_cosines(
    model: CoCoMixForCausalLM,
    blocks: RunBlocks,
    *,
    batch_size: int,
    device: torch.device,
    limit_blocks: int | None = None,
    seed: int = 0,
) -> tuple[GradientCosine, ...]:
    """Compare the gradients of both losses, two forward and two backward passes a batch.

    Args:
        model: predicts concepts; moved to `device`, its weights are left as they are. Computes in float32.
        blocks: with their labels.
        batch_size: blocks of a batch; the more, the less noise in its cosine.

    Raises:
        CoCoMixError: blocks, labels and model do not belong together, or fewer than two batches have labels.
    """
    require_measurable(model, blocks.rows, blocks.labels, batch_size)
    count = min(len(blocks.rows), len(blocks.rows) if limit_blocks is None else limit_blocks)
    model.to(device).eval()

    def losses() -> Iterable[Losses]:
        with progress("comparing gradients", count, "blocks") as advance:
            for batch in batches(model, blocks.rows, blocks.labels, count=count, batch_size=batch_size, device=device):
                if batch.concept_labels is not None and bool((batch.concept_labels != IGNORE).any()):
                    given = {"input_ids": batch.input_ids, "position_ids": batch.position_ids}
                    asked = {**given, "use_cache": False, "output_logits": False}
                    both = (model(**asked, labels=batch.targets), model(**asked, concept_labels=batch.concept_labels))
                    yield both[0].ntp_loss, both[1].concept_loss
                advance(len(batch.input_ids))

    return compare_gradients(losses(), _reached_by_both(model), weight=model.config.concept_loss_weight, seed=seed)


def compare_gradients(
    losses: Iterable[Losses], groups: Mapping[str, Sequence[nn.Parameter]], *, weight: float = 1.0, seed: int = 0
) -> tuple[GradientCosine, ...]:
    """The cosines of two losses' gradients, batch by batch; without groups that one of them does not reach.

    Args:
        groups: weights by name; no weight is in two.
        weight: of the second loss, for `size`.

    Raises:
        CoCoMixError: there are fewer than two batches.
    """
    weights = [each for group in groups.values() for each in group]
    whole = [[torch.zeros_like(each, dtype=torch.float64) for each in weights] for _ in range(2)]
    products = []  # of each batch: of each weight a·b, a·a, b·b
    for both in losses:
        found = [torch.autograd.grad(loss, weights, materialize_grads=True, allow_unused=True) for loss in both]
        for total, gradients in zip(whole, found, strict=True):
            for each, gradient in zip(total, gradients, strict=True):
                each += gradient
        products.append(_products(*found))
    if len(products) < 2:
        raise CoCoMixError(
            f"gradients were compared on {len(products)} batches with labels; use at least two, by more blocks or a "
            "smaller batch size."
        )
    owner = np.repeat(np.arange(len(groups)), [len(group) for group in groups.values()])
    measured = []
    for name, chosen in [*((name, owner == index) for index, name in enumerate(groups)), ("all", owner >= 0)]:
        each, together = np.stack(products)[:, chosen].sum(1), _products(*whole)[chosen].sum(0)
        if not together[1:].all() or not each[:, 1:].all():
            continue
        cosines = each[:, 0] / np.sqrt(each[:, 1] * each[:, 2])
        low, high = document_interval(cosines, np.arange(len(cosines)), seed=seed)
        measured.append(
            GradientCosine(
                group=name,
                parameters=sum(one.numel() for one, inside in zip(weights, chosen, strict=True) if inside),
                cosine=float(cosines.mean()),
                low=low,
                high=high,
                of_all=float(together[0] / np.sqrt(together[1] * together[2])),
                size=float(weight * np.sqrt(together[2] / together[1])),
            )
        )
    return tuple(measured)


def _products(first: Sequence[Tensor], second: Sequence[Tensor]) -> NDArray[np.float64]:
    """a·b, a·a and b·b of each weight's two gradients. [weights, 3], float64"""
    pairs = [(a.double().flatten(), b.double().flatten()) for a, b in zip(first, second, strict=True)]
    products: NDArray[np.float64] = torch.stack([torch.stack((a @ b, a @ a, b @ b)) for a, b in pairs]).cpu().numpy()
    return products


def _reached_by_both(model: CoCoMixForCausalLM) -> dict[str, list[nn.Parameter]]:
    groups: dict[str, list[nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        part, *rest = name.split(".")
        if part == "lower":
            in_block = rest[0] == backbone_of(model.config.backbone).blocks
            groups.setdefault(f"block {rest[1]}" if in_block else "embeddings", []).append(weight)
        elif part == "predictor":
            groups.setdefault(part, []).append(weight)
    return groups
