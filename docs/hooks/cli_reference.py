"""The page of the command line, from the application itself."""

import re
from typing import Any

import typer
from rich.text import Text

from cocomix.cli.application import VERBS

__all__ = ["cli_page"]


def cli_page(app: typer.Typer) -> str:
    """Markdown: every verb with its description, usage, examples, arguments and options."""
    group = typer.main.get_command(app)
    parts = []
    for panel, verbs in VERBS.items():
        parts += [f"## {panel}", *(_verb(name, group.commands[name]) for name in verbs)]
    return "\n\n".join(
        [
            "# Command line",
            "Made from the application when this site was built; `cocomix VERB --help` says the same in a terminal. "
            "A user's mistake ends in one sentence on standard error and exit status 1, Ctrl-C in 130, SIGTERM in 143.",
            _paragraphs(group.help or ""),
            *parts,
            "",
        ]
    )


def _verb(name: str, command: Any) -> str:
    context = typer.Context(command, info_name=f"cocomix {name}")
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option"]
    names = [_name(each) if each.required else f"[{_name(each)}]" for each in arguments]
    usage = " ".join([f"cocomix {name} [OPTIONS]", *names])
    parts = [f"### cocomix {name}", f"```text\n{usage}\n```", _paragraphs(f"{command.help}\n\n{command.epilog or ''}")]
    if arguments:
        rows = [
            (f"`{_name(each)}`", _plain(each.help), "" if each.required else "may be left out") for each in arguments
        ]
        parts.append(_table(("argument", "meaning", ""), rows))
    if options:
        rows = [(f"`{_flags(each, context)}`", _plain(each.help), _default(each, context)) for each in options]
        parts.append(_table(("option", "meaning", "default"), rows))
    return "\n\n".join(parts)


def _paragraphs(text: str) -> str:
    """Help text as Markdown; the lines that start with "Example:" become one code block."""
    prose, examples = [], []
    for paragraph in re.split(r"\n\s*\n", text.replace("\f", "")):
        plain = _plain(paragraph)
        if plain.startswith("Example"):
            examples += [command.strip() for command in plain.split(":", 1)[1].split("; cocomix")]
        elif plain:
            prose.append(plain)
    if examples:
        lines = [line if line.startswith("cocomix") else f"cocomix {line}" for line in examples]
        prose.append("```bash\n" + "\n".join(lines) + "\n```")
    return "\n\n".join(prose)


def _plain(text: str | None) -> str:
    """Without the markup of the terminal, on one line."""
    return " ".join(Text.from_markup(text or "").plain.split())


def _name(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper()).strip("[]")


def _flags(option: Any, context: typer.Context) -> str:
    return re.sub(r"<list\[(\w+)\]>", r"<\1>", option.get_help_record(context)[0])


def _default(option: Any, context: typer.Context) -> str:
    if option.required:
        return "required"
    value = option.get_default(context)
    if value is None or value is False or value in ((), []):
        return ""
    return "on" if value is True else f"`{value}`"


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(cell: Any) -> str:
    return str(cell or "").replace("|", "\\|").replace("\n", " ")
