"""Kill every stage at random moments, resume it, and compare the result with that of an uninterrupted run.

    python -m tests.kill --kills 50 --seed 0

Exit status 1 if anything differs. The same seed draws the same moments, as shares of what a stage takes; where in the
work they fall depends on the machine.
"""

import os

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # read when torch is imported
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import random
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from cocomix.artifacts import write_json, write_text
from tests.kill.processes import run
from tests.kill.stages import Stage, World, contents, litter

MOST_KILLS = 3
"""Of one command, before it may end."""
_SHARE = 0.9
"""Of the uninterrupted seconds: a resumed command has less to do, and one that is over cannot be killed."""
_SAVING_SECONDS = 0.02
"""About what a checkpoint takes at this size."""


@dataclass
class Tally:
    """What happened to one stage.

    Attributes:
        seconds: the uninterrupted command took.
        runs: outputs made under kills.
        kills: SIGKILLs that hit a running command.
        in_checkpoint: of these, while a checkpoint was being written.
        lost: what differed afterwards, one line each.
    """

    seconds: float
    runs: int = 0
    kills: int = 0
    in_checkpoint: int = 0
    lost: list[str] = field(default_factory=list)


def main(
    kills: Annotated[int, typer.Option(min=1, help="SIGKILLs that must hit a running command.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the moments.")] = 0,
    stage: Annotated[list[str] | None, typer.Option(help="Kill only this one; repeatable.")] = None,
    output: Annotated[Path, typer.Option(help="Folder of the summary.")] = Path("results/faults"),
) -> None:
    """Kill, resume, compare."""
    console, draw = Console(), random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="cocomix-kill-") as place:
        world = World(Path(place))
        log = world.folder / "log.txt"
        stages: dict[str, Stage] = {}
        tallies: dict[str, Tally] = {}
        for made in world.stages():
            chosen = stage is None or made.name in stage
            if not chosen and not made.needed:
                continue
            whole = world.made(made.name)
            made.set_up(whole)
            ended = run(made.command(whole), log)
            if ended.status != 0:
                raise SystemExit(f"{made.name} fails without being killed:\n{log.read_text(encoding='utf-8')[-2000:]}")
            if chosen:
                stages[made.name], tallies[made.name] = made, Tally(ended.seconds)
        while (left := kills - sum(tally.kills for tally in tallies.values())) > 0:
            name = min(tallies, key=lambda name: (tallies[name].kills, tallies[name].runs))
            _one_output(stages[name], tallies[name], world, left, draw, log)
            console.print(f"{kills - left + 1:>3}/{kills} {name}", highlight=False)
    summary = {
        "command": f"python -m tests.kill --kills {kills} --seed {seed}",
        "date": time.strftime("%Y-%m-%d"),
        "versions": {name: version(name) for name in ("cocomix", "torch", "transformers", "sae-lens")},
        "stages": {name: asdict(tally) for name, tally in tallies.items()},
    }
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "kills.json", summary)
    page = _page(summary)
    write_text(output / "kills.md", page)
    console.print(page, highlight=False, markup=False)
    if any(tally.lost for tally in tallies.values()):
        raise SystemExit(1)


def _one_output(stage: Stage, tally: Tally, world: World, most: int, draw: random.Random, log: Path) -> None:
    """Make one output under one to three kills, and compare it."""
    output = world.folder / "killed" / stage.name / "out"
    stage.set_up(output)
    planned = draw.randint(1, min(MOST_KILLS, most))
    tally.runs += 1
    while True:
        ended = run(stage.command(output), log, _moment(stage, output, tally.seconds, draw) if planned else None)
        if not ended.killed:
            break
        tally.kills += 1
        tally.in_checkpoint += stage.writes_checkpoint(output)
        planned -= 1
    if ended.status != 0:
        last = log.read_text(encoding="utf-8").strip().splitlines()[-1]
        tally.lost.append(f"the resumed command ended with status {ended.status}: {last}")
    else:
        found, expected = contents(output), contents(world.made(stage.name))
        differing = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        tally.lost += [f"{name} differs" for name in differing] + [f"{name} is left over" for name in litter(output)]
    shutil.rmtree(output.parent)


def _moment(stage: Stage, output: Path, seconds: float, draw: random.Random) -> Callable[[float], bool]:
    """When to kill: at a random moment, or some milliseconds into the first checkpoint after one."""
    moment = draw.uniform(0, _SHARE * seconds)
    if not stage.in_checkpoint:
        return lambda passed: passed >= moment
    delay, seen = draw.uniform(0, _SAVING_SECONDS), []

    def due(passed: float) -> bool:
        if not seen and passed >= moment and stage.writes_checkpoint(output):
            seen.append(passed)
        return bool(seen) and passed >= seen[0] + delay

    return due


def _page(summary: dict[str, Any]) -> str:
    """The summary as Markdown."""
    stages: dict[str, dict[str, Any]] = summary["stages"]
    versions = ", ".join(f"{name} {number}" for name, number in summary["versions"].items())
    lines = [
        "# Killed at random moments",
        "",
        f"`{summary['command']}`, {summary['date']}, {versions}; toy sizes, one CPU process.",
        "",
        "Every command was ended by SIGKILL at random moments, started again until it was done, and its output",
        "compared file by file with that of an uninterrupted command: bytes of weights, tokens, labels and",
        "dictionaries, JSON without times and speeds.",
        "",
        "| stage | uninterrupted, s | outputs | kills | in a checkpoint | lost |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, tally in stages.items():
        lines.append(
            f"| {name} | {tally['seconds']:.1f} | {tally['runs']} | {tally['kills']} | {tally['in_checkpoint']} "
            f"| {len(tally['lost'])} |"
        )
    total = {key: sum(tally[key] for tally in stages.values()) for key in ("runs", "kills", "in_checkpoint")}
    lost = [f"{name}: {line}" for name, tally in stages.items() for line in tally["lost"]]
    lines += [f"| together | | {total['runs']} | {total['kills']} | {total['in_checkpoint']} | {len(lost)} |", ""]
    return "\n".join(lines + [f"- {line}" for line in lost]) + "\n"


if __name__ == "__main__":
    typer.run(main)
