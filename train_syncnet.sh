#!/usr/bin/env bash
# Train a SyncNet. Run the same command again to resume.
#
#   ./train_syncnet.sh                                    on pixels (configs/syncnet/syncnet_16_pixel.yaml)
#   ./train_syncnet.sh configs/syncnet/syncnet_16_latent.yaml [--dry_run] [--option value ...]
#   ./train_syncnet.sh --help                             all options
#
# Trains on all GPUs of this machine; CUDA_VISIBLE_DEVICES picks some. Several machines, FSDP or DeepSpeed: make a
# launch config with `accelerate config` and name it in ACCELERATE_CONFIG. Sets up the environment on first use. Paths in
# the config are relative to the working directory or, if not found there, to the project.
set -euo pipefail

ROOT="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)"

. "$ROOT/scripts/launch_training.sh" scripts.train_syncnet --config_path "$ROOT/configs/syncnet/syncnet_16_pixel.yaml" "$@"
