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

from cocomix.config import save_recipe
from cocomix.output import write_json, write_text
from tests.many.launches import curve, difference, launched
from tests.workshop import BLOCK, CONCEPTS, Workshop

BLOCKS_PER_STEP = 16
LIMIT = 1e-4


class Table:
    """Runs and how far each is from the run on one process."""

    def __init__(self, folder: Path, workshop: Workshop, steps: int) -> None:
        self.folder, self.workshop, self.steps = folder, workshop, steps
        self.curves: dict[str, Any] = {}
        self.lines: list[str] = []
        self.worst = 0.0

    def recipe(self, name: str, processes: int, **changes: Any) -> Path:
        training = {
            "logging_steps": 1,
            "eval_steps": self.steps,
            "save_steps": self.steps,
            "learning_rate": 1e-3,
            "per_device_train_batch_size": BLOCKS_PER_STEP // processes,
            **changes.pop("training", {}),
            "max_steps": self.steps,
        }
        path = self.folder / f"{name}.yaml"
        save_recipe(self.workshop.recipe("cocomix", name="run", tokens=None, training=training, **changes), path)
        return path

    def add(self, title: str, processes: str, run: Path, reference: Path) -> None:
        found = difference(run, reference)
        self.worst = max(self.worst, found)
        names = [name for name in ("ntp_loss", "concept_loss", "kd_loss") if curve(run, name)]
        self.curves[run.name] = {name: curve(run, name) for name in names}
        last = curve(run, "ntp_loss")[-1]
        self.lines.append(f"| {title} | {processes} | {last:.6f} | {found:.1e} |")
        sys.stderr.write(self.lines[-1] + "\n")


def measure(folder: Path, steps: int, counts: list[int]) -> Table:
    workshop = Workshop(folder / "workshop")
    workshop.folder.mkdir()
    table = Table(folder, workshop, steps)
    reference = folder / "ddp-1"
    for kind in ("ddp", "fsdp"):
        for processes in counts:
            run = folder / f"{kind}-{processes}"
            recipe = table.recipe(run.name, processes, training={"fsdp": kind == "fsdp"})
            launched(["train", recipe, "--output", run], processes, timeout=3000)
            table.add("DDP" if kind == "ddp" else "FSDP2", str(processes), run, reference)
    taught = {
        "labels": "online",
        "teacher": {"model": str(workshop.teacher), "layer": 1},
        "dictionary": {"path": str(workshop.dictionary)},
        "model": {"num_concepts": CONCEPTS},
        "distillation": {"weight": 0.5},
    }
    for processes in (1, 2):
        run = folder / f"taught-{processes}"
        recipe = table.recipe(run.name, processes, training={"fsdp": processes > 1}, **taught)
        launched(["train", recipe, "--output", run], processes, timeout=3000)
        kind = "FSDP2" if processes > 1 else "DDP"
        table.add(f"{kind}, labels online and distillation", str(processes), run, folder / "taught-1")
    run = folder / "resumed"
    first = table.recipe("begun", 4, training={"fsdp": True})
    launched([steps // 2, "train", first, "--output", run], 4, module="tests.many.child", status=1, timeout=3000)
    second = table.recipe("ended", 2, training={"fsdp": True})
    launched(["train", second, "--output", run], 2, timeout=3000)
    table.add(f"FSDP2, stopped after step {steps // 2}", "4, then 2", run, reference)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.many", description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        table = measure(Path(folder), asked.steps, asked.processes)
    asked.output.mkdir(parents=True, exist_ok=True)
    write_json(asked.output / "curves.json", table.curves)
    text = [
        f"`python -m tests.many OUTPUT --steps {asked.steps}`, torch {version('torch')}, transformers "
        f"{version('transformers')}, gloo on CPUs, float32, AdamW at 1e-3, {BLOCKS_PER_STEP} blocks of {BLOCK} tokens "
        "a step. The last step of an epoch has one block: all processes but one have nothing to predict in it.",
        "The difference is the largest of any loss term at any step from the run on one process.",
        "",
        "| run | processes | last next-token loss | difference |",
        "|---|---|---|---|",
        *table.lines,
    ]
    write_text(asked.output / "table.md", "\n".join(text) + "\n")
    if table.worst > LIMIT:
        sys.exit(f"the largest difference is {table.worst:.1e}, above {LIMIT:.0e}")


if __name__ == "__main__":
    main()
