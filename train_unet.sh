#!/usr/bin/env bash
# Trains the UNet. The same command again goes on where the last one stopped.
#
#   ./train_unet.sh                                       stage 1 at 256 px (configs/unet/stage1.yaml)
#   ./train_unet.sh configs/unet/stage2.yaml [--dry_run] [--option value ...]
#   ./train_unet.sh --help                                all options
#
# Trains on all GPUs of this machine; CUDA_VISIBLE_DEVICES picks some. Several machines, FSDP or DeepSpeed: make a
# launch config with `accelerate config` and name it in ACCELERATE_CONFIG. Sets the environment up on first use. Paths in
# the config are found from the directory you are in, else from the project.
set -euo pipefail

ROOT="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)"

config="$ROOT/configs/unet/stage1.yaml"
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
    config="$1"
    shift
fi

bash "$ROOT/setup_env.sh" --if-needed

# -P, PYTHONSAFEPATH: modules come from the project, never from the directory the user happens to be in.
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1
PYTHON="$ROOT/.venv/bin/python"

count_gpus() {
    if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
        tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c . || true
    else
        { nvidia-smi --list-gpus 2>/dev/null || true; } | wc -l
    fi
}

launch=()
if [ -n "${ACCELERATE_CONFIG:-}" ]; then
    launch=(-m accelerate.commands.launch "--config_file=$ACCELERATE_CONFIG")
elif [ "$(count_gpus)" -gt 1 ]; then
    launch=(-m accelerate.commands.launch --multi_gpu "--num_processes=$(count_gpus)")
fi
exec "$PYTHON" -P ${launch[@]+"${launch[@]}"} -m scripts.train_unet "--unet_config_path=$config" "$@"
