#!/usr/bin/env bash
# Recorded before steer-eval was rebuilt: check out ffc1e61 to repeat its steer-eval lines and themes.py.
# The run behind this folder: teacher, dictionary, labels and one student on two CPU cores. Measured with cocomix at
# f5f87ea, whose themes.py multiplied logits.
#   bash results/steering/first/run.sh CORPUS_FOLDER OUTPUT_FOLDER
# CORPUS_FOLDER: JSONL shards corpus-*.jsonl.gz and heldout.jsonl.gz with a "text" field.
set -euo pipefail
corpus=$1 out=$2
cocomix="${COCOMIX:-cocomix}"

$cocomix prepare "$corpus"/corpus-*.jsonl.gz --validation "$corpus/heldout.jsonl.gz" --max-bytes 4600000 \
  --vocab-size 4096 --block-size 128 --output "$out/data"
$cocomix train recipes/demo_teacher.yaml --set data="$out/data" --set tokens=1300000 --output "$out/teacher" --quiet
$cocomix sae "$out/data" --teacher "$out/teacher" --layer 1 --num-concepts 2048 --k 16 --tokens 600000 \
  --output "$out/dictionary"
$cocomix label "$out/data" --teacher "$out/teacher" --dictionary "$out/dictionary" --output "$out/labels"
$cocomix train recipes/demo.yaml --set data="$out/data" --set labels="$out/labels" --set tokens=1300000 \
  --set name=CoCoMix --output "$out/run" --quiet
$cocomix eval "$out/run" --json --quiet > "$out/evaluation.json"
$cocomix steer-eval "$out/run" --choice frequent --turn scale --prompts 16 --batch-size 64 --output "$out/steering"
$cocomix atlas "$out/run" --effects 128 --output "$out/atlas"
"${PYTHON:-python}" results/steering/themes.py "$out/run" "$out/atlas" "$out/themes.md"
