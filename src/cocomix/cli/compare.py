"""The verb `compare`."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from cocomix.cli.options import Output
from cocomix.cli.printing import Printed
from cocomix.runtime.console import progress


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, the baseline among them.")],
    output: Output,
    baseline: Annotated[str | None, typer.Option(help="Name of the baseline; default: the nearest NTP run.")] = None,
    vary: Annotated[
        list[str] | None, typer.Option(metavar="FIELD", help="A recipe field that the comparison is about; repeatable.")
    ] = None,
) -> Printed:
    """Compare runs: what was found, tables, curves, and a report page.

    Runs that differ in more than their arm are refused. Evaluate each with `cocomix eval` before.

    [dim]Example: cocomix compare runs/ntp runs/first --output report[/dim]
    """
    from cocomix.evaluation import Run, shown, write_report
    from cocomix.evaluation import compare as run
    from cocomix.experiments import next_step

    opened = [Run.open(folder) for folder in runs]
    with progress("comparing", None, "runs"):
        comparison = run(opened, baseline, vary or ())
    write_report(comparison, output)
    to_look_at = next((run for run in opened if run.manifest.objective == "cocomix"), opened[0])
    following = shlex.join(["cocomix", "explore", str(to_look_at.path)])
    return Printed(comparison.to_json(), shown(comparison), next=next_step(output) or following)
