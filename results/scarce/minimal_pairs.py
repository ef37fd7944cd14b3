"""Minimal pairs of every run: python results/scarce/minimal_pairs.py SWEEP_FOLDER FILE.json

First `cocomix eval RUN --tasks minimal_pairs --limit 500` of each. Writes to FILE: arm,
seed, kind of mistake → share of pairs in which the good sentence is likelier.
"""

import json
import sys
from pathlib import Path

found: dict[str, dict[str, dict[str, float]]] = {}
for file in sorted(Path(sys.argv[1]).glob("runs/*/seed?/evaluations/minimal_pairs-500-float32/minimal_pairs.json")):
    measured = json.loads(file.read_text(encoding="utf-8"))
    kinds = {each["kind"]: each["accuracy"] for each in measured["kinds"]} | {"pairs": measured["kinds"][-1]["pairs"]}
    found.setdefault(measured["run"], {})[str(measured["seed"])] = kinds
Path(sys.argv[2]).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
