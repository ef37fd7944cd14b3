#!/usr/bin/env bash
# The run behind this folder: data, teacher, dictionary, labels, and students on one GPU.
#   bash results/corpus/run.sh CORPUS_FOLDER OUTPUT_FOLDER
# CORPUS_FOLDER: JSONL shards corpus-*.jsonl.gz and heldout.jsonl.gz with a "text" field.
set -euo pipefail
corpus=$1 out=$2
cocomix="${COCOMIX:-cocomix}"
recipe() { echo "recipes/corpus_$1.yaml --set data=$out/data --set labels=$out/labels"; }

$cocomix prepare "$corpus"/corpus-*.jsonl.gz --validation "$corpus/heldout.jsonl.gz" \
  --vocab-size 16384 --block-size 512 --output "$out/data"
$cocomix train $(recipe teacher) --output "$out/teacher"
$cocomix sae "$out/data" --teacher "$out/teacher" --layer 3 --num-concepts 4096 --k 32 --tokens 8000000 \
  --batch-size 4096 --learning-rate 5e-4 --output "$out/dictionary"
$cocomix label "$out/data" --teacher "$out/teacher" --dictionary "$out/dictionary" --batch-tokens 65536 \
  --output "$out/labels"
$cocomix label "$out/data" --teacher "$out/teacher" --dictionary "$out/dictionary" --batch-tokens 65536 \
  --set selection=activation --output "$out/labels_activation"
# The students share the GPU, so their seconds cannot be compared with one another; tokens and FLOPs can.
$cocomix train $(recipe ntp) --set name=NTP --output "$out/ntp" --quiet &
$cocomix train $(recipe cocomix) --set name=CoCoMix --output "$out/cocomix" --quiet &
$cocomix train $(recipe residual) --set name="CoCoMix residual" --output "$out/residual" --quiet &
$cocomix train $(recipe cocomix) --set labels="$out/labels_activation" --set name="CoCoMix activation" \
  --output "$out/cocomix_activation" --quiet &
$cocomix train $(recipe residual) --set labels="$out/labels_activation" --set name="residual activation" \
  --output "$out/residual_activation" --quiet &
for job in $(jobs -p); do wait "$job"; done
runs="$out/ntp $out/cocomix $out/residual $out/cocomix_activation $out/residual_activation"
for run in $runs; do $cocomix eval "$run" --batch-size 32 --json > "$run/evaluation_printed.json"; done
$cocomix compare $runs --output "$out/report"
