"""FVD of two folders with a small TorchScript network in the place of I3D."""

import json
from pathlib import Path

import numpy as np
import pytest

from eval.eval_fvd import features_of, main
from eval.frames import FaceChunk
from latentsync.faces import video
from latentsync.metrics import faces
from latentsync.metrics.fvd import VideoFeatures
from latentsync.utils.errors import UserError
from tests.media.synthetic import write_clip
from tests.metrics.i3d import first_and_last, write_i3d
from tests.pipelines.scenes import clip, draw_scene


@pytest.fixture(scope="module")
def i3d(tmp_path_factory) -> Path:
    return write_i3d(tmp_path_factory.mktemp("i3d") / "i3d.pt")


def gray_faces(path: Path) -> list[FaceChunk]:
    """Frame i is of gray level i; a cut at 20; the file's name says how many."""
    if path.stem == "bad":
        raise UserError(f"{path}: cannot\nbe read")
    count = int(path.stem)
    faces = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 224, 224, 3))
    starts = np.isin(np.arange(count), [0, 20])
    parts = [slice(first, first + 16) for first in range(0, count, 16)]
    return [FaceChunk(np.arange(count)[part], starts[part], faces[part], faces[part]) for part in parts]


def test_windows_cover_all_clips_and_span_no_cut(i3d, caplog):
    network = VideoFeatures.from_pretrained(i3d, trust=True)
    videos = [Path(name) for name in ("19.mp4", "bad.mp4", "8.mp4", "40.mp4")]
    features, counts = features_of(videos, network, 16, gray_faces)
    assert counts == {"19.mp4": 2, "bad.mp4": 0, "8.mp4": 0, "40.mp4": 4}
    windows = first_and_last(features)
    assert windows == [(0, 15), (3, 18), (0, 15), (4, 19), (20, 35), (24, 39)]
    assert "left out: bad.mp4: cannot\\nbe read" in caplog.text
    with pytest.raises(UserError, match="FVD needs more"):
        features_of([Path("16.mp4")], network, 16, gray_faces)


def test_two_folders(i3d, tmp_path, monkeypatch, detector, capsys):
    monkeypatch.setattr(detector, "close", lambda: None)
    for module in (video, faces):
        monkeypatch.setattr(module, "create_detector", lambda *args, **options: detector.reset() or detector)
    real, fake = tmp_path / "real ä", tmp_path / "fake"
    for folder in (real, fake):
        (folder / "sub").mkdir(parents=True)
        clip(folder / "sub" / "one\nname.mp4", 20)
        (folder / "empty.mp4").touch()
    write_clip(real / "no face.mp4", 20)
    words = ["--real_videos_dir", str(real), "--fake_videos_dir", str(fake), "--device", "cpu"]
    words += ["--i3d_path", str(i3d), "--trust"]
    output = tmp_path / "out" / "fvd.json"
    assert main([*words, "--output", str(output)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "FVD 0.0000"
    content = json.loads(output.read_text())
    assert content["stride"] == 8 and sorted(content["windows"]["real"].values()) == [0, 0, 2]
    clip(fake / "sub" / "one\nname.mp4", 20, lambda index: draw_scene(((20, 0),)) // 2)
    assert main(words) == 0
    assert float(capsys.readouterr().out.split()[-1]) > 0.01


def test_errors_are_reported(i3d, tmp_path, capsys):
    (tmp_path / "a.mp4").touch()
    words = ["--real_videos_dir", str(tmp_path), "--fake_videos_dir", str(tmp_path)]
    assert main([*words, "--i3d_path", str(tmp_path / "none.pt")]) == 1
    assert "the I3D network of FVD is missing" in capsys.readouterr().err
    assert main([*words, "--i3d_path", str(i3d), "--fake_videos_dir", str(tmp_path / "none")]) == 1
    assert "no such folder" in capsys.readouterr().err
    assert main([*words, "--i3d_path", str(i3d)]) == 1
    assert "pass --trust" in capsys.readouterr().err
    assert main([*words, "--i3d_path", str(i3d), "--trust"]) == 1
    assert "FVD needs more windows" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main([*words, "--stride", "0"])
    assert stop.value.code == 2
