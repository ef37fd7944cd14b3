"""`python -m tests.many OUTPUT`: one toy run on one, two and four processes, as DDP and sharded; what differs.

Also: labels made online and distillation with two sharded processes, and a run begun by four sharded processes and
ended by two. Writes `curves.json` (every loss at every step) and `table.md` into OUTPUT.
"""

import argparse
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from cocomix.artifacts import write_json, write_text
from cocomix.cli import main as cli
from cocomix.runtime.stopping import STATUS
from cocomix.training.recipe import save_recipe
from tests.many.child import stop_after
from tests.many.cpu_shards import allow_cpu_shards
from tests.many.launches import curve, difference, forked
from tests.workshop import BLOCK, CONCEPTS, Workshop

BLOCKS_PER_STEP = 16
LIMIT = 1e-4


class Table:
    """Runs and how far each is from the run on one process."""

    def __init__(self, folder: Path, workshop: Workshop, steps: int, output: Path) -> None:
        self.folder, self.workshop, self.steps, self.output = folder, workshop, steps, output
        self.curves: dict[str, Any] = {}
        self.lines: list[str] = []
        self.worst = 0.0

    def recipe(self, name: str, processes: int, fsdp: bool, changes: dict[str, Any]) -> Path:
        training = {
            "logging_steps": 1,
            "eval_steps": self.steps,
            "save_steps": self.steps,
            "learning_rate": 1e-3,
            "per_device_train_batch_size": BLOCKS_PER_STEP // processes,
            "max_steps": self.steps,
            "fsdp": fsdp,
        }
        path = self.folder / f"{name}.yaml"
        values = self.workshop.recipe("cocomix", name="run", tokens=None, training=training, **changes)
        save_recipe(values, path)
        return path

    def train(self, name: str, processes: int, fsdp: bool, stop: int | None = None, **changes: Any) -> Path:
        """Train, or go on with a run begun under the same name; `stop` ends it after that step."""
        recipe, run = self.recipe(name, processes, fsdp, changes), self.folder / name

        def work() -> None:
            allow_cpu_shards()
            if stop is not None:
                stop_after(stop)
            sys.argv = ["cocomix", "train", str(recipe), "--output", str(run), "--quiet"]
            cli()

        statuses = forked(work, processes)
        assert statuses == [0 if stop is None else STATUS] * processes, (name, statuses)
        return run

    def add(self, title: str, processes: str, run: Path, reference: Path) -> None:
        """Compare a run, and write everything known so far."""
        found = difference(run, reference)
        self.worst = max(self.worst, found)
        names = [name for name in ("ntp_loss", "concept_loss", "kd_loss") if curve(run, name)]
        self.curves[run.name] = {name: curve(run, name) for name in names}
        self.lines.append(f"| {title} | {processes} | {curve(run, 'ntp_loss')[-1]:.6f} | {found:.1e} |")
        sys.stderr.write(self.lines[-1] + "\n")
        text = [
            f"`python -m tests.many OUTPUT --steps {self.steps}`, torch {version('torch')}, transformers "
            f"{version('transformers')}, gloo on CPUs, float32, AdamW at 1e-3, {BLOCKS_PER_STEP} blocks of {BLOCK} "
            "tokens a step. The last step of an epoch has one block: all processes but one have nothing to predict.",
            "The difference is the largest of any loss term at any step from the run on one process.",
            "",
            "| run | processes | last next-token loss | difference |",
            "|---|---|---|---|",
            *self.lines,
        ]
        write_text(self.output / "table.md", "\n".join(text) + "\n")
        write_json(self.output / "curves.json", self.curves)


def measure(table: Table, counts: list[int]) -> None:
    """Fill the table."""
    workshop, half = table.workshop, table.steps // 2
    reference = table.folder / "ddp-1"
    for processes in counts:
        for fsdp in (False, True)[: min(processes, 2)]:  # one process has nothing to share
            run = table.train(f"{'fsdp' if fsdp else 'ddp'}-{processes}", processes, fsdp)
            table.add("FSDP2" if fsdp else "DDP", str(processes), run, reference)
    run = table.train("resumed", 4, True, stop=half)
    table.train("resumed", 2, True)
    table.add(f"FSDP2, stopped after step {half}", "4, then 2", run, reference)
    teacher = {"model": str(workshop.teacher), "layer": 1}
    labels = {"path": None, "kind": "attribution", "teacher": teacher, "dictionary": {"path": str(workshop.dictionary)}}
    taught = {
        "labels": labels,
        "teacher": teacher,
        "model": {"num_concepts": CONCEPTS},
        "distillation": {"weight": 0.5},
    }
    for processes, fsdp in ((1, False), (2, True)):
        run = table.train(f"taught-{processes}", processes, fsdp, **taught)
        title = f"{'FSDP2' if fsdp else 'DDP'}, labels online and distillation"
        table.add(title, str(processes), run, table.folder / "taught-1")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.many", description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        workshop = Workshop(Path(folder) / "workshop")
        assert forked(lambda: make(workshop), 1) == [0]
        table = Table(Path(folder), finished(workshop.folder), asked.steps, asked.output)
        measure(table, asked.processes)
    if table.worst > LIMIT:
        sys.exit(f"the largest difference is {table.worst:.1e}, above {LIMIT:.0e}")


def make(workshop: Workshop) -> None:
    """Everything runs need. In a fork: what trains leaves accelerate's state behind."""
    workshop.folder.mkdir()
    assert workshop.labels.is_dir()


def finished(folder: Path) -> Workshop:
    """The workshop that another process made there."""
    workshop = Workshop(folder)
    for name in ("data", "teacher", "dictionary", "labels"):
        vars(workshop)[name] = folder / name  # what a cached property would hold
    return workshop


if __name__ == "__main__":
    main()
