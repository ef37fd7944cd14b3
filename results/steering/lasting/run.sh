#!/usr/bin/env bash
# Recorded before steer-eval was rebuilt: check out ffc1e61 to repeat its steer-eval lines and themes.py.
# Two students steered by concepts that last, on two CPU cores in about two hours. The teacher, its tokenizer and the
# validation text are those of results/reproduction/run.sh.
#   bash results/steering/lasting/run.sh CORPUS_FOLDER REPRODUCTION_FOLDER OUTPUT_FOLDER
set -euo pipefail
corpus=$(realpath "$1") reproduction=$(realpath "$2")
mkdir -p "$3"
out=$(realpath "$3")
here=results/steering/lasting
cocomix="${COCOMIX:-cocomix}"
ln -sfn "$reproduction/teacher" "$out/teacher"
prepared() {
  $cocomix prepare "${@:3}" --validation "$reproduction/heldout1000.jsonl.gz" \
    --tokenizer "$reproduction/teacher_data/tokenizer" --max-bytes "$2" --block-size 128 --output "$out/$1"
}

prepared dictionary_data 34000000 "$corpus/corpus-00001.jsonl.gz" "$corpus/corpus-00002.jsonl.gz"
prepared data 24000000 "$corpus/corpus-00001.jsonl.gz"
$cocomix sae "$out/dictionary_data" --teacher "$out/teacher" --layer 3 --num-concepts 1024 --k 16 --tokens 2000000 \
  --output "$out/dictionary"
for run in activation logprob; do
  labels=kind=activation
  [ "$run" = activation ] || labels=sign=logprob
  sed -e "s#OUT#$out#g; s#\.\./\.\./\.\./recipes#$PWD/recipes#g" "$here/$run.yaml" > "$out/$run.yaml"
  $cocomix label "$out/data" --teacher "$out/teacher" --dictionary "$out/dictionary" --layer 3 --set "$labels" \
    --output "$out/labels_$run"
  $cocomix train "$out/$run.yaml" --output "$out/run_$run"
  $cocomix eval "$out/run_$run" --json --quiet > "$out/evaluation_$run.json"
  $cocomix steer-eval "$out/run_$run" --num-concepts 24 --prompts 32 --batch-size 288 --output "$out/steering_$run"
done
run="$out/run_activation"
$cocomix steer-eval "$run" --factors=-10,-5,0,2,4,6,8,10 --num-concepts 24 --prompts 64 --batch-size 512 --seed 1 \
  --output "$out/up"
$cocomix steer-eval "$run" --factors=-10,0,5,10,15,20,30 --num-concepts 24 --prompts 32 --batch-size 448 --seed 2 \
  --output "$out/far"
$cocomix steer-eval "$run" --choice frequent --turn scale --num-concepts 24 --prompts 32 --batch-size 288 \
  --output "$out/scaled"
"${PYTHON:-python}" $here/signs.py "$run" "$out/scaled/steering.json" "$out/scaled/signs.json"
$cocomix atlas "$run" --effects 128 --output "$out/atlas"
"${PYTHON:-python}" results/steering/themes.py "$run" "$out/atlas" "$out/themes.md"
for prompt in "The following" "He looked at"; do
  $cocomix generate "$run" "$prompt" --temperature 0.8 --max-new-tokens 40
  for steer in 697+30 408+30 695+30 219+30 294+30; do
    $cocomix generate "$run" "$prompt" --temperature 0.8 --max-new-tokens 40 --steer "$steer"
  done
done > "$out/generate.txt"
