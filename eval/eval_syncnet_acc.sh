#!/usr/bin/env bash
# Accuracy of a SyncNet on held-out clips: ./eval/eval_syncnet_acc.sh [--config_path CONFIG ...]
set -euo pipefail

ROOT="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
LATENTSYNC_SKIP_DOWNLOAD=1 bash "$ROOT/setup_env.sh" --if-needed
exec "$ROOT/.venv/bin/python" -P -m latentsync eval syncnet-acc "$@"
