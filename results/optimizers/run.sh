#!/usr/bin/env bash
# Muon and AdamW, NTP and CoCoMix: data, teacher, dictionary, labels, learning rates and runs on two cores, in about an
# hour. Stopped, it goes on where it was when the same command is given again.
#   bash results/optimizers/run.sh CORPUS_FOLDER OUTPUT_FOLDER
# CORPUS_FOLDER: JSONL shards corpus-*.jsonl.gz and heldout.jsonl.gz with "text" and "source".
set -euo pipefail
corpus=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
export OMP_NUM_THREADS=1
[ -e "$out/heldout1000.jsonl.gz" ] || "${PYTHON:-python}" results/reproduction/documents.py "$corpus" "$out"
sed -e "s#OUT#$out#g; s#CORPUS#$corpus#g; s#\.\./\.\./recipes#$PWD/recipes#g" results/optimizers/plan.yaml > "$out/plan.yaml"
"${COCOMIX:-cocomix}" sweep "$out/plan.yaml" --output "$out/sweep" --jobs 2
