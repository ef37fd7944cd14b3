#!/usr/bin/env bash
# The student and atlas of `cocomix explore --example` (first_look/), from the folder that `make demo` wrote.
#   bash results/first_look/run.sh cocomix-demo FOLDER
set -euo pipefail
demo=$(realpath "$1") out=$2 here=$(realpath "$(dirname "$0")")
cocomix="${COCOMIX:-cocomix}" python="${PYTHON:-python}"
mkdir -p "$out"
$python "$here/stdlib.py" "$demo/data" "$out"
$cocomix prepare "$out/rest.jsonl" --validation "$out/heldout.jsonl" --tokenizer "$demo/data/tokenizer" --block-size 128 \
  --output "$out/data"
$cocomix label "$out/data" --kind contextual --set sample_tokens=20000 --teacher "$demo/smollm2.gguf" --layer 12 \
  --dictionary recipes/smollm2_dictionary --dtype auto
$python "$here/ship.py" "$demo" "$out/data" "$out/data/labels" "$out/first_look"
