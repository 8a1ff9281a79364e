"""Aligned faces of a video, with scripted trackers."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from latentsync.faces import video
from latentsync.faces.detector import Face
from latentsync.faces.everyone import PeopleTracker
from latentsync.faces.tracking import NO_FACE, TrackedFace
from latentsync.faces.video import (
    OUTSIDE,
    FaceAligner,
    align_frames,
    read_faces,
)
from latentsync.media.frame import VideoFrame
from latentsync.media.probe import probe_video
from latentsync.media.timeline import open_timeline
from latentsync.utils.affine_transform import AlignRestore
from tests.pipelines.scenes import WIDTH, clip, draw_scene

ANCHORS = np.array([[45.0, 40.0], [75.0, 40.0], [60.0, 55.0]])


def frame(width: int = 128, height: int = 96, level: int = 90) -> VideoFrame:
    return VideoFrame.from_rgb(np.full((height, width, 3), level, np.uint8))


@dataclass
class ScriptedTracker:
    """Gives the prepared faces one after another, and keeps what it was shown."""

    faces: list[TrackedFace | None]
    missing: str = NO_FACE

    def __post_init__(self) -> None:
        self.shown: list[tuple[tuple[int, ...], float]] = []

    def update(self, image: np.ndarray, scale: float = 1.0) -> TrackedFace | None:
        self.shown.append((image.shape, scale))
        return self.faces[len(self.shown) - 1]


def tracked(anchors: np.ndarray = ANCHORS, is_cut: bool = False) -> TrackedFace:
    return TrackedFace(Face(np.array([40.0, 30.0, 80.0, 80.0]), anchors, 0.9), anchors, is_cut)


def test_one_person_of_a_video_file(tmp_path, shared_detector):
    path = clip(tmp_path / "clip.mp4", 6)
    frames = list(read_faces(path, 64))
    assert [item.index for item in frames] == list(range(6))
    assert [item.face.starts for item in frames] == [True] + [False] * 5
    assert all(item.face.pixels.shape == (64, 64, 3) for item in frames)
    assert len(list(read_faces(path, 64, duration=Fraction(10, 25)))) == 10  # forward, then backward
    assert len(list(read_faces(path, 64, fps=Fraction(50)))) == 12


def test_a_reader_that_is_closed_releases_file_and_detector(tmp_path, monkeypatch):
    closed = []

    class NoFaces:
        def reset(self) -> None: ...

        def detect(self, image: np.ndarray) -> list:
            return []

        def close(self) -> None:
            closed.append(self)

    monkeypatch.setattr(video, "create_detector", lambda *_, **__: NoFaces())
    reader = read_faces(clip(tmp_path / "clip.mp4", 3), 64)
    assert next(reader).face is None
    reader.close()
    assert len(closed) == 1
    lent = NoFaces()
    assert [item.face for item in read_faces(tmp_path / "clip.mp4", 64, detector=lent)] == [None] * 3
    assert lent not in closed


def test_all_people_of_a_video(tmp_path, detector):
    """Two people, then a cut to one of them."""

    def draw(index: int) -> np.ndarray:
        if index < 6:
            return draw_scene(((10, 0), (170, 0)), width=2 * WIDTH)
        return draw_scene(((100, 0),), (220, 210, 150), width=2 * WIDTH)

    detector.static = False
    tracker = PeopleTracker(detector, 64)
    info = probe_video(clip(tmp_path / "clip.mp4", 10, draw))
    with open_timeline(info, Fraction(10, 25), Fraction(25)) as frames:
        tracks = list(tracker.tracks(frames))
    assert tracker.most == 2
    assert sorted((track.person, track.start, len(track)) for track in tracks) == [(0, 0, 6), (1, 0, 6), (2, 6, 4)]
    for track in tracks:
        assert track.pixels[0].shape == (64, 64, 3) and (track.widths > 20).all() and 0 <= track.jitter < 0.2
    left, right = (np.mean(tracks[index].boxes, axis=0)[0] for index in (0, 1))
    assert abs(left - right) > 100


def test_a_face_is_cut_out_upright_at_the_working_resolution():
    face = FaceAligner(ScriptedTracker([tracked(is_cut=True)]), AlignRestore(resolution=64))(0, frame()).face
    assert face.pixels.shape == (64, 64, 3) and face.pixels.dtype == np.uint8
    assert face.matrix.shape == (2, 3) and face.starts
    assert np.abs(face.pixels.astype(int)[16:48, 16:48] - 90).max() <= 3


def test_no_face_and_a_face_outside_the_frame():
    far = tracked(ANCHORS + 5000)
    align = FaceAligner(ScriptedTracker([None, far]), AlignRestore(resolution=64))
    nothing, outside = align(0, frame()), align(1, frame())
    assert nothing.face is None and nothing.seen.passed == NO_FACE
    assert outside.face is None and outside.seen.passed == OUTSIDE and outside.seen.box is not None


def test_the_detector_sees_large_frames_scaled_down():
    tracker = ScriptedTracker([None, None])
    align = FaceAligner(tracker, AlignRestore(resolution=64))
    align(0, frame(1920, 1080))
    align(1, frame(128, 96))
    assert tracker.shown == [((540, 960, 3), 2.0), ((96, 128, 3), 1.0)]


def test_a_repeated_frame_is_not_searched_again_and_is_no_cut():
    tracker = ScriptedTracker([tracked(is_cut=True), None])
    still, other = frame(), frame(level=50)
    first, again, last = list(align_frames([still, still, other], FaceAligner(tracker, AlignRestore(resolution=64))))
    assert len(tracker.shown) == 2
    assert first.face.starts and not again.face.starts
    assert again.face.pixels is first.face.pixels and again.face.matrix is first.face.matrix
    assert [first.index, again.index, last.index] == [0, 1, 2] and last.face is None


def test_the_running_bias_is_forgotten_at_a_cut():
    jumped = ANCHORS * (1.2, 0.9)
    smooth = FaceAligner(ScriptedTracker([tracked(), tracked(jumped)]), AlignRestore(resolution=64))
    cut = FaceAligner(ScriptedTracker([tracked(), tracked(jumped, is_cut=True)]), AlignRestore(resolution=64))
    alone = FaceAligner(ScriptedTracker([tracked(jumped, is_cut=True)]), AlignRestore(resolution=64))
    image = frame()
    smooth(0, image), cut(0, image)
    other = frame()
    expected = alone(0, other).face.matrix
    assert np.allclose(cut(1, other).face.matrix, expected)
    assert not np.allclose(smooth(1, other).face.matrix, expected)
