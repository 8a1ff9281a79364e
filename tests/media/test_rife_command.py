"""Output of the interpolation command: which interpolator ran, and errors in its options."""

import importlib.util
import subprocess
import sys
from types import ModuleType

import pytest

from latentsync.utils.paths import PROJECT_ROOT
from tests.media.synthetic import write_clip

COMMAND = PROJECT_ROOT / "ECCV2022-RIFE" / "inference_video.py"


@pytest.fixture(scope="module")
def command() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rife_command", COMMAND)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_interpolator_is_named_on_a_line_of_its_own(tmp_path):
    words = ["--video", str(write_clip(tmp_path / "in.mp4", 3)), "--interpolator", "dis-flow"]
    run = subprocess.run([sys.executable, COMMAND, *words], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout == f"{tmp_path / 'in_2x.mp4'}\n"
    lines = run.stderr.replace("\r", "\n").splitlines()
    assert any(line.startswith("frame interpolation: optical flow") for line in lines), run.stderr


@pytest.mark.parametrize("fps", ["nan", "inf", "0", "-25"])
def test_rates_that_are_none(command, tmp_path, capsys, fps):
    out = tmp_path / "out.mp4"
    source = write_clip(tmp_path / "in.mp4", 3)
    assert command.main(["--video", str(source), "--fps", fps, "--output", str(out)]) == 1
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("error: ") and not out.exists()


@pytest.mark.parametrize("scale", ["0", "-1", "3"])
def test_scales_that_rife_does_not_know(command, tmp_path, capsys, scale):
    with pytest.raises(SystemExit, match="2"):
        command.main(["--video", str(tmp_path / "in.mp4"), "--scale", scale])
    assert "--scale" in capsys.readouterr().err
