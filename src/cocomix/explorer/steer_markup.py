"""HTML of the steer view: texts side by side, and concepts worth turning."""

from collections.abc import Sequence

from cocomix.explorer.markup import concept_button, empty, escaped, number, shown_token
from cocomix.explorer.steer_state import SteerState, SteerTexts
from cocomix.interpret import SteeringCandidate

__all__ = ["describe_edits", "progress", "suggestions", "text_columns"]

_OPERATIONS = {"scale": "×", "add": "+", "set": "=", "ban": "ban"}


def describe_edits(state: SteerState) -> str:
    """The edits in one line, e.g. `412 × 5, 7 + 3`."""
    told = [
        f"{edit.concept} {_OPERATIONS[edit.operation]}"
        + ("" if edit.operation == "ban" else f" {number(edit.value, None)}")
        for edit in state.edits
    ]
    return ", ".join(told) or "nothing turned"


def text_columns(state: SteerState, texts: SteerTexts, no_teacher: str) -> str:
    """Three texts; where the steered one parts from the unsteered, its rest is marked."""
    edits = describe_edits(state)
    same = _common_length(texts.unsteered, texts.steered)
    steered = f"{escaped(texts.steered[:same])}<mark>{escaped(texts.steered[same:])}</mark>"
    columns = [
        _column("unsteered", "Unsteered", "", _text(state, escaped(texts.unsteered))),
        _column("steered", "Steered", edits, _text(state, steered)),
        _column(
            "teacher",
            "Teacher, its latents steered",
            edits,
            empty(no_teacher) if texts.teacher is None else _text(state, escaped(texts.teacher)),
        ),
    ]
    return f'<div class="cx-texts">{"".join(columns)}</div>'


def progress(tokens: int, total: int) -> str:
    """How far a text is."""
    return (
        f'<div class="cx-progress"><progress max="{total}" value="{tokens}" aria-label="tokens generated"></progress>'
        f"<span>{tokens} of {total} tokens</span></div>"
    )


def suggestions(found: Sequence[SteeringCandidate], names: dict[int, str]) -> str:
    """Concepts worth turning for a prompt, each a button that adds it."""
    if not found:
        return empty("No concept is mixed in often enough here to be worth turning; write a longer prompt.")
    rows = "".join(
        f"<li>{concept_button(one.concept, names[one.concept], 'steer')}<span>{number(one.divergence, 3)} nats</span>"
        f"<span>{' '.join(f'<code>{shown_token(token)}</code>' for token, _ in one.raised)}</span></li>"
        for one in (candidate.effect for candidate in found)
    )
    hint = "By how much turning them up changes the next tokens of this prompt; click to add."
    return f'<p class="cx-hint">{hint}</p><ol class="cx-suggested">{rows}</ol>'


def _column(kind: str, heading: str, note: str, body: str) -> str:
    title = f"<h4>{heading} <small>{escaped(note)}</small></h4>"
    return f'<section class="cx-text" data-text="{kind}">{title}{body}</section>'


def _text(state: SteerState, continuation: str) -> str:
    return f"<p><span class='cx-prompt'>{escaped(state.prompt)}</span>{continuation}</p>"


def _common_length(one: str, other: str) -> int:
    """Length of the longest common beginning."""
    shorter = min(len(one), len(other))
    return next((place for place in range(shorter) if one[place] != other[place]), shorter)
