#!/bin/bash
# Label prepared data by a Slurm array, a GPU for each task:
#
#   sbatch --array=0-7 recipes/launch/label_slurm.sh DATA --teacher MODEL --dictionary SAE --output LABELS
#
# DATA, LABELS and local models lie on a file system that all nodes see. Tasks may run in any order, be requeued and
# run twice. The last one completes LABELS; should it be killed at that, or not have seen all files of the others, any of
# them does when it runs again, or this:
#
#   cocomix label DATA --output LABELS --finish
#
# To run some tasks again, keep the number of parts: PARTS=8 sbatch --array=3,5 recipes/launch/label_slurm.sh DATA …
#SBATCH --job-name=cocomix-label
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-task=1
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

task="${SLURM_ARRAY_TASK_ID:?start this as an array: sbatch --array=0-7 $0 DATA …}"
parts="${PARTS:-$((SLURM_ARRAY_TASK_MAX + 1))}"
exec cocomix label "$@" --shard "$task/$parts"
