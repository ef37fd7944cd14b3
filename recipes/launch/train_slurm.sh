#!/usr/bin/env bash
# Train a recipe on several machines of a Slurm cluster, one process per GPU.
#
#   sbatch --nodes NODES recipes/launch/train_slurm.sh RECIPE OUTPUT
#
# RECIPE, OUTPUT and the recipe's data lie on a file system that all machines share. A step has the recipe's
# batch_tokens on any number of GPUs:
#
#   sbatch --nodes 2 recipes/launch/train_slurm.sh recipes/gpt2_1380m_cocomix.yaml runs/gpt2_1380m_cocomix
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
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
exec srun torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$first:${PORT:-29500}" \
    -m cocomix train "$recipe" --output "$output"
