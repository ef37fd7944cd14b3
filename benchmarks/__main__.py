"""Training steps of CoCoMix against next-token prediction of the same and of the matched width.

    python -m benchmarks [--device cuda] [--output results/benchmarks]

Each round runs one step (forward, backward, AdamW) of every model in turn; ratios are of medians over rounds.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import GPT2Config, PretrainedConfig

from cocomix.allocator import keep_freed_memory
from cocomix.modeling import CoCoMixConfig, account
from cocomix.modeling.accounting import build_model, matched_config
from cocomix.output import write_json, write_text


@dataclass(frozen=True)
class Shape:
    """One student's shape and the batch it is timed on."""

    name: str
    width: int
    blocks: int
    heads: int
    insert_layer: int
    concepts: int
    vocabulary: int
    batch: int
    context: int


SHAPES = {
    "cpu": (
        Shape("demo", 192, 4, 4, 2, 2048, 4096, 16, 128),
        Shape("69M", 512, 8, 8, 3, 32768, 50257, 2, 512),
    ),
    "cuda": (
        Shape("69M", 512, 8, 8, 3, 32768, 50257, 16, 1024),
        Shape("386M", 1024, 24, 16, 5, 32768, 50257, 8, 1024),
    ),
}


def step_of(config: PretrainedConfig, shape: Shape, device: str) -> tuple[Callable[[], float], float]:
    """A function that runs and times one training step, and the FLOPs of that step by formula."""
    torch.manual_seed(0)
    model = build_model(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    tokens = torch.randint(shape.vocabulary, (shape.batch, shape.context), device=device)
    batch = {"input_ids": tokens, "labels": tokens, "use_cache": False}
    if isinstance(config, CoCoMixConfig):
        batch["concept_labels"] = torch.randint(shape.concepts, (*tokens.shape, 4), device=device)

    def step() -> float:
        _finish(device)
        start = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _finish(device)
        return time.perf_counter() - start

    return step, account(model, shape.context).training_flops_per_token * tokens.numel()


def _finish(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()


def measure(shape: Shape, device: str, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds per step (minimum, median, maximum) and FLOPs of the three models, run in turn."""
    backbone = GPT2Config(
        vocab_size=shape.vocabulary,
        n_embd=shape.width,
        n_layer=shape.blocks,
        n_head=shape.heads,
        n_positions=shape.context,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    student = CoCoMixConfig(backbone=backbone, insert_layer=shape.insert_layer, num_concepts=shape.concepts)
    configs = {"NTP": backbone, "matched NTP": matched_config(student), "CoCoMix": student}
    steps = {name: step_of(config, shape, device) for name, config in configs.items()}
    for step, _ in steps.values():
        step(), step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, (step, _) in steps.items():
            seconds[name].append(step())
    return {
        name: {"min": min(s), "median": statistics.median(s), "max": max(s), "flops": steps[name][1]}
        for name, s in seconds.items()
    }


def main() -> None:
    """Time every shape of the device and write `steps_DEVICE.json` and `.md`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=sorted(SHAPES), default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path("results/benchmarks"))
    options = parser.parse_args()
    keep_freed_memory()
    results = []
    lines = [
        "| shape | NTP s/step | matched NTP | CoCoMix | CoCoMix ÷ NTP | ÷ matched | by FLOPs |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for shape in SHAPES[options.device]:
        times = measure(shape, options.device, options.rounds)
        results.append({"shape": asdict(shape), "seconds": times})
        ntp, matched, ours = (times[name] for name in ("NTP", "matched NTP", "CoCoMix"))
        cells = [shape.name, *(f"{t['median']:.3f}" for t in (ntp, matched, ours))]
        cells += [f"{ours['median'] / other['median']:.2f}" for other in (ntp, matched)]
        cells.append(f"{ours['flops'] / ntp['flops']:.2f}, {ours['flops'] / matched['flops']:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    options.output.mkdir(parents=True, exist_ok=True)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "dtype": "float32" if options.device == "cpu" else "bfloat16 autocast",
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "rounds": options.rounds,
    }
    write_json(options.output / f"steps_{options.device}.json", {"machine": machine, "results": results})
    table = "\n".join(lines) + "\n"
    write_text(options.output / f"steps_{options.device}.md", f"{table}\n{json.dumps(machine)}\n")
    print(table)


if __name__ == "__main__":
    main()
