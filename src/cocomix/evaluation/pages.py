"""HTML pages of one style: what was found first, then tables and figures, the protocol last.

A page is made by `render_page(title, found, sections)` from `templates/page.html` (Jinja2, every value escaped). A
section is a dictionary of the optional parts of `Section`, shown in the order in which they stand there:

    loss = Table(("run", "validation loss, nats per token, lower is better"), [("ntp", "4.013")], caption="Final loss",
                 meanings={"run": "Name in the recipe."})
    render_page("Two runs", ["ntp ends at 4.013 nats per token."], [{"heading": "Result", "tables": [loss]}])

The same `Table` prints to the terminal (`rich`) and to a file (`markdown`), so that all three show the same numbers.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.resources import files
from typing import TYPE_CHECKING, Literal, TypedDict

from jinja2 import Environment, PackageLoader  # comes with PyTorch
from markupsafe import Markup, escape

if TYPE_CHECKING:
    import rich.table

_NAME_WIDTH = 30
"""Characters of a first column that a narrow terminal does not break, at most."""


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        headings: one per column: its name, then after a comma the unit and which direction is better, which are set
            smaller, e.g. `"validation loss, nats per token, lower is better"`.
        meanings: what a column holds, one sentence by its name (the heading up to the first comma); listed below.
        text_columns: how many columns, from the left, are text; the others are numbers and align to the right.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    meanings: Mapping[str, str] = field(default_factory=dict)
    text_columns: int = 1
    marked: int | None = None

    def split_headings(self) -> list[tuple[str, str]]:
        """Name, and unit and direction (or nothing), of each column."""
        return [(name, rest) for name, _, rest in (heading.partition(", ") for heading in self.headings)]

    def markdown(self) -> str:
        """The table as Markdown: caption, table, meanings."""
        rule = [" --- " if column < self.text_columns else " ---: " for column in range(len(self.headings))]
        lines = ["| " + " | ".join(map(markdown_text, row)) + " |" for row in (self.headings, *self.rows)]
        lines.insert(1, "|" + "|".join(rule) + "|")
        meanings = [f"- {markdown_text(name)}: {markdown_text(text)}" for name, text in self.meanings.items()]
        caption = [markdown_text(self.caption), ""] if self.caption else []
        return "\n".join([*caption, *lines, *([""] if meanings else []), *meanings])

    def rich(self) -> "rich.table.Table":
        """The table for a terminal, meanings below; nothing in it is read as markup."""
        import rich.box
        import rich.table
        from rich.text import Text

        made = rich.table.Table(
            title=Text(self.caption) if self.caption else None,
            title_justify="left",
            caption=Text("\n".join(f"{name}: {text}" for name, text in self.meanings.items())) or None,
            caption_justify="left",
            box=rich.box.SIMPLE_HEAD,
        )
        names = min(_NAME_WIDTH, max((len(row[0]) for row in self.rows), default=0))  # numbers wrap before them
        for number, (name, rest) in enumerate(self.split_headings()):
            heading = Text.assemble((name, "bold"), (f"\n{rest}" if rest else "", "dim"))
            justify: Literal["left", "right"] = "left" if number < self.text_columns else "right"
            made.add_column(heading, justify=justify, overflow="fold", min_width=None if number else names)
        for number, row in enumerate(self.rows):
            made.add_row(*map(Text, row), style="bold" if number == self.marked else None)
        return made


@dataclass(frozen=True)
class Figure:
    """A PNG image, with a second version for dark screens; `alt` is what it shows, for those who cannot see it."""

    light: bytes
    dark: bytes
    alt: str


class Section(TypedDict, total=False):
    """A section of a page; every part but the heading is optional. Text is plain, but for `commands` in backticks.

    `tokens` are (text, strength 0 … 1, remark shown when pointing at it) with `legend` saying what the shade means;
    `texts` are (heading, text) side by side; `code` is preformatted; `notes` are remarks set smaller.
    """

    heading: str
    text: Sequence[str]
    tables: Sequence[Table]
    figures: Sequence[Figure]
    tokens: Sequence[tuple[str, float, str]]
    legend: str
    texts: Sequence[tuple[str, str]]
    code: str
    notes: Sequence[str]


def render_page(title: str, found: Sequence[str], sections: Sequence[Section]) -> str:
    """One HTML document with inline style and embedded images: no scripts and no external addresses. What was found,
    one sentence each, is set larger than the rest.
    """
    environment = Environment(
        loader=PackageLoader("cocomix.evaluation"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["prose"] = lambda text: Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    style = files("cocomix.evaluation").joinpath("templates", "page.css").read_text(encoding="utf-8")
    page = environment.get_template("page.html")
    return str(page.render(title=title, found=found, sections=sections, style=style, version=version("cocomix")))


NOTHING = "\u2013"
"""A dash in the place of a number that does not exist."""

_MINUS = "\u2212"
_PREFIXES = ((1e24, "Y"), (1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def si(value: float) -> str:
    """Three significant digits with an SI prefix: 3_012_345 → `3.01 M`."""
    scale, prefix = next((one for one in _PREFIXES if abs(value) >= 0.9995 * one[0]), (1.0, ""))
    scaled = value / scale
    decimals = 0 if abs(scaled) >= 99.95 else 1 if abs(scaled) >= 9.995 else 2
    return f"{scaled:.{decimals}f} {prefix}".rstrip()


def duration(seconds: float) -> str:
    """Seconds as `42 s`, `6 min 14 s` or `3 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def signed(value: float) -> str:
    """A difference of losses with its sign and a true minus: `−0.298`, `+0.010`."""
    return f"{value:+.3f}".replace("-", _MINUS)


def percent(share: float) -> str:
    """A share of 1 as a percentage with one decimal: 0.215 → `21.5%`."""
    return f"{100 * share:.1f}%".replace("-", _MINUS)


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is, within a table cell too."""
    return " ".join(re.sub(r"[\\`*_\[\]<>|#~]", r"\\\g<0>", text).split())
