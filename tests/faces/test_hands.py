"""Hands in front of a face keep their pixels."""

from contextlib import closing
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from latentsync.faces import hands
from latentsync.faces.align import frame_to_square
from latentsync.faces.detector import Face
from latentsync.faces.hands import HOLD, IDLE_INTERVAL, HandFinder, hand_outline
from latentsync.faces.video import FaceAligner
from latentsync.faces.visibility import BEHIND_HAND, RETURNING, THUMBNAIL_SIDE, VISIBLE, behind_hands
from latentsync.media.frame import VideoFrame
from latentsync.utils.affine_transform import AlignRestore
from tests.faces.test_video import ScriptedTracker, tracked

PORTRAIT = Path(__file__).resolve().parents[2] / "assets" / "demo_portrait.png"
SKIN, SHADE, KNUCKLE = (205, 150, 125), (123, 90, 75), (174, 127, 106)
FACE = Face(np.array([179.0, 69, 272, 176]), np.array([[205.0, 100], [245, 100], [225, 125]]), 0.9)
# The landmarks of an open hand: the wrist at (0, 0), the middle knuckle at (0, -1).
HAND = np.array(
    [(0, 0), (-0.35, -0.2), (-0.6, -0.5), (-0.78, -0.75), (-0.92, -0.98), (-0.3, -0.95), (-0.36, -1.35)]
    + [(-0.39, -1.6), (-0.41, -1.82), (0, -1), (0, -1.45), (0, -1.72), (0, -1.97), (0.25, -0.93), (0.3, -1.33)]
    + [(0.33, -1.58), (0.35, -1.8), (0.47, -0.8), (0.57, -1.1), (0.64, -1.28), (0.69, -1.45)]
)


def placed(x: float, y: float, palm: float = 64.0, angle: float = 0.5) -> np.ndarray:
    """`HAND` with its wrist at (x, y)."""
    cos, sin = np.cos(angle), np.sin(angle)
    return palm * HAND @ np.array([[cos, sin], [-sin, cos]]) + (x, y)


def draw_hand(image: np.ndarray, points: np.ndarray, palm: float = 64.0) -> np.ndarray:
    """A drawing of a hand and its arm over a copy of the image."""
    drawn, spots = image.copy(), points.astype(np.int32)
    arm = (points[0] - 1.2 * (points[9] - points[0])).astype(np.int32)
    for color, extra in ((SHADE, 0.05), (SKIN, 0.0)):
        cv2.line(drawn, spots[0].tolist(), arm.tolist(), color, int((0.6 + extra) * palm))
    for color, extra in ((SHADE, 0.05), (SKIN, 0.0)):
        cv2.polylines(drawn, [spots[hands.PALM]], True, color, int((0.28 + extra) * palm))
        cv2.fillPoly(drawn, [spots[hands.PALM]], color)
    for finger in reversed(hands.FINGERS):
        for color, width in ((SHADE, 0.29), (SKIN, 0.24)):
            cv2.polylines(drawn, [spots[finger[-4:]]], False, color, int(width * palm))
        for joint in finger[-3:-1]:
            cv2.circle(drawn, spots[joint].tolist(), int(0.05 * palm), KNUCKLE, -1)
    return cv2.GaussianBlur(drawn, (0, 0), 1.07)


class Net:
    """In place of `HandNet`: finds the hands of `found`, in pixels of the image of 512 pixels."""

    found: list[np.ndarray] = []

    def detect(self, square: np.ndarray) -> list[np.ndarray]:
        side = hands.SCALE * FACE.size.max()
        corner = FACE.center + (0, hands.LOWER * FACE.size[1]) - side / 2
        return [(hand - corner) * (hands.SIDE / side) for hand in self.found]

    def close(self) -> None:
        pass


@pytest.fixture
def net(monkeypatch) -> type[Net]:
    monkeypatch.setattr(hands, "HandNet", Net)
    monkeypatch.setattr(Net, "found", [])
    return Net


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    with Image.open(PORTRAIT) as image:
        return np.asarray(image.convert("RGB"))


