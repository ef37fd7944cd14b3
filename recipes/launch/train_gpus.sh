#!/usr/bin/env bash
# Train a recipe on this machine's GPUs, one process each.
#
#   bash recipes/launch/train_gpus.sh RECIPE OUTPUT [GPUS] [ACCUMULATION]
#
# The recipes' batch sizes are for 8 GPUs. With another number give ACCUMULATION, so that a step keeps its tokens
# (8 × the recipe's gradient_accumulation_steps ÷ GPUS); `cocomix train RECIPE --dry-run` prints tokens per step and
# the memory of a process:
#
#   bash recipes/launch/train_gpus.sh recipes/gpt2_69m_cocomix.yaml runs/gpt2_69m_cocomix          # 8 GPUs
#   bash recipes/launch/train_gpus.sh recipes/gpt2_69m_cocomix.yaml runs/gpt2_69m_cocomix 1 32     # one GPU
#
# A stopped run goes on from its last checkpoint when the same command is given again.
set -euo pipefail

recipe=${1:?recipe} output=${2:?output folder} gpus=${3:-8}
arguments=(train "$recipe" --output "$output")
if [ -n "${4:-}" ]; then
    arguments+=(--set "training.gradient_accumulation_steps=$4")
fi
exec torchrun --standalone --nproc-per-node "$gpus" -m cocomix "${arguments[@]}"
