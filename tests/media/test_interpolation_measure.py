"""The measurement of interpolation against frames left out."""

import importlib.util
import sys

import cv2
import numpy as np
import pytest

from latentsync.media.optical_flow import FlowInterpolator
from latentsync.utils.errors import UserError
from latentsync.utils.registry import PROJECT_ROOT
from tests.media.synthetic import write_clip


@pytest.fixture(scope="module")
def measuring():
    path = PROJECT_ROOT / "ECCV2022-RIFE" / "measure.py"
    spec = importlib.util.spec_from_file_location("rife_measure", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclass looks
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def moving(count: int, pixels: float) -> list[np.ndarray]:
    noise = np.random.default_rng(0).uniform(0, 255, (96, 160, 3)).astype(np.float32)
    picture = np.clip((cv2.GaussianBlur(noise, (0, 0), 3) - 127) * 6 + 127, 0, 255).astype(np.uint8)
    return [
        cv2.warpAffine(
            picture, np.float32([[1, 0, index * pixels], [0, 1, 0]]), (160, 96), borderMode=cv2.BORDER_REFLECT
        )
        for index in range(count)
    ]


def test_flow_wins_where_there_is_motion(measuring):
    made, mixed = measuring.measure(moving(5, 2), FlowInterpolator())
    assert made.psnr > mixed.psnr + 2 and made.moving > mixed.moving + 2 and made.ssim > mixed.ssim


def test_where_nothing_moves_there_is_no_figure(measuring):
    still = moving(1, 0) * 3
    made, mixed = measuring.measure(still, FlowInterpolator())
    assert made.psnr == mixed.psnr == 100 and np.isnan(made.moving)
    with pytest.raises(UserError, match="three frames"):
        measuring.measure(still[:2], FlowInterpolator())


def test_the_command(measuring, tmp_path, capsys):
    clip = write_clip(tmp_path / "a.mp4", 7)
    assert measuring.main([str(clip), "--frames", "5", "--interpolator", "dis-flow"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| a | ") and "over 1 videos" in lines[-1]
    assert measuring.main([str(tmp_path / "no.mp4")]) == 1
    assert "no.mp4" in capsys.readouterr().err
