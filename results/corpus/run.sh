#!/usr/bin/env bash
# The run behind this folder: data, teacher, dictionary, labels, and three students one after the other on one GPU.
#   bash results/corpus/run.sh CORPUS_FOLDER OUTPUT_FOLDER
# CORPUS_FOLDER: JSONL shards corpus-*.jsonl.gz and heldout.jsonl.gz with a "text" field.
set -euo pipefail
corpus=$1 out=$2
cocomix="${COCOMIX:-cocomix}"
arm() { # recipe, folder, name
  $cocomix train "recipes/corpus_$1.yaml" --set data="$out/data" --set labels="$out/labels" --set name="$3" \
    --output "$out/$2" --quiet
  $cocomix eval "$out/$2" --batch-size 32 --json --quiet > "$out/$2.evaluation.json"
}

$cocomix prepare "$corpus"/corpus-*.jsonl.gz --validation "$corpus/heldout.jsonl.gz" --max-bytes 56000000 \
  --vocab-size 16384 --block-size 512 --output "$out/data"
arm teacher teacher teacher
$cocomix sae "$out/data" --teacher "$out/teacher" --layer 3 --num-concepts 4096 --k 32 --tokens 4000000 \
  --batch-size 2048 --output "$out/dictionary"
$cocomix label "$out/data" --teacher "$out/teacher" --dictionary "$out/dictionary" --batch-tokens 65536 \
  --output "$out/labels"
arm ntp ntp NTP
arm cocomix cocomix CoCoMix
arm residual residual "CoCoMix residual"
$cocomix compare "$out/ntp" "$out/cocomix" "$out/residual" --output "$out/report"
