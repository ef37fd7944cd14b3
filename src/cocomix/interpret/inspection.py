"""Which concepts a model predicts at each token of a text, and what a concept stands for."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cocomix.data import Tokens
from cocomix.evaluation import inference
from cocomix.interpret.prompts import concept_model, encode, visible
from cocomix.labelling import Labels
from cocomix.runtime.errors import CoCoMixError

__all__ = [
    "ConceptDescription",
    "NextToken",
    "PredictedConcept",
    "TokenConcepts",
    "describe_concepts",
    "inspect_text",
    "render_table",
    "render_text",
]


@dataclass(frozen=True)
class PredictedConcept:
    """A concept mixed in at a token: its index, its logit z, and its rank (1 = largest)."""

    id: int
    logit: float
    rank: int


@dataclass(frozen=True)
class NextToken:
    """A likely continuation: its text and its probability."""

    token: str
    probability: float


@dataclass(frozen=True)
class TokenConcepts:
    """What the model makes of one token.

    Attributes:
        position: place in the text, from 0.
        token: its text (a part of a multi-byte character shows as the replacement character).
        concepts: the strongest predictions at this token, strongest first.
        next_tokens: the likeliest next tokens, likeliest first.
    """

    position: int
    token: str
    concepts: tuple[PredictedConcept, ...]
    next_tokens: tuple[NextToken, ...]


@dataclass(frozen=True)
class ConceptDescription:
    """What a concept stands for, told by the tokens it was a label of.

    Attributes:
        concept: its index.
        count: labelled positions that name it, within the blocks looked at.
        tokens: the tokens most typical of these positions, each with its count there.
        next_tokens: the tokens most typical of the positions after these, each with its count there.
    """

    concept: int
    count: int
    tokens: tuple[tuple[str, int], ...]
    next_tokens: tuple[tuple[str, int], ...]

    def short(self, limit: int = 3) -> str:
        """The most typical tokens in one line, e.g. `·list ·tuple ·of`."""
        return " ".join(visible(token) for token, _ in self.tokens[:limit]) if self.tokens else "never a label"


def inspect_text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, *, top: int = 5, top_next: int = 3
) -> list[TokenConcepts]:
    """The strongest predicted concepts and the likeliest next tokens at every token of a text.

    Args:
        model: a CoCoMix model, of any mixing.
        tokenizer: the model's.
        text: what to look at; no special tokens are added.
        top: concepts per token, at most the model's concept_topk.
        top_next: next tokens per token.

    Raises:
        CoCoMixError: the model has no concepts, the text is empty or longer than the context, or `top` is out of range.
    """
    model = concept_model(model)
    if not 1 <= top <= model.config.concept_topk:
        raise CoCoMixError(
            f"top={top} is out of range: this model mixes {model.config.concept_topk} concepts in at each token, so it "
            f"must be between 1 and {model.config.concept_topk}."
        )
    if not 1 <= top_next <= model.config.vocab_size:
        raise CoCoMixError(f"top_next={top_next} must be between 1 and {model.config.vocab_size}.")
    input_ids = encode(model, tokenizer, text)
    with inference(model, model.device, model.dtype):
        output = model(input_ids=input_ids, use_cache=False)
        probabilities, candidates = output.logits[0].float().softmax(-1).topk(top_next, dim=-1)  # [seq, top_next]
    concept_ids, values = output.concept_ids[0].tolist(), output.concept_values[0].tolist()
    found = []
    for position, token in enumerate(input_ids[0].tolist()):
        concepts = zip(concept_ids[position][:top], values[position], strict=False)
        likely = zip(candidates[position].tolist(), probabilities[position].tolist(), strict=True)
        found.append(
            TokenConcepts(
                position=position,
                token=tokenizer.decode([token]),
                concepts=tuple(
                    PredictedConcept(concept, value, rank) for rank, (concept, value) in enumerate(concepts, start=1)
                ),
                next_tokens=tuple(NextToken(tokenizer.decode([token]), share) for token, share in likely),
            )
        )
    return found


def describe_concepts(
    store: Labels,
    data: Tokens,
    concepts: Sequence[int],
    *,
    max_blocks: int = 512,
    top: int = 5,
    split: str = "train",
) -> dict[int, ConceptDescription]:
    """Say what concepts stand for: the tokens at the positions whose labels name them, and the tokens that follow.

    Plain counts would show the corpus' commonest tokens for every concept. Our choice: with n of a concept's positions
    holding a token, tokens are ordered by n · ln(share among the concept's positions / share among all positions), the
    token's part in the divergence between the two; the counts themselves are given.

    Args:
        store: labels.
        data: the tokens they belong to.
        concepts: indices to describe.
        max_blocks: look at the first so many blocks.
        top: tokens per concept.
        split: which split to read.

    Returns:
        One description per concept asked for; one that is never a label has count 0.

    Raises:
        CoCoMixError: the labels are not those of this data, or a concept does not exist.
    """
    known = store.num_concepts
    store.require_tokens(data)
    for concept in concepts:
        if not 0 <= concept < known:
            raise CoCoMixError(f"concept {concept} does not exist: the labels have concepts 0 to {known - 1}.")
    blocks, labels = data.split(split), store.split(split)
    wanted = torch.tensor(sorted(set(concepts)), dtype=torch.int64)
    everywhere: Counter[int] = Counter()
    here: dict[int, Counter[int]] = {concept: Counter() for concept in concepts}
    after: dict[int, Counter[int]] = {concept: Counter() for concept in concepts}
    for index in range(min(max_blocks, len(blocks))):
        tokens = blocks[index]["input_ids"].tolist()
        everywhere.update(tokens)
        for concept, position in _occurrences(labels[index]["concept_labels"], wanted):
            here[concept][tokens[position]] += 1
            if position + 1 < len(tokens):
                after[concept][tokens[position + 1]] += 1
    tokenizer = data.tokenizer()

    def texts(counts: Counter[int]) -> tuple[tuple[str, int], ...]:
        typical = sorted(counts, key=lambda token: -_typicality(token, counts, everywhere))
        return tuple((tokenizer.decode([token]), counts[token]) for token in typical[:top])

    return {
        concept: ConceptDescription(concept, here[concept].total(), texts(here[concept]), texts(after[concept]))
        for concept in here
    }


def _typicality(token: int, counts: Counter[int], everywhere: Counter[int]) -> float:
    """A token's n · ln(share within `counts` / share within `everywhere`)."""
    share, usual = counts[token] / counts.total(), everywhere[token] / everywhere.total()
    return counts[token] * math.log(share / usual)


def _occurrences(labels: Tensor, wanted: Tensor) -> Iterator[tuple[int, int]]:
    """(concept, position) wherever a block's labels [block_size, k_attr] name one of the wanted concepts."""
    matches = torch.isin(labels, wanted)
    positions, _ = matches.nonzero(as_tuple=True)
    yield from zip(labels[matches].tolist(), positions.tolist(), strict=True)


def render_table(
    tokens: Sequence[TokenConcepts], descriptions: Mapping[int, ConceptDescription] | None = None
) -> Table:
    """The result of `inspect_text` for the terminal: one row per token."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("token", "concepts (logit)", "next token (probability)"):
        table.add_column(heading, overflow="fold")
    for entry in tokens:
        table.add_row(*(Text(cell) for cell in _cells(entry, descriptions or {})))
    return table


def render_text(tokens: Sequence[TokenConcepts], descriptions: Mapping[int, ConceptDescription] | None = None) -> str:
    """The result of `inspect_text` as plain text: one line per token, columns separated by tabs."""
    return "\n".join("\t".join(_cells(entry, descriptions or {})) for entry in tokens)


def _cells(entry: TokenConcepts, descriptions: Mapping[int, ConceptDescription]) -> tuple[str, str, str]:
    concepts = []
    for concept in entry.concepts:
        meaning = f" [{descriptions[concept.id].short()}]" if concept.id in descriptions else ""
        concepts.append(f"{concept.id} ({concept.logit:.2f}){meaning}")
    following = [f"{visible(likely.token)} ({likely.probability:.0%})" for likely in entry.next_tokens]
    return visible(entry.token), ", ".join(concepts), ", ".join(following)
