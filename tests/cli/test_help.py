"""What the command line says of itself: one screen, a story, an example for every verb, and the same options."""

import re
import shlex
from typing import Any

import pytest
import transformers
import typer

from cocomix.cli import app
from cocomix.cli.story import CHAPTERS
from tests.command_line import Cli
from tests.workshop import Workshop

GROUP: Any = typer.main.get_command(app)
VERBS: dict[str, Any] = GROUP.commands
SILENT = {"explore", "consolidate"}  # they report nothing: a server, and a folder


def options(verb: str) -> set[str]:
    return {flag for parameter in VERBS[verb].params for flag in parameter.opts}


def examples(verb: str) -> list[str]:
    """The commands of the example lines."""
    lines = re.findall(r"\[dim\]Example: (.*)\[/dim\]", VERBS[verb].help)
    return [command.strip() for line in lines for command in line.split(";")]


def test_the_help_is_one_screen(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = cli("--help").out.splitlines()
    assert 24 <= len(lines) <= 40
    assert max(map(len, lines)) <= 80
    for verb, command in VERBS.items():  # nothing wraps
        summary = command.help.splitlines()[0]
        assert any(line.rstrip().endswith(f" {summary}") and f" {verb} " in line for line in lines), verb


def test_it_tells_a_story(cli: Cli) -> None:
    assert sorted(verb for verbs in CHAPTERS.values() for verb in verbs) == sorted(VERBS)
    rows = [line[len("Look inside ") :].split(" ")[0] for line in cli("--help").out.splitlines()]
    assert [row for row in rows if row in VERBS] == [verb for verbs in CHAPTERS.values() for verb in verbs]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_an_example_that_can_be_given(verb: str) -> None:
    """Parsed, not run: no verb, argument or option in it is misspelt."""
    given = examples(verb)
    assert given[0].startswith(f"cocomix {verb}")
    for command in given:
        program, name, *arguments = shlex.split(command)
        assert program == "cocomix"
        VERBS[name].make_context(name, arguments)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_takes_the_same_options(verb: str) -> None:
    assert {"--quiet", "-q", "--verbose", "-v"} <= options(verb)
    assert ("--json" in options(verb)) is (verb not in SILENT)


def test_colours_can_be_switched_off(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    coloured = re.compile("\x1b\\[[\\d;]*3[0-7]")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert coloured.search(cli("--help").out)
    assert coloured.search(cli("eval", "nowhere", status=1).err)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not coloured.search(cli("--help").out)
    assert not coloured.search(cli("eval", "nowhere", status=1).err)


def test_verbose_shows_where_an_error_came_from(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cocomix.cli import main

    message = cli("eval", "nowhere", status=1).err
    monkeypatch.setattr("sys.argv", ["cocomix", "eval", "nowhere", "--verbose"])
    with pytest.raises(SystemExit):
        main()
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith(message)


def test_verbose_lets_the_libraries_speak(cli: Cli) -> None:
    heard = []
    for flags in ((), ("-v",), ()):
        cli("init", "--json", *flags)
        heard.append((transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()))
    quiet, loud = (transformers.logging.ERROR, False), (transformers.logging.INFO, True)
    assert heard == [quiet, loud, quiet]


def test_quiet_leaves_the_exit_status(cli: Cli, workshop: Workshop) -> None:
    assert cli("verify", workshop.data, "-q").out == ""
    text = cli("generate", workshop.ntp_run, "the list", "--max-new-tokens", 2, "-q")
    assert text.out.startswith("the list")
    assert text.err == ""


@pytest.mark.parametrize(("words", "expected"), [("cocomix stee", "steer-eval"), ("cocomix train --dry", "--dry-run")])
def test_the_shell_completes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, expected: str
) -> None:
    monkeypatch.setenv("_COCOMIX_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    with pytest.raises(SystemExit) as caught:
        GROUP.main(args=[], prog_name="cocomix")
    assert caught.value.code == 0
    assert capsys.readouterr().out.split() == [expected]
