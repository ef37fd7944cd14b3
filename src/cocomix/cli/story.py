"""What `cocomix --help` says: the verbs in the order of use, a line each, on one screen."""

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

__all__ = ["CHAPTERS", "story"]

CHAPTERS: dict[str, tuple[str, ...]] = {
    "Begin": ("demo", "doctor", "init"),
    "Prepare": ("prepare", "sae", "label", "distill"),
    "Train": ("train", "sweep", "runs"),
    "Compare": ("eval", "compare", "analyse"),
    "Look inside": ("generate", "inspect", "atlas", "steer-eval", "explore"),
    "Keep well": ("verify", "consolidate", "export", "import", "push"),
}
"""Every verb, by what it is for."""

_CLOSING = """cocomix VERB --help explains a verb by example; all take --quiet, --verbose.
cocomix --install-completion lets the shell complete verbs and options."""


def story(opening: str, summaries: Mapping[str, str]) -> RenderableType:
    """The whole help.

    Args:
        opening: how a command is made up, and what all of it is for.
        summaries: of every verb, its first sentence.
    """
    table = Table(show_header=False, box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for chapter, verbs in CHAPTERS.items():
        if table.row_count:
            table.add_row()
        for number, verb in enumerate(verbs):
            table.add_row("" if number else chapter, verb, summaries[verb])
    return Group(Text(f"{opening}\n"), table, Text(f"\n{_CLOSING}"))
