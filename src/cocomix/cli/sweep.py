"""The verb `sweep`: arms × seeds from a plan."""

from pathlib import Path
from typing import Annotated

import typer

from cocomix.cli.printing import Printed, table
from cocomix.runtime.errors import CoCoMixError

__all__ = ["sweep"]


def sweep(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="YAML file; see recipes/paper_cpu.yaml.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Sweep folder; default sweeps/PLAN.")] = None,
    fast: Annotated[bool, typer.Option("--fast", help="A few steps of every arm, at the plan's fast: sizes.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at once, sharing the cores.")] = 1,
) -> Printed:
    """Train and compare all arms and seeds of a plan.

    Finished runs are kept, stopped ones go on, when the same command is given again; `cocomix runs` shows them
    meanwhile. A run that fails does not stop the others; exit status 1 then, and no report.

    [dim]Example: cocomix sweep recipes/paper_cpu.yaml --fast[/dim]
    """
    from cocomix.artifacts import require_local
    from cocomix.evaluation import shown
    from cocomix.experiments import load_plan, run_sweep

    if output is not None:
        require_local(output, "a sweep")
    result = run_sweep(load_plan(plan, output, fast=fast), workers=jobs)
    if result.comparison is not None:
        return Printed(result.to_json(), shown(result.comparison))
    missing = CoCoMixError(
        f"{len(result.missing)} of {len(result.jobs)} runs are missing ({', '.join(result.missing)}), so there is no "
        "report; mend what stopped them and give the command again."
    )
    rows = [(run["arm"], str(run["seed"]), run["status"], run["error"] or "") for run in result.to_json()["runs"]]
    return Printed(result.to_json(), table(rows, "arm", "seed", "state", "reason", state=2), missing)
