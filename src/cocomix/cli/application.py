"""The application behind `cocomix`: imports a verb's module when the verb is asked for, and runs it."""

import inspect
import keyword
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache, wraps
from importlib import import_module
from typing import Annotated, Any

import typer

from cocomix.cli.failures import exit_after
from cocomix.cli.options import AsJson, Example, RunOrExample
from cocomix.cli.printing import Printed
from cocomix.runtime.allocator import keep_freed_memory
from cocomix.runtime.console import set_up_logging
from cocomix.runtime.packaged import packaged_folder
from cocomix.runtime.processes import is_first_process
from cocomix.runtime.stopping import termination_raised

logger = logging.getLogger(__name__)

VERBS: dict[str, tuple[str, ...]] = {
    "Begin": ("demo", "doctor", "init", "plan"),
    "Prepare": ("prepare", "sae", "label", "distill"),
    "Train": ("train", "sweep", "runs"),
    "Compare": ("eval", "compare", "analyse"),
    "Look inside": ("generate", "inspect", "atlas", "steer-eval", "explore"),
    "Keep well": ("verify", "export", "import", "push"),
}
"""Every verb, by the panel of `cocomix --help` it stands in. `steer-eval` is the one public function of the module
`cocomix.cli.steer_eval`; only `import` needs another name, `import_`, because Python keeps the word for itself."""


class _Commands(Mapping[str, Any]):
    """The verbs as Typer's commands, each made from its module when it is looked up."""

    def __getitem__(self, verb: str) -> Any:
        return _command(verb)

    def __iter__(self) -> Iterator[str]:
        return (verb for verbs in VERBS.values() for verb in verbs)

    def __len__(self) -> int:
        return sum(map(len, VERBS.values()))


@cache
def _command(verb: str) -> Any:
    panel = next((panel for panel, verbs in VERBS.items() if verb in verbs), None)
    if panel is None:
        raise KeyError(verb)
    module = import_module(f"cocomix.cli.{verb.replace('-', '_')}{'_' if keyword.iskeyword(verb) else ''}")
    (function,) = (
        value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    )
    alone = typer.Typer(add_completion=False, rich_markup_mode="rich")
    paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    flowing = "\n\n".join(" ".join(lines.splitlines()) for lines in paragraphs)  # Typer keeps line breaks
    alone.command(verb, cls=_Verb, rich_help_panel=panel, help=flowing)(_with_common_options(function))
    return typer.main.get_command(alone)


class _Verb(typer.core.TyperCommand):
    """A verb whose `--example`, if it has one, stands for the folder of the shipped run: its first argument."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        options = args[: args.index("--")] if "--" in args else args
        if "--example" in options and any(parameter.name == "example" for parameter in self.params):
            kept = [word for word in options if word != "--example"]
            args = [str(packaged_folder("first_look") / "student"), *kept, *args[len(options) :]]
        return super().parse_args(ctx, args)


class _Group(typer.core.TyperGroup):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _Commands()  # type: ignore[assignment]  # nobody adds to it

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say only what went wrong.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Let the libraries underneath speak, and show where an error came from.")
]


def _with_common_options(verb: Callable[..., Printed | None]) -> Callable[..., None]:
    """A verb that takes `--quiet`, `--verbose` and, if it gives a result, `--json`.

    A parameter whose type is a dataclass becomes an option for every field. The verb's result is printed, by the first
    process of a launcher alone; its errors end in a sentence and an exit status.
    """
    signature = inspect.signature(verb)
    groups: dict[str, Any] = {
        name: given.annotation for name, given in signature.parameters.items() if is_dataclass(given.annotation)
    }
    parameters = []
    for name, given in signature.parameters.items():
        if name in groups:
            parameters += [_option(field.name, field.type, field.default) for field in fields(groups[name])]
        else:
            parameters.append(_option(name, given.annotation, given.default))
        if given.annotation is RunOrExample:
            parameters.append(_option("example", Example, False))
    if signature.return_annotation in (Printed, Printed | None):
        parameters.append(_option("as_json", AsJson, False))
    parameters += [_option("quiet", Quiet, False), _option("verbose", Verbose, False)]

    @wraps(verb)
    def run(*, quiet: bool, verbose: bool, as_json: bool = False, example: bool = False, **values: Any) -> None:
        set_up_logging(quiet=quiet)
        _let_libraries_speak(verbose)
        try:
            for name, group in groups.items():
                values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
            result = verb(**values)
            if result is not None and is_first_process():
                if result.note is not None:
                    logger.info(result.note)
                result.print(as_json=as_json, quiet=quiet)
                if result.next is not None:
                    logger.info(f"next: {result.next}")
            if result is not None and result.error is not None:
                raise result.error
        except BaseException as error:
            exit_after(error, verbose=verbose)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _option(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    default = inspect.Parameter.empty if default is MISSING else default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _let_libraries_speak(speak: bool) -> None:
    """Set how much the libraries say that the verb is about to import, and those that its worker processes import.

    By environment variables, because importing transformers and datasets to tell them takes four seconds.
    """
    os.environ["TRANSFORMERS_VERBOSITY"] = "info" if speak else "error"
    for library in ("HF_HUB", "HF_DATASETS"):  # transformers' bars follow the hub's
        os.environ[f"{library}_DISABLE_PROGRESS_BARS"] = "0" if speak else "1"


app = typer.Typer(
    name="cocomix",
    cls=_Group,
    subcommand_metavar="VERB [ARGUMENTS]",
    help="Pretrain language models that predict and mix continuous concepts.",
    epilog="`cocomix VERB --help` explains a verb by example.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version  # not above: it takes longer to import than the rest of this package

        typer.echo(version("cocomix"))
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the verb."""


def main() -> None:
    """Run the command line; a user's mistake ends in one sentence and exit status 1, Ctrl-C in 130, SIGTERM in 143."""
    keep_freed_memory()
    with termination_raised():
        app()
