#!/usr/bin/env bash
# Train the UNet. Run the same command again to resume.
#
#   ./train_unet.sh                                       stage 1 at 256 px (configs/unet/stage1.yaml)
#   ./train_unet.sh configs/unet/stage2.yaml [--dry_run] [--option value ...]
#   ./train_unet.sh --help                                all options
#
# Trains on all GPUs of this machine; CUDA_VISIBLE_DEVICES picks some. Several machines, FSDP or DeepSpeed: make a
# launch config with `accelerate config` and name it in ACCELERATE_CONFIG. Sets up the environment on first use. Paths in
# the config are relative to the working directory or, if not found there, to the project.
set -euo pipefail

ROOT="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)"

. "$ROOT/scripts/launch_training.sh" scripts.train_unet --unet_config_path "$ROOT/configs/unet/stage1.yaml" "$@"