def test_the_networks_find_a_hand_over_the_mouth_and_none_on_a_portrait(portrait):
    points = placed(197, 208)
    covered = draw_hand(portrait, points)
    with closing(HandFinder()) as finder:
        assert finder.find(portrait, FACE) == ()
        finder.reset()
        (outline,) = finder.find(covered, FACE)
    drawn, filled = draw_hand(np.zeros_like(portrait), points).max(axis=2) > 60, np.zeros(covered.shape[:2], np.uint8)
    cv2.fillPoly(filled, [np.round(outline).astype(np.int32)], 1)
    x0, y0, x1, y1 = FACE.box.astype(int)
    hidden, kept = drawn[y0:y1, x0:x1], filled[y0:y1, x0:x1] > 0
    assert (hidden & kept).sum() > 0.85 * hidden.sum()
    assert (kept & ~hidden).sum() < 0.4 * hidden.sum()


def test_the_outline_covers_the_landmarks_and_the_beginning_of_the_arm():
    points = placed(0, 0, 50.0)
    outline = hand_outline(points).astype(np.float32)
    assert all(cv2.pointPolygonTest(outline, (float(x), float(y)), True) > 4 for x, y in points)
    behind = points[0] - 0.5 * (points[9] - points[0])
    assert cv2.pointPolygonTest(outline, (float(behind[0]), float(behind[1])), False) > 0
    assert cv2.contourArea(outline) < 4 * 50**2


def test_the_networks_run_only_while_something_moves(net, portrait):
    finder = HandFinder()
    for _ in range(2 * IDLE_INTERVAL):
        assert finder.find(portrait, FACE) == ()
    assert finder.runs == 2
    net.found = [placed(197, 240)]
    came, frames = draw_hand(portrait, net.found[0]), 0
    while not finder.find(came, FACE):
        frames += 1
    assert frames < hands.CHANGED_INTERVAL and finder.runs == 3
    finder.find(came, FACE)
    assert finder.runs == 4  # with a hand, in every frame


def test_a_lost_hand_stays_for_some_frames(net, portrait):
    finder, net.found = HandFinder(), [placed(197, 208)]
    assert len(finder.find(portrait, FACE)) == 1
    net.found = []
    assert [len(finder.find(portrait, FACE)) for _ in range(HOLD + 1)] == [1] * (HOLD - 1) + [0, 0]
    finder.reset()
    assert finder.find(portrait, FACE) == ()


@pytest.mark.parametrize(
    "points",
    [placed(225, 150, 20.0), placed(225, 260, 8.0), placed(420, 300)],
    ids=["a false detection inside the face", "too small", "beside the face"],
)
def test_detections_that_are_no_hand_in_front_of_the_face_are_ignored(net, portrait, points):
    net.found = [points]
    assert HandFinder().find(portrait, FACE) == ()


def test_the_face_fades_as_a_hand_covers_the_mouth():
    side = 64
    place = partial(frame_to_square, matrix=np.eye(2, 3), size=(side, side), resolution=THUMBNAIL_SIDE)

    def covering(share: float) -> np.ndarray:
        top = side * (0.85 - share * 0.29)
        return np.array([(0.0, top), (side, top), (side, side), (0, side)])

    assert behind_hands(VISIBLE, (), place) is VISIBLE
    opacities = []
    for share in (0.1, 0.45, 0.9):
        hand = covering(share)
        seen = behind_hands(VISIBLE, (hand,), place)
        assert seen.keep_out == (hand,) and (seen.reason == BEHIND_HAND) == (seen.opacity == 0)
        opacities.append(seen.opacity)
    assert opacities[0] == 1 and 0 < opacities[1] < 1 and opacities[2] == 0


def test_the_mouth_comes_back_softly_and_the_hand_keeps_its_pixels(net):
    class Finder(HandFinder):
        def find(self, image: np.ndarray, face: Face) -> tuple[np.ndarray, ...]:
            x0, y0, x1, y1 = face.box  # three frames behind a hand, of which the second and third hide the mouth
            self.runs += 1
            top = {1: y1 - 1, 2: y0, 3: y0}.get(self.runs)
            return () if top is None else (np.array([(x0, top), (x1, top), (x1, y1), (x0, y1)]),)

    align = FaceAligner(ScriptedTracker([tracked()] * 6), AlignRestore(resolution=64), Finder())
    seen = [align(index, VideoFrame.from_rgb(np.full((96, 128, 3), 90 + index, np.uint8))) for index in range(6)]
    assert [item.face and item.face.opacity for item in seen] == [1, None, None, RETURNING, 1, 1]
    assert [len(item.face.keep_out) for item in seen if item.face] == [1, 0, 0, 0]
    assert seen[1].seen.passed == BEHIND_HAND
