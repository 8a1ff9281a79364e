#!/usr/bin/env bash
# Lip-syncs a video (or a picture) to a voice.
#
#   ./inference.sh                              the demo that ships with the project -> outputs/demo.mp4
#   ./inference.sh VIDEO AUDIO [OUT] [--option value ...]
#   ./inference.sh --help                       all options
#
# Sets the environment up on first use. Paths are relative to the directory you are in. A name that begins with two
# dashes is written ./--name.
set -euo pipefail

ROOT="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)"

names=()
while [ $# -gt 0 ] && [ ${#names[@]} -lt 3 ]; do
    case "$1" in
    --* | -h) break ;;
    *) names+=("$1") ;;
    esac
    shift
done

if [ ${#names[@]} -eq 1 ]; then
    echo "inference.sh: AUDIO is missing; usage: ./inference.sh [VIDEO AUDIO [OUT]] [--option value ...]" >&2
    exit 2
fi

arguments=()
if [ ${#names[@]} -ge 2 ]; then
    file="${names[0]##*/}"
    out="${names[2]:-outputs/${file%.*}_synced.mp4}"
    # One word each, so that names with spaces or a leading dash stay names.
    arguments=("--video_path=${names[0]}" "--audio_path=${names[1]}" "--video_out_path=$out")
fi

bash "$ROOT/setup_env.sh" --if-needed

# -P: modules come from the project, never from the directory the user happens to be in.
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
exec "$ROOT/.venv/bin/python" -P -m scripts.inference ${arguments[@]+"${arguments[@]}"} "$@"
