"""Measures the example that `draw.py` draws: one passage through a teacher, its dictionary, and a student.

    python docs/figures/measure.py RUN docs/figures/example.json --block 700 --start 40 --tokens 16 --position 9

RUN is a CoCoMix run whose data, labels and teacher are still where they were.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from cocomix.concepts import ConceptTeacher, SparseCodes
from cocomix.concepts.scoring import attribute
from cocomix.data import VALIDATION, Tokens
from cocomix.evaluation import Run, inference
from cocomix.interpret import describe_run_concepts, open_run_teacher, visible


def measure(run: Run, block: int, window: range, position: int) -> dict[str, Any]:
    """Labels and predictions of the tokens in `window`, and every active latent's part at `position` of the block."""
    data = Tokens.open(run.manifest.data.path)
    input_ids = torch.as_tensor(data.split(VALIDATION)[block]["input_ids"]).long().unsqueeze(0)
    teacher, labeller, k = open_run_teacher(run, data)
    labels = labeller.label(input_ids, k=k).ids[0]
    model, tokenizer = run.model(), data.tokenizer()
    with inference(model, model.device):
        predicted = model(input_ids).concept_ids[0]
    active = _active(teacher, input_ids, position)
    found = {each["concept"] for each in active} | {int(each) for row in labels[window] for each in row if each >= 0}
    descriptions = describe_run_concepts(run, sorted(found))
    return {
        "run": run.manifest.name,
        "block": block,
        "tokens": [
            {
                "text": visible(tokenizer.decode([int(input_ids[0, place])])),
                "labels": [int(each) for each in labels[place] if each >= 0],
                "predicted": [int(each) for each in predicted[place]],
            }
            for place in window
        ],
        "next": visible(tokenizer.decode([int(input_ids[0, window.stop])])),
        "position": position - window.start,
        "active": active,
        "descriptions": {str(concept): descriptions[concept].name for concept in sorted(found)},
    }


def _active(teacher: ConceptTeacher, input_ids: torch.Tensor, position: int) -> list[dict[str, Any]]:
    """The latents that are active at a position: activation, slope of the loss along them, and their product."""
    hidden, gradient, _ = teacher.decoder.loss_gradient(input_ids, None, scope="sequence", dtype=torch.float32)
    hidden, gradient = hidden[0, position], gradient[0, position].float()
    with torch.no_grad():
        codes = teacher.dictionary.encode(hidden)
        slopes = attribute(teacher.dictionary, SparseCodes(codes.ids, torch.ones_like(codes.values)), gradient)
    rows = zip(codes.ids.tolist(), codes.values.tolist(), slopes.tolist(), strict=True)
    return [
        {"concept": concept, "activation": round(value, 4), "slope": round(slope, 5), "attribution": value * slope}
        for concept, value, slope in rows
        if value > 0
    ]


def main() -> None:
    """Parse the command line and write the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("output", type=Path)
    for name in ("block", "start", "tokens", "position"):
        parser.add_argument(f"--{name}", type=int, required=True)
    given = parser.parse_args()
    window = range(given.start, given.start + given.tokens)
    example = measure(Run.open(given.run), given.block, window, given.start + given.position)
    given.output.write_text(json.dumps(example, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
