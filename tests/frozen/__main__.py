"""`python -m tests.frozen` records; `python -m tests.frozen --check` compares and prints a table."""

import argparse
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
import typer

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

from tests.frozen import comparison
from tests.frozen.world import World


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.frozen", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with what is recorded; status 1 if it differs")
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"only {', '.join(comparison.KINDS)}; default: all")
    options = parser.parse_args()
    kinds = options.kinds or list(comparison.KINDS)
    if unknown := set(kinds) - set(comparison.KINDS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if "golden" in kinds and not comparison.golden_is_there():
        if not options.check:
            parser.error("the golden files are not here; set COCOMIX_GOLDEN to their folder")
        kinds.remove("golden")
        typer.echo("golden   left out: the files are not here; set COCOMIX_GOLDEN to their folder")
    torch.set_num_threads(1)  # as in tests/conftest.py: sums depend on the number of threads
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="cocomix-frozen-") as folder:
        world = World(Path(folder))
        return _check(world, kinds) if options.check else _record(world, kinds)


def _record(world: World, kinds: list[str]) -> int:
    for kind in kinds:
        started = time.perf_counter()
        comparison.record(world, kind)
        typer.echo(
            f"{kind:8} {len(comparison.KINDS[kind].names):3} cases recorded in {time.perf_counter() - started:.1f} s"
        )
    comparison.record_machine()
    return 0


def _check(world: World, kinds: list[str]) -> int:
    here, there = comparison.this_machine(), comparison.recorded_machine()
    for name in here:
        typer.echo(f"{name:15} {here[name]}" + ("" if here[name] == there[name] else f" (recorded with {there[name]})"))
    different = 0
    for kind in kinds:
        for name in comparison.KINDS[kind].names:
            started = time.perf_counter()
            try:
                verdict = comparison.check(world, kind, name)
            except Exception as error:  # one broken case must not hide the others
                verdict = comparison.Verdict(False, f"{type(error).__name__}: {error}")
            different += not verdict.ok
            mark = "ok  " if verdict.ok else "DIFF"
            typer.echo(f"{mark} {kind:8} {name:24} {time.perf_counter() - started:5.1f} s  {verdict.found}")
    typer.echo(f"{different} cases differ" if different else "nothing differs")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
