"""What an atlas holds: a card per concept, contexts by quantile of activation, probes, and its manifest."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from pydantic import Field

from cocomix.artifacts import Manifest
from cocomix.runtime.section import Record

TokenChanges = tuple[tuple[str, float], ...]
"""Tokens, each with its change in nats."""
WordLifts = tuple[tuple[str, float], ...]
"""Words, each with its lift: its share among the concept's positions over its share among all positions."""
NamedFrom = Literal["labels", "predictions", "endpoint", "nothing"]


class Context(NamedTuple):
    """A place in the held-out text where a concept is predicted or is a label.

    Attributes:
        before: the text before the token, within its block.
        after: the text after it, within its block.
        strength: the student's logit for the concept there.
        quantile: share of the concept's places (of this kind) whose logit is lower; 1 for the strongest.
        position: of the token within the block.
    """

    before: str
    token: str
    after: str
    strength: float
    quantile: float
    split: str
    block: int
    position: int


class Histogram(NamedTuple):
    """A concept's logits at the positions that predict it.

    Attributes:
        edges: of the bins, one more than counts; the same for every concept of an atlas.
        counts: positions per bin.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class ConceptCard:
    """Everything an atlas knows of one concept, all of it measured on held-out text.

    "Predicted" means: among the student's top k at a position. Precision, recall, lift and AUROC compare the student
    with the labels, at the labelled positions; each is `None` where it has no denominator, or there are no labels.

    Attributes:
        name: its three words of highest lift, or a language model's answer.
        named_from: where the name comes from: the concept's labels, the student's predictions, or an endpoint.
        terms: words at its positions by lift, highest first (see `lifted_words`).
        next_terms: words that follow its positions, likewise.
        predicted_count: positions that predict it.
        label_count: positions that have it as a label.
        density: predicted_count as a share of all positions read.
        label_density: label_count as a share of the labelled positions; the precision of a blind guess.
        precision: of the labelled positions that predict it, the share that has it as a label.
        recall: of the positions that have it as a label, the share that predicts it.
        lift: precision over label_density.
        auroc: probability that the logit is higher where it is a label than where it is not; 0.5 is chance.
        mean_logit: over the positions that predict it; `None` if there are none.
        max_logit: likewise.
        histogram: of its logits there.
        compression_norm: ‖W_comp[concept]‖₂; `None` where the model mixes no concepts in.
        effect_amount: what was added to its logit to measure `raised` and `lowered`; likewise.
        raised: tokens whose log-probability rises most when the concept is turned up, in nats; `None` = not measured.
        lowered: tokens whose log-probability falls most, likewise.
        nearest: concepts with the most similar compression vectors, and the cosine.
        detection: balanced accuracy with which a language model, told the name, says which contexts have the concept
            (Delphi's detection score); `None` = not scored.
        fuzzing: likewise for which contexts mark the right token (Delphi's fuzzing score).
        predicted_contexts: where it is predicted, by quantile of its logit: the strongest few and then evenly down.
        label_contexts: where it is a label, likewise; the last ones are those the student misses.
    """

    id: int
    name: str
    named_from: NamedFrom
    terms: WordLifts
    next_terms: WordLifts
    predicted_count: int
    label_count: int
    density: float
    label_density: float | None
    precision: float | None
    recall: float | None
    lift: float | None
    auroc: float | None
    mean_logit: float | None
    max_logit: float | None
    histogram: Histogram
    compression_norm: float | None
    effect_amount: float | None
    raised: TokenChanges | None
    lowered: TokenChanges | None
    nearest: tuple[tuple[int, float], ...]
    detection: float | None
    fuzzing: float | None
    predicted_contexts: tuple[Context, ...]
    label_contexts: tuple[Context, ...]


class ConceptHit(NamedTuple):
    """A concept found.

    Attributes:
        snippet: the piece of its name, terms or contexts that matched; its terms in a ranking.
        score: how well it matched (larger is better), or the value it was ranked by.
    """

    id: int
    name: str
    snippet: str
    score: float


class PropertyProbe(Record):
    """How well a property of tokens can be read from hidden states, and from the best single concept.

    AUROC on positions that neither the probe nor the choice of the concept saw; 0.5 is chance.
    """

    property: str
    share: float
    """Of the positions that have the property."""
    probe: float
    """AUROC of a logistic regression on the hidden states at `insert_layer`."""
    concept: int
    """Of all concepts the one whose logit separates the property best, on the positions the probe was fitted to."""
    concept_auroc: float


class AtlasSettings(Record):
    """What determines the content of an atlas, next to the run and its data. The defaults are our choice."""

    tokens: int = Field(default=200_000, ge=1)
    """Tokens of the validation split to read, in whole blocks; at least one block. Memory: about 0.6 KB per token."""
    sampled: int = Field(default=4096, ge=2)
    """Positions, evenly spread, at which all logits and the hidden state are kept: negatives of AUROC, and probes."""
    contexts: int = Field(default=12, ge=2)
    """Contexts kept per concept, of each kind: a third of them the strongest, the others evenly spread by rank."""
    window: int = Field(default=24, ge=1)
    """Tokens of a context on either side."""
    bins: int = Field(default=24, ge=2)
    """Bins of the histograms."""
    terms: int = Field(default=5, ge=1)
    """Terms per concept, of each kind."""
    least_count: int = Field(default=3, ge=1)
    """Positions of a concept at which a word must stand to be a term."""
    nearest: int = Field(default=8, ge=0)
    """Nearest concepts per concept."""
    effects: int = Field(default=64, ge=0)
    """Concepts whose effect is measured, most often predicted first; one forward pass each."""
    effect_tokens: int = Field(default=512, ge=1)
    """Tokens the effects are measured on, in whole blocks from the start; at least one block."""
    effect_top: int = Field(default=10, ge=1)
    """Tokens raised and lowered to keep per concept."""
    batch_tokens: int = Field(default=2048, ge=1)
    """Tokens per forward pass of the student, in whole blocks; at least one block."""


class AtlasManifest(Manifest):
    """What an atlas is of and how it was made: from a `run`, `tokens`, their `tokenizer` and, if given, `labels`."""

    run: str
    num_concepts: int
    settings: AtlasSettings
    blocks: int
    tokens: int
    """Tokens read, the positions of all counts."""
    split: str
    labelled_positions: int
    """Positions with at least one label."""
    predicted_concepts: int
    """Concepts predicted at least once."""
    label_concepts: int
    """Concepts that are a label at least once."""
    effects: int
    """Concepts whose effect was measured."""
    endpoint_names: int
    """Concepts named by a language model."""
    scored_names: int
    """Names that were scored by detection and fuzzing."""
    histogram_edges: tuple[float, ...]
    """Edges of every concept's histogram, bins + 1."""
    probes: tuple[PropertyProbe, ...]
    """Named properties of tokens, as a reference for the concepts; empty where scikit-learn is not installed."""
