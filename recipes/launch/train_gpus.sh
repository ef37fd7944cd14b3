#!/usr/bin/env bash
# Train a recipe on this machine's GPUs, one process each.
#
#   bash recipes/launch/train_gpus.sh RECIPE OUTPUT [GPUS]
#
# A step has the recipe's batch_tokens on any number of GPUs; `cocomix plan RECIPE` prints the memory of a
# process:
#
#   bash recipes/launch/train_gpus.sh recipes/gpt2_69m_cocomix.yaml runs/gpt2_69m_cocomix          # 8 GPUs
#   bash recipes/launch/train_gpus.sh recipes/gpt2_69m_cocomix.yaml runs/gpt2_69m_cocomix 1        # one GPU
#
# A stopped run goes on from its last checkpoint when the same command is given again.
set -euo pipefail

recipe=${1:?recipe} output=${2:?output folder} gpus=${3:-8}
exec torchrun --standalone --nproc-per-node "$gpus" -m cocomix train "$recipe" --output "$output"
