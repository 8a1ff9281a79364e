#!/usr/bin/env bash
# Trains the first generation of the embedded model, which the second one starts from: output/embedded/model.
#
#   ./recipes/embedded/first_generation/rebuild.sh CLIPS_FOLDER [PORTRAITS_FOLDER ...]
#
# Clips are videos with audio in which one person talks to the camera; the person is a file's name up to its last
# underscore. Portraits are images; they show the autoencoder more faces. checkpoints/embedded/MODEL_CARD.md lists what the
# shipped files were trained on. Finished steps are not repeated, so the same command resumes after an interruption;
# remove output/embedded to start over.
set -euo pipefail

# Never trained on: other corpora, two speakers as a whole, and one clip each of two speakers that are trained on.
HELD_OUT=('hdtf_*' 'retalking_*' 'infinitetalk_*' 'grid_s27_*' 'grid_s24_*' 'grid_s1_bbaf2n' 'grid_s4_bbilzs')
# Frames only: it is not certain that their audio belongs to their video.
SILENT=('latentsync_demo[23]' 'infinitetalk_*')
CLIPS_PER_PERSON=60
HELD_OUT_PER_PERSON=400 # the clips that are not needed for training
PERSON='([^/]+?)(_[^/_]*)?\.[^./]+$' # the file's name up to its last underscore

ROOT="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../../.." && pwd -P)"
RECIPE=recipes/embedded/first_generation
PYTHON="$ROOT/.venv/bin/python"
DATA=data/embedded     # the configs of the recipe read it
WORK=output/embedded   # and write here
MODEL="$WORK/model"
DONE="$WORK/done"

say() { printf 'rebuild: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# step NAME COMMAND...: run it once, and leave a stamp for later runs of this script.
step() {
    local name="$1"
    shift
    if [ -f "$DONE/$name" ]; then
        say "$name: already done"
        return 0
    fi
    say "$name"
    "$@"
    mkdir -p "$DONE"
    touch "$DONE/$name"
}

# Clips of at most 12 s, not filtered by sync or sharpness: sync would be measured with the model that is replaced.
prepare() {
    rm -rf "$WORK/sources"
    mkdir -p "$WORK/sources"
    for index in "${!folders[@]}"; do
        ln -s "${folders[index]}" "$WORK/sources/$index"
    done
    "$PYTHON" -m preprocess.data_processing_pipeline --input_dir "$WORK/sources" --output_dir "$DATA" \
        --steps shots,faces --resolution 128 --segment_seconds 12 --min_seconds 1.28 --many_faces largest \
        --keep_silent --person_pattern "$PERSON" --hold_out "${HELD_OUT[@]}" --ignore_audio "${SILENT[@]}" \
        --max_clips_per_person "$CLIPS_PER_PERSON" --held_out_per_person "$HELD_OUT_PER_PERSON" --total_num_workers "$(nproc)"
}

# A UNet works with the latents of one autoencoder: its training cannot be resumed with another.
train_vae() {
    if [ -e "$WORK/unet_stage1/checkpoints" ]; then
        fail "$WORK/unet_stage1 holds a UNet trained with another autoencoder; remove $WORK to start over"
    fi
    "$PYTHON" -m recipes.embedded.first_generation.train_vae
}

train_syncnet() { "$PYTHON" -m scripts.train_syncnet --config_path "$RECIPE/configs/$1.yaml" --vae_path "$WORK/vae"; }
train_unet() { "$PYTHON" -m scripts.train_unet --unet_config_path "$RECIPE/configs/$1.yaml" --vae_path "$WORK/vae"; }

newest() { find "$1/checkpoints" -maxdepth 1 -name "$2-*.pt" | sort -V | tail -n 1; }

install_model() {
    mkdir -p "$MODEL/vae"
    cp "$WORK/vae/config.json" "$WORK/vae/diffusion_pytorch_model.safetensors" "$MODEL/vae/"
    "$PYTHON" -m tools.export_weights --checkpoint "$(newest "$WORK/syncnet" syncnet)" --output "$MODEL/syncnet.safetensors"
    "$PYTHON" -m tools.export_weights --checkpoint "$(newest "$WORK/unet_stage4" unet)" --output "$MODEL/unet.safetensors"
}

if [ $# -eq 0 ]; then
    echo "usage: ./recipes/embedded/first_generation/rebuild.sh CLIPS_FOLDER [PORTRAITS_FOLDER ...]" >&2
    exit 2
fi
folders=()
for folder in "$@"; do
    [ -d "$folder" ] || fail "$folder: no such folder"
    folders+=("$(cd -- "$folder" && pwd -P)") # absolute: the steps run in the project's root
done

cd -- "$ROOT"
LATENTSYNC_SKIP_DOWNLOAD=1 bash ./setup_env.sh --if-needed
step faces prepare
step autoencoder train_vae
step syncnet-for-training train_syncnet syncnet_training
step syncnet train_syncnet syncnet
step unet-stage-1 train_unet unet_stage1
step unet-stage-2 train_unet unet_stage2
step unet-stage-3 train_unet unet_stage3
step unet-stage-4 train_unet unet_stage4
step install install_model
say "the model is in $MODEL; train the second generation with python -m recipes.embedded.train"
