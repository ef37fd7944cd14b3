"""The concept view's content: finding concepts, and what is known of one, with an atlas or without."""

from dataclasses import dataclass

from cocomix.explorer.subject import Subject
from cocomix.interpret import ConceptCard, ConceptDescription, ConceptHit, TokenChanges, describe_run_concepts
from cocomix.runtime.errors import CoCoMixError

__all__ = ["ConceptPage", "concept_page", "find_concepts", "measure_concept", "resolve_concept"]

_HITS = 24


@dataclass(frozen=True)
class ConceptPage:
    """What is known of one concept.

    Attributes:
        id: its index.
        card: the atlas' card; `None` without an atlas.
        description: the tokens it labels, where there is no atlas but the run's labels are at hand.
        names: of its nearest concepts, and its own.
    """

    id: int
    card: ConceptCard | None
    description: ConceptDescription | None
    names: dict[int, str]


def find_concepts(subject: Subject, text: str) -> list[ConceptHit]:
    """Concepts that match a search, best first; the most frequent ones for an empty search.

    Raises:
        CoCoMixError: the search is too long, names a concept that does not exist, or needs an atlas that is not there.
    """
    text = text.strip()
    if len(text) > subject.limits.search_characters:
        raise CoCoMixError(f"the search has {len(text)} characters; write {subject.limits.search_characters} at most.")
    number = text.lstrip("-").isdecimal()
    if number:
        concept = subject.concept(text)
    if subject.atlas is not None:
        return subject.atlas.search(text, _HITS) if text else subject.atlas.top(_HITS, by="predicted_count")
    if number:
        return [ConceptHit(concept, subject.names([concept])[concept], "", 0.0)]
    if not text:
        return []
    raise CoCoMixError(
        f"without an atlas a concept can be found by its number alone; make one with: cocomix atlas {subject.run.path}."
    )


def resolve_concept(subject: Subject, text: str) -> int:
    """The concept that somebody means by a number or by words: the best hit.

    Raises:
        CoCoMixError: there is none.
    """
    hits = find_concepts(subject, text) if text.strip() else []
    if not hits:
        raise CoCoMixError(f"no concept is found for {text[:40]!r}; write a number or other words.")
    return hits[0].id


def concept_page(subject: Subject, concept: int) -> ConceptPage:
    """Everything known of a concept.

    Raises:
        CoCoMixError: the atlas or the labels cannot be read.
    """
    if subject.atlas is not None:
        card = subject.atlas.card(concept)
        return ConceptPage(concept, card, None, subject.names([concept, *(near for near, _ in card.nearest)]))
    found = describe_run_concepts(subject.run, [concept])
    return ConceptPage(concept, None, found.get(concept), subject.names([concept]))


def measure_concept(subject: Subject, concept: int) -> tuple[TokenChanges, TokenChanges]:
    """The tokens a concept raises and lowers, measured now.

    Raises:
        CoCoMixError: there is no atlas, or the model mixes no concepts in.
    """
    if subject.atlas is None:
        raise CoCoMixError(f"effects are measured with an atlas; make one with: cocomix atlas {subject.run.path}.")
    with subject.computing() as model:
        effect = subject.atlas.measure_effect(model, subject.tokenizer, concept)
    return effect.raised, effect.lowered
