#!/usr/bin/env bash
# Train a recipe on several machines of a Slurm cluster, one process per GPU.
#
#   sbatch --nodes NODES recipes/launch/train_slurm.sh RECIPE OUTPUT [ACCUMULATION]
#
# RECIPE, OUTPUT and the recipe's data lie on a file system that all machines share. The recipes' batch sizes are for 8
# GPUs; with NODES machines of 8 give ACCUMULATION = the recipe's gradient_accumulation_steps ÷ NODES:
#
#   sbatch --nodes 2 recipes/launch/train_slurm.sh recipes/gpt2_1380m_cocomix.yaml runs/gpt2_1380m_cocomix 8
#
# A run that is stopped goes on from its last checkpoint when the same command is given again. Before the time limit
# Slurm sends SIGTERM, upon which a checkpoint is written.
#SBATCH --job-name=cocomix
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

recipe=${1:?recipe} output=${2:?output folder}
arguments=(train "$recipe" --output "$output")
if [ -n "${3:-}" ]; then
    arguments+=(--set "training.gradient_accumulation_steps=$3")
fi
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
exec srun torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$first:${PORT:-29500}" \
    -m cocomix "${arguments[@]}"
