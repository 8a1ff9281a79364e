#!/usr/bin/env bash
# Trains a SyncNet. The same command again goes on where the last one stopped.
#
#   ./train_syncnet.sh                                    on pixels (configs/syncnet/syncnet_16_pixel.yaml)
#   ./train_syncnet.sh configs/syncnet/syncnet_16_latent.yaml [--dry_run] [--option value ...]
#   ./train_syncnet.sh --help                             all options
#
# Trains on all GPUs of this machine; CUDA_VISIBLE_DEVICES picks some. Several machines, FSDP or DeepSpeed: make a
# launch config with `accelerate config` and name it in ACCELERATE_CONFIG. Sets the environment up on first use. Paths in
# the config are found from the directory you are in, else from the project.
set -euo pipefail

ROOT="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)"

. "$ROOT/scripts/launch_training.sh" scripts.train_syncnet --config_path "$ROOT/configs/syncnet/syncnet_16_pixel.yaml" "$@"
