"""Concept reliance: how much worse next-token prediction gets when the predicted concepts are taken away.

Low validation loss alone does not show that a model *uses* what its concepts say: it may treat the channel as a
constant. Three interventions on the concepts that are mixed in, measured on the same blocks, tell:

- **zero**: every value becomes 0, so that only the compression's bias is mixed in. A rise says that the channel matters
  at all.
- **shuffle**: every position receives the concepts of a position of *another* text. The channel's overall distribution
  stays exactly as it is; only its content is wrong. A rise says that the content matters.
- **oracle**: the labels take the place of the predictions. A fall says that better concept prediction would help.
"""

from collections.abc import Callable

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from transformers import PreTrainedModel

from cocomix.evaluation.inference import Batch, MapDataset, batches, count_blocks, inference, token_losses
from cocomix.model import ConceptIntervention, predicts_concepts
from cocomix.runtime.console import progress
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.ignore import IGNORE

__all__ = ["Reliance", "RunReliance", "concept_reliance", "no_reliance_reason", "oracle", "shuffle", "zero"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Reliance(_Part):
    """What happens to the loss when the concepts are replaced.

    Attributes:
        nats: loss with the replacement minus the untouched loss, nats per token: above 0 = it hurts.
        low: lower end of its 95% interval over documents.
        high: upper end.
        share_of_gain: `nats` as a share of what the run gains over its control; `None` where no control is known.
    """

    nats: float
    low: float | None = None
    high: float | None = None
    share_of_gain: float | None = None


class RunReliance(_Part):
    """Every replacement that was measured, on the same blocks.

    Attributes:
        kinds: by the name of the replacement.
        documents: documents in the intervals.
        note: what was left out and why, or `None`.
    """

    kinds: dict[str, Reliance]
    documents: int
    note: str | None = None


def zero(ids: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The same concepts with value 0: nothing but the compression's bias is mixed in. [batch, seq, k] each."""
    return ids, torch.zeros_like(values)


def shuffle(generator: torch.Generator) -> ConceptIntervention:
    """An intervention that gives every position the concepts of a position of another sequence of the batch.

    From another sequence, because a position further right in the same text was predicted with knowledge of tokens
    that this position has yet to predict: moving it here would leak the answer. The move is a permutation of all
    positions of the batch, so that exactly the same concepts are mixed in, elsewhere (our choice): the positions of
    each sequence are permuted, then column t is rotated by a random 1 … batch − 1 sequences.

    Args:
        generator: source of randomness, on the CPU.

    Raises:
        CoCoMixError: when applied to a batch of one sequence.
    """

    def intervention(ids: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        batch, seq = ids.shape[:2]
        if batch < 2:
            raise CoCoMixError("shuffling concepts needs at least two sequences in a batch; raise the batch size.")
        order = torch.rand(batch, seq, generator=generator).argsort(-1)  # [batch, seq]: a permutation per sequence
        turn = torch.randint(1, batch, (seq,), generator=generator)
        sequence = (torch.arange(batch).unsqueeze(-1) + turn) % batch  # [batch, seq]: where to take from
        position = order.gather(0, sequence)
        sequence, position = sequence.to(ids.device), position.to(ids.device)
        return ids[sequence, position], values[sequence, position]

    return intervention


def oracle(labels: Tensor) -> ConceptIntervention:
    """An intervention that puts the labels in the place of the strongest predictions.

    Labels carry no value of their own on the scale of the model's logits. Our choice: the labels, in their order (best
    first), take the model's own largest values rank by rank; the predicted concepts that are not labels follow in their
    order with the values that are left, up to k in all. So the values at a position never change, no concept appears
    twice, labels that equal the model's first predictions change nothing, and a position without labels keeps its own.

    Args:
        labels: −100 = no label. [batch, seq, k_attr], int64
    """

    def intervention(ids: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        same = labels.unsqueeze(-1) == labels.unsqueeze(-2)  # [batch, seq, k_attr, k_attr]
        repeated = same.tril(-1).any(-1)
        is_label = (ids.unsqueeze(-1) == labels.unsqueeze(-2)).any(-1)  # [batch, seq, k]
        candidates = torch.cat((labels, ids), dim=-1)
        allowed = torch.cat(((labels != IGNORE) & ~repeated, ~is_label), dim=-1)
        first = allowed.logical_not().to(torch.uint8).argsort(dim=-1, stable=True)[..., : ids.shape[-1]]
        return candidates.gather(-1, first), values

    return intervention


def no_reliance_reason(model: PreTrainedModel) -> str | None:
    """Why concept reliance cannot be measured on a model, in one sentence; `None` if it can."""
    if not predicts_concepts(model):
        return f"a {type(model).__name__} has no concepts, so there is no reliance on them to measure."
    if not model.config.form.mixes_in:
        return 'this model predicts concepts but mixes none in (mixing: "none"), so there is nothing to intervene on.'
    return None


def concept_reliance(
    model: PreTrainedModel,
    blocks: MapDataset,
    *,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    labels: MapDataset | None = None,
    limit_blocks: int | None = None,
    seed: int = 0,
) -> RunReliance:
    """Measure the loss with the predicted concepts untouched, zeroed, shuffled and (given labels) replaced by labels.

    All four losses come from the same blocks. Where the last batch would hold a single block, which cannot be shuffled,
    that block is left out of all four.

    Args:
        model: a CoCoMix model that mixes its concepts in.
        blocks: token blocks, `{"input_ids": int64 [block_size]}`; `DocumentBlocks` for a model trained on those.
        batch_size: blocks per forward pass, at least 2; the shuffle's partners come from the same batch.
        device: where to compute.
        dtype: float32 (default), or a narrower type used through autocast.
        labels: concept labels of the same blocks, for the oracle.
        limit_blocks: use only the first blocks.
        seed: seed of the shuffle.

    Raises:
        CoCoMixError: the model mixes no concepts in, there are fewer than two blocks, or data, labels and model do not
            belong together.
    """
    if (reason := no_reliance_reason(model)) is not None:
        raise CoCoMixError(reason)
    count = count_blocks(model, blocks, labels, batch_size, limit_blocks)
    if batch_size < 2 or count < 2:
        raise CoCoMixError(
            f"concept reliance needs batches of at least two blocks to shuffle between, but batch_size is {batch_size} "
            f"and there are {count} blocks; raise the smaller one."
        )
    if count % batch_size == 1:
        count -= 1
    shuffled = shuffle(torch.Generator().manual_seed(seed))
    kinds: dict[str, Callable[[Batch], ConceptIntervention | None]] = {
        "loss": lambda batch: None,
        "zero": lambda batch: zero,
        "shuffle": lambda batch: shuffled,
    }
    if labels is not None:
        kinds["oracle"] = lambda batch: None if batch.concept_labels is None else oracle(batch.concept_labels)
    sums, targets = dict.fromkeys(kinds, 0.0), 0
    block_size = len(blocks[0]["input_ids"])
    with (
        inference(model, device, dtype),
        progress("measuring concept reliance", len(kinds) * count * block_size, "tokens") as advance,
    ):
        for batch in batches(model, blocks, labels, count=count, batch_size=batch_size, device=device):
            for name, make in kinds.items():
                output = model(
                    input_ids=batch.input_ids,
                    position_ids=batch.position_ids,
                    use_cache=False,
                    concept_intervention=make(batch),
                )
                sums[name] += float(token_losses(output.logits, batch.targets).sum())
                advance(batch.input_ids.numel())
            targets += int((batch.targets[:, 1:] != IGNORE).sum())
    means = {name: total / max(targets, 1) for name, total in sums.items()}
    found = {name: Reliance(nats=mean - means["loss"]) for name, mean in means.items() if name != "loss"}
    return RunReliance(kinds=found, documents=0)
