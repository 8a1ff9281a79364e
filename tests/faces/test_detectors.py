"""The detectors: MediaPipe on a real portrait (NASA, public domain), InsightFace on synthetic landmarks."""

import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from latentsync.faces.detector import Face, is_plausible, overlap
from latentsync.faces.factory import create_detector
from latentsync.faces.insightface_detector import InsightFaceDetector, anchors_from_landmarks, faces_from_hits
from latentsync.faces.mediapipe_detector import CHECK_INTERVAL, MediaPipeDetector
from latentsync.faces.mediapipe_graphs import import_mediapipe
from latentsync.faces.tracking import FaceTracker
from latentsync.utils.errors import UserError
from tests.waiting import HANG_SECONDS

PORTRAIT = Path(__file__).parents[2] / "assets" / "demo_portrait.png"
# By eye on the 512x512 portrait: middle of both brows and of the nose bridge's lower half.
LEFT_BROW, RIGHT_BROW, NOSE = (197, 91), (255, 93), (224, 119)


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    return cv2.cvtColor(cv2.imread(str(PORTRAIT)), cv2.COLOR_BGR2RGB)


@pytest.fixture(scope="module")
def shared_detector():
    detector = MediaPipeDetector()
    yield detector
    detector.close()


@pytest.fixture
def detector(shared_detector):
    shared_detector.reset()
    shared_detector.static = False
    return shared_detector


def assert_is_portrait(face: Face, offset=(0, 0), zoom: float = 1.0, tolerance: float = 4.0) -> None:
    expected = np.array([LEFT_BROW, RIGHT_BROW, NOSE]) * zoom + offset
    assert np.abs(face.anchors - expected).max() <= max(tolerance * zoom, 1.5)
    assert (face.box[:2] < expected.min(axis=0)).all() and (face.box[2:] > expected.max(axis=0)).all()


def test_one_face(detector, portrait):
    (face,) = detector.detect(portrait)
    assert_is_portrait(face)
    assert 0.5 <= face.score <= 1
    assert 80 < face.size[0] < 110 and 90 < face.size[1] < 130


def test_two_faces(detector, portrait):
    faces = detector.detect(np.concatenate([portrait, portrait], axis=1))
    assert len(faces) == 2
    left, right = sorted(faces, key=lambda face: face.center[0])
    assert_is_portrait(left)
    assert_is_portrait(right, offset=(512, 0))


@pytest.mark.parametrize("zoom", [0.25, 0.5, 2.0, 4.0])
def test_sizes(detector, portrait, zoom):
    interpolation = cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR
    resized = cv2.resize(portrait, None, fx=zoom, fy=zoom, interpolation=interpolation)
    (face,) = detector.detect(resized)
    assert_is_portrait(face, zoom=zoom)


@pytest.mark.parametrize("shape", [(719, 1281), (1281, 719)])
def test_small_face_in_a_large_odd_frame(detector, portrait, shape):
    image = np.full((*shape, 3), 90, np.uint8)
    image[301:557, 201:457] = cv2.resize(portrait, (256, 256), interpolation=cv2.INTER_AREA)
    (face,) = detector.detect(image)
    assert_is_portrait(face, offset=(201, 301), zoom=0.5, tolerance=6)


@pytest.mark.parametrize("degrees", [-40, 25, 60, 90, 120, 150, 180, 210, 240, 270, 300])
def test_rotated(detector, portrait, degrees):
    matrix = cv2.getRotationMatrix2D((256, 256), degrees, 1)
    (face,) = detector.detect(cv2.warpAffine(portrait, matrix, (512, 512)))
    back = cv2.transform(face.anchors[None], cv2.invertAffineTransform(matrix))[0]
    assert np.abs(back - np.array([LEFT_BROW, RIGHT_BROW, NOSE])).max() < 6


def test_an_upside_down_face_is_followed(detector, portrait):
    turned = np.ascontiguousarray(portrait[::-1, ::-1])
    for step in range(2 * CHECK_INTERVAL + 2):
        (face,) = detector.detect(np.roll(turned, 2 * step, axis=1))
        mirrored = np.array([511, 511]) - (face.anchors - (2 * step, 0))
        assert np.abs(mirrored - np.array([LEFT_BROW, RIGHT_BROW, NOSE])).max() < 6
        assert face.up[1] > 0


