"""The region of the paste: inside the contour of the face."""

import cv2
import numpy as np
import pytest

from latentsync.faces.align import frame_to_square
from latentsync.faces.contour import MeshFinder, contour_of, contour_weight

SIDE = 256


def ellipse(center: tuple[float, float], axes: tuple[float, float]) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    return np.stack([center[0] + axes[0] * np.cos(angles), center[1] + axes[1] * np.sin(angles)], axis=1)


def inside(contour: np.ndarray, margin: float = 0.0) -> np.ndarray:
    """(SIDE, SIDE) bool: at least `margin` pixels inside the polygon (negative: up to so many outside)."""
    polygon = contour.astype(np.float32)
    return np.array([[cv2.pointPolygonTest(polygon, (x, y), True) >= margin for x in range(SIDE)] for y in range(SIDE)])


def test_nothing_outside_the_contour_and_everything_well_inside():
    contour = ellipse((128, 120), (80, 100))
    weight = contour_weight(SIDE, contour)
    assert weight.dtype == np.float32 and weight.shape == (SIDE, SIDE)
    assert weight[~inside(contour, -1)].max() == 0
    assert weight[inside(contour, 10)].min() > 0.99


def test_a_lower_generated_jaw_is_pasted_whole():
    frame, generated = ellipse((128, 120), (80, 90)), ellipse((128, 130), (80, 100))
    weight = contour_weight(SIDE, frame, generated)
    assert weight[120 + 90 + 8, 128] > 0.99  # below the frame's jaw, inside the generated one
    assert weight[~inside(generated, -1) & ~inside(frame, -6)].max() == 0


def test_a_higher_generated_jaw_leaves_no_trace_of_the_old_one():
    frame, generated = ellipse((128, 130), (80, 100)), ellipse((128, 120), (80, 90))
    weight = contour_weight(SIDE, frame, generated)
    assert weight[130 + 100, 128] > 0.99  # the old jaw's edge itself
    assert weight[130 + 100 + 12, 128] == 0
    assert contour_weight(SIDE, frame)[130 + 100, 128] < 0.5  # without the generated contour it would show


@pytest.mark.parametrize("scale", [1, 2])
def test_points_follow_the_pixels_of_the_aligned_face(scale):
    matrix = np.array([[0.5, 0.0, 3.0], [0.0, 0.5, 4.0]])
    size, resolution = (210, 280), 256 * scale
    corner = frame_to_square(np.array([[-7.0, -9.0]]), matrix, size, resolution)  # crop (-0.5, -0.5): its corner
    assert np.allclose(corner, -0.5)
    end = np.array([[(209.5 - 3) / 0.5, (279.5 - 4) / 0.5]])
    assert np.allclose(frame_to_square(end, matrix, size, resolution), resolution - 0.5)


def test_the_contour_of_the_portrait_is_found_near_its_face(portrait_face):
    pixels, contour = portrait_face
    mesh = MeshFinder()
    try:
        found = contour_of(mesh.find(pixels, contour))
        assert mesh.find(np.full_like(pixels, 127), contour) is None
    finally:
        mesh.close()
    assert contour_of(None) is None and found.shape == (36, 2)
    assert np.abs(found - contour).mean() < 0.03 * len(pixels)


@pytest.fixture
def portrait_face() -> tuple[np.ndarray, np.ndarray]:
    """The demo portrait's aligned face (256, 256, 3) and its contour (36, 2)."""
    from pathlib import Path

    from latentsync.faces.align import resize_to_square
    from latentsync.faces.mediapipe_detector import MediaPipeDetector
    from latentsync.utils.affine_transform import AlignRestore

    path = Path(__file__).resolve().parents[2] / "assets" / "demo_portrait.png"
    image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    detector = MediaPipeDetector(static=True)
    try:
        face = detector.detect(image)[0]
    finally:
        detector.close()
    aligner = AlignRestore(resolution=SIDE)
    crop, matrix = aligner.align_warp_face(image, face.anchors)
    return resize_to_square(crop, SIDE), frame_to_square(face.contour, matrix, aligner.face_size, SIDE)
