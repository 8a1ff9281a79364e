#!/usr/bin/env bash
# SLURM: one process per GPU on several nodes, which must see the same project, data and output folders.
#
#   sbatch --nodes=4 configs/launch/slurm.sh scripts.train_unet --unet_config_path configs/unet/stage1.yaml
#
# Five minutes before the time limit the run saves its state and ends; submit the same command again to resume.
#SBATCH --job-name=latentsync
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --signal=TERM@300
#SBATCH --output=slurm-%j.log
set -euo pipefail

cd -- "${SLURM_SUBMIT_DIR:-.}"
MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
export MASTER_ADDR MASTER_PORT="${MASTER_PORT:-29500}" PYTHONSAFEPATH=1
export PYTHON="${PYTHON:-.venv/bin/python}"

# Not torchrun: the signal must reach the training processes, which then save.
# shellcheck disable=SC2016  # the variables of each task
exec srun --kill-on-bad-exit=1 bash -c '
export RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID" WORLD_SIZE="$SLURM_NTASKS"
export LOCAL_WORLD_SIZE="${SLURM_NTASKS_PER_NODE:-1}"
exec "$PYTHON" -m "$@"' bash "$@"
