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

A model that feeds concepts back (`mixing: next_concept`) has no ids to replace, but the vectors that its positions are
fed. The first chunk of a document is fed none, and stays as it is. Kinds are `mean`, `shuffle`, `shuffle_same_token`,
`zero`, and

- `oracle_ahead`: the true mean state of the chunk in which the predicted token is. That state has read this token and
  those after it, so its fall says how much the upper half can read of the future, and is no loss that any prediction
  could reach. Where no whole chunk follows, the position keeps its own vector.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from cocomix.evaluation.inference import Batch, batches, inference, token_losses
from cocomix.evaluation.run_inputs import RunBlocks
from cocomix.evaluation.statistics import document_interval
from cocomix.model import CoCoMixForCausalLM, predicts_concepts
from cocomix.runtime.console import progress
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.ignore import IGNORE
from cocomix.runtime.section import Record

MOST_POSITIONS = 2**20
"""Positions that are measured at most, as their concepts are kept in memory: 270 MB at 32 concepts."""

MOST_VALUES = 2**27
"""Numbers of fed-back vectors that are kept in memory at most: 540 MB, 262,144 positions at d_model 512."""

_BLIND_TO_THE_TARGET = ("activation", "contextual", "token_lookup")
"""Kinds of labels that are made without the next token."""

Integers = NDArray[np.integer[Any]]
Concepts = tuple[Tensor, Tensor]
"""Ids and values, [batch, seq, k] each."""
Replaced = Callable[[Batch], Iterable[tuple[str, Tensor]]]
"""The losses of a batch with its concepts replaced, by kind, as from `token_losses`."""


class Reliance(Record):
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


class RunReliance(Record):
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
        return None
    if not predicts_concepts(model):
        return f"a {type(model).__name__} has no concepts, so there is no reliance on them to measure."
    if not model.config.form.mixes_in:
        return 'this model predicts concepts but mixes none in (mixing: "none"), so there is nothing to replace.'
    return None


