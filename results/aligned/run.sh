#!/usr/bin/env bash
# Labels of a teacher with another tokenizer: SmolLM2-135M-Instruct (GGUF) labels text in a 4,096-token vocabulary.
#   bash results/aligned/run.sh MODEL.gguf FIT_CORPUS.jsonl.gz CORPUS.jsonl.gz OUTPUT_FOLDER
set -euo pipefail
teacher=$(realpath "$1") out=$4
cocomix="${COCOMIX:-cocomix}"
mkdir -p "$out"
# The dictionary is fitted on other text, in the teacher's own tokens.
$cocomix prepare "$2" --tokenizer "$teacher" --block-size 256 --max-bytes 3000000 --validation-fraction 0.04 \
  --output "$out/teacher_data"
$cocomix sae "$out/teacher_data" --teacher "$teacher" --layer 12 --num-concepts 4096 --k 32 --tokens 400000 \
  --batch-size 1024 --output "$out/dictionary" --json > "$out/fit.json"
$cocomix prepare "$3" --vocab-size 4096 --block-size 256 --max-bytes 460000 --validation-fraction 0.04 \
  --output "$out/student_data"
time $cocomix label "$out/student_data" --teacher "$teacher" --dictionary "$out/dictionary" --layer 12 \
  --kind activation --output "$out/labels" --json > "$out/labels.json" 2> "$out/label.log"
