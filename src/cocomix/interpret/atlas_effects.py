"""What a concept does to the next token, measured: the model with the concept turned up against the model untouched."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cocomix.evaluation import inference
from cocomix.interpret.atlas_cards import TokenChanges
from cocomix.interpret.prompts import concept_model
from cocomix.model import CoCoMixForCausalLM, ConceptEdit
from cocomix.model.edits import check_edits

__all__ = ["mean_concept_logits", "measure_effect", "measure_effects"]


def measure_effect(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    input_ids: Tensor,  # [batch, seq]
    concept: int,
    amount: float,
    top: int = 10,
    position_ids: Tensor | None = None,  # [batch, seq]
) -> tuple[TokenChanges, TokenChanges]:
    """Turn a concept up at every position and see which next tokens become likelier, and which less likely.

    The measure is the change of a token's log-probability in nats, averaged over all positions, so it passes through
    the compression vector, the selection of the top k and every later block (our choice, in place of a dot product of
    weights).

    Args:
        model: a CoCoMix model that mixes its concepts in.
        tokenizer: the model's.
        input_ids: tokens to measure on.
        concept: its index.
        amount: what is added to its logit.
        top: tokens to name of each kind.
        position_ids: where documents are kept apart.

    Returns:
        (raised, lowered): tokens with their change in nats, largest first and lowest first; fewer than `top` where
        fewer tokens move that way.

    Raises:
        CoCoMixError: the model mixes no concepts in, the concept does not exist, or the amount is no finite number.
    """
    (_, raised, lowered), *_ = measure_effects(model, tokenizer, input_ids, {concept: amount}, top, position_ids)
    return raised, lowered


def measure_effects(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    input_ids: Tensor,  # [batch, seq]
    amounts: Mapping[int, float],
    top: int = 10,
    position_ids: Tensor | None = None,  # [batch, seq]
) -> Iterator[tuple[int, TokenChanges, TokenChanges]]:
    """`measure_effect` for several concepts, each turned up alone: (concept, raised, lowered), one at a time.

    Args:
        model: as in `measure_effect`.
        tokenizer: as in `measure_effect`.
        input_ids: as in `measure_effect`.
        amounts: what is added to the logit of each concept.
        top: as in `measure_effect`.
        position_ids: as in `measure_effect`.

    Raises:
        CoCoMixError: as in `measure_effect`.
    """
    model = concept_model(model, mixing=True)
    edits = [ConceptEdit(concept, "add", amount) for concept, amount in amounts.items()]
    check_edits(edits, model.config.num_concepts)
    rows = _rows(model, input_ids, position_ids)
    untouched = _mean_log_probabilities(model, rows, ())
    for edit in edits:
        change = _mean_log_probabilities(model, rows, (edit,)) - untouched
        yield edit.concept, _strongest(tokenizer, change, top, 1), _strongest(tokenizer, change, top, -1)


def mean_concept_logits(
    model: CoCoMixForCausalLM,
    input_ids: Tensor,  # [batch, seq]
    position_ids: Tensor | None = None,  # [batch, seq]
) -> Tensor:  # [n_concepts]
    """The mean of every concept's logit over all positions, float64, on the CPU; all logits of one sequence at once."""
    total = torch.zeros(model.config.num_concepts, dtype=torch.float64)
    with inference(model, model.device, model.dtype):
        for row in _rows(model, input_ids, position_ids):
            output = model(**row, use_cache=False, output_concept_logits=True)
            total += output.concept_logits[0].double().sum(0).cpu()
    return total / input_ids.numel()


def _rows(model: CoCoMixForCausalLM, input_ids: Tensor, position_ids: Tensor | None) -> list[dict[str, Tensor]]:
    """A batch's sequences one by one, as arguments of the model."""
    columns = {"input_ids": input_ids, "position_ids": position_ids}
    moved = {name: column.to(model.device) for name, column in columns.items() if column is not None}
    return [{name: column[index : index + 1] for name, column in moved.items()} for index in range(len(input_ids))]


def _mean_log_probabilities(
    model: CoCoMixForCausalLM, rows: Sequence[Mapping[str, Tensor]], edits: Sequence[ConceptEdit]
) -> Tensor:
    """Log p(token) averaged over positions. [vocab], float64, on the CPU; one sequence at a time to bound memory."""
    total = torch.zeros(model.config.vocab_size, dtype=torch.float64)
    with inference(model, model.device, model.dtype):
        for row in rows:
            logits = model(**row, use_cache=False, concept_edits=tuple(edits)).logits[0]
            total += logits.float().log_softmax(-1).double().sum(0).cpu()
    return total / sum(row["input_ids"].numel() for row in rows)


def _strongest(tokenizer: PreTrainedTokenizerBase, change: Tensor, top: int, sign: int) -> TokenChanges:
    """The tokens whose change is largest in the direction of `sign`."""
    best = (sign * change).topk(min(top, len(change)))
    return tuple(
        (tokenizer.decode([token]), sign * nats)
        for token, nats in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        if nats > 0
    )
