"""What an atlas says: a card per concept, hits of a search, and the record of how the atlas was made."""

from dataclasses import dataclass
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from cocomix.artifacts import Manifest

__all__ = ["AtlasManifest", "AtlasSettings", "ConceptCard", "ConceptHit", "Context", "Histogram", "TokenChanges"]

TokenChanges = tuple[tuple[str, float], ...]
"""Tokens, each with its change in nats."""


@dataclass(frozen=True)
class Context:
    """A place in the data where a concept shows.

    Attributes:
        before: the text before the token, within its block.
        token: the text of the token itself.
        after: the text after it, within its block.
        strength: the concept's logit where it was predicted, its score where it is a label.
        split: of the data.
        block: index of the block within the split.
        position: of the token within the block.
    """

    before: str
    token: str
    after: str
    strength: float
    split: str
    block: int
    position: int


class Histogram(NamedTuple):
    """A concept's logits at the positions that predict it; the outer bins also hold what lies beyond them.

    Attributes:
        edges: of the bins, one more than counts; the same for every concept of an atlas.
        counts: positions per bin.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class ConceptCard:
    """Everything an atlas knows of one concept. "Predicted" = among the model's top k at a position.

    Attributes:
        id: its index.
        name: a few words.
        terms: the words most typical of its contexts, most typical first.
        predicted_count: positions that predict it.
        positive_count: those of them where its logit is above 0.
        label_count: positions that have it as a label.
        frequency: predicted_count as a share of all positions read.
        recall: of the positions that have it as a label, the share that predicts it; `None` if there are none.
        compression_norm: ‖W_comp[concept]‖₂; `None` where the model mixes no concepts in.
        mean_logit: over the positions that predict it; `None` if there are none.
        max_logit: likewise.
        histogram: of its logits there.
        predicted_contexts: where it was predicted with the largest logits, at most one per block, largest first.
        label_contexts: where it is a label with the largest scores, at most one per block, largest first.
        raised: tokens whose log-probability rises most when the concept is turned up, in nats; `None` = not measured.
        lowered: tokens whose log-probability falls most, likewise.
        nearest: concepts with the most similar compression vectors, and the cosine.
    """

    id: int
    name: str
    terms: tuple[str, ...]
    predicted_count: int
    positive_count: int
    label_count: int
    frequency: float
    recall: float | None
    compression_norm: float | None
    mean_logit: float | None
    max_logit: float | None
    histogram: Histogram
    predicted_contexts: tuple[Context, ...]
    label_contexts: tuple[Context, ...]
    raised: TokenChanges | None
    lowered: TokenChanges | None
    nearest: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class ConceptHit:
    """A concept found.

    Attributes:
        id: its index.
        name: its name.
        snippet: the piece of its name, terms or contexts that matched; its terms in a ranking.
        score: how well it matched (larger is better), or the value it was ranked by.
    """

    id: int
    name: str
    snippet: str
    score: float


class AtlasSettings(BaseModel):
    """What determines the content of an atlas, next to the run and its data. The defaults are our choice."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: int = Field(default=200_000, ge=1)
    """Tokens to read, validation split first, in whole blocks; at least one block."""
    contexts: int = Field(default=12, ge=1)
    """Contexts kept per concept, of each kind."""
    window: int = Field(default=24, ge=1)
    """Tokens of a context on either side."""
    bins: int = Field(default=24, ge=2)
    """Bins of the histograms."""
    terms: int = Field(default=5, ge=1)
    """Terms per concept."""
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

    def effect_blocks(self, block_size: int) -> int:
        """Blocks the effects are measured on, if the atlas reads as many."""
        return max(1, self.effect_tokens // block_size)


class AtlasManifest(Manifest):
    """What an atlas is of and how it was made: from a `run`, `tokens`, their `tokenizer` and, if given, `labels`."""

    run: str
    """Name of the run."""
    num_concepts: int
    settings: AtlasSettings
    blocks: int
    """Blocks read."""
    tokens: int
    """Tokens read, the positions of all counts."""
    document_masks: bool = False
    """Whether the documents of a block did not see one another, as when the model was trained."""
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
    histogram_edges: tuple[float, ...]
    """Edges of every concept's histogram, bins + 1."""
