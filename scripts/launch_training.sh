# Sourced by train_unet.sh and train_syncnet.sh, which set ROOT and pass: the module to run, the option that takes its
# config, the default config, and the arguments of the user ([CONFIG] [--option value ...]).
module="$1" config_option="$2" config="$3"
shift 3
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
    config="$1"
    shift
fi

bash "$ROOT/setup_env.sh" --if-needed

# -P, PYTHONSAFEPATH (for the processes that accelerate starts): never import modules of the working directory.
export PYTHONSAFEPATH=1
PYTHON="$ROOT/.venv/bin/python"

count_gpus() {
    if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
        tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c . || true
    else
        { nvidia-smi --list-gpus 2>/dev/null || true; } | wc -l
    fi
}

launch=()
if [ -n "${ACCELERATE_CONFIG:-}" ]; then
    launch=(-m accelerate.commands.launch "--config_file=$ACCELERATE_CONFIG")
elif [ "$(count_gpus)" -gt 1 ]; then
    launch=(-m accelerate.commands.launch --multi_gpu "--num_processes=$(count_gpus)")
fi
exec "$PYTHON" -P ${launch[@]+"${launch[@]}"} -m "$module" "$config_option=$config" "$@"
