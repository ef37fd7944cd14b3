"""A self-contained HTML page from plain parts: headings, paragraphs, tables, code, images, coloured tokens.

Every part takes plain text and escapes it, so nothing that comes from a run, a model or a user can become markup. The
page has inline style only, no scripts and no external addresses; images are embedded.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

__all__ = ["Block", "Code", "Image", "Page", "Paragraph", "Points", "Section", "SideBySide", "Table", "Tokens"]


@dataclass(frozen=True)
class Paragraph:
    """Running text. `quiet` sets it smaller and paler: a remark."""

    text: str
    quiet: bool = False

    def html(self) -> str:
        """The part as HTML."""
        return f'<p class="quiet">{escape(self.text)}</p>' if self.quiet else f"<p>{escape(self.text)}</p>"


@dataclass(frozen=True)
class Points:
    """A bulleted list of remarks."""

    items: Sequence[str]

    def html(self) -> str:
        """The part as HTML."""
        return '<ul class="quiet">' + "".join(f"<li>{escape(item)}</li>" for item in self.items) + "</ul>"


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        heading: column headings.
        rows: cells as text.
        text_columns: how many columns, from the left, are text; the others are numbers and align to the right.
        marked: row that stands out (the best or the one spoken of), if any.
        caption: one line above the table.
        remarks: a second, quieter line under the first cell of each row, if any.
    """

    heading: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1
    marked: int | None = None
    caption: str = ""
    remarks: Sequence[str] = ()

    def html(self) -> str:
        """The part as HTML."""
        kinds = ["text" if column < self.text_columns else "number" for column in range(len(self.heading))]
        head = "".join(
            f'<th scope="col" class="{kind}">{escape(cell)}</th>'
            for kind, cell in zip(kinds, self.heading, strict=True)
        )
        body = ""
        for index, row in enumerate(self.rows):
            cells = [f'<td class="{kind}">{escape(cell)}</td>' for kind, cell in zip(kinds, row, strict=True)]
            remark = f"<small>{escape(self.remarks[index])}</small>" if self.remarks else ""
            cells[0] = f'<th scope="row" class="text">{escape(row[0])}{remark}</th>'
            body += f"<tr{' class=marked' if index == self.marked else ''}>{''.join(cells)}</tr>"
        caption = f"<caption>{escape(self.caption)}</caption>" if self.caption else ""
        return (
            f'<div class="scroll" tabindex="0"><table>{caption}<thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )


@dataclass(frozen=True)
class Code:
    """Preformatted text: commands, output."""

    text: str

    def html(self) -> str:
        """The part as HTML."""
        return f"<pre>{escape(self.text)}</pre>"


@dataclass(frozen=True)
class Image:
    """A PNG image, optionally with a second version for dark screens.

    Attributes:
        png: the image.
        alt: what it shows, for those who cannot see it.
        caption: one line below.
        dark_png: the same on a dark background.
    """

    png: bytes
    alt: str
    caption: str = ""
    dark_png: bytes | None = None

    def html(self) -> str:
        """The part as HTML."""
        image = f'<img src="{_data_address(self.png)}" alt="{escape(self.alt)}">'
        if self.dark_png is not None:
            dark = _data_address(self.dark_png)
            image = f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">{image}</picture>'
        caption = f"<figcaption>{escape(self.caption)}</figcaption>" if self.caption else ""
        return f"<figure>{image}{caption}</figure>"


@dataclass(frozen=True)
class Tokens:
    """A text whose tokens are shaded by a number.

    Attributes:
        tokens: (text, strength 0 … 1, remark shown when pointing at it) in reading order; line breaks are kept.
        legend: what the shade means.
    """

    tokens: Sequence[tuple[str, float, str]]
    legend: str

    def html(self) -> str:
        """The part as HTML."""
        spans = "".join(
            f'<span style="--s:{min(1.0, max(0.0, strength)):.2f}" title="{escape(remark)}">{escape(text)}</span>'
            for text, strength, remark in self.tokens
        )
        return f'<p class="tokens">{spans}</p><p class="quiet">{escape(self.legend)}</p>'


@dataclass(frozen=True)
class SideBySide:
    """Texts next to each other, e.g. generations with and without steering: (heading, text) each."""

    columns: Sequence[tuple[str, str]]

    def html(self) -> str:
        """The part as HTML."""
        cards = "".join(
            f"<article><h3>{escape(heading)}</h3><p>{escape(text)}</p></article>" for heading, text in self.columns
        )
        return f'<div class="columns">{cards}</div>'


Block = Paragraph | Points | Table | Code | Image | Tokens | SideBySide


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    heading: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A page: title, a summary set larger than the rest, sections."""

    title: str
    summary: Sequence[str]
    sections: Sequence[Section]
    footer: str = ""

    def html(self) -> str:
        """The whole page as one HTML document."""
        summary = "".join(f"<p>{escape(paragraph)}</p>" for paragraph in self.summary)
        sections = "".join(
            f"<section><h2>{escape(section.heading)}</h2>{''.join(block.html() for block in section.blocks)}</section>"
            for section in self.sections
        )
        style = files("cocomix.evaluation").joinpath("templates/page.css").read_text(encoding="utf-8")
        title = escape(self.title)
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
            f'<header><h1>{title}</h1><div class="found">{summary}</div></header>\n{sections}\n'
            f"<footer>{escape(self.footer)}</footer>\n</main>\n</body>\n</html>\n"
        )


def _data_address(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
