#!/usr/bin/env bash
# Concepts and distillation on a million tokens with a strong teacher of another tokenizer; resumable, hours on two cores.
#   bash results/scarce/run.sh TEACHER.gguf DICTIONARY CORPUS_FOLDER OUTPUT_FOLDER
# DICTIONARY: made by results/aligned/run.sh. `python results/scarce/figure.py OUTPUT_FOLDER/sweep/report` and
# `python results/reproduction/page.py` then draw and tabulate in seconds.
set -euo pipefail
here=$PWD/results/scarce out=$4
mkdir -p "$out"
for link in "$1:teacher.gguf" "$2:dictionary" "$3:corpus"; do
  [ -e "$out/${link#*:}" ] || ln -s "$(realpath "${link%%:*}")" "$out/${link#*:}"
done
[ -e "$out/heldout_every_fourth.jsonl.gz" ] || python results/reproduction/documents.py "$3" "$out"
cd "$out"
"${COCOMIX:-cocomix}" sweep "$here/plan.yaml" --output sweep --jobs 2
