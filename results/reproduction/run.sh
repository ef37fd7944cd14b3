#!/usr/bin/env bash
# Recorded before steer-eval was rebuilt: check out ffc1e61 to repeat its steer-eval lines and themes.py.
# The scaled-down reproduction: teachers, dictionaries, and every arm of the paper on two CPU cores.
#   bash results/reproduction/run.sh CORPUS_FOLDER OUTPUT_FOLDER [TASK_FOLDER]
# CORPUS_FOLDER: JSONL shards corpus-*.jsonl.gz and heldout.jsonl.gz with "text" and "source". TASK_FOLDER: hellaswag.jsonl
# and so on, for the downstream scores. Stopped, it goes on where it was when the same command is given again.
set -euo pipefail
corpus=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
here=results/reproduction
cocomix="${COCOMIX:-cocomix}"
tokenizer="$out/teacher_data/tokenizer"

# The recipes name their folders OUT and CORPUS, and the shipped ones relative to this folder.
for file in teacher weak_teacher books_teacher tune plan longer weak_to_strong shift; do
  sed -e "s#OUT#$out#g; s#CORPUS#$corpus#g; s#\.\./\.\./recipes#$PWD/recipes#g" "$here/$file.yaml" > "$out/$file.yaml"
done

made() { [ -e "$out/$1" ]; }
made heldout_manuals.jsonl.gz || "${PYTHON:-python}" $here/documents.py "$corpus" "$out"
made teacher_data || $cocomix prepare "$corpus/corpus-00000.jsonl.gz" --validation "$out/heldout_every_fourth.jsonl.gz" \
  --max-bytes 19000000 --vocab-size 4096 --block-size 128 --output "$out/teacher_data"
made main/data || $cocomix prepare "$corpus/corpus-00001.jsonl.gz" --validation "$out/heldout1000.jsonl.gz" \
  --tokenizer "$tokenizer" --max-bytes 2100000 --block-size 128 --output "$out/main/data"

# Weak to strong, whose labels serve to tune the learning rates
made weak_teacher || $cocomix train "$out/weak_teacher.yaml" --output "$out/weak_teacher"
$cocomix sweep "$out/weak_to_strong.yaml" --output "$out/w2s"
$cocomix sweep "$out/tune.yaml" --output "$out/tune"

# Every arm
made teacher || $cocomix train "$out/teacher.yaml" --output "$out/teacher"
made dictionary || $cocomix sae "$out/main/data" --teacher "$out/teacher" --layer 1 --num-concepts 1024 --k 16 \
  --tokens 400000 --output "$out/dictionary"
$cocomix sweep "$out/plan.yaml" --output "$out/main"
$cocomix sweep "$out/longer.yaml" --output "$out/longer"

# Distribution shift
made books_data || $cocomix prepare "$out/books.jsonl.gz" --validation "$out/heldout1000.jsonl.gz" \
  --tokenizer "$tokenizer" --block-size 128 --output "$out/books_data"
made shift/data || $cocomix prepare "$out/manuals.jsonl.gz" --validation "$out/heldout_manuals.jsonl.gz" \
  --tokenizer "$tokenizer" --max-bytes 2100000 --block-size 128 --output "$out/shift/data"
made books_teacher || $cocomix train "$out/books_teacher.yaml" --output "$out/books_teacher"
$cocomix sweep "$out/shift.yaml" --output "$out/shift"

# What the concepts do, and what they are worth elsewhere
runs="$out/main/runs"
made analyses || $cocomix analyse "$runs"/{cocomix,labels_logprob,labels_activation,labels_random}/seed0 \
  "$runs"/{add,residual,residual_mixing_only}/seed0 --output "$out/analyses"
for arm in cocomix labels_logprob; do
  made "steering_$arm" || $cocomix steer-eval "$runs/$arm/seed0" --choice frequent --turn scale --num-concepts 32 \
    --prompts 16 --batch-size 144 --output "$out/steering_$arm"
done
if [ -n "${3:-}" ]; then
  for arm in ntp kd cocomix residual; do
    $cocomix eval "$runs/$arm/seed0" --tasks paper --task-data "$3"
  done
fi
