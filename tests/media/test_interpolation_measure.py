"""The measurement of interpolation against frames left out."""

import importlib.util
import sys

import cv2
import numpy as np
import pytest

from latentsync.media.optical_flow import FlowInterpolator
from latentsync.utils.errors import UserError
from latentsync.utils.paths import PROJECT_ROOT
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
    image = np.clip((cv2.GaussianBlur(noise, (0, 0), 3) - 127) * 6 + 127, 0, 255).astype(np.uint8)
    return [
        cv2.warpAffine(image, np.float32([[1, 0, index * pixels], [0, 1, 0]]), (160, 96), borderMode=cv2.BORDER_REFLECT)
        for index in range(count)
    ]


def test_flow_wins_where_there_is_motion(measuring):
    gaps = measuring.gaps_of(moving(5, 2))
    made, mixed = measuring.measure(gaps, FlowInterpolator())
    assert made.psnr > mixed.psnr + 2 and made.moving > mixed.moving + 2 and made.ssim > mixed.ssim
    assert measuring.ceiling(gaps).psnr > mixed.psnr + 2


def test_where_nothing_moves_there_is_no_figure(measuring):
    still = moving(1, 0) * 3
    made, mixed = measuring.measure(measuring.gaps_of(still), FlowInterpolator())
    assert made.psnr == mixed.psnr == 100 and np.isnan(made.moving)
    with pytest.raises(UserError, match="three frames"):
        measuring.gaps_of(still[:2])


def test_frames_left_out_have_neighbors_and_theirs(measuring):
    frames = moving(8, 2)
    assert [gap.real is frames[i] for gap, i in zip(measuring.gaps_of(frames), (1, 3, 5), strict=True)] == [True] * 3
    first, middle, last = measuring.gaps_of(frames)
    assert first.before is None and first.after is frames[4]
    assert (middle.before is frames[0], middle.first is frames[2], middle.second is frames[4]) == (True,) * 3
    assert middle.after is frames[6] and last.after is None
    assert [gap.real is frames[i] for gap, i in zip(measuring.gaps_of(frames, 2), (1, 5), strict=True)] == [True] * 2


def test_a_frame_shown_twice_may_be_passed_over(measuring):
    frames = moving(4, 2)
    stretched = [frames[0], frames[0], frames[1], frames[2], frames[3]]
    assert len(measuring.gaps_of(stretched)) == 2
    (left,) = measuring.gaps_of(stretched, skip_repeats=True)
    assert left.real is frames[2]
    with pytest.raises(UserError, match="repeats"):
        measuring.gaps_of(stretched[:3], skip_repeats=True)


def test_the_command(measuring, tmp_path, capsys):
    clip, other = write_clip(tmp_path / "a.mp4", 7), write_clip(tmp_path / "b.mp4", 7)
    options = ["--frames", "5", "--interpolator", "dis-flow", "--ceiling", "--group", "b", "--group", "[cd]"]
    assert measuring.main([str(clip), str(other), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| a | ") and len(lines) == 6
    assert lines[4].startswith("b: mean gain ") and lines[4].endswith("over 1 videos")
    assert "with the true motion" in lines[5] and lines[5].endswith("over 2 videos")
    assert measuring.main([str(tmp_path / "no.mp4")]) == 1
    assert "no.mp4" in capsys.readouterr().err
