#!/usr/bin/env bash
# What labels hold, by kind: of a real teacher, of the text alone, and of a student's own dictionary.
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
[ -d own_student ] || $cocomix train "$here/student.yaml" --output own_student 2>&1 | tee own_student.log
[ -d own_dictionary ] || $cocomix sae student_data --teacher own_student --layer 1 --num-concepts 1024 --k 16 \
  --tokens 400000 --batch-size 1024 --output own_dictionary 2>&1 | tee own_dictionary.log
for kind in activation contextual token_lookup; do
  label "own_$kind" --kind "$kind" --teacher own_student --dictionary own_dictionary
done
python "$here/table.py" .
