#!/usr/bin/env bash
# Training, tests and benchmarks that need a GPU: recipes/on_a_gpu.sh [--tiny] [OUTPUT]
#
# Runs for up to ten minutes. Run the same command again until it says that everything is done: finished parts are
# skipped, and an interrupted benchmark continues with its next figure. Each part writes its log, and its figures as JSON
# and Markdown, to OUTPUT (default: output/gpu). A part that fails does not stop the others; delete NAME.failed to try it
# again. --tiny runs the benchmarks on tiny models, also without a GPU, to try this script.
#
# PYTHON: the interpreter (default: .venv/bin/python). LIMIT: seconds to run (default: 590). WHEELS: a folder of wheels
# to install under OUTPUT first, for a machine without a network. DATA: the packed faces of the embedded model (default:
# data/embedded2, see recipes/embedded/README.md); it is trained first if they are there, for MINUTES (default: 12).
set -euo pipefail

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-.venv/bin/python}
LIMIT=${LIMIT:-590}
DATA=${DATA:-data/embedded2}
MINIMUM=$((LIMIT / 30)) # seconds left that are worth starting a part

TINY=()
if [ "${1:-}" = --tiny ]; then
    TINY=(--tiny --seconds 1)
    shift
fi
mkdir -p -- "${1:-output/gpu}"
OUTPUT=$(realpath -- "${1:-output/gpu}")
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$OUTPUT/compiled} # for the next command
if [ -n "${WHEELS:-}" ]; then
    if [ ! -e "$OUTPUT/site.done" ]; then
        "$PYTHON" -m pip install -q --no-index --no-deps --upgrade --target "$OUTPUT/site" "$WHEELS"/*.whl
        touch -- "$OUTPUT/site.done"
    fi
    export PYTHONPATH="$OUTPUT/site${PYTHONPATH:+:$PYTHONPATH}"
fi
if [ ${#TINY[@]} = 0 ] && ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "on_a_gpu.sh: no CUDA device here; --tiny tries the script on the CPU" >&2
    exit 1
fi

part() { # part NAME ARGUMENT... : run $PYTHON -m ARGUMENT... once
    local name=$1 left=$((LIMIT - SECONDS)) code=0
    shift
    if [ -e "$OUTPUT/$name.done" ] || [ -e "$OUTPUT/$name.failed" ]; then
        return
    fi
    if [ "$left" -lt "$MINIMUM" ]; then
        echo "time is up before $name; run the same command again"
        exit 0
    fi
    echo "$name ..."
    timeout "$left" "$PYTHON" -m "$@" >"$OUTPUT/$name.log" 2>&1 || code=$?
    if [ "$code" = 124 ]; then
        echo "time is up during $name; run the same command again"
        exit 0
    fi
    if [ "$code" != 0 ]; then
        echo "$name failed (exit code $code); see $OUTPUT/$name.log"
        touch -- "$OUTPUT/$name.failed"
        return
    fi
    touch -- "$OUTPUT/$name.done"
}

benchmark() { # benchmark NAME SECTION OPTION...
    local name=$1
    shift
    part "$name" tools.benchmark "$@" --json "$OUTPUT/$name.json" --markdown "$OUTPUT/$name.md" \
        --journal "$OUTPUT/$name.journal"
}

embedded() { # embedded STAGE MINUTES OPTION... : a stage of the embedded model's training, from the shipped weights
    local stage=$1 minutes=$2
    shift 2
    part "embedded_$stage" recipes.embedded.train --data "$DATA" --trunk "$DATA/mobilenet_v2.pth" \
        --start checkpoints/embedded --output "$OUTPUT/embedded" --stages "$stage" --minutes "$minutes" "$@"
}

if [ -e "$DATA/train.safetensors" ]; then
    HARDWARE=(--device cuda --workers "$(nproc)" --batch_scale 12)
    if [ ${#TINY[@]} != 0 ]; then
        HARDWARE=(--quick)
    fi
    embedded syncnet 1.5 "${HARDWARE[@]}"
    embedded refine "${MINUTES:-12}" "${HARDWARE[@]}"
    embedded export 0 "${HARDWARE[@]}"
fi
if [ ${#TINY[@]} = 0 ]; then
    # By name: the other tests import packages that such a machine may lack.
    part tests pytest -q -m gpu tests/test_gpu.py
    for section in networks gpu; do
        for side in 256 512; do
            benchmark "${section}_${side}_eager" "$section" --resolution "$side" --levers eager
        done
    done
    for side in 256 512; do
        benchmark "gpu_${side}_compiled" gpu --resolution "$side" --levers compiled
    done
    benchmark training training
    benchmark precisions precisions
    for side in 256 512; do
        benchmark "networks_${side}_compiled" networks --resolution "$side" --levers compiled
    done
else
    benchmark networks networks --tiny
    benchmark gpu gpu "${TINY[@]}"
    benchmark precisions precisions --tiny
fi
failed=("$OUTPUT"/*.failed)
if [ -e "${failed[0]}" ]; then
    echo "done, but these failed: ${failed[*]}"
    exit 1
fi
echo "everything is done; see $OUTPUT"