def concept_reliance(
    model: CoCoMixForCausalLM,
    blocks: RunBlocks,
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
        model: mixes its concepts in, or feeds them back; others are refused.
        blocks: at least two; with their labels for `oracle`.
        losses: untouched, from `measure`. [blocks, seq]
        dtype: float32, or a narrower type used through autocast.
        label_kind: how the labels were made.
        table: from `LabelCounts.table`, for `token_table`.
    """
    if (reason := no_reliance_reason(model)) is not None:
        raise CoCoMixError(reason)
    seq, feeds_back = blocks.ids.shape[1], model.config.form.feeds_back
    most = MOST_VALUES // (seq * model.config.hidden_size) if feeds_back else MOST_POSITIONS // seq
    count = min(len(blocks.ids), max(most, 2))
    if count < 2:
        raise CoCoMixError("concepts are taken from another block, and only one was evaluated; give at least two.")
    tokens, generator = blocks.ids[:count], np.random.default_rng(seed)
    donors = {"shuffle": another_block(tokens.shape, generator), "shuffle_same_token": same_token(tokens, generator)}
    labels = blocks.labels if label_kind in _BLIND_TO_THE_TARGET else None
    notes = [f"Measured on the first {count:,} blocks."] if count < len(blocks.ids) else []
    if feeds_back:
        notes.append(
            "The true concepts look ahead: each is the mean state of the chunk that holds the predicted token and "
            "those after it, so their fall is no loss that a prediction could reach."
        )
    else:
        alone = float((donors["shuffle_same_token"].ravel() == np.arange(tokens.size)).mean())
        notes.append(
            f"Of those of the same token elsewhere {alone:.1%} are the own ones: no other block has the token."
        )
    if blocks.labels is not None and labels is None:
        notes.append(f"Not by the labels: {label_kind} labels tell of the next token, which the model is to predict.")
    how: dict[str, Any] = {"count": count, "batch_size": batch_size, "device": device}
    total = (6 if feeds_back else 5 + (table is not None) + (labels is not None)) * tokens.size
    changed: dict[str, NDArray[np.float64]] = {}
    with inference(model, device, dtype), progress("measuring concept reliance", total, "tokens") as advance:
        untouched = batches(model, blocks.rows, None, **how)
        if feeds_back:
            replaced, size = _fed_back(model, untouched, donors), None
        else:
            replaced, size = _mixed_in(model, untouched, donors, table)
        advance(tokens.size)
        for batch in batches(model, blocks.rows, labels, **how):
            for kind, found in replaced(batch):
                changed.setdefault(kind, np.empty((count, seq - 1)))[batch.blocks] = found.numpy()
                advance(batch.input_ids.numel())
    asked = blocks.depth[:count] > 0
    documents, kinds = blocks.documents[:count][asked], {}
    for kind, after in changed.items():
        gaps = (after - losses[:count, 1:])[asked[:, 1:]]
        low, high = document_interval(gaps, documents, seed=seed)
        kinds[kind] = Reliance(nats=float(gaps.mean()), low=low, high=high)
    return RunReliance(kinds=kinds, documents=len(np.unique(documents)), note=" ".join(notes), size=size)


def _mixed_in(
    model: CoCoMixForCausalLM, untouched: Iterable[Batch], donors: Mapping[str, Integers], table: Integers | None
) -> tuple[Replaced, float | None]:
    """Read what a model mixes in: a function that replaces it, and the size of the vectors (see `RunReliance`)."""
    ids, values, sums, sizes = list[Tensor](), list[Tensor](), list[Tensor](), list[Tensor]()

    def note(module: nn.Module, given: Any, vectors: Tensor) -> None:  # [batch, seq, d_model]
        sums.append(vectors.flatten(0, -2).float().sum(0))
        sizes.append(vectors.float().square().mean(-1).sqrt().sum())

    with model.mixing.compression.register_forward_hook(note):
        for batch in untouched:
            output = model(**batch.inputs)
            ids.append(output.concept_ids.to(torch.int32).cpu())
            values.append(output.concept_values.float().cpu())
    all_ids, all_values = torch.cat(ids), torch.cat(values)  # best first. [blocks, seq, k]
    positions = all_ids[..., 0].numel()
    mean, size = torch.stack(sums).sum(0) / positions, float(torch.stack(sizes).sum()) / positions
    ranks = all_values.mean((0, 1))  # average value of the strongest concept, the next, …

    def replaced(batch: Batch) -> Iterator[tuple[str, Tensor]]:
        def averaged(module: nn.Module, given: Any, vectors: Tensor) -> Tensor:
            return mean.to(vectors.dtype).expand_as(vectors)

        with model.mixing.compression.register_forward_hook(averaged):
            logits = model(**batch.inputs).logits
        yield "mean", token_losses(logits, batch.targets)
        own, strengths = all_ids[batch.blocks].long(), all_values[batch.blocks]
        kinds: dict[str, Concepts] = {}
        for kind, places in donors.items():
            at = torch.from_numpy(places[batch.blocks])
            kinds[kind] = all_ids.flatten(0, 1)[at].long(), all_values.flatten(0, 1)[at]
        if table is not None:
            listed = torch.from_numpy(table)[batch.input_ids.cpu()]
            kinds["token_table"] = listed, ranks.expand(listed.shape)
        if batch.concept_labels is not None:
            kinds["oracle"] = oracle(batch.concept_labels.cpu(), own), strengths
        for kind, concepts in (kinds | {"zero": zero(own, strengths)}).items():

            def placed(ids: Tensor, values: Tensor, concepts: Concepts = concepts) -> Concepts:
                return concepts[0].to(ids.device), concepts[1].to(values)

            yield kind, token_losses(model(**batch.inputs, concept_intervention=placed).logits, batch.targets)

    return replaced, size if model.mixing.like_hidden else None


def _fed_back(model: CoCoMixForCausalLM, untouched: Iterable[Batch], donors: Mapping[str, Integers]) -> Replaced:
    """Read what a model feeds back: a function that replaces it."""

    def shown(batch: Batch) -> dict[str, Tensor]:
        found: dict[str, Tensor] = model(**batch.inputs, labels=batch.targets, output_logits=False).shown
        return found

    read = []
    for batch in untouched:
        mine = shown(batch)
        read.append((mine["feedback"].float().cpu(), mine["told"].cpu()))
    vectors, there = (torch.cat(each).flatten(0, 1) for each in zip(*read, strict=True))
    mean = vectors[there].mean(0) if bool(there.any()) else vectors[0]

    def replaced(batch: Batch) -> Iterator[tuple[str, Tensor]]:
        mine = shown(batch)
        own = mine["feedback"]
        kinds = {"mean": mean.to(own).expand_as(own)}
        for kind, places in donors.items():
            at = torch.from_numpy(places[batch.blocks])
            # Its own for a position whose other is fed none.
            kinds[kind] = torch.where(there[at].unsqueeze(-1).to(own.device), vectors[at].to(own), own)
        norm = model.mixing.get_submodule("concept_norm")
        for kind, others in (kinds | {"oracle_ahead": mine["ahead"], "zero": torch.zeros_like(own)}).items():
            fed = others * mine["told"].unsqueeze(-1)
            with norm.register_forward_pre_hook(lambda module, inputs, fed=fed: (fed,)):
                logits = model(**batch.inputs).logits
            yield kind, token_losses(logits, batch.targets)

    return replaced


def zero(ids: Tensor, values: Tensor) -> Concepts:
    """The same concepts with value 0: nothing but the compression's bias is mixed in. [batch, seq, k] each"""
    return ids, torch.zeros_like(values)


def oracle(labels: Tensor, ids: Tensor) -> Tensor:
    """Concepts with labels (int64, −100 = none) [batch, seq, k_attr] in the place of the strongest predictions `ids`
    [batch, seq, k], shaped as these.

    Labels carry no value of their own on the scale of the model's logits. Our choice: the labels, in their order (best
    first), take the model's own largest values rank by rank; the predicted concepts that are not labels follow in their
    order with the values that are left, up to k in all. So the values at a position never change, no concept appears
    twice, labels that equal the model's first predictions change nothing, and a position without labels keeps its own.
    """
    return first_distinct(torch.cat((labels, ids), dim=-1), ids.shape[-1])


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
