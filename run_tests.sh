#!/usr/bin/env bash
# Style, import layers (.importlinter), types (mypy.ini) and tests. Sets the environment up on first use.
# Arguments go to pytest (-k name, -m slow, ...).
set -euo pipefail

cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
LATENTSYNC_SKIP_DOWNLOAD=1 bash ./setup_env.sh --if-needed

PYTHON=.venv/bin/python
$PYTHON -m ruff check .
$PYTHON -m ruff format --check .
.venv/bin/lint-imports --no-logo --no-cache
$PYTHON -m mypy
$PYTHON -m pytest -n auto --maxprocesses 2 "$@"
