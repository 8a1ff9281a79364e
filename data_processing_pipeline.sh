#!/usr/bin/env bash
# Turn a folder of videos into training clips: ./data_processing_pipeline.sh INPUT_DIR [--output_dir DIR] [--option value ...]
set -euo pipefail

ROOT="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)"
arguments=()
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
    arguments=("--input_dir=$1")
    shift
fi
LATENTSYNC_SKIP_DOWNLOAD=1 bash "$ROOT/setup_env.sh" --if-needed
exec "$ROOT/.venv/bin/python" -P -m latentsync preprocess ${arguments[@]+"${arguments[@]}"} "$@"