def test_a_face_that_turns_over_at_once_is_not_carried_on(detector, portrait):
    """A cut in a part of the frame, which the cut detector does not see."""
    over = np.ascontiguousarray(portrait[::-1, ::-1])
    for image, down in [(portrait, 1), (over, -1), (over, -1), (portrait, 1), (over, -1)]:
        (face,) = detector.detect(image)
        assert face.up[1] * down < 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (3, 2), (40, 40), (200, 300)])
def test_images_without_a_face(detector, shape):
    assert detector.detect(np.full((*shape, 3), 127, np.uint8)) == []


def test_noise_is_no_face(detector):
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    assert detector.detect(noise) == []


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros((0, 5, 3), np.uint8)]
)
def test_other_arrays_are_refused(detector, image):
    with pytest.raises(ValueError, match="RGB"):
        detector.detect(image)


def test_carried_face_follows_and_is_lost(detector, portrait):
    for step in range(CHECK_INTERVAL + 5):
        (face,) = detector.detect(np.roll(portrait, 3 * step, axis=1))
        assert_is_portrait(face, offset=(3 * step, 0), tolerance=5)
    assert detector.detect(np.full_like(portrait, 90)) == []
    (face,) = detector.detect(portrait)
    assert_is_portrait(face)


def test_a_second_face_is_found_later(detector, portrait):
    alone = np.concatenate([portrait, np.full_like(portrait, 90)], axis=1)
    both = np.concatenate([portrait, portrait], axis=1)
    assert len(detector.detect(alone)) == 1
    counts = [len(detector.detect(both)) for _ in range(CHECK_INTERVAL + 1)]
    assert counts[-1] == 2


def test_a_lost_face_is_found_again_within_two_frames(detector, portrait):
    alone = np.concatenate([portrait, np.full_like(portrait, 90)], axis=1)
    both = np.concatenate([portrait, portrait], axis=1)
    assert len(detector.detect(both)) == 2
    for hidden in (1, 7, 30):
        counts = [len(detector.detect(alone)) for _ in range(hidden)] + [len(detector.detect(both)) for _ in range(3)]
        assert counts[hidden - 1] == 1 and counts[-1] == 2, hidden


def test_static_mode_carries_nothing(detector, portrait):
    first = MediaPipeDetector.detect(detector, portrait)
    detector.static = True
    shifted = detector.detect(np.roll(portrait, 100, axis=1))
    assert_is_portrait(shifted[0], offset=(100, 0))
    assert_is_portrait(first[0])


def test_tracker_with_the_real_detector(detector, portrait):
    tracker = FaceTracker(detector, select="right")
    image = np.concatenate([portrait, portrait], axis=1)
    results = [tracker.update(image, scale=2.0) for _ in range(3)]
    assert [result.is_cut for result in results] == [True, False, False]
    for result in results:
        assert_is_portrait(Face(result.box, result.anchors, 1.0), offset=(1024, 0), zoom=2.0)


def test_start_up_is_silent():
    """Native chatter is held back, in a fresh process, and other writes to stderr come through."""
    code = (
        "import os, numpy as np\n"
        "from latentsync.faces.mediapipe_graphs import quiet_stderr\n"
        "from latentsync.faces.factory import create_detector\n"
        "with quiet_stderr(): os.write(2, b'a real complaint\\n')\n"
        "detector = create_detector('mediapipe')\n"
        "detector.detect(np.zeros((90, 120, 3), np.uint8))\n"
        "detector.close()\n"
    )
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert result.stderr == "a real complaint\n"
    assert result.stdout == ""


def test_an_interruption_within_the_mesh_network_is_an_exception():
    """And not the end of the process: the network runs in the thread that signals interrupt."""
    code = (
        "import signal, numpy as np\n"
        "from latentsync.faces.mediapipe_graphs import MESH_SIDE, MeshNet\n"
        "net, image, interrupted = MeshNet(), np.zeros((MESH_SIDE, MESH_SIDE, 3), np.uint8), 0\n"
        "signal.signal(signal.SIGALRM, signal.default_int_handler)\n"
        "for number in range(60):\n"
        "    try:\n"
        "        signal.setitimer(signal.ITIMER_REAL, 1e-4 * (1 + number % 20))\n"
        "        for _ in range(100): net._run(image)\n"
        "    except KeyboardInterrupt: interrupted += 1\n"
        "print(interrupted)\n"
    )
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "60\n"), result.stderr


