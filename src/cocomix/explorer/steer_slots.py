"""The rows of the steer view: which concept, what is done to it, and by how much."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import gradio as gr

from cocomix.explorer.concepts import resolve_concept
from cocomix.explorer.limits import LIMITS
from cocomix.explorer.markup import escaped
from cocomix.explorer.steer_state import make_edit
from cocomix.explorer.subject import Subject
from cocomix.model import ConceptEdit
from cocomix.runtime.errors import CoCoMixError

__all__ = ["Slots", "slots"]

_OPERATIONS = [("× multiply", "scale"), ("+ add", "add"), ("= set to", "set"), ("ban", "ban")]


class _Row(NamedTuple):
    """What stands in one row."""

    concept: str = ""
    operation: str = "scale"
    value: float = 5.0


class Slots(NamedTuple):
    """As many rows as concepts can be turned at once, of which the first few are shown.

    Attributes:
        inputs: how many are shown, then concept, operation and value of each; their values are what methods read.
        outputs: how many are shown, then container, concept, operation and value of each; methods return updates.
    """

    inputs: list[Any]
    outputs: list[Any]

    def edits(self, subject: Subject, values: Sequence[Any]) -> tuple[ConceptEdit, ...]:
        """The edits of the rows that name a concept.

        Raises:
            CoCoMixError: a concept is not found, or a value is out of range.
        """
        return tuple(
            make_edit(subject, resolve_concept(subject, row.concept), row.operation, row.value)
            for row in _shown(values)
            if row.concept.strip()
        )

    def filled(self, edits: Sequence[ConceptEdit]) -> list[Any]:
        """Updates that show these edits and nothing else."""
        return _updates([_Row(str(edit.concept), edit.operation, edit.value) for edit in edits])

    def one_more(self, *values: Any) -> list[Any]:
        """Updates that show one more row, as long as there is one."""
        return _updates([*_shown(values), _Row()][: LIMITS.edits])

    def with_concept(self, values: Sequence[Any], concept: int) -> list[Any]:
        """Updates that put a concept into the first empty row, or a new one.

        Raises:
            CoCoMixError: there is no room.
        """
        rows = _shown(values)
        free = next((place for place, row in enumerate(rows) if not row.concept.strip()), len(rows))
        if free == LIMITS.edits:
            raise CoCoMixError(f"{LIMITS.edits} concepts at most can be turned at once; remove one.")
        return _updates([*rows[:free], _Row(str(concept)), *rows[free + 1 :]])


def slots(subject: Subject) -> Slots:
    """Build the rows; the first is shown."""
    shown = gr.State(1)
    inputs: list[Any] = [shown]
    outputs: list[Any] = [shown]
    removes = []
    for place in range(LIMITS.edits):
        container, parts, remove = _build_row(subject, place)
        inputs += parts
        outputs += [container, *parts]
        removes.append(remove)
    for place, remove in enumerate(removes):
        remove.click(partial(_one_less, place), inputs, outputs, show_progress="hidden", api_visibility="private")
    return Slots(inputs, outputs)


def _build_row(subject: Subject, place: int) -> tuple[gr.Row, list[Any], gr.Button]:
    empty = _Row()
    with gr.Row(visible=place == 0, equal_height=True, elem_classes="cx-slot") as container:
        with gr.Column(scale=3, min_width=200):
            concept = gr.Textbox(
                label=f"Concept {place + 1}",
                placeholder="number or words",
                max_lines=1,
                max_length=LIMITS.search_characters,
                elem_id=f"cx-concept-{place}",
            )
            name = gr.HTML(elem_classes="cx-slot-name", js_on_load=None)
        operation = gr.Dropdown(_OPERATIONS, value=empty.operation, label="Do", scale=1, min_width=120)
        value = gr.Slider(
            -LIMITS.value, LIMITS.value, empty.value, step=0.5, label="By", scale=3, elem_id=f"cx-value-{place}"
        )
        remove = gr.Button("Remove", size="sm", scale=0, min_width=80)

    def tell(text: str) -> str:
        if not text.strip():
            return ""
        try:
            index = resolve_concept(subject, text)
        except CoCoMixError as error:
            return escaped(error)
        return f"<b>{index}</b> {escaped(subject.names([index])[index])}"

    concept.change(tell, concept, name, show_progress="hidden", trigger_mode="always_last", api_visibility="private")
    return container, [concept, operation, value], remove


def _one_less(place: int, *values: Any) -> list[Any]:
    rows = _shown(values)
    return _updates([*rows[:place], *rows[place + 1 :]])


def _shown(values: Sequence[Any]) -> list[_Row]:
    """The rows on the page, from the values of `inputs`."""
    rows = [_Row(str(values[at] or ""), str(values[at + 1]), values[at + 2]) for at in range(1, len(values), 3)]
    return rows[: values[0]]


def _updates(rows: Sequence[_Row]) -> list[Any]:
    """Updates of `outputs` that show these rows, and one empty row if there is none."""
    shown = max(1, len(rows))
    updates: list[Any] = [shown]
    for place in range(LIMITS.edits):
        updates += [gr.update(visible=place < shown), *(rows[place] if place < len(rows) else _Row())]
    return updates
