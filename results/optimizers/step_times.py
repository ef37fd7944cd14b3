"""CPU seconds of a training step of every arm, in turn in one process on one thread.

    OMP_NUM_THREADS=1 python results/optimizers/step_times.py

A step of plan.yaml's sizes (2,048 random tokens, labels of random concepts): forward, backward, clip, optimizer. The
share of the optimizer is what changes between AdamW and Muon.
"""

import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from cocomix.experiments import load_plan
from cocomix.model.accounting import build_model
from cocomix.model.fused_head import causal_loss
from cocomix.training.arguments import training_arguments
from cocomix.training.optimizers import MUON, muon
from cocomix.training.student import plan_run

ROUNDS, BLOCKS, BLOCK, VOCAB, CONCEPTS = 12, 8, 256, 4096, 1024


def arm(recipe: Any) -> tuple[Any, Any]:
    """A model and its optimizer."""
    backbone = {**recipe.model.backbone, "vocab_size": VOCAB, "n_positions": BLOCK}
    sized = recipe.model_copy(update={"model": recipe.model.model_copy(update={"backbone": backbone})})
    model = build_model(plan_run(sized).config).train()
    model.loss_function = causal_loss
    arguments = training_arguments(recipe, Path("unused"), BLOCK)
    if arguments.optim == MUON:
        factory, settings = muon(arguments)
        return model, factory()(model, **settings)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)


def main() -> None:
    """Write the medians."""
    torch.manual_seed(0)
    plan = load_plan(Path(__file__).with_name("plan.yaml"), Path("unused"))
    arms = {job.arm: arm(job.recipe) for job in plan.jobs() if job.seed == 0}
    ids = torch.randint(VOCAB, (BLOCKS, BLOCK))
    labels = {"concept_labels": torch.randint(CONCEPTS, (BLOCKS, BLOCK, 4)), "output_logits": False}
    seconds: dict[str, dict[str, list[float]]] = {name: {"step": [], "optimizer": []} for name in arms}
    for _ in range(ROUNDS):
        for name, (model, optimizer) in arms.items():
            start = time.process_time()
            more = labels if name.startswith("cocomix") else {}
            model(input_ids=ids, labels=ids, use_cache=False, **more).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            middle = time.process_time()
            optimizer.step()
            optimizer.zero_grad()
            end = time.process_time()
            seconds[name]["step"].append(end - start)
            seconds[name]["optimizer"].append(end - middle)
    medians = {
        name: {part: statistics.median(times[2:]) for part, times in parts.items()} for name, parts in seconds.items()
    }
    Path(__file__).with_name("step_times.json").write_text(json.dumps(medians, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
