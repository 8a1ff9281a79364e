"""Accuracy of the shipped SyncNet on a list of pairs: the same digits each time, clear errors."""

import cv2
import pytest

from eval.eval_syncnet_acc import build_parser, evaluate, main
from tests.media.synthetic import write_clip
from tests.pipelines.scenes import head


@pytest.fixture(scope="module")
def fileslist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    face = cv2.resize(head(), (256, 256))
    write_clip(folder / "a.mp4", 30, size=(256, 256), images=[face] * 30, tone_seconds=1.2)
    path = folder / "list.txt"
    path.write_text(f"{folder / 'a.mp4'}\tsomeone\n")
    return path


def test_two_runs_agree_to_the_digit(fileslist, capsys):
    words = ["--fileslist", str(fileslist), "--num_samples", "4"]
    first = evaluate(build_parser().parse_args(words))
    assert set(first) >= {"accuracy", "preference", "similarity_in_sync", "similarity_off"}
    assert 0 <= first["accuracy"] <= 1
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[-len(first) :] == [f"{k}: {v:.6f}" for k, v in first.items()]


def test_missing_parts_are_reported(tmp_path, capsys):
    assert main(["--fileslist", str(tmp_path / "none.txt")]) == 1
    assert "none.txt" in capsys.readouterr().err
    assert main(["--config_path", "configs/syncnet/syncnet_16_pixel.yaml", "--fileslist", "x"]) == 1
    assert "ckpt.inference_ckpt_path is empty" in capsys.readouterr().err
