#!/usr/bin/env bash
# Concepts and distillation on a small corpus with a strong teacher of another tokenizer; resumable.
#   bash results/scarce/screen.sh TEACHER.gguf FOLDER
# FOLDER: made by results/aligned/run.sh and results/label_content/run.sh (student_data, labels_contextual).
set -euo pipefail
teacher=$(realpath "$1") folder=$(realpath "$2")
cocomix="${COCOMIX:-cocomix}"
[ -d "$folder/first_token" ] || $cocomix distill "$folder/student_data" --teacher "$teacher" --output "$folder/first_token"
sed -e "s#DATA\$#$folder/student_data#; s#LABELS#$folder/labels_contextual#; s#PROBABILITIES#$folder/first_token#; s#RECIPES#$PWD/recipes#" \
  results/scarce/screen.yaml > "$folder/screen.yaml"
$cocomix sweep "$folder/screen.yaml" --output "$folder/screen"
