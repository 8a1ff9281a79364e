#!/usr/bin/env bash
# Style, import rules and tests. Sets up the environment on first use. Arguments are passed to pytest (-k name, -m slow, ...).
set -euo pipefail

cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
LATENTSYNC_SKIP_DOWNLOAD=1 bash ./setup_env.sh --if-needed

PYTHON=.venv/bin/python
$PYTHON -m ruff check .
$PYTHON -m ruff format --check .
$PYTHON -m tools.check_imports
$PYTHON -m pytest -n 2 "$@"
