"""What the command line says of itself: panels, examples, common options, and how soon."""

import os
import re
import shlex
import subprocess
import sys
import types
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer

import cocomix.cli
from cocomix.cli import app
from cocomix.cli.application import VERBS as PANELS
from cocomix.cli.printing import Printed
from tests.command_line import Cli
from tests.workshop import Workshop

GROUP: Any = typer.main.get_command(app)
VERBS: dict[str, Any] = GROUP.commands
HELPERS = {"application", "failures", "job_options", "options", "printing"}
SILENT = {"explore"}  # it reports nothing: a server


def options(verb: str) -> set[str]:
    return {flag for parameter in VERBS[verb].params for flag in parameter.opts}


def examples(verb: str) -> list[str]:
    """The commands of the example lines."""
    lines = re.findall(r"\[dim\]Example: (.*)\[/dim\]", VERBS[verb].help)
    return [command.strip() for line in lines for command in line.split(";")]


def test_the_help_lists_every_verb_in_its_panel(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = cli("--help").out.splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line.strip("│╭╰─╮╯ ").split("  ") for line in lines]
    found = [row[0] for row in rows if row[0] in PANELS or row[0] in VERBS]
    assert found == [name for panel, verbs in PANELS.items() for name in (panel, *verbs)]
    for verb, command in VERBS.items():  # nothing wraps
        assert [verb, command.help.splitlines()[0]] in [[row[0], row[-1].strip()] for row in rows]


def test_the_paragraphs_of_a_help_flow(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for verb in ("atlas", "export", "init"):  # the docstring's own line breaks are those of a wider page
        told = cli(verb, "--help").out.split("Example:")[0].splitlines()
        paragraph = [line.strip() for line in told if line.strip()][2:]
        for line, after in pairwise(paragraph):
            assert len(f"{line} {after.split()[0]}") > 78


def test_no_name_to_type_is_cut_in_a_terminal_of_80_columns(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert "COCOMIX_EXPLORER_PASSWORD" in cli("explore", "--help").out


def test_a_verb_is_a_file_of_its_name() -> None:
    files = {path.stem for path in Path(cocomix.cli.__file__).parent.glob("*.py")}
    assert {verb.replace("-", "_") for verb in VERBS} == {name.rstrip("_") for name in files - {"__init__"} - HELPERS}


def test_a_verb_is_added_by_its_file_and_a_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def hello(name: str) -> Printed:
        """Greet somebody."""
        return Printed({"greeted": name}, f"hello {name}")

    module = types.ModuleType("cocomix.cli.hello")
    hello.__module__, module.hello = "cocomix.cli.hello", hello  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cocomix.cli.hello", module)
    monkeypatch.setitem(PANELS, "Begin", (*PANELS["Begin"], "hello"))
    assert "Greet somebody." in cli("--help").out
    assert cli("hello", "world").out == "hello world\n"
    assert cli("hello", "world", "--json", "-q").out == '{"greeted": "world"}\n'


ALL_HELP = """
import sys
from cocomix.cli import main

for verb in sys.argv[1:]:
    sys.argv = ["cocomix", *filter(None, [verb]), "--help"]
    try:
        main()
    except SystemExit as done:
        assert not done.code
print("HEAVY", *sorted({"torch", "transformers", "datasets", "numpy", "pyarrow", "fsspec"} & set(sys.modules)))
"""


def test_help_imports_nothing_heavy() -> None:
    command = [sys.executable, "-c", ALL_HELP, "", *VERBS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (("trian", "recipe.yaml"), "train"),
        (("steer_eval", "run"), "steer-eval"),
        (("lable", "data"), "label"),
        (("plan", "recipe.yaml", "--second"), "--seconds"),
        (("label", "data", "--techer", "x"), "--teacher"),
    ],
)
def test_a_misspelt_verb_or_option_is_answered_with_the_right_one(
    cli: Cli, given: tuple[str, ...], meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    err = cli(*given, status=2).err
    assert re.search(f"(Did you mean|Possible options).*{meant}", err), err


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


HEARD = """
import sys
from cocomix.cli import main
import cocomix.cli.runs

def runs() -> None:
    import datasets, transformers

    bars = transformers.logging.is_progress_bar_enabled(), datasets.are_progress_bars_disabled()
    print(transformers.logging.get_verbosity(), *bars)

runs.__module__, cocomix.cli.runs.runs = "cocomix.cli.runs", runs
sys.argv = ["cocomix", "runs", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize(("flags", "heard"), [((), "40 False True"), (("--verbose",), "20 True False")])
def test_verbose_lets_the_libraries_speak(flags: tuple[str, ...], heard: str) -> None:
    environment = {name: value for name, value in os.environ.items() if "PROGRESS_BARS" not in name}
    command = [sys.executable, "-c", HEARD, *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == heard


def test_quiet_leaves_the_exit_status(cli: Cli, workshop: Workshop) -> None:
    assert cli("verify", workshop.data, "-q").out == ""
    text = cli("generate", workshop.ntp_run, "the list", "--max-new-tokens", 2, "-q")
    assert text.out.startswith("the list")
    assert text.err == ""


@pytest.mark.parametrize(("words", "expected"), [("cocomix stee", "steer-eval"), ("cocomix plan --sec", "--seconds")])
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
