"""Speed and memory of cocomix as ratios measured on this machine.

    python -m benchmarks [--device cuda] [--only steps,labels] [--rounds N] [--fast] [--bf16] [--output FOLDER]

Writes DEVICE.json and DEVICE.md after every section, and DEVICE.png at the end. Sections that are not run keep what an
earlier run wrote.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import decoding, growth, heads, labels, memory, parts, steps
from benchmarks.machine import describe_machine
from benchmarks.page import render_page
from benchmarks.plot import draw
from benchmarks.ratios import Section
from benchmarks.settings import Settings
from cocomix.artifacts import read_json, write_json, write_text
from cocomix.runtime.allocator import keep_freed_memory

SECTIONS: dict[str, Callable[[Settings], Section]] = {
    "steps": steps.measure,
    "labels": labels.measure,
    "memory": memory.measure,
    "decoding": decoding.measure,
    "head": parts.measure_head,
    "compression": parts.measure_compression,
    "lm_head": parts.measure_lm_head,
    "heads": heads.measure,
    "growth": growth.measure,
    "compiled": steps.measure_compiled,
}
_ASKED_FOR = {"compiled"}  # a minute or more of compilation for each model


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the sections and write what they say."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    settings = Settings(options.device, options.rounds, options.fast, options.bf16)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"{options.device}.json"
    sections: dict[str, Any] = read_json(path)["sections"] if path.exists() else {}
    begin = time.perf_counter()
    for number, name in enumerate(options.only, start=1):
        print(f"[{number}/{len(options.only)}] {name} …", flush=True)
        sections[name] = _run(name, settings)
        sections = {known: sections[known] for known in SECTIONS if known in sections}
        _write(options.output, options.device, sections)
        elapsed = time.perf_counter() - begin
        print(f"    {sections[name]['seconds']:.0f} s, {elapsed:.0f} s in all", flush=True)
    (options.output / f"{options.device}.png").write_bytes(draw(sections))
    print((options.output / f"{options.device}.md").read_text(encoding="utf-8"))


def _run(name: str, settings: Settings) -> dict[str, Any]:
    """A section's block of the results file."""
    machine = describe_machine(settings.device)
    start = time.perf_counter()
    section = SECTIONS[name](settings)
    return {
        **asdict(section),
        "rounds": settings.rounds,
        "seconds": round(time.perf_counter() - start, 1),
        "date": datetime.now(UTC).date().isoformat(),
        "command": _command(settings, name),
        "machine": machine,
    }


def _command(settings: Settings, only: str) -> str:
    words = ["python", "-m", "benchmarks", "--device", settings.device, "--rounds", str(settings.rounds)]
    words += ["--fast"] * settings.fast + ["--bf16"] * settings.bf16 + ["--only", only]
    return shlex.join(words)


def _write(folder: Path, device: str, sections: dict[str, Any]) -> None:
    write_json(folder / f"{device}.json", {"device": device, "sections": sections})
    write_text(folder / f"{device}.md", render_page(device, sections, f"{device}.png"))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--only",
        type=_names,
        default=[name for name in SECTIONS if name not in _ASKED_FOR],
        help=f"of {', '.join(SECTIONS)}",
    )
    parser.add_argument("--rounds", type=_rounds, default=5, help="timed rounds, 5 unless told")
    parser.add_argument("--fast", action="store_true", help="toy sizes: shows that everything runs, measures nothing")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 also on a CPU without instructions for it")
    parser.add_argument("--output", type=Path, help="results/benchmarks; with --fast runs/benchmarks")
    options = parser.parse_args(arguments)
    if options.output is None:
        options.output = Path("runs/benchmarks" if options.fast else "results/benchmarks")
    return options


def _names(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in SECTIONS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no section {unknown[0]!r}; choose from {', '.join(SECTIONS)}")
    return names


def _rounds(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of rounds from 1 up")
    return int(text)


if __name__ == "__main__":
    keep_freed_memory()
    main()
