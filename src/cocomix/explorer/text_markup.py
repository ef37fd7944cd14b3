"""HTML of the text view: the coloured tokens, their legend, and what the model makes of one token."""

from collections import Counter

from cocomix.explorer.markup import concept_button, empty, escaped, number, shown_token
from cocomix.explorer.read_text import TextReading, TokenReading
from cocomix.interpret import visible

__all__ = ["legend", "no_token", "token_chips", "token_detail"]

_LEGEND_CONCEPTS = 10


def token_chips(reading: TextReading, selected: int | None) -> str:
    """The text as one button per token, coloured from the smallest to the largest strength in this text."""
    low, high = _range(reading)
    chips = []
    for place, token in enumerate(reading.tokens):
        share = (token.strength - low) / (high - low) if high > low else 0.5
        strongest = token.concepts[0].id
        pressed = "true" if place == selected else "false"
        css = "cx-token" + ("" if token.mixed_in else " cx-out")
        label = f"token {place + 1}, {visible(token.token)}; {_told(reading, token)}"
        under = f"<small>{strongest}</small>" if reading.concept is None else ""
        reached = 0 if place == (selected or 0) else -1  # by Tab; the others by arrow keys
        chips.append(
            f'<button type="button" class="{css}" data-kind="token" data-value="{place}" style="--s:{share:.3f}" '
            f'tabindex="{reached}" aria-pressed="{pressed}" aria-label="{escaped(label)}" '
            f'title="{escaped(label)}"><code>{shown_token(token.token)}</code>{under}</button>'
        )
        if "\n" in token.token:
            chips.append('<span class="cx-break"></span>')
    return (
        f'<div class="cx-tokens" role="group" aria-label="Tokens of the text; arrow keys move">{"".join(chips)}</div>'
    )


def legend(reading: TextReading) -> str:
    """What the colours mean, and the concepts that are strongest most often, each a button that colours by it."""
    low, high = _range(reading)
    if reading.concept is None:
        what = "logit of the strongest concept at each token; its id stands below"
    else:
        name = reading.names[reading.concept]
        what = (
            f"logit of concept {reading.concept}{f' ({name})' if name else ''}; a solid edge marks where it is mixed in"
        )
    strongest = Counter(token.concepts[0].id for token in reading.tokens).most_common(_LEGEND_CONCEPTS)
    buttons = "".join(
        concept_button(concept, reading.names[concept], "colour", f"<em>×{count}</em>") for concept, count in strongest
    )
    return (
        f'<div class="cx-legend"><span>{number(low)}</span><i class="cx-ramp" aria-hidden="true"></i>'
        f"<span>{number(high)}</span><span>{escaped(what)}</span></div>"
        f'<div class="cx-often"><span>Most often strongest here, click to colour by it:</span>{buttons}</div>'
    )


def token_detail(reading: TextReading, place: int) -> str:
    """One token: its concepts with values and names, and the next token with and without concepts."""
    token = reading.tokens[place]
    largest = max(abs(concept.logit) for concept in token.concepts) or 1.0
    rows = "".join(
        f'<li>{concept_button(concept.id, reading.names[concept.id])}<i class="cx-bar"><u style="width:'
        f'{100 * abs(concept.logit) / largest:.1f}%"></u></i><span>{number(concept.logit)}</span>'
        f'<button type="button" class="cx-small" data-kind="colour" data-value="{concept.id}" '
        f'aria-label="colour the text by concept {concept.id}">colour</button>'
        f'<button type="button" class="cx-small" data-kind="steer" data-value="{concept.id}" '
        f'aria-label="steer concept {concept.id}">steer</button></li>'
        for concept in token.concepts
    )
    likely = max(max(shift.probability, shift.without) for shift in token.next_tokens)
    following = "".join(
        f"<tr><th scope='row'><code>{shown_token(shift.token)}</code></th>"
        f"{_share(shift.probability, likely, 'cx-with')}{_share(shift.without, likely, 'cx-without')}</tr>"
        for shift in token.next_tokens
    )
    change = (
        f"Without concepts the distribution differs by {number(token.divergence, 3)} nats (KL divergence)."
        if reading.mixes
        else "This run mixes no concepts in, so both are the same."
    )
    return (
        f'<section class="cx-detail"><h3>Token {place + 1} <code>{shown_token(token.token)}</code></h3>'
        f'<div class="cx-columns"><div><h4>Strongest concepts <small>logit</small></h4>'
        f"<ol class='cx-strongest'>{rows}</ol></div><div><h4>Next token</h4><table class='cx-next'><thead><tr>"
        "<th scope='col'>token</th>"
        f"<th scope='col'>with concepts</th><th scope='col'>without</th></tr></thead><tbody>{following}</tbody></table>"
        f"<p class='cx-hint'>{change}</p></div></div></section>"
    )


def no_token() -> str:
    """What stands in the place of a token's details."""
    return empty("Choose a token to see its concepts and what comes next.")


def _range(reading: TextReading) -> tuple[float, float]:
    strengths = [token.strength for token in reading.tokens]
    return min(strengths), max(strengths)


def _told(reading: TextReading, token: TokenReading) -> str:
    if reading.concept is not None:
        mixed = "mixed in" if token.mixed_in else "not mixed in"
        return f"concept {reading.concept}: {number(token.strength)}, {mixed}"
    strongest = token.concepts[0]
    name = reading.names[strongest.id]
    return f"concept {strongest.id}{f' ({name})' if name else ''}: {number(strongest.logit)}"


def _share(probability: float, likely: float, css: str) -> str:
    return (
        f'<td class="{css}"><i class="cx-bar"><u style="width:{100 * probability / likely:.1f}%"></u></i>'
        f"<span>{100 * probability:.1f}%</span></td>"
    )
