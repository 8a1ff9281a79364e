"""`AlignRestore` against the reference's figures, and its geometry."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from latentsync.faces.align import (
    crop_size,
    resize_to_square,
    similarity_from_anchors,
    template_anchors,
    warp_to_crop,
)
from latentsync.faces.mask import blend_weight, load_mask
from latentsync.faces.paste import soft_mask
from latentsync.faces.resample import resize_bicubic
from latentsync.utils.affine_transform import AlignRestore

CASE = Path(__file__).parents[1] / "conformance" / "align_restore_256.npz"


def waves(height: int, width: int) -> np.ndarray:
    """The image of the conformance case: sums of sine waves, (height, width, 3) uint8."""
    x, y = np.arange(width)[None, :], np.arange(height)[:, None]
    channels = [127 + 90 * np.sin(x / 17 + k) + 35 * np.cos(y / (11 + k)) for k in range(3)]
    return np.clip(np.stack(channels, axis=-1), 0, 255).astype(np.uint8)


def face_anchors(center: tuple[float, float], crop_width: float, degrees: float = 0.0) -> np.ndarray:
    """Anchors of an upright (or turned) face whose aligned crop is `crop_width` pixels wide in the frame."""
    angle = np.deg2rad(degrees)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    template = np.array([[17.0, 20.0], [58.0, 20.0], [37.5, 40.0]]) - (37.5, 50.0)
    return template @ rotation.T * (crop_width / 75) + center


@pytest.fixture(scope="module")
def case() -> dict[str, np.ndarray]:
    with np.load(CASE) as arrays:
        return {name: arrays[name] for name in arrays.files}


def test_conformance(case):
    meta = json.loads(str(case["meta"]))
    image = waves(*meta["image_shape"])
    restorer = AlignRestore(align_points=3, resolution=meta["resolution"], device="cpu", dtype=torch.float32)
    assert restorer.face_size == tuple(meta["face_size_wh"])
    for index, landmarks in enumerate(case["landmarks3"]):
        face, matrix = restorer.align_warp_face(image, landmarks, smooth=meta["smooth"])
        np.testing.assert_allclose(matrix, case["matrices"][index], atol=1e-3)
        assert np.abs(face[::4, ::4].astype(int) - case["faces"][index]).max() <= 2
        if index < len(case["restored"]):
            for restored in _all_ways_to_restore(restorer, image, face, matrix):
                error = np.abs(restored[::3, ::3].astype(int) - case["restored"][index]).max(axis=-1)
                assert (error <= 2).mean() >= 0.995


def _all_ways_to_restore(restorer, image, face, matrix):
    """The negative of the face as an array and as the reference's tensor in [-1, 1]."""
    yield restorer.restore_img(image, 255 - face, matrix)
    tensor = -(torch.from_numpy(face).permute(2, 0, 1) / 127.5 - 1)
    yield restorer.restore_img(image, tensor, torch.from_numpy(matrix)[None])


