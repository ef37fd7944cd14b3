"""The application behind `cocomix`: its errors, its output, and the options that verbs share."""

import errno
import inspect
import json
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cocomix.cli.story import story
from cocomix.runtime.allocator import keep_freed_memory
from cocomix.runtime.console import set_up_logging
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.processes import first_to_fail
from cocomix.runtime.stopping import STATUS, Terminated, termination_raised
from cocomix.training.recipe import describe_validation_error

__all__ = ["AsJson", "DataFolder", "Output", "Quiet", "RunFolder", "app", "main", "print_json", "print_table"]


class _Interrupted(Exception):
    """Ctrl-C in a command, which Typer would turn into a bare exit status."""


class _Commands(typer.core.TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _Interrupted from None

    def format_help(self, ctx: Any, formatter: Any) -> None:
        summaries = {name: (command.help or "").split("\n", 1)[0] for name, command in self.commands.items()}
        opening = f"{' '.join(self.get_usage(ctx).split())}\n\n{self.help}"
        Console().print(story(opening, summaries), highlight=False)


Verb = TypeVar("Verb", bound=Callable[..., Any])


class _Application(typer.Typer):
    """Gives every verb `--verbose`."""

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Verb], Verb]:
        def register(verb: Verb) -> Verb:
            super(_Application, self).command(name, **settings)(_with_verbose(verb))
            return verb

        return register


Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Let the libraries underneath speak, and show where an error came from.")
]


def _with_verbose(verb: Callable[..., Any]) -> Callable[..., None]:
    """A verb that also takes `--verbose`."""

    @wraps(verb)
    def run(*, verbose: bool, **values: Any) -> None:
        if verbose:
            _let_libraries_speak(True)
        try:
            verb(**values)
        except ValueError:  # a `CoCoMixError`, or a setting that pydantic refuses
            if verbose:
                traceback.print_exc()
            raise

    signature = inspect.signature(verb)
    added = inspect.Parameter("verbose", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Verbose)
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), added])  # type: ignore[attr-defined]
    run.__annotations__ = {**verb.__annotations__, "verbose": Verbose}
    return run


app = _Application(
    name="cocomix",
    cls=_Commands,
    subcommand_metavar="VERB [ARGUMENTS]",
    help="Pretrain language models that predict and mix continuous concepts.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(version("cocomix"))
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the verb."""


def _set_quiet(quiet: bool) -> bool:
    set_up_logging(quiet=quiet)
    return quiet


Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write; must not exist yet.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say only what went wrong.", callback=_set_quiet)]
DataFolder = Annotated[Path, typer.Argument(metavar="DATA", help="Folder written by `cocomix prepare`.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder written by `cocomix train`.")]


def main() -> None:
    """Run the command line; a user's mistake ends in one sentence and exit status 1, Ctrl-C in 130, SIGTERM in 143."""
    try:
        keep_freed_memory()
        set_up_logging()
        _let_libraries_speak(False)
        with termination_raised():
            app()
    except (KeyboardInterrupt, _Interrupted):
        _fail("stopped by Ctrl-C; run the same command again to go on from what is finished.", 130)
    except Terminated as stopped:
        _fail(f"stopped by SIGTERM; {stopped.kept}; run the same command again to go on.", STATUS)
    except CoCoMixError as error:
        _fail(str(error), 1)
    except ValidationError as error:
        _fail(f"{describe_validation_error(error)}.", 1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        where = error.filename or "the output folder"
        _fail(f"cannot write {where}: {error.strerror}; make room or choose another --output, and run again.", 1)
    except Exception:
        if first_to_fail():
            raise
        sys.exit(1)  # this process lost another one, which has said why


def _fail(message: str, status: int) -> NoReturn:
    if first_to_fail():
        Console(stderr=True).print(f"[red]error:[/red] {escape(message)}", highlight=False, soft_wrap=True)
    sys.exit(status)


def _let_libraries_speak(speak: bool) -> None:
    """Whether the libraries underneath say more than errors, and show bars: this command tells what it does itself."""
    import datasets
    import transformers

    if speak:
        transformers.logging.set_verbosity_info()
        transformers.logging.enable_progress_bar()
        datasets.enable_progress_bars()
    else:
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        datasets.disable_progress_bars()


def print_table(values: dict[str, Any]) -> None:
    """Two columns, name and value, on standard output."""
    table = Table(show_header=False, box=None)
    for name, value in values.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int | float) else str(value))
    Console().print(table)


def print_json(value: Any) -> None:
    """One JSON object (or list) on standard output, for scripts."""
    typer.echo(json.dumps(value, ensure_ascii=False))
