#!/usr/bin/env bash
# Lip-sync a video or an image to audio.
#
#   ./inference.sh                              the demo -> outputs/demo.mp4
#   ./inference.sh VIDEO AUDIO [OUT] [--option value ...]
#   ./inference.sh --help                       all options
#
# Sets up the environment on first use. Paths are relative to the working directory. Write a name that begins with two
# dashes as ./--name.
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
    # --option=value in one word: a name may contain spaces or begin with a dash.
    arguments=("--video_path=${names[0]}" "--audio_path=${names[1]}" "--video_out_path=$out")
fi

bash "$ROOT/setup_env.sh" --if-needed

# -P: never import modules of the working directory.
exec "$ROOT/.venv/bin/python" -P -m latentsync infer ${arguments[@]+"${arguments[@]}"} "$@"
