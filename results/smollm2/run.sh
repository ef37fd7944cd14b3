#!/usr/bin/env bash
# The run behind this folder: a real pretrained teacher (SmolLM2-135M-Instruct as GGUF), a dictionary fitted on it, and
# labels of more than 100,000 tokens and three students, on CPU.
#   bash results/smollm2/run.sh MODEL.gguf CORPUS.jsonl.gz OUTPUT_FOLDER
set -euo pipefail
teacher=$(realpath "$1") corpus=$2
mkdir -p "$3"
out=$(realpath "$3")
cocomix="${COCOMIX:-cocomix}"

$cocomix prepare "$corpus" --tokenizer "$teacher" --block-size 256 --max-bytes 520000 --validation-fraction 0.04 \
  --output "$out/data"
$cocomix sae "$out/data" --teacher "$teacher" --layer 15 --num-concepts 2048 --k 32 --tokens 100000 \
  --batch-size 1024 --output "$out/dictionary" --json > "$out/fit_printed.json"
$cocomix label "$out/data" --teacher "$teacher" --dictionary "$out/dictionary" --output "$out/labels" --json \
  > "$out/labels_printed.json"
$cocomix distill "$out/data" --teacher "$teacher" --top-k 64 --output "$out/probabilities"

# The students. The sweep finds the labels that are there and makes none.
for file in plan student; do
  sed -e "s#OUT#$out#g; s#TEACHER#$teacher#g" "results/smollm2/$file.yaml" > "$out/$file.yaml"
done
mkdir -p "$out/students/labels"
cp -r "$out/labels" "$out/students/labels/default"
$cocomix sweep "$out/plan.yaml" --output "$out/students"
