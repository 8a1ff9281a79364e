#!/usr/bin/env bash
# Trains the embedded model anew, puts its files beside this script and measures it.
#
#   ./checkpoints/embedded/rebuild.sh CLIPS_FOLDER [PORTRAITS_FOLDER ...]
#
# Clips are videos with sound, in which one person talks to the camera; a file's name up to its last underscore is the
# person. Portraits are pictures; they teach the autoencoder more faces. MODEL_CARD.md says what the shipped files
# were made of. Steps that are done are not repeated, so the same command goes on after an interruption; remove
# output/embedded to begin anew.
set -euo pipefail

# Never trained on: other corpora, two speakers as a whole, and one clip each of two speakers that are trained on.
HELD_OUT=('hdtf_*' 'retalking_*' 'infinitetalk_*' 'grid_s27_*' 'grid_s24_*' 'grid_s1_bbaf2n' 'grid_s4_bbilzs')
# Seen but not heard: it is not certain that their sound belongs to their pictures.
SILENT=('latentsync_demo[23]' 'infinitetalk_*')
CLIPS_PER_PERSON=60
HELD_OUT_PER_PERSON=400 # all the clips that are too many to train on: figures of few clips say little
PERSON='([^/]+?)(_[^/_]*)?\.[^./]+$' # the file's name up to its last underscore

HERE="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)"
ROOT="$(cd -- "$HERE/../.." && pwd -P)"
PYTHON="$ROOT/.venv/bin/python"
DATA=data/embedded     # configs/{vae,syncnet,unet}/embedded*.yaml read it
WORK=output/embedded   # and write here
DONE="$WORK/done"

say() { printf 'rebuild: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# step NAME COMMAND...: once, with a stamp that a later run of this script finds.
step() {
    local name="$1"
    shift
    if [ -f "$DONE/$name" ]; then
        say "$name: done before"
        return 0
    fi
    say "$name"
    "$@"
    mkdir -p "$DONE"
    touch "$DONE/$name"
}

# Clips of at most 12 s, whose sync and sharpness are not judged: the judge of sync would be the model that is replaced.
prepare() {
    rm -rf "$WORK/sources"
    mkdir -p "$WORK/sources"
    for index in "${!folders[@]}"; do
        ln -s "${folders[index]}" "$WORK/sources/$index"
    done
    "$PYTHON" -m preprocess.data_processing_pipeline --input_dir "$WORK/sources" --output_dir "$DATA" \
        --steps shots,faces --resolution 128 --segment_seconds 12 --min_seconds 1.28 --many_faces largest \
        --keep_silent --person_pattern "$PERSON" --hold_out "${HELD_OUT[@]}" --distrust_sound "${SILENT[@]}" \
        --max_clips_per_person "$CLIPS_PER_PERSON" --held_out_per_person "$HELD_OUT_PER_PERSON" --total_num_workers "$(nproc)"
}

# A UNet speaks the language of one autoencoder: its training must not go on with another.
train_vae() {
    if [ -e "$WORK/unet_stage1/checkpoints" ]; then
        fail "$WORK/unet_stage1 holds a UNet trained with another autoencoder; remove $WORK to begin anew"
    fi
    "$PYTHON" -m scripts.train_vae --config configs/vae/embedded.yaml
}

train_syncnet() { "$PYTHON" -m scripts.train_syncnet --config_path "configs/syncnet/$1.yaml" --vae_path "$WORK/vae"; }
train_unet() { "$PYTHON" -m scripts.train_unet --unet_config_path "configs/unet/$1.yaml" --vae_path "$WORK/vae"; }

newest() { find "$1/checkpoints" -maxdepth 1 -name "$2-*.pt" | sort -V | tail -n 1; }

install_model() {
    mkdir -p "$HERE/vae"
    cp "$WORK/vae/config.json" "$WORK/vae/diffusion_pytorch_model.safetensors" "$HERE/vae/"
    "$PYTHON" -m tools.export_weights --checkpoint "$(newest "$WORK/syncnet" syncnet)" --output "$HERE/syncnet.safetensors"
    "$PYTHON" -m tools.export_weights --checkpoint "$(newest "$WORK/unet_stage4" unet)" --output "$HERE/unet.safetensors"
}

# The SyncNet that trained the UNet puts the recordings in sync, as far as they are not, for the one that is judged.
evaluate() {
    "$PYTHON" -m tools.evaluate_embedded --clips_dir "$DATA/held_out" --output_dir "$WORK/report" \
        --sync_reference configs/syncnet/embedded_latent.yaml
}

if [ $# -eq 0 ]; then
    echo "usage: ./checkpoints/embedded/rebuild.sh CLIPS_FOLDER [PORTRAITS_FOLDER ...]" >&2
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
step syncnet-for-training train_syncnet embedded_latent
step syncnet train_syncnet embedded
step unet-stage-1 train_unet embedded_stage1
step unet-stage-2 train_unet embedded_stage2
step unet-stage-3 train_unet embedded_stage3
step unet-stage-4 train_unet embedded
step install install_model
step figures evaluate
say "the embedded model in $HERE is new; its figures are in $WORK/report/report.md"
