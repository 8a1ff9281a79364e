"""Both ways of the benchmark keep the same clips."""

import cv2
import pytest

from preprocess.bench import Cost, measure
from preprocess.settings import ProcessSettings
from tests.pipelines.scenes import clip, draw_scene


def test_rows_of_the_table():
    assert Cost(30.0, 48.0).row("single pass", 10) == "| single pass | 30.0 | 48.0 | 20.0 |"


@pytest.mark.slow
def test_both_ways_keep_the_same_clips(tmp_path):
    large = cv2.resize(draw_scene(), None, fx=2, fy=2)
    clip(tmp_path / "bob_1.mp4", 50, lambda index: large, tone_seconds=2.0)
    clip(tmp_path / "bob_2.mp4", 50, lambda index: large[:, ::-1], tone_seconds=2.0)
    settings = ProcessSettings(
        resolution=128,
        min_seconds=1.4,
        sync_conf_threshold=-1.0,
        min_preference=0.0,
        max_offset=0,
        min_quality=0.0,
        crf=18,
    )
    lines = measure(str(tmp_path), 2, 1, settings)
    assert lines[2].startswith("| single pass,") and lines[3].startswith("| stepwise,")
    assert "ratio" in lines[-2] and "faces" in lines[-1]
