#!/usr/bin/env bash
# What labels of a real teacher hold, by kind: SmolLM2-135M-Instruct (GGUF) and a dictionary of its block 12.
#   bash results/label_content/run.sh MODEL.gguf FOLDER
# FOLDER: made by results/aligned/run.sh (student_data in a 4,096-token vocabulary, dictionary).
set -euo pipefail
teacher=$(realpath "$1") folder=$(realpath "$2")
cocomix="${COCOMIX:-cocomix}"
for kind in activation contextual attribution; do
  $cocomix label "$folder/student_data" --teacher "$teacher" --dictionary "$folder/dictionary" --layer 12 --dtype auto \
    --kind "$kind" --output "$folder/labels_$kind" 2>&1 | tee "$folder/label_$kind.log"
done
