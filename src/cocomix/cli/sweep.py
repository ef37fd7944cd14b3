"""The verb `sweep`: arms × seeds from a plan."""

import re
from pathlib import Path
from typing import Annotated

import typer

from cocomix.cli.printing import Printed, table
from cocomix.runtime.errors import CoCoMixError


def sweep(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="YAML file; see recipes/paper_cpu.yaml.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Sweep folder; default sweeps/PLAN.")] = None,
    fast: Annotated[bool, typer.Option("--fast", help="A few steps of every arm, at the plan's fast: sizes.")] = False,
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="Shorten all runs alike to fit, e.g. 600s, 30min or 8h.")
    ] = None,
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
    seconds = None if budget is None else _seconds(budget)
    result = run_sweep(load_plan(plan, output, fast=fast), workers=jobs, budget=seconds)
    if result.comparison is not None:
        return Printed(result.to_json(), shown(result.comparison))
    missing = CoCoMixError(
        f"{len(result.missing)} of {len(result.jobs)} runs are missing ({', '.join(result.missing)}), so there is no "
        "report; mend what stopped them and give the command again."
    )
    rows = [(run["arm"], str(run["seed"]), run["status"], run["error"] or "") for run in result.to_json()["runs"]]
    return Printed(result.to_json(), table(rows, "arm", "seed", "state", "reason", state=2), missing)


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|h)", text.strip())
    if found is None or float(found[1]) == 0:
        raise typer.BadParameter(f"{text!r} is no length of time; give for example 600s, 30min or 8h.")
    return float(found[1]) * {"s": 1, "min": 60, "h": 3600}[found[2]]
