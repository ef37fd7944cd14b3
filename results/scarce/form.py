"""Which form of concepts, from runs of 500,000 tokens: python results/scarce/form.py SWEEP_FOLDER

Writes form.json beside this file: of each arm of form.yaml the validation losses while it was trained, nats per token,
and, where concepts are added, the root mean square of the added vector in standard deviations of the hidden state, on
the first 16 blocks of validation.
"""

import json
import sys
from pathlib import Path

import torch

from cocomix.data import VALIDATION
from cocomix.evaluation import Run
from cocomix.evaluation.run_inputs import open_run_data

sweep = Path(sys.argv[1])
found: dict[str, dict] = {}
for folder in sorted(sweep.glob("runs/*/seed0")):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    found[folder.parent.name] = one = {
        "losses": {row["tokens"]: row["eval_loss"] for row in lines if "eval_loss" in row}
    }
    run = Run.open(folder)
    model = run.model()
    if getattr(model.config, "mixing", "none") not in ("none", "values"):
        blocks = open_run_data(run).split(VALIDATION)
        tokens = torch.stack([torch.as_tensor(blocks[index]["input_ids"]) for index in range(16)]).long()
        sizes: list[torch.Tensor] = []
        model.mixing.compression.register_forward_hook(
            lambda module, given, output, sizes=sizes: sizes.append(output.square().mean(-1).sqrt())
        )
        with torch.no_grad():
            model(tokens, use_cache=False)
        one["size"] = float(sizes[0].mean())
Path(__file__).with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
