"""README commands and code: run at toy size, or read by the real command line where they need the hub or hours."""

import re
import shlex
from pathlib import Path

import pytest

from tests.command_line import Cli
from tests.documents import DOCS, ROOT, blocks, run_commands, understand
from tests.workshop import Workshop

README = ROOT / "README.md"
COMMANDS = [command for block in blocks(README) for command in block.commands if block.kind == "bash"]
OWN_CORPUS = [block for block in blocks(README) if block.section.startswith("Your own corpus") and block.kind == "bash"]


@pytest.mark.parametrize("command", [line for line in COMMANDS if re.search(r"cocomix [a-z]", line)])
def test_the_command_line_understands_it(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    understand(command)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:^ {4}|`)make (\w+)", README.read_text(encoding="utf-8"), re.MULTILINE))
    assert {"demo", "test"} <= named <= targets


def test_own_corpus_commands_run(cli: Cli, workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, in order, on toy text with the toy teacher."""
    monkeypatch.chdir(tmp_path)
    here = {"my_texts/": str(workshop.corpus), "openai-community/gpt2": str(workshop.teacher)}
    run_commands(cli, [command for block in OWN_CORPUS for command in block.commands], here)
    assert (tmp_path / "report" / "mine" / "report.html").is_file()


def test_every_other_command_is_on_a_page_of_the_documentation() -> None:
    """There it runs, or says why it does not: tests/test_docs.py."""
    shown = {plain(command) for page in DOCS.rglob("*.md") for block in blocks(page) for command in block.commands}
    for block in blocks(README):
        if block.kind == "bash" and block.reason is None and block not in OWN_CORPUS:
            assert {plain(command) for command in block.commands} <= shown, block.section


def plain(command: str) -> str:
    return " ".join(shlex.split(command, comments=True))


@pytest.mark.parametrize("code", [block.code for block in blocks(README) if block.kind == "python"])
def test_python_runs(code: str) -> None:
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["steered"].shape == (2, 16)  # type: ignore[attr-defined]