def whole_frame_alpha(frame_size: tuple[int, int], matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The soft mask as the reference computes it: over the whole frame, with a true erosion."""
    height, width = frame_size
    inverse = cv2.invertAffineTransform(matrix)
    valid = cv2.warpAffine(np.ones((size[1], size[0]), np.float32), inverse, (width, height))
    valid = cv2.erode(valid, np.ones((2, 2), np.uint8))
    edge = int(np.sqrt(valid.sum(dtype=np.float64))) // 20
    if edge == 0:
        return valid
    eroded = cv2.erode(valid, np.ones((2 * edge, 2 * edge), np.uint8))
    kernel = 2 * edge + 1
    return cv2.GaussianBlur(eroded, (kernel, kernel), 0.3 * ((kernel - 1) * 0.5 - 1) + 0.8)


PLACES = {
    "inside": ((320, 200), 150, 0),
    "rotated": ((320, 200), 150, 37),
    "on its side": ((320, 200), 180, 90),
    "left border": ((10, 200), 150, 5),
    "top right corner": ((630, 20), 200, -20),
    "bottom": ((300, 400), 220, 12),
    "larger than the frame": ((320, 180), 900, 3),
    "tiny": ((320, 200), 9, 10),
    "one pixel": ((320, 200), 1, 0),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("resolution", [128, 256, 512])
def test_box_equals_whole_frame(place, resolution):
    frame_size = (361, 643)
    image = waves(*frame_size)
    restorer = AlignRestore(resolution=resolution)
    face, matrix = restorer.align_warp_face(image, face_anchors(*PLACES[place]))
    assert face.shape == (restorer.face_size[1], restorer.face_size[0], 3)
    (x0, y0, x1, y1), rgb, alpha = restorer.paste_region(frame_size, 255 - face, matrix)
    assert rgb.shape == (y1 - y0, x1 - x0, 3) and alpha.shape == rgb.shape[:2]
    assert rgb.dtype == alpha.dtype == np.float32

    whole = np.zeros(frame_size, np.float32)
    whole[y0:y1, x0:x1] = alpha
    expected = whole_frame_alpha(frame_size, matrix, restorer.face_size)
    np.testing.assert_allclose(whole, expected, atol=1 / 255)
    if place == "larger than the frame":
        assert alpha.min() == 1
    restored = restorer.restore_img(image, 255 - face, matrix)
    outside = whole == 0
    assert np.array_equal(restored[outside], image[outside])


@pytest.mark.parametrize("resolution", [256, 512])
def test_pasting_the_crop_itself_changes_little(resolution):
    image = waves(300, 401)
    restorer = AlignRestore(resolution=resolution)
    face, matrix = restorer.align_warp_face(image, face_anchors((200, 150), 160, 15))
    restored = restorer.restore_img(image, resize_to_square(face, resolution), matrix)
    error = np.abs(restored.astype(int) - image)
    assert error.mean() < 1 and error.max() <= 12


def test_the_region_is_no_larger_than_needed():
    frame_size = (361, 643)
    restorer = AlignRestore(resolution=128)
    matrix = restorer.estimate(face_anchors((320, 200), 150, 5))
    face = np.random.default_rng(0).integers(0, 256, (128, 128, 3)).astype(np.uint8)
    weight = blend_weight(load_mask(128))
    (x0, y0, x1, y1), rgb, alpha = restorer.paste_region(frame_size, face, matrix)
    (u0, v0, u1, v1), part, used = restorer.paste_region(frame_size, face, matrix, weight)
    assert part.shape == (v1 - v0, u1 - u0, 3) and used.shape == part.shape[:2]
    assert (u1 - u0) * (v1 - v0) < 0.75 * (x1 - x0) * (y1 - y0)
    for edge in (used[0], used[-1], used[:, 0], used[:, -1]):
        assert edge.max() > 0
    inner = slice(v0 - y0, v1 - y0), slice(u0 - x0, u1 - x0)
    np.testing.assert_allclose(part, rgb[inner], atol=0.5)
    assert (used <= alpha[inner]).all()
    nothing = restorer.paste_region(frame_size, face, matrix, np.zeros((128, 128), np.float32))
    assert nothing[0] == (0, 0, 0, 0) and nothing[1].size == nothing[2].size == 0


def test_restore_keeps_its_input():
    image = waves(120, 90)
    before = image.copy()
    restorer = AlignRestore()
    face, matrix = restorer.align_warp_face(image, face_anchors((45, 60), 50))
    restored = restorer.restore_img(image, np.zeros_like(face), matrix)
    assert np.array_equal(image, before)
    assert restored.shape == image.shape and restored.dtype == np.uint8
    assert restored[60, 45].max() == 0


def test_face_outside_the_frame_gives_an_empty_region():
    image = waves(100, 100)
    restorer = AlignRestore()
    face, matrix = restorer.align_warp_face(image, face_anchors((900, 900), 100))
    assert (face == 127).all()
    box, rgb, alpha = restorer.paste_region((100, 100), face, matrix)
    assert box == (0, 0, 0, 0) and rgb.size == 0 and alpha.size == 0
    assert np.array_equal(restorer.restore_img(image, face, matrix), image)


def test_one_pixel_frame():
    image = np.full((1, 1, 3), 200, np.uint8)
    restorer = AlignRestore()
    face, matrix = restorer.align_warp_face(image, face_anchors((0.5, 0.5), 40))
    assert restorer.restore_img(image, face, matrix).shape == (1, 1, 3)


def test_shrunk_crop_is_an_average():
    """Of noise without any structure, a crop four times smaller keeps a quarter; point samples would keep it all."""
    noise = np.random.default_rng(0).integers(0, 256, (600, 500, 3)).astype(np.uint8)
    restorer = AlignRestore(resolution=128)
    face, matrix = restorer.align_warp_face(noise, face_anchors((250, 300), 4 * 105), smooth=False)
    assert np.hypot(*matrix[0, :2]) == pytest.approx(0.25)
    assert face.std() < 0.35 * noise.std()


@pytest.mark.parametrize("crop_width", [60, 105, 150, 220, 330, 450])
def test_crop_of_any_scale_stays_in_place(crop_width):
    x, y = np.meshgrid(np.arange(500), np.arange(640))
    rise = ((x + y) / 5).round()
    ramps = np.stack([rise, 255 - rise, rise], axis=-1).astype(np.uint8)
    restorer = AlignRestore(resolution=128)
    face, matrix = restorer.align_warp_face(ramps, face_anchors((250, 320), crop_width, 8), smooth=False)
    rows, columns = np.mgrid[10:130:4, 10:95:4]
    places = (np.stack([columns, rows], axis=-1) - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
    inside = (places >= 2).all(axis=-1) & (places <= (497, 637)).all(axis=-1)
    found = face[rows, columns][inside].astype(float)
    shift = (found[:, 0] + 255 - found[:, 1]) / 2 * 5 - places[inside].sum(axis=-1)  # what rounding adds cancels out
    assert abs(shift.mean()) < 0.15


def test_crop_near_its_own_scale_is_the_plain_warp():
    image = waves(300, 401)
    restorer = AlignRestore()
    face, matrix = restorer.align_warp_face(image, face_anchors((200, 150), 240, 5), smooth=False)
    plain = cv2.warpAffine(image, matrix, restorer.face_size, borderValue=(127,) * 3)
    assert np.array_equal(face, plain)
    assert not np.array_equal(warp_to_crop(image, matrix / 2, (105, 140)), plain[::2, ::2])


@pytest.mark.parametrize(("resolution", "expected"), [(128, (105, 140)), (256, (210, 280)), (512, (420, 560))])
def test_crop_size(resolution, expected):
    assert crop_size(resolution) == expected


def test_similarity_is_exact_without_smoothing():
    template = template_anchors(256)
    matrix, bias = similarity_from_anchors(face_anchors((300, 200), 90, 25), template, None, smooth=False)
    mapped = face_anchors((300, 200), 90, 25) @ matrix[:, :2].T + matrix[:, 2]
    np.testing.assert_allclose(mapped, template, atol=1e-9)
    assert bias is None


def test_similarity_never_mirrors():
    anchors = face_anchors((300, 200), 90)[[1, 0, 2]]  # brows swapped
    matrix, _ = similarity_from_anchors(anchors, template_anchors(256))
    assert np.linalg.det(matrix[:, :2]) > 0


@pytest.mark.parametrize("anchors", [np.zeros((3, 2)), np.full((3, 2), np.nan), np.zeros((2, 2))])
def test_similarity_refuses_degenerate_anchors(anchors):
    with pytest.raises(ValueError, match="anchors"):
        similarity_from_anchors(anchors, template_anchors(256))


def test_reset_forgets_the_bias(case):
    restorer = AlignRestore()
    first = restorer.estimate(case["landmarks3"][1])
    restorer.estimate(case["landmarks3"][0])
    assert not np.allclose(restorer.estimate(case["landmarks3"][1]), first, atol=1e-9)
    restorer.reset()
    np.testing.assert_array_equal(restorer.estimate(case["landmarks3"][1]), first)


def test_soft_mask_of_a_tiny_crop_is_finite():
    alpha = soft_mask(np.array([[0.01, 0, 1], [0, 0.01, 1]]), (210, 280), (6, 6))
    assert np.isfinite(alpha).all() and alpha.min() >= 0 and alpha.max() <= 1


def test_soft_mask_of_a_part_is_the_part_of_the_soft_mask():
    to_box = cv2.invertAffineTransform(np.array([[0.5, -0.1, 8], [0.1, 0.5, 4]]))
    whole = soft_mask(to_box, (105, 140), (250, 320))
    for left, top, width, height in ((0, 0, 250, 320), (60, 90, 100, 120), (0, 200, 250, 120), (249, 319, 1, 1)):
        part = soft_mask(to_box, (105, 140), (250, 320), (left, top, width, height))
        np.testing.assert_allclose(part, whole[top : top + height, left : left + width], atol=1e-6)


@pytest.mark.parametrize("shape", [(256, 256), (512, 512), (64, 64), (300, 41), (3, 2)])
@pytest.mark.parametrize("size", [(210, 280), (105, 140)])
def test_bicubic_is_torchs(shape, size):
    image = np.random.default_rng(0).uniform(0, 255, (*shape, 3)).astype(np.float32)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(tensor, size=size[::-1], mode="bicubic", antialias=True)
    np.testing.assert_allclose(resize_bicubic(image, size), expected[0].permute(1, 2, 0).numpy(), atol=0.02)


def test_faces_of_the_wrong_shape_are_refused():
    restorer = AlignRestore()
    with pytest.raises(ValueError, match="face"):
        restorer.restore_img(waves(50, 50), np.zeros((3, 256, 256, 1)), np.eye(2, 3))


def test_other_layouts_are_refused():
    with pytest.raises(ValueError, match="align_points"):
        AlignRestore(align_points=5)
