#!/usr/bin/env bash
# The labels that labels.yaml reads, in the output folder of run.sh: one dictionary of its 400,000 tokens with 1, 4, 8 and 16 labels a
# position, and four dictionaries of 200,000 tokens each. TEACHER_DATA: what results/aligned/run.sh fits its dictionary on.
#   bash results/scarce/labels.sh OUTPUT_FOLDER TEACHER_DATA
set -euo pipefail
here=$PWD/results/scarce data=$(realpath "$2")
cd "$1"
label() { # NAME DICTIONARY LAYER K
  [ -d "layers/$1" ] || cocomix label sweep/data --kind contextual --teacher teacher.gguf --layer "$3" --dictionary "$2" \
    --dtype bfloat16 --set k="$4" --set sample_tokens=300000 --blocks 1953 --output "layers/$1" --scores none
}
label layer12_k16 dictionary 12 16
for k in 1 4 8; do
  [ -d "layers/layer12_k$k" ] || python "$here/fewer_labels.py" layers/layer12_k16 sweep/data "$k" "layers/layer12_k$k"
done
for each in layer7:7:4096 layer12:12:4096 layer22:22:4096 c16k:12:16384; do
  IFS=: read -r name layer concepts <<< "$each"
  [ -d "layers/sae_$name" ] || cocomix sae "$data" --teacher teacher.gguf --layer "$layer" --num-concepts "$concepts" --k 32 \
    --tokens 200000 --batch-size 1024 --output "layers/sae_$name"
  label "$name" "layers/sae_$name" "$layer" 4
done
