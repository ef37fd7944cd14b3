"""The verb `compare`."""

from pathlib import Path
from typing import Annotated

import typer

from cocomix.cli.options import Output
from cocomix.cli.printing import Printed
from cocomix.runtime.console import progress

__all__ = ["compare"]


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, the baseline among them.")],
    output: Output,
    baseline: Annotated[str | None, typer.Option(help="Name of the baseline; default: the nearest NTP run.")] = None,
) -> Printed:
    """Compare runs: a table, curves, and a report page.

    [dim]Example: cocomix compare runs/ntp runs/first --output report[/dim]
    """
    from cocomix.evaluation import Run, recorded_sections, write_report
    from cocomix.evaluation import compare as run

    opened = [Run.open(folder) for folder in runs]
    with progress("comparing", None, "runs"):
        comparison = run(opened, baseline)
    write_report(comparison, output, sections=recorded_sections(opened))
    return Printed(comparison.to_json(), comparison.to_markdown())
