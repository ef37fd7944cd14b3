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
import json, pathlib, shutil, sys

from safetensors.torch import load_file, save_file

from cocomix.concepts import ConceptDictionary, Dictionary

TEACHER = "HuggingFaceTB/SmolLM2-135M-Instruct"
fitted, kept = map(pathlib.Path, sys.argv[1:])
made = Dictionary.open(fitted).manifest
shutil.rmtree(kept, ignore_errors=True)
with Dictionary.create(kept, identity={**made.identity, "teacher": TEACHER, "dtype": "float16"}) as staging:
    weights = load_file(fitted / "sae_weights.safetensors")
    save_file({name: tensor.half() for name, tensor in weights.items()}, staging.path / "sae_weights.safetensors")
    config = json.loads((fitted / "cfg.json").read_text())
    config["metadata"]["model_name"], config["dtype"] = TEACHER, "float16"
    (staging.path / "cfg.json").write_text(json.dumps(config, indent=1) + "\n")
    fingerprint = ConceptDictionary.from_sae_lens(staging.path).fingerprint()
    staging.finish(made.model_copy(update={"teacher": TEACHER, "dictionary_fingerprint": fingerprint, "files": {}}))
PYTHON