def synthetic_landmarks() -> np.ndarray:
    """106 points far away but for the ones that matter, placed around known centers."""
    landmarks = np.full((106, 2), 1e4)
    spread = np.array([[-8.0, 1], [-4, -1], [0, 0], [4, -1], [8, 1]])
    landmarks[[43, 48, 49, 51, 50]] = spread + (120.2, 80.3)
    landmarks[[101, 102, 103, 104, 105]] = spread + (180.4, 82.4)
    landmarks[[74, 77, 83, 86]] = np.array([[0.0, -9], [-10, 3], [10, 3], [0, 3]]) + (150.6, 120.7)
    return landmarks


def hit(box, score=0.9, landmarks=None) -> SimpleNamespace:
    landmarks = synthetic_landmarks() if landmarks is None else landmarks
    return SimpleNamespace(bbox=np.array(box, np.float32), det_score=np.float32(score), landmark_2d_106=landmarks)


def test_anchors_of_106_landmarks():
    anchors = anchors_from_landmarks(synthetic_landmarks())
    np.testing.assert_array_equal(anchors, [[120, 80], [180, 82], [151, 121]])
    with pytest.raises(ValueError, match="106"):
        anchors_from_landmarks(np.zeros((68, 2)))


def test_insightface_filters_and_order():
    hits = [
        hit((100, 50, 200, 190)),
        hit((50, 0, 260, 240)),
        hit((100, 50, 200, 190), score=0.4),
        hit((0, 0, 300, 100)),
        hit((0, 0, 30, 200)),
        SimpleNamespace(bbox=np.array([0, 0, 90, 90.0]), det_score=0.9, landmark_2d_106=None),
    ]
    faces = faces_from_hits(hits)
    assert [face.box.tolist() for face in faces] == [[50, 0, 260, 240], [100, 50, 200, 190]]


def test_insightface_gets_bgr_and_needs_no_models_with_an_app(tmp_path):
    seen = []
    app = SimpleNamespace(get=lambda image: seen.append(image) or [hit((100, 50, 200, 190))])
    detector = InsightFaceDetector(model_root=tmp_path, app=app)
    image = np.zeros((4, 4, 3), np.uint8)
    image[..., 0] = 200
    (face,) = detector.detect(image)
    assert seen[0][0, 0].tolist() == [0, 0, 200]
    assert face.score == pytest.approx(0.9)
    detector.reset()
    detector.close()


def test_insightface_has_several_images_of_a_batch_in_work(tmp_path):
    """Each of the first four waits until all four have begun; the results are in the order of the images."""
    begun = threading.Barrier(4)

    class App:
        def get(self, image):
            if image[0, 0, 2] < 4:
                begun.wait(HANG_SECONDS)
            return [hit((100, 50, 200, 190), score=0.6 + image[0, 0, 2] / 100)]

    detector = InsightFaceDetector(model_root=tmp_path, app=App())
    found = detector.detect_batch([np.full((4, 4, 3), level, np.uint8) for level in range(7)])
    detector.close()
    assert [faces[0].score for faces in found] == pytest.approx([0.6 + level / 100 for level in range(7)])


def test_insightface_without_models_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("tried the network"))
    with pytest.raises(UserError, match="non-commercial") as caught:
        create_detector("insightface", model_root=tmp_path)
    assert "buffalo_l" in str(caught.value) and str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_auto_falls_back_to_mediapipe(tmp_path):
    detector = create_detector("auto", model_root=tmp_path, static=True)
    assert isinstance(detector, MediaPipeDetector) and detector.static
    detector.close()
    detector.close()


def test_unknown_detector_is_a_user_error():
    with pytest.raises(UserError, match="dlib"):
        create_detector("dlib")


def test_plausibility():
    anchors = np.array([[30.0, 30], [70, 30], [50, 50]])
    box = np.array([0.0, 0, 100, 120])
    assert is_plausible(Face(box, anchors, 0.9))
    assert not is_plausible(Face(box, anchors, 0.3))
    assert not is_plausible(Face(box[[2, 3, 0, 1]], anchors, 0.9))
    assert not is_plausible(Face(box, np.full((3, 2), 50.0), 0.9))
    assert not is_plausible(Face(box, anchors * np.nan, 0.9))


def test_overlap():
    assert overlap(np.array([0, 0, 2, 2]), np.array([1, 0, 3, 2])) == pytest.approx(1 / 3)
    assert overlap(np.array([0, 0, 1, 1]), np.array([5, 5, 6, 6])) == 0
    assert overlap(np.zeros(4), np.zeros(4)) == 0


def test_modules_are_imported_once():
    """A second import registers everything again and leaves the first in cycles, with the memory of its graphs."""
    assert import_mediapipe() is import_mediapipe()
