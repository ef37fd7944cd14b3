#!/usr/bin/env bash
# What one GPU has to show, in about ten minutes on an H100 or H200; given again, it goes on where it was cut.
#   bash benchmarks/gpu.sh [--device cpu] [--tiny] [--output FOLDER] [--corpus FILES…]
# The important parts come first. Every part writes a log of its own, and a part that fails does not stop the others.
#   PYTHON   an interpreter with PyTorch (default python3)      WHEELS   a folder of wheels, where pip reaches nothing
# --tiny shows on a CPU that all of it runs; it measures nothing.
set -uo pipefail
cd "$(dirname "$0")/.."
device=cuda tiny="" out=results/benchmarks/gpu corpus=()
while [ $# -gt 0 ]; do
  case $1 in
    --device) device=$2; shift 2 ;;
    --tiny) tiny=yes; shift ;;
    --output) out=$2; shift 2 ;;
    --corpus) shift; while [ $# -gt 0 ] && [[ $1 != --* ]]; do corpus+=("$1"); shift; done ;;
    *) echo "unknown option $1; see the head of $0" >&2; exit 2 ;;
  esac
done
case $device in cuda | cpu) ;; *) echo "--device is cuda or cpu, not $device" >&2; exit 2 ;; esac
if [ ${#corpus[@]} = 0 ]; then
  if [ -n "$tiny" ]; then corpus=(README.md docs/*.md); else corpus=(../shared/corpus/corpus-*.jsonl.gz); fi
fi
for file in "${corpus[@]}"; do
  [ -r "$file" ] || { echo "there is no $file; name text with --corpus" >&2; exit 2; }
done
python=${PYTHON:-python3} work=$out/work failed=()
mkdir -p "$work"
export PYTHONPATH="$PWD/src:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

part() { # name, seconds at most, command…
  local name=$1 limit=$2 begin=$SECONDS
  shift 2
  [ -e "$work/$name.done" ] && return
  echo "$name …"
  if timeout --kill-after=10 "$limit" "$@" > "$out/$name.log" 2>&1; then
    touch "$work/$name.done"
    echo "    $((SECONDS - begin)) s"
  else
    failed+=("$name")
    echo "    FAILED after $((SECONDS - begin)) s; the end of $out/$name.log:"
    tail -n 5 "$out/$name.log"
  fi
}

install() { # what is missing, from a folder of wheels or the index; a PyTorch that is there stays
  "$python" -c "import cocomix.cli, importlib.metadata as m; m.version('cocomix')" && return
  local from=()
  [ -n "${WHEELS:-}" ] && from=(--no-index --find-links "$WHEELS")
  "$python" -m pip install "${from[@]}" "$(ls -t dist/cocomix-*.whl 2> /dev/null | head -n 1 || true)" ||
    "$python" -m pip install "${from[@]}" .
}

environment() { # card, driver, clocks, versions
  [ "$device" = cuda ] &&
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,power.limit --format=csv
  "$python" -m cocomix doctor || true # it warns of what is missing
  git rev-parse HEAD 2> /dev/null || true
}

bench() { # sections
  "$python" -m benchmarks --device "$device" --only "$1" --rounds "${rounds:-5}" ${tiny:+--fast} --output "$out"
}

train() { # text → teacher → dictionary → labels → about two minutes of CoCoMix
  local cocomix=("$python" -m cocomix) size=(--vocab-size 16384 --block-size 512 --max-bytes 56000000)
  local teacher=(--set tokens=8000000) student=(--set tokens=24000000) layer=3
  local dictionary=(--num-concepts 4096 --tokens 2000000 --batch-size 2048)
  if [ -n "$tiny" ]; then
    local small='model.backbone={model_type: gpt2, n_embd: 32, n_layer: 2, n_head: 2}'
    local same=(--set training.eval_strategy=no --set "$small" --set model.insert_layer=1 --set model.num_concepts=64 --set model.concept_topk=8
      --set training.bf16=false --set training.per_device_train_batch_size=4 --set batch_tokens=128
      --set training.dataloader_num_workers=0 --set evaluation_blocks=4)
    size=(--vocab-size 300 --block-size 32 --max-bytes 60000) layer=0
    teacher=("${same[@]}" --set tokens=2048) student=("${same[@]}" --set tokens=2048)
    dictionary=(--num-concepts 64 --k 8 --tokens 4096 --batch-size 256)
  fi
  set -e
  "${cocomix[@]}" prepare "${corpus[@]}" "${size[@]}" --output "$work/data"
  "${cocomix[@]}" train recipes/corpus_teacher.yaml --set data="$work/data" "${teacher[@]}" --output "$work/teacher"
  "${cocomix[@]}" sae "$work/data" --teacher "$work/teacher" --layer "$layer" "${dictionary[@]}" \
    --output "$work/dictionary"
  "${cocomix[@]}" label "$work/data" --teacher "$work/teacher" --dictionary "$work/dictionary" --dtype auto \
    ${tiny:+--force} --output "$work/labels"
  "${cocomix[@]}" train recipes/corpus_cocomix.yaml --set data="$work/data" --set labels="$work/labels" \
    "${student[@]}" --output "$work/run"
  cp "$work/run/metrics.jsonl" "$work/run/manifest.json" "$work/run/recipe.yaml" "$out"
}

export -f install environment bench train
export device tiny out work python
[ -n "$tiny" ] && export rounds=1
declare -p corpus > "$work/corpus.sh" # an array cannot be exported

in_shell() { # name, seconds at most, function and arguments
  local name=$1 limit=$2
  shift 2
  part "$name" "$limit" bash -uo pipefail -c '. "$work/corpus.sh"; "$@"' "$name" "$@"
}

in_shell install 300 install
in_shell environment 60 environment
if [ -n "$tiny" ]; then
  part tests 60 "$python" -m pytest -q -p no:cacheprovider -m gpu tests/model/test_on_gpu.py
else
  part tests 180 "$python" -m pytest -q -p no:cacheprovider -m gpu tests
fi
in_shell labels 120 bench labels
in_shell steps 180 bench steps
in_shell heads 90 bench heads,head,lm_head
in_shell memory 120 bench memory
in_shell train 420 train
in_shell compiled 420 bench compiled

if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}; give the same command again to repeat these"
  exit 1
fi
echo "all parts are done; the tables are in $out/$device.md"
