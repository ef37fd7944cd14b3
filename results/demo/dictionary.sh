#!/usr/bin/env bash
# The dictionary of the demo's teacher (recipes/smollm2_dictionary): 1,024 concepts of block 12 of SmolLM2-135M-Instruct, fitted
# on this machine's documentation in the teacher's own tokens, kept in float16. What `cocomix sae` printed: dictionary.json.
#   bash results/demo/dictionary.sh TEACHER.gguf FOLDER
set -euo pipefail
teacher=$(realpath "$1") out=$2
cocomix="${COCOMIX:-cocomix}"
$cocomix prepare docs: --tokenizer "$teacher" --block-size 256 --max-bytes 2500000 --validation-fraction 0.03 --output "$out/data"
$cocomix sae "$out/data" --teacher "$teacher" --layer 12 --num-concepts 1024 --k 16 --tokens 300000 --output "$out/dictionary" \
  --json > "$out/dictionary.json"
"${PYTHON:-python}" - "$out/dictionary" recipes/smollm2_dictionary <<'PYTHON'
import json, pathlib, sys

from safetensors.torch import load_file, save_file

fitted, kept = map(pathlib.Path, sys.argv[1:])
kept.mkdir(exist_ok=True)
weights = load_file(fitted / "sae_weights.safetensors")
save_file({name: tensor.half() for name, tensor in weights.items()}, kept / "sae_weights.safetensors")
config = json.loads((fitted / "cfg.json").read_text())
config["metadata"]["model_name"], config["dtype"] = "HuggingFaceTB/SmolLM2-135M-Instruct", "float16"
(kept / "cfg.json").write_text(json.dumps(config, indent=1) + "\n")
PYTHON
