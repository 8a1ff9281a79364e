"""Detail of the frame in generated faces: drawn ones, and the portrait."""

import cv2
import numpy as np
import pytest

from latentsync.faces.color import LUMA
from latentsync.faces.contour import MeshFinder
from latentsync.faces.lips import INNER_LIPS, OUTER_LIPS, LipCloser
from latentsync.faces.mediapipe_detector import FACE_OVAL
from latentsync.faces.mediapipe_graphs import NUM_POINTS, MeshNet
from latentsync.faces.mouth import OpeningEstimator, aligned_mesh
from latentsync.faces.texture import DetailRestorer, TextureTransfer, spread
from latentsync.faces.video import AlignedFace
from tests.metrics.faces import aligned_portrait

SIDE = 256
MOUTH, LIPS = (slice(176, 184), slice(112, 144)), (slice(194, 198), slice(112, 144))


def circle(center: tuple[float, float], radii: tuple[float, float], count: int) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.array(center) + np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii


def drawn_points() -> np.ndarray:
    """A mesh (468, 2): a grid over the face, and a mouth."""
    grid = np.stack(np.meshgrid(np.linspace(20, 236, 22), np.linspace(20, 236, 22)), -1).reshape(-1, 2)[:NUM_POINTS]
    grid[INNER_LIPS] = circle((128, 180), (24, 8), len(INNER_LIPS))
    grid[OUTER_LIPS] = circle((128, 180), (32, 20), len(OUTER_LIPS))
    return grid


@pytest.fixture
def texture() -> np.ndarray:
    """A face (256, 256, 3) uint8 with fine gray detail in all places."""
    noise = np.random.default_rng(0).normal(0, 1, (SIDE, SIDE)).astype(np.float32)
    return np.repeat((120 + 60 * cv2.GaussianBlur(noise, (0, 0), 1.2)).clip(0, 255).astype(np.uint8)[..., None], 3, 2)


def detail(face: np.ndarray) -> np.ndarray:
    return face.astype(np.float32) - cv2.GaussianBlur(face.astype(np.float32), (0, 0), 3 * SIDE / 256)


