#!/usr/bin/env bash
# Sets up the environment: a virtual environment in .venv, the locked packages, this project, the released checkpoints.
#
#   source setup_env.sh          set up if needed, and activate (bash or zsh, from any directory)
#   ./setup_env.sh               set up only
#   ./setup_env.sh --if-needed   return at once if the environment is up to date
#
# LATENTSYNC_SKIP_DOWNLOAD=1     download no checkpoints
# LATENTSYNC_TORCH=cpu|cuda      the build of PyTorch on Linux (default: cuda where nvidia-smi finds a GPU, else cpu if pip
#                                finds one)
# PYTHON=/path/to/python         the interpreter to use (3.11 or 3.12)

if (return 0 2>/dev/null); then
    # Sourced: a child process does the work, so that neither a failure nor a shell option affects this shell.
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

torch_build() {
    if [ "$(uname -s)" != Linux ]; then echo default; else
        if has_gpu; then echo "${LATENTSYNC_TORCH:-cuda}"; else echo "${LATENTSYNC_TORCH:-cpu}"; fi
    fi
}

# Identifies sources and place of the environment. Set up again when it changes.
wanted_stamp() {
    (cd -- "$ROOT" && pwd -P && torch_build && cat pyproject.toml requirements*.txt) | cksum
}

up_to_date() { [ -x "$VENV/bin/python" ] && [ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$(wanted_stamp)" ]; }

create_venv() {
    local python moved=""
    # The scripts of an environment contain its path: recreate one that was copied from elsewhere.
    if [ -f "$VENV/bin/activate" ] && ! grep -qF -- "$VENV" "$VENV/bin/activate"; then moved=yes; fi
    if [ -z "$moved" ] && [ -x "$VENV/bin/python" ] && suits "$VENV/bin/python"; then return 0; fi
    python="$(find_python)" || fail "Python 3.11 or 3.12 with venv is needed (Debian: apt install python3 python3-venv;" \
        "or PYTHON=/path/to/python3.11)"
    say "creating .venv with $("$python" --version)"
    "$python" -m venv --clear "$VENV" || fail "could not create $VENV, see above"
}

has_gpu() {
    if [ "$(uname -s)" = Darwin ]; then [ "$(uname -m)" = arm64 ]; else nvidia-smi -L >/dev/null 2>&1; fi
}

# On Linux the default build of PyTorch is for CUDA and needs gigabytes of libraries. Without a GPU take the CPU build
# from wherever pip is configured to look, and never the other one unasked.
# Returns 1 if pip finds no CPU build of the locked version; the log says why.
install_cpu_torch() {
    if "$VENV/bin/python" -c 'import torch' 2>/dev/null; then return 0; fi # a build of the user's choice
    "$@" --no-deps "$(torch_pin)+cpu" 2>"$VENV/torch.log"
}

torch_pin() { sed -n 's/^\(torch==[0-9.]*\).*/\1/p' "$ROOT/requirements.txt"; }

install_packages() {
    local build pip=("$VENV/bin/python" -m pip --disable-pip-version-check install -qq)
    local locks=(-r "$ROOT/requirements.txt" -r "$ROOT/requirements-dev.txt")
    build="$(torch_build)"
    case "$build" in
    cpu)
        say "installing packages: a few minutes, 3 GB"
        if ! install_cpu_torch "${pip[@]}"; then
            [ "${LATENTSYNC_TORCH:-}" != cpu ] || fail "pip finds no CPU build of $(torch_pin): add a place that has it to" \
                "PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS. pip said: $(tail -n 1 "$VENV/torch.log")"
            say "there is no NVIDIA GPU, but pip finds no CPU build of $(torch_pin): installing the CUDA build, 3.4 GB larger." \
                "To avoid this, stop here and add a place that has the CPU build to PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS" \
                "(PyTorch's installation page names its index)"
            locks+=(-r "$ROOT/requirements-cuda.txt")
        fi
        ;;
    cuda) say "installing packages with CUDA: several minutes, 6.5 GB" && locks+=(-r "$ROOT/requirements-cuda.txt") ;;
    default) say "installing packages: a few minutes, 3 GB" ;;
    *) fail "LATENTSYNC_TORCH must be cpu or cuda, not $build" ;;
    esac
    "${pip[@]}" --no-deps "${locks[@]}" || fail "installing the locked packages failed, see above; run this again"
    "${pip[@]}" --no-deps --no-build-isolation --editable "$ROOT" ||
        fail "installing the project failed, see above; run this again"
    "$VENV/bin/python" -c 'import av, cv2, diffusers, mediapipe, torch, whisper.model, latentsync' 2>"$VENV/import.log" ||
        fail "a package was installed but cannot be imported: $(tail -n 1 "$VENV/import.log")"
    wanted_stamp >"$STAMP"
}

# Several gigabytes that a CPU cannot make use of: download them unasked only where there is a GPU.
fetch_checkpoints() {
    if [ "${LATENTSYNC_SKIP_DOWNLOAD:-0}" = 1 ]; then return 0; fi
    if ! has_gpu; then
        say "no GPU: the embedded model will be used; download the released checkpoints (5.5 GB) with: latentsync download"
        return 0
    fi
    "$VENV/bin/python" -P -m latentsync download --model "$MODEL" ||
        say "released checkpoints not downloaded (reason above): continuing with the embedded model"
}

main() {
    case "${1:-}" in
    "" | --if-needed) ;;
    *) fail "unknown argument $1; see the head of setup_env.sh" ;;
    esac
    if [ "${1:-}" = --if-needed ] && up_to_date; then return 0; fi
    if command -v flock >/dev/null; then # of two first uses at once, the second waits
        exec 9>"$ROOT/.setup.lock"
        flock 9
    fi
    if ! up_to_date; then
        create_venv
        install_packages
        say "environment ready"
    fi
    fetch_checkpoints
}

main "$@"
