"""Concept reliance: how much worse next tokens are predicted when other concepts are mixed in than those predicted.

A low loss does not show that a model *uses* what its concepts say: the channel may act as a constant, or repeat what
the current token says anyway. Each kind replaces the concepts of every position and is measured on the same tokens:

- `mean`: the average over the evaluated text of the vector that the concepts compress to, at every position. A rise
  says that the content of the channel matters at all.
- `shuffle`: the concepts of a random position of another block. A rise says the same, of whole predictions.
- `shuffle_same_token`: the concepts of a position of another block that holds the *same token*. A rise says that the
  concepts carry context: what the current token tells is the same at both places. A position whose token stands in no
  other block keeps its own.
- `token_table`: the concepts that most often label the current token in the training text, with the average value of
  their rank. A rise says that prediction beats a table.
- `oracle`: the labels, with the values of the model's own concepts rank by rank. A fall says what better prediction
  would bring. Only for labels that do not look at the next token: attribution is a gradient of the next token's loss,
  so its labels tell what the model is asked to predict.
- `zero`: every value 0. Such vectors do not occur in training, so a rise says little; kept for comparison with others.

From another *block*, because a position further right in the same text was predicted with knowledge of tokens that
this position has yet to predict.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from transformers import PreTrainedModel

from cocomix.evaluation.inference import Batch, MapDataset, batches, inference, token_losses
from cocomix.evaluation.statistics import document_interval
from cocomix.model import CoCoMixForCausalLM, ConceptIntervention, predicts_concepts
from cocomix.runtime.console import progress
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.ignore import IGNORE

if TYPE_CHECKING:
    from cocomix.evaluation.run_inputs import RunBlocks

MOST_POSITIONS = 2**20
"""Positions that are measured at most, as their concepts are kept in memory: 270 MB at 32 concepts."""

_BLIND_TO_THE_TARGET = ("activation", "contextual", "token_lookup")
"""Kinds of labels that are made without the next token."""

Integers = NDArray[np.integer[Any]]
Concepts = tuple[Tensor, Tensor]
"""Ids and values, [batch, seq, k] each."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Reliance(_Part):
    """What one kind of replacement does to the loss.

    Attributes:
        nats: loss with the replacement minus the untouched loss, nats per token: above 0 = it hurts.
        low: lower end of its 95% interval over documents.
        high: upper end.
        share_of_gain: `nats` as a share of what the run gains over its control, the run of the same seed that was
            trained on next tokens alone; `None` where that is not known or there is no gain.
    """

    nats: float
    low: float
    high: float
    share_of_gain: float | None = None


class RunReliance(_Part):
    """Every kind that was measured, on the same tokens.

    Attributes:
        kinds: by name.
        documents: documents in the intervals.
        note: what was left out or limited, and why; or `None`.
        size: root mean square over d_model of the compressed vector, which is in standard deviations of h; its mean
            over positions. `None` with `mixing: values`, where it is on no scale of h, and in older evaluations.
    """

    kinds: dict[str, Reliance]
    documents: int
    note: str | None = None
    size: float | None = None

    def of_gain(self, gain: float) -> "RunReliance":
        """The same with shares of a gain in nats per token, the control's loss minus the run's."""
        if gain <= 0:
            return self
        shares = {
            kind: each.model_copy(update={"share_of_gain": each.nats / gain}) for kind, each in self.kinds.items()
        }
        return self.model_copy(update={"kinds": shares})


def no_reliance_reason(model: PreTrainedModel) -> str | None:
    """Why concept reliance cannot be measured on a model, in one sentence; `None` if it can."""
    if isinstance(model, CoCoMixForCausalLM) and model.config.form.feeds_back:
        return None  # see feedback_reliance.py
    if not predicts_concepts(model):
        return f"a {type(model).__name__} has no concepts, so there is no reliance on them to measure."
    if not model.config.form.mixes_in:
        return 'this model predicts concepts but mixes none in (mixing: "none"), so there is nothing to replace.'
    return None


class _Mixed(NamedTuple):
    """What a model mixes in over some text.

    Attributes:
        ids: concepts, best first. [blocks, seq, k], int32
        values: theirs. [blocks, seq, k], float32
        mean: the average compressed vector. [d_model]
        size: the average root mean square of a compressed vector.
    """

    ids: NDArray[np.int32]
    values: NDArray[np.float32]
    mean: Tensor
    size: float

    def at(self, blocks: slice) -> Concepts:
        """Concepts of some blocks. [blocks, seq, k] each"""
        return torch.from_numpy(self.ids[blocks].astype(np.int64)), torch.from_numpy(self.values[blocks])

    def taken(self, positions: Integers) -> Concepts:
        """Concepts of positions numbered through all blocks. [*positions, k] each"""
        ids, values = (array.reshape(-1, array.shape[-1])[positions] for array in (self.ids, self.values))
        return torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(values)


