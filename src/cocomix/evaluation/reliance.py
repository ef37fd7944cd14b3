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
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from transformers import PreTrainedModel

from cocomix.evaluation.inference import Batch, MapDataset, batches, inference, token_losses
from cocomix.evaluation.loss_slices import document_interval
from cocomix.model import CoCoMixForCausalLM, ConceptIntervention, predicts_concepts
from cocomix.runtime.console import progress
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.ignore import IGNORE

__all__ = ["Reliance", "RunReliance", "concept_reliance", "first_distinct", "no_reliance_reason", "oracle", "zero"]

MOST_POSITIONS = 2**20
"""Positions that are measured at most, as their concepts are kept in memory: 270 MB at 32 concepts."""

_BLIND_TO_THE_TARGET = ("activation", "contextual", "token_lookup")
"""Kinds of labels that are made without the next token."""

Integers = NDArray[np.integer[Any]]


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
    """

    kinds: dict[str, Reliance]
    documents: int
    note: str | None = None

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
    if not predicts_concepts(model):
        return f"a {type(model).__name__} has no concepts, so there is no reliance on them to measure."
    if not model.config.form.mixes_in:
        return 'this model predicts concepts but mixes none in (mixing: "none"), so there is nothing to replace.'
    return None


@dataclass(frozen=True)
class _Predicted:
    """What a model mixes in, and its losses, over the text.

    Attributes:
        ids: concepts, best first. [blocks, seq, k], int32
        values: theirs. [blocks, seq, k], float32
        mean: the average compressed vector. [d_model]
        losses: untouched, nats; 0 where nothing is predicted. [blocks, seq − 1]
    """

    ids: NDArray[np.int32]
    values: NDArray[np.float32]
    mean: Tensor
    losses: NDArray[np.float64]


def concept_reliance(
    model: CoCoMixForCausalLM,
    rows: MapDataset,
    *,
    tokens: Integers,
    depth: Integers,
    documents: Integers,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    labels: MapDataset | None = None,
    label_kind: str | None = None,
    table: Integers | None = None,
    seed: int = 0,
) -> RunReliance:
    """Measure every kind of replacement that can be made.

    Args:
        model: mixes its concepts in.
        rows: at least two token blocks, as the model reads them.
        tokens: the same tokens. [blocks, seq]
        depth: 0 where a token has no context and is not predicted. [blocks, seq]
        documents: number of each token's document. [blocks, seq]
        batch_size: blocks per forward pass.
        device: where to compute.
        dtype: float32, or a narrower type used through autocast.
        labels: concept labels of the same blocks, for `oracle`.
        label_kind: how they were made.
        table: from `LabelCounts.table`, for `token_table`.
        seed: of the shuffles and of the intervals.

    Raises:
        CoCoMixError: the model mixes no concepts in, or there is no second block.
    """
    if (reason := no_reliance_reason(model)) is not None:
        raise CoCoMixError(reason)
    count, notes = min(len(tokens), max(MOST_POSITIONS // tokens.shape[1], 2)), []
    if count < 2:
        raise CoCoMixError("a single block was evaluated, so there is no other text to take concepts from.")
    if count < len(tokens):
        notes.append(f"Measured on the first {count:,} blocks.")
    tokens, asked, documents = tokens[:count], depth[:count] > 0, documents[:count]
    generator = np.random.default_rng(seed)
    other, other_same = _another_block(tokens.shape, generator), _same_token(tokens, generator)
    alone = float((other_same == np.arange(tokens.size).reshape(tokens.shape)).mean())
    notes.append(
        f"{alone:.1%} of the positions hold a token of no other block and keep their own in shuffle_same_token."
    )
    kinds: dict[str, Callable[[Batch, slice, _Predicted], Any]] = {
        "mean": lambda batch, at, found: None,
        "shuffle": lambda batch, at, found: _taken(found, other[at]),
        "shuffle_same_token": lambda batch, at, found: _taken(found, other_same[at]),
    }
    if table is not None:
        chosen = table
        kinds["token_table"] = lambda batch, at, found: _from_table(found, chosen[tokens[at]])
    if labels is not None and label_kind in _BLIND_TO_THE_TARGET:
        kinds["oracle"] = lambda batch, at, found: oracle(batch.concept_labels)(*_taken(found, at))  # type: ignore[arg-type]
    elif labels is not None:
        notes.append(f"No oracle: {label_kind} labels tell of the next token, which the model is to predict.")
    kinds["zero"] = lambda batch, at, found: zero(*_taken(found, at))
    with (
        inference(model, device, dtype),
        progress("measuring concept reliance", (1 + len(kinds)) * tokens.size, "tokens") as advance,
    ):
        changed: dict[str, NDArray[np.float64]] = {kind: np.empty((count, tokens.shape[1] - 1)) for kind in kinds}
        found = _predict(model, rows, count, batch_size, device, advance)
        as_mean = partial(_expanded, found.mean)
        for at, batch in _batches(model, rows, labels, count, batch_size, device):
            for kind, replacement in kinds.items():
                given = replacement(batch, at, found)
                with nullcontext() if given is not None else _hooked(model, as_mean):
                    output = model(
                        input_ids=batch.input_ids,
                        position_ids=batch.position_ids,
                        use_cache=False,
                        concept_intervention=None if given is None else _placed(given, device),
                    )
                changed[kind][at] = token_losses(output.logits, batch.targets).numpy()
                advance(batch.input_ids.numel())
    measured = {}
    for kind, losses in changed.items():
        gaps = (losses - found.losses)[asked[:, 1:]]
        low, high = document_interval(gaps, documents[asked], seed=seed)
        measured[kind] = Reliance(nats=float(gaps.mean()), low=low, high=high)
    return RunReliance(kinds=measured, documents=len(np.unique(documents[asked])), note=" ".join(notes))


def _batches(
    model: PreTrainedModel, rows: MapDataset, labels: MapDataset | None, count: int, size: int, device: torch.device
) -> Iterator[tuple[slice, Batch]]:
    """Batches and which blocks they hold."""
    done = 0
    for batch in batches(model, rows, labels, count=count, batch_size=size, device=device):
        yield slice(done, done + len(batch.input_ids)), batch
        done += len(batch.input_ids)


def _predict(
    model: CoCoMixForCausalLM,
    rows: MapDataset,
    count: int,
    batch_size: int,
    device: torch.device,
    advance: Callable[[float], None],
) -> _Predicted:
    ids, values, losses = [], [], []
    sums: list[Tensor] = []  # of the compressed vectors of each batch
    for _, batch in _batches(model, rows, None, count, batch_size, device):
        with _hooked(model, lambda vectors: sums.append(vectors.flatten(0, -2).float().sum(0))):
            output = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
        ids.append(output.concept_ids.to(torch.int32).cpu().numpy())
        values.append(output.concept_values.float().cpu().numpy())
        losses.append(token_losses(output.logits, batch.targets).numpy())
        advance(batch.input_ids.numel())
    positions = sum(each.shape[0] * each.shape[1] for each in ids)
    mean = torch.stack(sums).sum(0) / positions
    return _Predicted(np.concatenate(ids), np.concatenate(values), mean, np.concatenate(losses))


@contextmanager
def _hooked(model: CoCoMixForCausalLM, hook: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Show every compressed vector to `hook` [batch, seq, d_model], which may return another in its place."""
    handle = model.mixing.compression.register_forward_hook(lambda module, given, output: hook(output))
    try:
        yield
    finally:
        handle.remove()


