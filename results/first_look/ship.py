"""A run of `make demo` made small enough to ship, and its atlas: python ship.py DEMO DATA LABELS OUTPUT

Weights become float16, paths of the machine become names; only files that are read again are kept. DATA and LABELS are
what the atlas is made on (run.sh).
"""

import json
import shutil
import sys
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file

from cocomix.evaluation import Run
from cocomix.interpret import AtlasSettings, build_atlas

PLACE = "first-look"  # stands for the demo's folder, and is on nobody's disk
demo, data, labels, output = map(Path, sys.argv[1:])
run = Run.open(demo / "runs/add_distilled/seed0")
text = run.manifest.model_dump_json()
for folder in (demo.resolve(), demo.resolve().parent):  # the second holds the recipes
    text = text.replace(str(folder), PLACE)
manifest = type(run.manifest).model_validate_json(text)
with Run.create(output / "student", identity=manifest.identity) as staging:
    kept = {"cocomix_classes.py", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "metrics.jsonl"}
    for name in kept:
        shutil.copy(run.path / name, staging.path / name)
    recipe = (run.path / "recipe.yaml").read_text()
    for folder in (demo.resolve(), demo.resolve().parent):
        recipe = recipe.replace(str(folder), PLACE)
    yaml.safe_load(recipe)
    (staging.path / "recipe.yaml").write_text(recipe)
    config = json.loads((run.path / "config.json").read_text()) | {"dtype": "float16"}
    (staging.path / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = {name: tensor.half() for name, tensor in load_file(run.path / "model.safetensors").items()}
    save_file(weights, staging.path / "model.safetensors", metadata={"format": "pt"})
    (staging.path / "model.safetensors").chmod(0o644)
    staging.finish(manifest.model_copy(update={"files": {}}))
settings = AtlasSettings(contexts=6, effects=256)
build_atlas(
    Run.open(output / "student"), None, settings, device=torch.device("cpu"), data=data, labels=labels, scorers={}
)