def alike(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def test_steps_are_spread_between_points_and_end_far_from_all():
    points = drawn_points()
    points = points[points[:, 0] < 128]
    steps = spread(points, np.tile((3.0, -2.0), (len(points), 1)), SIDE)
    assert steps.shape == (SIDE, SIDE, 2) and steps.dtype == np.float32
    np.testing.assert_allclose(steps[40:200, 30:110], np.broadcast_to((3, -2), (160, 80, 2)), atol=0.05)
    assert np.abs(steps[:, 220:]).max() < 0.1
    assert not spread(points + 1000, np.ones_like(points), SIDE).any()


def test_detail_moves_with_the_mesh_and_structure_stays(texture: np.ndarray):
    points, shift = drawn_points(), (5, 3)
    generated = np.full((SIDE, SIDE, 3), 120, np.float32)
    generated[150:, 60:200] += 30  # coarse structure that only the generated face has
    generated = cv2.GaussianBlur(generated, (0, 0), 8)
    restored = TextureTransfer()(generated, texture, points, points + shift)
    skin = (slice(120, 150), slice(60, 200))
    there = detail(np.roll(texture, (-shift[1], -shift[0]), (0, 1)))
    assert alike(detail(restored)[skin], there[skin]) > 0.97
    assert alike(detail(restored)[skin], detail(texture)[skin]) < 0.3
    coarse = cv2.GaussianBlur(restored - generated, (0, 0), 12)
    assert np.abs(coarse[100:230, 40:216]).max() < 2
    np.testing.assert_array_equal(restored[:80], generated[:80])
    np.testing.assert_allclose(restored[MOUTH], generated[MOUTH], atol=0.5)  # the inside of the mouth
    assert np.abs(restored[LIPS] - generated[LIPS]).mean() > 5


def test_teeth_of_the_frame_do_not_shine_between_closed_lips():
    points = drawn_points()
    closed = points.copy()
    closed[INNER_LIPS, 1] = 180
    face, skin = np.full((SIDE, SIDE, 3), 120, np.uint8), np.full((SIDE, SIDE, 3), 120, np.float32)
    cv2.fillPoly(face, [points[INNER_LIPS].round().astype(np.int32)], (250, 250, 250))
    restored = TextureTransfer()(skin, face, closed, points)
    np.testing.assert_allclose(restored[MOUTH], skin[MOUTH], atol=12)


def test_lips_take_the_color_of_the_frame_slowly(texture: np.ndarray):
    points, skin = drawn_points(), np.full((SIDE, SIDE, 3), 120, np.float32)

    def painted(color: tuple[int, int, int]) -> np.ndarray:
        face = skin.copy()
        cv2.fillPoly(face, [points[OUTER_LIPS].round().astype(np.int32)], color)
        return face

    violet, red = painted((150, 90, 150)), painted((170, 90, 90)).astype(np.uint8)
    green = painted((90, 170, 90)).astype(np.uint8)
    transfer = TextureTransfer()

    def tint(face: np.ndarray) -> np.ndarray:
        color = face[LIPS].mean((0, 1))
        return color - color @ LUMA

    first = transfer(violet, red, points, points)
    assert np.linalg.norm(tint(first) - tint(red)) < 0.35 * np.linalg.norm(tint(violet) - tint(red))
    second = transfer(violet, green, points, points)
    change = np.linalg.norm(tint(green) - tint(first))
    assert np.linalg.norm(tint(second) - tint(first)) < 0.35 * change
    anew = transfer(violet, green, points, points, starts=True)
    assert np.linalg.norm(tint(anew) - tint(green)) < 0.35 * change
    np.testing.assert_allclose(first[120:140] @ LUMA, violet[120:140] @ LUMA, atol=1)


@pytest.fixture
def portrait() -> AlignedFace:
    mesh, pixels = MeshNet(), aligned_portrait(SIDE)
    contour = aligned_mesh(mesh, pixels, FACE_OVAL)
    mesh.close()
    return AlignedFace(pixels, np.eye(2, 3), True, contour)


def test_a_soft_face_becomes_sharp_and_keeps_its_mouth(portrait: AlignedFace):
    mesh, closer, estimator = MeshFinder(), LipCloser(), OpeningEstimator()
    half_closed = closer(portrait.pixels.astype(np.float32), 0.5)
    soft = cv2.GaussianBlur(half_closed, (0, 0), 1.5)
    restored, points = DetailRestorer(mesh)(soft, portrait)
    smile, before, after = estimator.openings(
        np.stack([portrait.pixels, soft.astype(np.uint8), restored.astype(np.uint8)])
    )
    for network in (mesh, closer, estimator):
        network.close()
    assert points.shape == (NUM_POINTS, 2) and restored.shape == soft.shape
    assert 0 <= restored.min() and restored.max() <= 255
    cheek = (slice(140, 180), slice(50, 90))
    assert detail(soft)[cheek].std() < 0.75 * detail(half_closed)[cheek].std()
    assert detail(restored)[cheek].std() > 0.85 * detail(half_closed)[cheek].std()
    assert abs(after - before) < 0.5 * abs(smile - before)


def test_without_a_mesh_the_face_is_sharpened_only(portrait: AlignedFace):
    mesh = MeshFinder()
    soft = cv2.GaussianBlur(portrait.pixels.astype(np.float32), (0, 0), 1.0)
    unseen = AlignedFace(portrait.pixels, portrait.matrix, True, None)
    sharpened, points = DetailRestorer(mesh)(soft, unseen)
    blank, missing = DetailRestorer(mesh)(np.full_like(soft, 127), portrait)  # no face is found in it
    mesh.close()
    assert points is None and missing is None
    assert detail(sharpened).std() > 1.1 * detail(soft).std()
    np.testing.assert_allclose(blank, 127)
