"""Forms of mixing: how a predicted concept vector meets the hidden state. One file a form; see MIXING.md.

To add one: write its file and name its class in `MIXINGS`.
"""

from cocomix.model.mixing.add import Add
from cocomix.model.mixing.form import Concepts, Layout, Mixing
from cocomix.model.mixing.interleave import Interleave
from cocomix.model.mixing.loop import Loop
from cocomix.model.mixing.next_concept import NextConcept
from cocomix.model.mixing.none import PredictOnly
from cocomix.model.mixing.pause import Pause
from cocomix.model.mixing.plain import Plain
from cocomix.model.mixing.ponder import Ponder
from cocomix.model.mixing.residual import Residual
from cocomix.model.mixing.value_embeddings import ConceptValues, TokenValues

__all__ = ["MIXINGS", "Concepts", "Layout", "Mixing"]

_FORMS: tuple[type[Mixing], ...] = (
    *(Interleave, Residual, Add, PredictOnly, Pause, ConceptValues, TokenValues),
    *(Plain, Loop, Ponder, NextConcept),
)
MIXINGS: dict[str, type[Mixing]] = {form.name: form for form in _FORMS}
