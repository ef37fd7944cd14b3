"""The long run: every target's share of the cases, and a table of what became of them."""

import argparse
import json
import resource
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch
from transformers.utils import logging

from cocomix.artifacts import whole_folder, write_json, write_text
from tests.fuzz.cases import SECONDS, Outcome, run_target
from tests.fuzz.files import FILES
from tests.fuzz.numbers import NUMBERS
from tests.workshop import Workshop

TARGETS = (*NUMBERS, *FILES)
ADDRESS_SPACE = 16 * 2**30
"""Bytes. A file that asks for more memory than there is must end in a sentence too, and not take the machine along."""


def main() -> int:
    """Run and write `summary.json` and `README.md`; 1 if a case failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    shares = sum(target.share for target in TARGETS)
    started, outcomes = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as scratch, whole_folder(arguments.output) as folder:
        workshop = Workshop(Path(scratch) / "workshop")
        for number, target in enumerate(TARGETS):
            cases = -(-arguments.cases * target.share // shares)
            outcome = run_target(
                target, workshop, Path(scratch) / str(number), cases=cases, seed=arguments.seed + number
            )
            outcomes.append(outcome)
            sys.stderr.write(json.dumps(asdict(outcome)) + "\n")
        seconds = time.perf_counter() - started
        values = {"seed": arguments.seed, "cases": sum(each.cases for each in outcomes), "seconds": round(seconds)}
        write_json(folder / "summary.json", {**values, "targets": [asdict(each) for each in outcomes]})
        write_text(folder / "README.md", _table(outcomes, arguments.cases, arguments.seed, seconds))
    return any(each.failure for each in outcomes)


def _table(outcomes: list[Outcome], cases: int, seed: int, seconds: float) -> str:
    rows = [
        f"| {each.target} | {each.cases:,} | {each.refused:,} | {'yes' if each.failure else 'none'} |"
        for each in outcomes
    ]
    failures = [f"## {each.target}\n\n```text\n{each.failure}\n```\n" for each in outcomes if each.failure]
    return "\n".join(
        [
            "# Fuzzing",
            "",
            f"`python -m tests.fuzz --cases {cases} --seed {seed}`: {sum(each.cases for each in outcomes):,} cases, "
            f"{seconds / 60:.0f} minutes. A case fails by any error that is not one sentence, by computing longer than "
            f"{SECONDS} seconds, by a broken invariant or by something half written.",
            "",
            "| input | cases | refused in a sentence | failures |",
            "|---|---:|---:|---|",
            *rows,
            "",
            *failures,
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