def concept_reliance(
    model: CoCoMixForCausalLM,
    blocks: "RunBlocks",
    losses: NDArray[np.float32],
    *,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    label_kind: str | None = None,
    table: Integers | None = None,
    seed: int = 0,
) -> RunReliance:
    """Measure every kind of replacement that can be made.

    Args:
        model: mixes its concepts in.
        blocks: at least two; with their labels for `oracle`.
        losses: untouched, from `measure`. [blocks, seq]
        dtype: float32, or a narrower type used through autocast.
        label_kind: how the labels were made.
        table: from `LabelCounts.table`, for `token_table`.

    Raises:
        CoCoMixError: the model mixes no concepts in, or there is no second block.
    """
    if (reason := no_reliance_reason(model)) is not None:
        raise CoCoMixError(reason)
    count = min(len(blocks.ids), max(MOST_POSITIONS // blocks.ids.shape[1], 2))
    if count < 2:
        raise CoCoMixError("concepts are taken from another block, and only one was evaluated; evaluate at least two.")
    tokens, asked, documents = blocks.ids[:count], blocks.depth[:count] > 0, blocks.documents[:count]
    generator = np.random.default_rng(seed)
    other, other_same = another_block(tokens.shape, generator), same_token(tokens, generator)
    alone = float((other_same.ravel() == np.arange(tokens.size)).mean())
    notes = [f"Measured on the first {count:,} blocks."] if count < len(blocks.ids) else []
    notes.append(f"In shuffle_same_token {alone:.1%} of the positions, whose token no other block has, keep their own.")
    labels = blocks.labels if label_kind in _BLIND_TO_THE_TARGET else None
    if blocks.labels is not None and labels is None:
        notes.append(f"No oracle: {label_kind} labels tell of the next token, which the model is to predict.")
    changed: dict[str, NDArray[np.float64]] = {}
    total = 7 * tokens.size
    with inference(model, device, dtype), progress("measuring concept reliance", total, "tokens") as advance:
        mixed = _mixed(model, blocks.rows, count, batch_size, device)
        ranks = torch.from_numpy(mixed.values.mean(axis=(0, 1)))  # average value of the strongest concept, the next, …
        kinds: dict[str, Callable[[Batch], Concepts | None]] = {
            "mean": lambda batch: None,
            "shuffle": lambda batch: mixed.taken(other[batch.blocks]),
            "shuffle_same_token": lambda batch: mixed.taken(other_same[batch.blocks]),
        }
        if table is not None:
            chosen = torch.from_numpy(table)
            kinds["token_table"] = lambda batch: _same_shape(chosen[batch.input_ids.cpu()], ranks)
        if labels is not None:
            kinds["oracle"] = lambda batch: oracle(batch.concept_labels.cpu())(*mixed.at(batch.blocks))  # type: ignore[union-attr]
        kinds["zero"] = lambda batch: zero(*mixed.at(batch.blocks))
        for batch in batches(model, blocks.rows, labels, count=count, batch_size=batch_size, device=device):
            for kind, replacement in kinds.items():
                found = _losses_with(model, batch, replacement(batch), mixed.mean)
                changed.setdefault(kind, np.empty((count, found.shape[1])))[batch.blocks] = found
                advance(batch.input_ids.numel())
    measured = {kind: rise(found - losses[:count, 1:], asked, documents, seed) for kind, found in changed.items()}
    size = mixed.size if model.mixing.like_hidden else None
    return RunReliance(kinds=measured, documents=len(np.unique(documents[asked])), note=" ".join(notes), size=size)


def rise(gaps: NDArray[np.float64], asked: NDArray[np.bool_], documents: Integers, seed: int) -> Reliance:
    """The mean of loss differences [blocks, seq − 1] over the tokens asked for [blocks, seq], with its interval."""
    counted = gaps[asked[:, 1:]]
    low, high = document_interval(counted, documents[asked], seed=seed)
    return Reliance(nats=float(counted.mean()), low=low, high=high)


def _mixed(model: CoCoMixForCausalLM, rows: MapDataset, count: int, batch_size: int, device: torch.device) -> _Mixed:
    ids, values = [], []
    sums: list[Tensor] = []  # of the compressed vectors of each batch
    sizes: list[Tensor] = []  # likewise, of their root mean squares

    def note(vectors: Tensor) -> None:
        sums.append(vectors.flatten(0, -2).float().sum(0))
        sizes.append(vectors.float().square().mean(-1).sqrt().sum())

    for batch in batches(model, rows, None, count=count, batch_size=batch_size, device=device):
        with _hooked(model, note):
            output = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
        ids.append(output.concept_ids.to(torch.int32).cpu().numpy())
        values.append(output.concept_values.float().cpu().numpy())
    positions = sum(each.shape[0] * each.shape[1] for each in ids)
    mean, size = torch.stack(sums).sum(0) / positions, float(torch.stack(sizes).sum()) / positions
    return _Mixed(np.concatenate(ids), np.concatenate(values), mean, size)


def _losses_with(model: CoCoMixForCausalLM, batch: Batch, given: Concepts | None, mean: Tensor) -> NDArray[np.float64]:
    """Losses with some concepts mixed in, or with an average vector in their place. [batch, seq − 1]"""

    def placed(ids: Tensor, values: Tensor) -> Concepts:
        assert given is not None
        return given[0].to(ids.device), given[1].to(values)

    asked = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
    if given is not None:
        output = model(**asked, concept_intervention=placed)
    else:
        with _hooked(model, lambda vectors: mean.to(vectors.dtype).expand_as(vectors)):
            output = model(**asked)
    found: NDArray[np.float64] = token_losses(output.logits, batch.targets).numpy()
    return found


@contextmanager
def _hooked(model: CoCoMixForCausalLM, hook: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Show every compressed vector to `hook` [batch, seq, d_model], which may return another in its place."""
    handle = model.mixing.compression.register_forward_hook(lambda module, given, output: hook(output))
    try:
        yield
    finally:
        handle.remove()


def _same_shape(ids: Tensor, values: Tensor) -> Concepts:
    return ids, values.expand(ids.shape)


def zero(ids: Tensor, values: Tensor) -> Concepts:
    """The same concepts with value 0: nothing but the compression's bias is mixed in. [batch, seq, k] each"""
    return ids, torch.zeros_like(values)


def oracle(labels: Tensor) -> ConceptIntervention:
    """An intervention that puts the labels in the place of the strongest predictions.

    Labels carry no value of their own on the scale of the model's logits. Our choice: the labels, in their order (best
    first), take the model's own largest values rank by rank; the predicted concepts that are not labels follow in their
    order with the values that are left, up to k in all. So the values at a position never change, no concept appears
    twice, labels that equal the model's first predictions change nothing, and a position without labels keeps its own.

    Args:
        labels: −100 = no label. [batch, seq, k_attr], int64
    """

    def intervention(ids: Tensor, values: Tensor) -> Concepts:
        return first_distinct(torch.cat((labels.to(ids.device), ids), dim=-1), ids.shape[-1]), values

    return intervention


def first_distinct(candidates: Tensor, k: int) -> Tensor:
    """The first k of some concepts that are not `IGNORE`, each once. [..., k] from [..., n] with as many of them"""
    same = candidates.unsqueeze(-1) == candidates.unsqueeze(-2)
    dropped = same.tril(-1).any(-1) | (candidates == IGNORE)
    return candidates.gather(-1, dropped.to(torch.uint8).argsort(dim=-1, stable=True)[..., :k])


def another_block(shape: tuple[int, ...], generator: np.random.Generator) -> Integers:
    """For each position the number of a random position of another block. [blocks, seq]"""
    blocks, seq = shape
    block = (np.arange(blocks)[:, None] + generator.integers(1, blocks, shape)) % blocks
    return block * seq + generator.integers(seq, size=shape)


def same_token(tokens: Integers, generator: np.random.Generator) -> Integers:
    """For each position that of a random one of another block with the same token; its own where there is none."""
    flat = tokens.ravel()
    order = np.argsort(flat, kind="stable")  # by token, then by place
    _, start, group, size = np.unique(flat[order], return_index=True, return_inverse=True, return_counts=True)
    keys = group * np.int64(len(tokens)) + order // tokens.shape[1]  # a run of one token in one block
    _, run_start, run, run_size = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    others = size[group] - run_size[run]
    step = (generator.random(len(flat)) * others).astype(np.int64)  # from behind the own run, around to before it
    place = start[group] + (run_start[run] + run_size[run] - start[group] + step) % size[group]
    found = np.empty_like(order)
    found[order] = np.where(others > 0, order[place], order)
    return found.reshape(tokens.shape)
