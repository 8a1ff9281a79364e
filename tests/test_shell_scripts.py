"""setup_env.sh, inference.sh and the training scripts, with an interpreter that only records its commands."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.waiting import HANG_SECONDS

PROJECT_ROOT = Path(__file__).resolve().parents[1]
# Stands for python, pip and the environment's python at once. FAIL_ON names an argument to fail at.
FAKE_PYTHON = r"""#!/bin/bash
printf '[%s] ' "$@" >>"$LOG"; echo >>"$LOG"
for argument in "$@"; do
    if [ "$argument" = "${FAIL_ON:-}" ]; then echo "no such thing" >&2; exit 7; fi
done
if [ "$2" = "import torch" ]; then exit 1; fi # not installed yet
if [ "${2:-}" = venv ]; then
    mkdir -p "${@: -1}/bin"
    cp "$0" "${@: -1}/bin/python"
    echo "export VIRTUAL_ENV=\"${@: -1}\"" >"${@: -1}/bin/activate"
fi
"""


class Clone:
    """A copy of the scripts, in a directory with an awkward name."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "my clone, 'it'"
        self.root.mkdir()
        for name in (
            "setup_env.sh",
            "inference.sh",
            "train_unet.sh",
            "train_syncnet.sh",
            "pyproject.toml",
            "requirements.txt",
            "requirements-cuda.txt",
            "requirements-dev.txt",
        ):
            shutil.copy(PROJECT_ROOT / name, self.root)
        (self.root / "scripts").mkdir()
        shutil.copy(PROJECT_ROOT / "scripts" / "launch_training.sh", self.root / "scripts")
        self.elsewhere = directory / "else where"
        self.elsewhere.mkdir()
        self.log = directory / "log"
        self.python = directory / "fake_python"
        self.python.write_text(FAKE_PYTHON)
        self.python.chmod(0o755)

    def bash(self, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a line of bash from another directory; $1 is the clone, further arguments follow."""
        environment = {
            "PATH": "/usr/bin:/bin",
            "LOG": str(self.log),
            "PYTHON": str(self.python),
            "LATENTSYNC_SKIP_DOWNLOAD": "1",
        }
        return subprocess.run(
            ["bash", "-c", script, "bash", str(self.root), *arguments],
            cwd=self.elsewhere,
            env=environment | variables,
            capture_output=True,
            text=True,
            timeout=HANG_SECONDS,
        )

    def calls(self) -> list[str]:
        """What the interpreter was asked for since the last time."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return [line for line in lines if "sys.exit" not in line]


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


def test_set_up_once(clone: Clone) -> None:
    assert clone.bash('"$1/setup_env.sh"').returncode == 0
    calls = "\n".join(clone.calls())
    assert "[venv]" in calls and "requirements.txt]" in calls and "requirements-dev.txt]" in calls
    assert "[torch==2.13.0+cpu]" in calls and "requirements-cuda.txt" not in calls
    assert f"[--no-deps] [--no-build-isolation] [--editable] [{clone.root}]" in calls
    for arguments in ("", "--if-needed"):
        assert clone.bash(f'"$1/setup_env.sh" {arguments}').returncode == 0
        assert not any("[pip]" in call or "[venv]" in call for call in clone.calls())
    with (clone.root / "requirements.txt").open("a") as file:
        file.write("# changed\n")
    assert clone.bash('"$1/setup_env.sh" --if-needed').returncode == 0
    assert any("[pip]" in call for call in clone.calls())


def test_cuda_build_only_with_a_gpu_when_asked_for_or_when_there_is_no_other(clone: Clone) -> None:
    refused = clone.bash('"$1/setup_env.sh"', FAIL_ON="torch==2.13.0+cpu", LATENTSYNC_TORCH="cpu")
    assert refused.returncode == 1 and "no CPU build" in refused.stderr
    assert "requirements-cuda.txt" not in "".join(clone.calls())
    fallback = clone.bash('"$1/setup_env.sh"', FAIL_ON="torch==2.13.0+cpu")
    assert fallback.returncode == 0 and "installing the CUDA build" in fallback.stderr
    assert "requirements-cuda.txt]" in "".join(clone.calls())
    (clone.root / "requirements.txt").open("a").write("# changed\n")
    assert clone.bash('"$1/setup_env.sh"', LATENTSYNC_TORCH="cuda").returncode == 0
    calls = "".join(clone.calls())
    assert "requirements-cuda.txt]" in calls and "+cpu" not in calls
    assert clone.bash('"$1/setup_env.sh"', LATENTSYNC_TORCH="gpu").returncode == 1


def test_sourced_under_strict_options(clone: Clone) -> None:
    result = clone.bash(
        'set -eu; source "$1/setup_env.sh"; echo "$VIRTUAL_ENV"; pwd; set | grep -c ^_latentsync || true'
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [f"{clone.root}/.venv", str(clone.elsewhere), "0"]


@pytest.mark.parametrize("failing", ["venv", "pip"])
def test_failure_leaves_the_shell_alive(clone: Clone, failing: str) -> None:
    result = clone.bash('source "$1/setup_env.sh" || echo "still here: $?"', FAIL_ON=failing)
    assert result.stdout.strip() == "still here: 1"
    assert "setup: " in result.stderr
    assert clone.bash('source "$1/setup_env.sh"').returncode == 0  # running it again mends it


def test_no_suitable_python(clone: Clone) -> None:
    failing = clone.python.with_name("old_python")
    failing.write_text("#!/bin/bash\nexit 1\n")
    failing.chmod(0o755)
    tools = clone.python.with_name("bin")
    tools.mkdir()
    for name in ("bash", "dirname", "cksum", "cat", "grep", "flock", "uname"):
        (tools / name).symlink_to(shutil.which(name))
    result = clone.bash('"$1/setup_env.sh"', PYTHON=str(failing), PATH=str(tools))
    assert result.returncode == 1
    assert "Python 3.11 or 3.12" in result.stderr and result.stderr.count("\n") == 1


def test_download_only_with_a_gpu_and_never_fatal(clone: Clone) -> None:
    tools = clone.python.with_name("bin")
    tools.mkdir()
    (tools / "nvidia-smi").write_text('#!/bin/bash\nexit "$NO_GPU"\n')
    (tools / "nvidia-smi").chmod(0o755)
    path = f"{tools}:/usr/bin:/bin"
    result = clone.bash('"$1/setup_env.sh"', LATENTSYNC_SKIP_DOWNLOAD="0", PATH=path, NO_GPU="1")
    assert result.returncode == 0 and "no GPU: the embedded model" in result.stderr
    assert not any("[download]" in call for call in clone.calls())
    result = clone.bash('"$1/setup_env.sh"', LATENTSYNC_SKIP_DOWNLOAD="0", PATH=path, NO_GPU="0", FAIL_ON="download")
    assert result.returncode == 0 and "continuing with the embedded model" in result.stderr
    clone.bash('"$1/setup_env.sh"', PATH=path, NO_GPU="0")  # LATENTSYNC_SKIP_DOWNLOAD=1
    assert sum("[download]" in call for call in clone.calls()) == 1


def last_call(clone: Clone) -> str:
    return clone.calls()[-1].strip()


def test_inference_passes_names_on_as_they_are(clone: Clone) -> None:
    result = clone.bash(
        '"$1/inference.sh" "$2" "$3" "$4" --seed 3', "-my clip;$(x).mp4", "a voice 'é'.wav", "out put.mp4"
    )
    assert result.returncode == 0, result.stderr
    assert last_call(clone) == (
        "[-P] [-m] [latentsync] [infer] [--video_path=-my clip;$(x).mp4] [--audio_path=a voice 'é'.wav] "
        "[--video_out_path=out put.mp4] [--seed] [3]"
    )


def test_inference_defaults(clone: Clone) -> None:
    assert clone.bash('"$1/inference.sh"').returncode == 0
    assert last_call(clone) == "[-P] [-m] [latentsync] [infer]"
    assert clone.bash('"$1/inference.sh" dir/clip.v1.mp4 voice.wav --crf 20').returncode == 0
    assert "[--video_out_path=outputs/clip.v1_synced.mp4] [--crf] [20]" in last_call(clone)
    assert clone.bash('"$1/inference.sh" --help').returncode == 0
    assert last_call(clone).endswith("[infer] [--help]")


def test_inference_exit_codes(clone: Clone) -> None:
    result = clone.bash('"$1/inference.sh" clip.mp4')
    assert result.returncode == 2 and "AUDIO is missing" in result.stderr
    assert clone.bash('"$1/inference.sh"', FAIL_ON="infer").returncode == 7


def test_train_unet_passes_config_and_options_on(clone: Clone) -> None:
    alone = {"CUDA_VISIBLE_DEVICES": "0"}
    assert clone.bash('"$1/train_unet.sh"', **alone).returncode == 0
    assert (
        last_call(clone) == f"[-P] [-m] [scripts.train_unet] [--unet_config_path={clone.root}/configs/unet/stage1.yaml]"
    )
    assert clone.bash('"$1/train_unet.sh" "my config.yaml" --dry_run', **alone).returncode == 0
    assert last_call(clone) == "[-P] [-m] [scripts.train_unet] [--unet_config_path=my config.yaml] [--dry_run]"
    assert clone.bash('"$1/train_unet.sh"', FAIL_ON="scripts.train_unet", **alone).returncode == 7


def test_train_unet_starts_one_process_for_each_gpu(clone: Clone) -> None:
    assert clone.bash('"$1/train_unet.sh"', CUDA_VISIBLE_DEVICES="0,3").returncode == 0
    assert "[accelerate.commands.launch] [--multi_gpu] [--num_processes=2] [-m] [scripts.train_unet]" in last_call(
        clone
    )
    assert clone.bash('"$1/train_unet.sh"', ACCELERATE_CONFIG="my fsdp.yaml").returncode == 0
    assert "[accelerate.commands.launch] [--config_file=my fsdp.yaml] [-m] [scripts.train_unet]" in last_call(clone)


def test_train_syncnet_passes_config_and_options_on(clone: Clone) -> None:
    alone = {"CUDA_VISIBLE_DEVICES": ""}
    assert clone.bash('"$1/train_syncnet.sh" --dry_run', **alone).returncode == 0
    default = f"{clone.root}/configs/syncnet/syncnet_16_pixel.yaml"
    assert last_call(clone) == f"[-P] [-m] [scripts.train_syncnet] [--config_path={default}] [--dry_run]"
    assert clone.bash('"$1/train_syncnet.sh" "my config.yaml"', CUDA_VISIBLE_DEVICES="0,1").returncode == 0
    assert "[--num_processes=2] [-m] [scripts.train_syncnet] [--config_path=my config.yaml]" in last_call(clone)
