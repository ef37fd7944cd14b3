"""Forms of mixing: how a predicted concept vector meets the hidden state; see MIXING.md.

To add one: write its class and name it in `MIXINGS`.
"""

from cocomix.model.mixing.concept_vectors import Add, Interleave, PredictOnly, Residual
from cocomix.model.mixing.form import Concepts, Layout, Mixing
from cocomix.model.mixing.next_concept import NextConcept
from cocomix.model.mixing.value_embeddings import ConceptValues, TokenValues
from cocomix.model.mixing.without_concepts import Loop, Pause, Plain, Ponder

__all__ = ["MIXINGS", "Concepts", "Layout", "Mixing"]

_FORMS: tuple[type[Mixing], ...] = (
    *(Interleave, Residual, Add, PredictOnly, Pause, ConceptValues, TokenValues),
    *(Plain, Loop, Ponder, NextConcept),
)
MIXINGS: dict[str, type[Mixing]] = {form.name: form for form in _FORMS}
