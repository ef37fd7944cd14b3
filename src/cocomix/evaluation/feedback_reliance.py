"""Reliance on fed-back concepts (`mixing: next_concept`): the loss with other vectors fed back than those predicted.

As in `reliance`, each kind is measured on the same tokens. Only positions that are fed a vector get another: the first
chunk of a document has none, and the rest of the model is left as it is.

- `mean`: the average over the evaluated text.
- `shuffle`: the vector of a random position of another block. A rise says that what is fed back matters.
- `shuffle_same_token`: of a position of another block that holds the same token.
- `oracle_ahead`: the true mean state of the chunk in which the predicted token is. That state has read this token and
  those after it, so its fall says how much the upper half can read of the future, and is no loss that any prediction
  could reach. Where no whole chunk follows, the position keeps its own vector.
- `zero`: nothing is fed back.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cocomix.evaluation.inference import Batch, batches, inference, token_losses
from cocomix.evaluation.reliance import RunReliance, another_block, rise, same_token
from cocomix.model import CoCoMixForCausalLM
from cocomix.runtime.console import progress
from cocomix.runtime.errors import CoCoMixError

if TYPE_CHECKING:
    from cocomix.evaluation.run_inputs import RunBlocks

MOST_VALUES = 2**27
"""Numbers of fed-back vectors that are kept in memory at most: 540 MB, 262,144 positions at d_model 512."""

_KINDS = 5


def feedback_reliance(
    model: CoCoMixForCausalLM,
    blocks: "RunBlocks",
    losses: NDArray[np.float32],
    *,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> RunReliance:
    """Measure every kind of replacement.

    Args:
        model: feeds concepts back.
        blocks: at least two.
        losses: untouched, from `measure`. [blocks, seq]
        dtype: float32, or a narrower type used through autocast.

    Raises:
        CoCoMixError: there is no second block.
    """
    count = min(len(blocks.ids), max(MOST_VALUES // (blocks.ids.shape[1] * model.config.hidden_size), 2))
    if count < 2:
        raise CoCoMixError("vectors are taken from another block, and only one was evaluated; evaluate at least two.")
    tokens, asked, documents = blocks.ids[:count], blocks.depth[:count] > 0, blocks.documents[:count]
    generator = np.random.default_rng(seed)
    donors = {"shuffle": another_block(tokens.shape, generator), "shuffle_same_token": same_token(tokens, generator)}
    changed: dict[str, NDArray[np.float64]] = {}
    total = (_KINDS + 2) * tokens.size
    with inference(model, device, dtype), progress("measuring concept reliance", total, "tokens") as advance:

        def run() -> Iterator[Batch]:
            return batches(model, blocks.rows, None, count=count, batch_size=batch_size, device=device)

        fed, told = [], []
        for batch in run():
            shown = _shown(model, batch)
            fed.append(shown["feedback"].float().cpu())
            told.append(shown["told"].cpu())
            advance(batch.input_ids.numel())
        vectors, there = torch.cat(fed).flatten(0, 1), torch.cat(told).flatten()
        mean = vectors[there].mean(0) if bool(there.any()) else vectors[0]
        for batch in run():
            shown = _shown(model, batch)
            own = shown["feedback"]
            replaced = {
                kind: _taken(own, vectors, there, torch.from_numpy(at[batch.blocks])) for kind, at in donors.items()
            }
            replaced = {"mean": mean.to(own).expand_as(own), **replaced, "oracle_ahead": shown["ahead"]}
            for kind, vector in (replaced | {"zero": torch.zeros_like(own)}).items():
                found = _losses_with(model, batch, vector * shown["told"].unsqueeze(-1))
                changed.setdefault(kind, np.empty((count, found.shape[1])))[batch.blocks] = found
            advance((_KINDS + 1) * batch.input_ids.numel())
    kinds = {kind: rise(found - losses[:count, 1:], asked, documents, seed) for kind, found in changed.items()}
    notes = [f"Measured on the first {count:,} blocks."] if count < len(blocks.ids) else []
    notes.append(
        "The true concepts look ahead: each is the mean state of the chunk that holds the predicted token and those "
        "after it, so their fall is no loss that a prediction could reach."
    )
    return RunReliance(kinds=kinds, documents=len(np.unique(documents[asked])), note=" ".join(notes))


def _shown(model: CoCoMixForCausalLM, batch: Batch) -> dict[str, Tensor]:
    output = model(**_asked(batch), labels=batch.targets, output_logits=False)
    shown: dict[str, Tensor] = output.shown
    return shown


def _taken(own: Tensor, vectors: Tensor, there: Tensor, at: Tensor) -> Tensor:
    """Vectors of other positions [batch, seq]; its own for a position whose other is fed none. [batch, seq, d_model]"""
    return torch.where(there[at].unsqueeze(-1).to(own.device), vectors[at].to(own), own)


def _losses_with(model: CoCoMixForCausalLM, batch: Batch, vectors: Tensor) -> NDArray[np.float64]:
    """Losses with some vectors [batch, seq, d_model] fed back. [batch, seq − 1]"""
    handle = model.mixing.get_submodule("concept_norm").register_forward_pre_hook(lambda module, inputs: (vectors,))
    try:
        logits = model(**_asked(batch)).logits
    finally:
        handle.remove()
    found: NDArray[np.float64] = token_losses(logits, batch.targets).numpy()
    return found


def _asked(batch: Batch) -> dict[str, Tensor | bool | None]:
    return {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
