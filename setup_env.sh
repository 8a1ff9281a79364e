#!/usr/bin/env bash
# Sets the environment up: a virtual environment in .venv, the pinned packages, the public checkpoints.
#
#   source setup_env.sh          set up if needed, and activate (bash or zsh, from any directory)
#   ./setup_env.sh               set up only
#   ./setup_env.sh --if-needed   return at once when the environment stands
#
# LATENTSYNC_SKIP_DOWNLOAD=1     fetch no checkpoints
# PYTHON=/path/to/python         the interpreter to build on (3.11 or 3.12)

if (return 0 2>/dev/null); then
    # Sourced. The work is done by a process of its own, so that no failure and no shell option touches this shell.
    _latentsync_script="${BASH_SOURCE[0]:-$0}"
    _latentsync_root="$(cd -- "$(dirname -- "$_latentsync_script")" && pwd -P)"
    if bash "$_latentsync_root/setup_env.sh"; then
        . "$_latentsync_root/.venv/bin/activate"
        unset _latentsync_script _latentsync_root
        return 0
    fi
    unset _latentsync_script _latentsync_root
    return 1
fi

set -euo pipefail

ROOT="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)"
VENV="$ROOT/.venv"
STAMP="$VENV/.latentsync-stamp"
MODEL=latentsync-1.6

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

suits() { "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1; }

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3 python; do
        if [ -n "$candidate" ] && suits "$candidate"; then
            printf '%s\n' "$candidate"
            return 0
        fi
    done
    return 1
}

# What the environment was made from and where: a change of either means setting up again.
wanted_stamp() { printf '%s\n' "$ROOT" | cat - "$ROOT/requirements.txt" "$ROOT/requirements-nodeps.txt" | cksum; }

stands() { [ -x "$VENV/bin/python" ] && [ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$(wanted_stamp)" ]; }

create_venv() {
    local python moved=""
    # Scripts in an environment hold its path, so one that was copied from elsewhere is made anew.
    if [ -f "$VENV/bin/activate" ] && ! grep -qF -- "$VENV" "$VENV/bin/activate"; then moved=yes; fi
    if [ -z "$moved" ] && [ -x "$VENV/bin/python" ] && suits "$VENV/bin/python"; then return 0; fi
    python="$(find_python)" || fail "Python 3.11 or 3.12 with venv is needed (Debian: apt install python3 python3-venv;" \
        "or PYTHON=/path/to/python3.11)"
    say "creating .venv with $("$python" --version)"
    "$python" -m venv --clear "$VENV" || fail "could not create $VENV, see above"
}

install_packages() {
    say "installing packages: a few minutes, 3 GB and more for CUDA"
    local pip=("$VENV/bin/python" -m pip --disable-pip-version-check install -qq)
    "${pip[@]}" -r "$ROOT/requirements.txt" || fail "installing requirements.txt failed, see above; run this again"
    "${pip[@]}" --no-deps -r "$ROOT/requirements-nodeps.txt" ||
        fail "installing requirements-nodeps.txt failed, see above; run this again"
    "$VENV/bin/python" -c 'import av, cv2, diffusers, mediapipe, torch, whisper.model' 2>"$VENV/import.log" ||
        fail "a package was installed but cannot be imported: $(tail -n 1 "$VENV/import.log")"
    wanted_stamp >"$STAMP"
}

has_gpu() {
    if [ "$(uname -s)" = Darwin ]; then [ "$(uname -m)" = arm64 ]; else nvidia-smi -L >/dev/null 2>&1; fi
}

# Several gigabytes that a CPU could not use: they are fetched unasked only where there is a GPU.
fetch_checkpoints() {
    local command="python -m tools.download_checkpoints"
    if [ "${LATENTSYNC_SKIP_DOWNLOAD:-0}" = 1 ]; then return 0; fi
    if ! has_gpu; then
        say "no GPU: the embedded model will be used; the public checkpoints (5.5 GB) come with: $command"
        return 0
    fi
    (cd -- "$ROOT" && "$VENV/bin/python" -m tools.download_checkpoints --model "$MODEL") ||
        say "public checkpoints not fetched (reason above): going on with the embedded model"
}

main() {
    case "${1:-}" in
    "" | --if-needed) ;;
    *) fail "unknown argument $1; see the head of setup_env.sh" ;;
    esac
    if [ "${1:-}" = --if-needed ] && stands; then return 0; fi
    if command -v flock >/dev/null; then # two first uses at once: the second waits for the first
        exec 9>"$ROOT/.setup.lock"
        flock 9
    fi
    if ! stands; then
        create_venv
        install_packages
        say "environment ready"
    fi
    fetch_checkpoints
}

main "$@"