def _expanded(vector: Tensor, vectors: Tensor) -> Tensor:
    return vector.to(vectors.dtype).expand_as(vectors)


Concepts = tuple[Tensor, Tensor]


def _taken(found: _Predicted, where: Any) -> Concepts:
    """Concepts of whole blocks (a slice), or of positions numbered through all blocks. [batch, seq, k] each"""
    ids, values = found.ids, found.values
    if not isinstance(where, slice):
        ids, values = ids.reshape(-1, ids.shape[-1]), values.reshape(-1, values.shape[-1])
    return torch.from_numpy(ids[where].astype(np.int64)), torch.from_numpy(values[where])


def _from_table(found: _Predicted, ids: Integers) -> Concepts:
    """A table's concepts, each with the mean value of its rank. [batch, seq, k] each"""
    values = torch.from_numpy(found.values.mean(axis=(0, 1)))
    chosen = torch.from_numpy(ids.astype(np.int64))
    return chosen, values.expand(chosen.shape)


def _placed(given: Concepts, device: torch.device) -> ConceptIntervention:
    """The intervention that mixes given concepts in."""

    def intervention(ids: Tensor, values: Tensor) -> Concepts:
        return given[0].to(device), given[1].to(device, values.dtype)

    return intervention


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


def _another_block(shape: tuple[int, ...], generator: np.random.Generator) -> Integers:
    """For each position the number of a random position of another block. [blocks, seq]"""
    blocks, seq = shape
    block = (np.arange(blocks)[:, None] + generator.integers(1, blocks, shape)) % blocks
    return block * seq + generator.integers(seq, size=shape)


def _same_token(tokens: Integers, generator: np.random.Generator) -> Integers:
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
