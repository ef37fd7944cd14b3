"""Pieces of HTML that the views share. Whatever comes from a user or a corpus is escaped here, and only here."""

import html
from collections.abc import Iterable

from cocomix.interpret import visible

__all__ = ["concept_button", "empty", "escaped", "message", "number", "shown_token", "table", "token_bar"]


def escaped(text: object) -> str:
    """Text as HTML, within an attribute too."""
    return html.escape(str(text), quote=True)


def shown_token(token: str) -> str:
    """A token's text with its spaces and line breaks visible, as HTML."""
    return escaped(visible(token)) or "∅"


def number(value: float, digits: int | None = 2) -> str:
    """A number with a true minus; `None` digits = as few as it needs."""
    told = f"{value:g}" if digits is None else f"{value:,.{digits}f}"
    return told.replace("-", "\u2212")


def message(text: str, kind: str = "info") -> str:
    """A sentence for the user; `kind` is `info`, `busy` or `error`, and an error is read out at once."""
    if not text:
        return ""
    role = "alert" if kind == "error" else "status"
    sentence = text[:1].upper() + text[1:]
    return f'<p class="cx-message cx-{kind}" role="{role}">{escaped(sentence)}</p>'


def empty(text: str) -> str:
    """What stands where nothing is to be shown yet."""
    return f'<p class="cx-empty">{escaped(text)}</p>'


def concept_button(concept: int, name: str, kind: str = "concept", extra: str = "") -> str:
    """A button with a concept's index and name; `kind` says what a click asks for."""
    label = f"concept {concept}" + (f", {name}" if name else "")
    return (
        f'<button type="button" class="cx-concept" data-kind="{kind}" data-value="{concept}" '
        f'aria-label="{escaped(label)}"><b>{concept}</b> <span>{escaped(name)}</span>{extra}</button>'
    )


def token_bar(token: str, share: float, value: str, css: str = "") -> str:
    """One row of a bar list: a token, a bar of `share` (0 … 1) of the width, and the value in words."""
    width = 100 * max(0.0, min(1.0, share))
    return (
        f'<li class="{css}"><code>{shown_token(token)}</code>'
        f'<i><u style="width:{width:.1f}%"></u></i><span>{escaped(value)}</span></li>'
    )


def table(heading: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of plain text; the first column names the row."""
    head = "".join(f'<th scope="col">{escaped(cell)}</th>' for cell in heading)
    body = ""
    for first, *others in rows:
        body += f'<tr><th scope="row">{escaped(first)}</th>' + "".join(f"<td>{escaped(cell)}</td>" for cell in others)
        body += "</tr>"
    return (
        f'<div class="cx-scroll"><table class="cx-table"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
