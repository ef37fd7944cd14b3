#!/usr/bin/env bash
# What labels hold, by kind: of a real teacher, and of the text alone.
#   bash results/label_content/run.sh MODEL.gguf FOLDER
# FOLDER: made by results/aligned/run.sh (student_data in a 4,096-token vocabulary, dictionary). What is there already is
# not made again.
set -euo pipefail
teacher=$(realpath "$1") here=$(realpath "$(dirname "$0")")
cd "$2"
cocomix="${COCOMIX:-cocomix}"
label() {  # NAME OPTIONS...
  local name=$1
  shift
  [ -d "labels_$name" ] || $cocomix label student_data "$@" --output "labels_$name" 2>&1 | tee "label_$name.log"
}
for kind in activation contextual attribution random; do
  label "$kind" --kind "$kind" --teacher "$teacher" --dictionary dictionary --layer 12 --dtype auto
done
for kind in future_words future_clusters; do
  label "$kind" --kind "$kind"
done
python "$here/table.py" .
