#!/usr/bin/env bash
# Fine-tune a lip-sync model on one person, or on a small set of clips.
#
#   ./fine_tuning.sh CLIPS_FOLDER [--lora | --full] [--model NAME] [--config FILE] [--output DIR]
#                    [--val_video FILE --val_audio FILE] [options of scripts.train_unet, such as --dry_run]
#
#   --lora      train an adapter for `./inference.sh --lora` (default)
#   --full      train the modules that the config names and save a full checkpoint
#   --model     embedded, latentsync-1.5 (256 px) or latentsync-1.6 (512 px); default: latentsync-1.5 where there is an
#               NVIDIA GPU, else embedded
#   --config    your own config instead of the one for that model and method
#   --output    output folder (default: output/fine_tuning/CLIPS_FOLDER-MODEL-METHOD)
#   --val_video, --val_audio   a video and audio to validate the model on at every save
#
# CLIPS_FOLDER holds processed clips: aligned faces of the model's size at 25 frames/s (embedded: 256 px), see
# docs/training.md. Run the same command again to resume.
set -euo pipefail

ROOT="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)"

fail() {
    echo "fine_tuning.sh: $1" >&2
    exit 2
}

# As a YAML string on one line.
quoted() {
    case "$1" in *$'\n'*) fail "a path with a line break cannot be used: $1" ;; esac
    printf "'%s'" "${1//\'/\'\'}"
}

clips="" method=lora model="" config="" output="" val_video="" val_audio="" passed_on=()
while [ $# -gt 0 ]; do
    case "$1" in
    --help | -h)
        sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
        exit 0
        ;;
    --lora | --full) method="${1#--}" ;;
    --model | --config | --output | --val_video | --val_audio)
        [ $# -ge 2 ] || fail "$1 needs a value; see --help"
        printf -v "${1#--}" %s "$2"
        shift
        ;;
    --*) passed_on+=("$1") ;;
    *) if [ -z "$clips" ] && [ ${#passed_on[@]} -eq 0 ]; then clips="$1"; else passed_on+=("$1"); fi ;;
    esac
    shift
done
[ -n "$clips" ] || fail "CLIPS_FOLDER is missing; usage: ./fine_tuning.sh CLIPS_FOLDER [--lora | --full] [--option value ...]"
[ -d "$clips" ] || fail "$clips: no such folder of clips"
if [ -z "$model" ]; then
    if nvidia-smi -L >/dev/null 2>&1; then model=latentsync-1.5; else model=embedded; fi
    echo "fine_tuning.sh: using model $model; choose another with --model" >&2
fi

case "$model-$method" in
embedded-lora) default=embedded_lora ;;
embedded-full) default=embedded_fine_tune ;;
latentsync-1.5-lora) default=fine_tune_lora ;;
latentsync-1.5-full) default=fine_tune ;;
latentsync-1.6-lora) default=fine_tune_lora_512 ;;
latentsync-1.6-full) default=fine_tune_512 ;;
*) fail "unknown model $model; use embedded, latentsync-1.5 or latentsync-1.6" ;;
esac
config="${config:-$ROOT/configs/unet/$default.yaml}"
[ -f "$config" ] || fail "$config: no such config"
base="$(cd -- "$(dirname -- "$config")" && pwd -P)/${config##*/}"
folder="$(cd -- "$clips" && pwd -P)"
output="${output:-output/fine_tuning/${folder##*/}-$model-$method}"
mkdir -p -- "$output"
output="$(cd -- "$output" && pwd -P)"

bash "$ROOT/setup_env.sh" --if-needed
# -P: never import modules of the working directory.
"$ROOT/.venv/bin/python" -P -m tools.write_fileslist "--input_dir=$folder" "--output=$output/clips.txt"
{
    echo "# Written by fine_tuning.sh."
    echo "base: $(quoted "$base")"
    echo "data:"
    echo "  train_output_dir: $(quoted "$output")"
    echo "  train_fileslist: $(quoted "$output/clips.txt")"
    if [ -n "$val_video" ]; then echo "  val_video_path: $(quoted "$val_video")"; fi
    if [ -n "$val_audio" ]; then echo "  val_audio_path: $(quoted "$val_audio")"; fi
} >"$output/config.yaml"
bash "$ROOT/train_unet.sh" "$output/config.yaml" ${passed_on[@]+"${passed_on[@]}"}

[ -d "$output/checkpoints" ] || exit 0 # a dry run
if [ "$method" = lora ]; then suffix=safetensors; else suffix=pt; fi
newest="$(find "$output/checkpoints" -maxdepth 1 -name "unet-*.$suffix" | sort -V | tail -n 1)"
[ -n "$newest" ] || exit 0
if [ "$method" = lora ]; then
    words=(--model "$model" --lora "$newest")
else
    words=(--model "$model" --unet_config_path "$output/config.yaml" --inference_ckpt_path "$newest")
fi
printf '\nTo use it:\n%q VIDEO AUDIO' "$ROOT/inference.sh"
printf ' %q' "${words[@]}"
echo
