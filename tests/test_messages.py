"""One catalogue of what users are told: every message of an error of ours, rendered from the source, has the form of a
sentence that names what was wrong and what to do. Other tests check the type of an error and the value at fault."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import cocomix

SOURCE = Path(cocomix.__file__).parent
ERRORS = re.compile(r"(CoCoMixError|Damaged|NotAnArtifact|WrongKind|AlreadyExists|MadeFromSomethingElse|BeingWritten)$")

REMEDY = re.compile(
    r"; "  # what was wrong; what to do
    r"|\bmust\b|\bneeds?\b|\bat least\b|\bbetween\b|\bonly\b|\bcannot be used with\b|\bexclude each other\b"
    r"|\bnot one of\b|\bnot of the form\b|\bis no\b|\bis not a\b|\bhas (concepts|blocks|rows)\b|\bdoes not exist\b"
    r"|: (give|<|'|\")|--[a-z]"
    r"|<remedy>|\.detail>|<_REMEDY>|<error>"  # filled in
)
"""A remedy, or a rule that says what would be right."""

NAMED = re.compile(r"<[^>]+>|--[a-z-]+|\b[a-z]+_[a-z_]+\b|[a-z_]+=|`[^`]+`|\b[a-z]+:")
"""A value, an option, a field or a command."""


def rendered(node: ast.expr | None) -> str | None:
    """A message with `<expression>` in place of what is filled in; None for one that is built elsewhere."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = (
            part.value if isinstance(part, ast.Constant) else f"<{ast.unparse(part.value)}>" for part in node.values
        )
        return "".join(map(str, parts))
    return None


def catalogue() -> Iterator[tuple[str, str]]:
    """Place and message of every error that is raised or made."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and ERRORS.match(node.func.id):
                message = rendered(node.args[0] if node.args else None)
                if message is not None:
                    yield f"{path.relative_to(SOURCE)}:{node.lineno}", message


MESSAGES = dict(catalogue())


def test_the_catalogue_holds_the_messages() -> None:
    assert len(MESSAGES) > 300


@pytest.mark.parametrize("rule", ["sentence", "named", "remedy", "length"])
def test_messages_have_the_form_of_our_messages(rule: str) -> None:
    broken = {
        "sentence": lambda text: not text.endswith((".", "?", ">")) or "\n" in text,
        "named": lambda text: not NAMED.search(text) and "; " not in text,
        "remedy": lambda text: not REMEDY.search(text),
        "length": lambda text: len(re.sub(r"<[^>]*>", "…", text)) > 330,
    }[rule]
    assert {place: text for place, text in MESSAGES.items() if broken(text)} == {}
