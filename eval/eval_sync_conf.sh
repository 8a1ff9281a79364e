#!/usr/bin/env bash
# Sync confidence of a video or a folder: ./eval/eval_sync_conf.sh --video_path FILE | --videos_dir FOLDER [...]
set -euo pipefail

ROOT="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
LATENTSYNC_SKIP_DOWNLOAD=1 bash "$ROOT/setup_env.sh" --if-needed
exec "$ROOT/.venv/bin/python" -P -m latentsync eval sync-conf "$@"
