"""How strong concepts are in ordinary text, and what turning one does to the next token: measured, not guessed."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cocomix.evaluation import inference
from cocomix.interpret.atlas_cards import TokenChanges
from cocomix.interpret.atlas_pass import Array
from cocomix.interpret.inspection import concept_model
from cocomix.interpret.run_teacher import TextReader
from cocomix.model import CoCoMixForCausalLM, ConceptEdit
from cocomix.model.edits import check_edits
from cocomix.runtime.console import progress

_HIGH = 0.95
_TOKENS_AT_ONCE = 4096
_LEAST_AMOUNT = 0.1


class Effect(NamedTuple):
    """What a concept does when it is turned up.

    Attributes:
        amount: what was added to its logit.
        divergence: mean KL divergence of the steered from the untouched next-token distribution, nats per position.
        raised: tokens whose mean log-probability rises most, with the change in nats, largest first.
        lowered: tokens whose mean log-probability falls most, lowest first.
    """

    concept: int
    amount: float
    divergence: float
    raised: TokenChanges
    lowered: TokenChanges


class EditEffect(NamedTuple):
    """Whether an edit changes what the model says in a text.

    Attributes:
        positions: tokens of the text it applies to.
        predicted: share of them that has the concept among the top k without any edit.
        acts: whether the edit alone changes any next-token logit.
        would_act: what has to be added to bring the concept in at half of the positions; 0 where it is there already.
    """

    edit: ConceptEdit
    positions: int
    predicted: float
    acts: bool
    would_act: float

    def __str__(self) -> str:
        """One sentence, with what would act where this does not."""
        if self.positions == 0:
            return f"the edit of concept {self.edit.concept} begins at token {self.edit.start}, after the text's end."
        found = f"concept {self.edit.concept} is predicted at {self.predicted:.2%} of {self.positions} positions"
        if self.acts:
            return f"{found}; the edit acts."
        if self.edit.neutral:
            return f"{found}, and this edit leaves its logit as it is."
        return (
            f"{found}, so this edit changes nothing; adding acts: {self.edit.concept}+{self.would_act:.3g} "
            "brings it in at half of them."
        )


def turning_amounts(ids: Array, logits: Array, mean: Array) -> Array:
    """What to add to each concept's logit to turn it up as strongly as where it is truly there. float64 [n_concepts]

    Our choice: the logit that 95% of the concept's predictions stay below, minus its mean logit over all positions, so
    that it acts whatever the sign of the logits; at least 0.1. A concept that is never predicted gets the value that
    95% of all predictions stay below.

    Args:
        ids: predicted concepts. int [positions, k], or of any other shape, as are their `logits`
        mean: mean logit over all positions. float [n_concepts]
    """
    order = np.lexsort((logits.ravel(), ids.ravel()))
    counts = np.bincount(ids.ravel(), minlength=len(mean))
    ends = counts.cumsum()
    places = (ends - counts + np.ceil(_HIGH * counts).astype(np.int64) - 1).clip(min=0)
    everywhere = np.quantile(logits, _HIGH) if logits.size else 0.0
    high = np.full(len(mean), everywhere)
    high[counts > 0] = logits.ravel()[order][places[counts > 0]]
    amounts: Array = (high.astype(np.float64) - mean).clip(min=_LEAST_AMOUNT)
    return amounts


class Strengths(NamedTuple):
    """How strong every concept is in ordinary text. [n_concepts] each"""

    share: Array  # of the positions at which the student predicts it
    logit: Array  # what to add to its logit to turn it up (`turning_amounts`)
    active: Array  # share of the teacher's positions at which it finds the concept; without a teacher 0, as is `latent`
    latent: Array  # what to add to its latent there, likewise

    def usable(self, count: int, *, active: bool = False) -> list[int]:
        """The concepts predicted most often, but at no more than half of the positions; if asked for, also active.

        Our choice: one that is always there works as a bias; one that the teacher never shows cannot be measured.
        """
        shares = np.where((self.share <= 0.5) & ((self.active > 0) | (not active)), self.share, 0)
        return [concept for concept in np.argsort(-shares, kind="stable")[:count].tolist() if shares[concept] > 0]


def concept_strengths(
    student: CoCoMixForCausalLM,
    input_ids: Tensor,  # [blocks, seq]
    position_ids: Tensor | None = None,  # [blocks, seq]
    reader: TextReader | None = None,
) -> Strengths:
    """Read blocks of text with the student and, if there is one, with its teacher."""
    n_concepts, size = student.config.num_concepts, max(1, _TOKENS_AT_ONCE // input_ids.shape[1])
    found: list[list[Array]] = []  # per batch: ids, logits, latents' ids, latents, ids and amounts of what is present
    total, read = np.zeros(n_concepts), 0  # `read`: the teacher's positions
    with progress("reading concepts", len(input_ids), "blocks") as advance:
        for start in range(0, len(input_ids), size):
            batch = input_ids[start : start + size].to(student.device)
            positions = None if position_ids is None else position_ids[start : start + size].to(student.device)
            with inference(student, student.device, student.dtype):
                asked = {"use_cache": False, "output_logits": False, "output_concept_logits": True}
                output = student(batch, position_ids=positions, **asked)
                columns = [output.concept_ids.flatten(0, 1), output.concept_values.flatten(0, 1)]
                if reader is not None:
                    both = reader.survey(batch)
                    # Without unused slots, of which every batch has as many as its fullest position asks for.
                    columns += [column[codes.values > 0] for codes in both for column in codes]
                    read += len(both[0].ids)
                total += output.concept_logits.double().sum((0, 1)).cpu().numpy()
            plain = [column.float().cpu().numpy() for column in columns]  # ids are exact below 2**24
            plain[::2] = [ids.astype(np.int64) for ids in plain[::2]]
            found.append(plain)
            advance(len(batch))
    ids, logits, *latent = (np.concatenate(column) for column in zip(*found, strict=True))
    share = np.bincount(ids.ravel(), minlength=n_concepts) / len(ids)
    amounts = turning_amounts(ids, logits, total / len(ids))
    if reader is None:
        return Strengths(share, amounts, np.zeros(n_concepts), np.zeros(n_concepts))
    latent_ids, latents, present_ids, _ = latent
    active = np.bincount(present_ids, minlength=n_concepts) / read
    means = np.bincount(latent_ids, weights=latents, minlength=n_concepts) / read
    return Strengths(share, amounts, active, turning_amounts(latent_ids, latents, means))


def measure_effects(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    input_ids: Tensor,  # [batch, seq]
    amounts: Mapping[int, float],
    *,
    top: int = 10,
    position_ids: Tensor | None = None,  # [batch, seq]
) -> Iterator[Effect]:
    """Turn each concept up alone, at every position, and see which next tokens become likelier and less likely.

    The change passes through the selection of the top k, the compression and every later block (our choice, in place of
    a dot product of weights). Memory: log-probabilities of all positions. Refused where the model mixes no concepts in,
    a concept does not exist, or an amount is no finite number.

    Args:
        top: tokens to name of each kind; fewer where fewer move that way.
        position_ids: where documents are kept apart.
    """
    model = concept_model(model, mixing=True)
    edits = [ConceptEdit(concept, "add", amount) for concept, amount in amounts.items()]
    check_edits(edits, model.config.num_concepts)
    before = _log_probabilities(model, input_ids, position_ids, ())
    for edit in edits:
        after = _log_probabilities(model, input_ids, position_ids, (edit,))
        pairs = list(zip(after, before, strict=True))
        change = torch.stack([(new - old).double().mean(0) for new, old in pairs]).mean(0)  # [vocab]
        divergence = torch.stack([(new.exp() * (new - old)).sum(-1).mean() for new, old in pairs]).mean()
        strongest = (_strongest(tokenizer, change, top, sign) for sign in (1, -1))
        yield Effect(edit.concept, edit.value, float(divergence), *strongest)


def _log_probabilities(
    model: CoCoMixForCausalLM, input_ids: Tensor, position_ids: Tensor | None, edits: Sequence[ConceptEdit]
) -> list[Tensor]:
    """Log p(next token) of each sequence, one forward pass each. [seq, vocab], float32"""
    found = []
    with inference(model, model.device, model.dtype):
        for row in range(len(input_ids)):
            positions = None if position_ids is None else position_ids[row : row + 1].to(model.device)
            tokens = input_ids[row : row + 1].to(model.device)
            output = model(tokens, position_ids=positions, use_cache=False, concept_edits=tuple(edits))
            assert output.logits is not None
            found.append(output.logits[0].float().log_softmax(-1))
    return found


def _strongest(tokenizer: PreTrainedTokenizerBase, change: Tensor, top: int, sign: int) -> TokenChanges:
    best = (sign * change).topk(min(top, len(change)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return tuple((tokenizer.decode([token]), sign * nats) for token, nats in pairs if nats > 0)


def steering_candidates(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    input_ids: Tensor,  # [batch, seq]
    *,
    pool: int = 24,
    top: int = 5,
) -> list[Effect]:
    """Measure which concepts change the model's predictions most when turned up by `turning_amounts`.

    Our choice: of the concepts predicted at no more than half of the positions (one that is nearly always there works
    as a bias), the `pool` most frequent are tried one by one. Refused where the model mixes no concepts in.

    Args:
        pool: how many concepts to try; one forward pass per block and concept.
        top: tokens to name per concept.

    Returns:
        The concepts tried, largest divergence first; none where no concept meets the condition.
    """
    model = concept_model(model, mixing=True)
    strengths = concept_strengths(model, input_ids)
    tried = {concept: float(strengths.logit[concept]) for concept in strengths.usable(pool)}
    effects = measure_effects(model, tokenizer, input_ids, tried, top=top)
    return sorted(effects, key=lambda effect: -effect.divergence)


def edit_effects(model: PreTrainedModel, input_ids: Tensor, edits: Sequence[ConceptEdit]) -> list[EditEffect]:
    """Whether each edit alone changes anything in a text, and what would where it does not.

    Refused where the model mixes no concepts in, or a concept does not exist.

    Args:
        input_ids: the text, prompt and continuation. [1, seq]
        edits: to look at; their `rows` are ignored.
    """
    model = concept_model(model, mixing=True)
    check_edits(edits, model.config.num_concepts)
    found = []
    with inference(model, model.device, model.dtype):
        untouched = model(input_ids, use_cache=False, output_concept_logits=True)
        assert untouched.concept_ids is not None and untouched.concept_values is not None  # noqa: PT018
        for edit in edits:
            if edit.start >= input_ids.shape[1]:
                found.append(EditEffect(edit, 0, 0.0, False, 0.0))
                continue
            alone = ConceptEdit(edit.concept, edit.operation, edit.value, edit.start)
            steered = model(input_ids, use_cache=False, concept_edits=(alone,)).logits
            there = (untouched.concept_ids[0, edit.start :] == edit.concept).any(-1)
            own = untouched.concept_logits[0, edit.start :, edit.concept]
            missing = (untouched.concept_values[0, edit.start :, -1] - own).float().median()
            acts = not torch.equal(steered, untouched.logits)
            would = max(0.0, 1.1 * float(missing))
            found.append(EditEffect(edit, len(there), float(there.float().mean()), acts, would))
    return found
