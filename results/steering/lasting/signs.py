"""How often the logits of a report's concepts are negative: python signs.py RUN steering.json OUTPUT.json"""

import json
import sys
from pathlib import Path

import torch

from cocomix.data import Tokens
from cocomix.evaluation import Run

run = Run.open(Path(sys.argv[1]))
concepts = [concept["concept"] for concept in json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))["concepts"]]
blocks = Tokens.open(run.manifest.data.path).split("validation")
text = torch.stack([blocks[index]["input_ids"] for index in range(0, 320, 5)])
with torch.inference_mode():
    output = run.model().eval()(text, use_cache=False, output_concept_logits=True)
logits = output.concept_logits.flatten(0, 1)  # [positions, n_concepts]
mixed = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, output.concept_ids.flatten(0, 1), True)
negative, mixed = (logits < 0)[:, concepts], mixed[:, concepts]
shares = {
    "positions": len(logits),
    "negative": float(negative.float().mean()),
    "mixed_in": float(mixed.float().mean()),
    "negative_where_not_mixed_in": float(negative[~mixed].float().mean()),
}
Path(sys.argv[3]).write_text(json.dumps(shares, indent=1) + "\n", encoding="utf-8")
