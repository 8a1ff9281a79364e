import numpy as np
import pytest

from latentsync.media.color import ColorTags, rgb_to_yuv_matrix, yuv_to_rgb_matrix
from latentsync.media.frame import VideoFrame

ALL_TAGS = [ColorTags(matrix, color_range) for matrix in (1, 5, 6, 7, 9) for color_range in (1, 2)]


def random_frame(width=96, height=64, color=None, low=90, high=160) -> VideoFrame:
    """Random samples inside the RGB gamut of every matrix."""
    data = np.random.default_rng(0).integers(low, high, (height // 2 * 3, width), dtype=np.uint8)
    return VideoFrame(data, color)


@pytest.mark.parametrize(
    ("tags", "rgb", "yuv"),
    [
        (ColorTags(1, 1), (255, 255, 255), (235, 128, 128)),
        (ColorTags(1, 1), (255, 0, 0), (63, 102, 240)),
        (ColorTags(6, 1), (255, 0, 0), (81, 90, 240)),
        (ColorTags(6, 1), (0, 0, 255), (41, 240, 110)),
        (ColorTags(9, 1), (0, 255, 0), (164, 47, 25)),
        (ColorTags(6, 2), (255, 0, 0), (76, 85, 255)),
        (ColorTags(6, 2), (0, 0, 0), (0, 128, 128)),
    ],
)
def test_known_colors(tags, rgb, yuv):
    frame = VideoFrame.from_rgb(np.full((4, 4, 3), rgb, np.float32), tags)
    assert [int(plane[0, 0]) for plane in frame.planes] == pytest.approx(yuv, abs=1)
    assert np.abs(frame.rgb()[0, 0].astype(int) - rgb).max() <= 2


@pytest.mark.parametrize("tags", ALL_TAGS)
def test_matrices_are_inverse(tags):
    forward = rgb_to_yuv_matrix(tags.matrix, tags.is_full_range)
    backward = yuv_to_rgb_matrix(tags.matrix, tags.is_full_range)
    rgb = np.random.default_rng(1).uniform(0, 255, (3, 50))
    yuv = forward[:, :3] @ rgb + forward[:, 3:]
    np.testing.assert_allclose(backward[:, :3] @ yuv + backward[:, 3:], rgb, atol=1e-3)


def test_unspecified_matrix_follows_the_size():
    assert ColorTags().resolved_matrix(1920, 1080) == 1
    assert ColorTags().resolved_matrix(640, 480) == 6
    assert ColorTags(matrix=9).resolved_matrix(640, 480) == 9


@pytest.mark.parametrize("tags", ALL_TAGS)
@pytest.mark.parametrize("box", [(10, 8, 60, 40), (11, 9, 58, 43), (0, 0, 96, 64)])
def test_crop_and_blend_are_inverse(tags, box):
    frame = random_frame(color=tags)
    x0, y0, x1, y1 = box
    crop = frame.crop_rgb(*box)
    assert crop.shape == (y1 - y0, x1 - x0, 3) and crop.dtype == np.uint8
    again = frame.blend_rgb(x0, y0, crop, np.ones(crop.shape[:2], np.float32))
    for before, after in zip(frame.planes, again.planes, strict=True):
        assert np.abs(before.astype(int) - after).max() <= 1


def test_crop_equals_a_cut_of_the_whole_image():
    frame = random_frame()
    np.testing.assert_array_equal(frame.crop_rgb(13, 7, 50, 33), frame.rgb()[7:33, 13:50])


def test_samples_without_alpha_keep_their_exact_values():
    frame = random_frame()
    rng = np.random.default_rng(2)
    alpha = np.zeros((30, 41), np.float32)
    alpha[5:20, 6:30] = rng.uniform(0, 1, (15, 24))
    alpha[12, 3] = 0.5  # a single pixel reaches into its chroma cell only
    edited = frame.blend_rgb(21, 17, rng.uniform(0, 255, (30, 41, 3)).astype(np.float32), alpha)
    whole = np.zeros((64, 96), np.float32)
    whole[17:47, 21:62] = alpha
    cells = whole.reshape(32, 2, 48, 2).max(axis=(1, 3))
    for before, after, mask in zip(frame.planes, edited.planes, (whole, cells, cells), strict=True):
        np.testing.assert_array_equal(before[mask == 0], after[mask == 0])
    assert np.any(frame.planes[0] != edited.planes[0]) and np.any(frame.planes[1] != edited.planes[1])


def test_original_is_not_changed_and_cannot_be():
    frame = random_frame()
    before = frame.i420.copy()
    frame.blend_rgb(0, 0, np.zeros((64, 96, 3), np.float32), np.ones((64, 96), np.float32))
    np.testing.assert_array_equal(frame.i420, before)
    with pytest.raises(ValueError, match="read-only"):
        frame.planes[0][0, 0] = 0


@pytest.mark.parametrize("tags", ALL_TAGS)
def test_blending_its_own_color_leaves_no_seam(tags):
    """A flat patch laid over itself through a soft, odd-edged mask must not show in luma or chroma."""
    frame = VideoFrame.from_rgb(np.full((64, 96, 3), (200, 120, 90), np.float32), tags)
    y, x = np.mgrid[0:41, 0:53]
    alpha = np.clip(1.4 - np.hypot(y - 20, x - 26) / 15, 0, 1).astype(np.float32)
    edited = frame.blend_rgb(7, 5, np.full((41, 53, 3), (200, 120, 90), np.float32), alpha)
    for before, after in zip(frame.planes, edited.planes, strict=True):
        assert np.abs(before.astype(int) - after).max() <= 1


def test_half_covered_chroma_cell_is_weighted_by_alpha():
    gray = VideoFrame.from_rgb(np.full((4, 4, 3), 128.0, np.float32), ColorTags(6, 2))
    red = np.zeros((4, 1, 3), np.float32)
    red[..., 0] = 255
    edited = gray.blend_rgb(0, 0, red, np.ones((4, 1), np.float32))
    opaque = gray.blend_rgb(0, 0, np.repeat(red, 2, axis=1), np.ones((4, 2), np.float32))
    v_half, v_full = int(edited.planes[2][0, 0]), int(opaque.planes[2][0, 0])
    assert v_half == pytest.approx((128 + v_full) / 2, abs=1)
    assert edited.planes[2][0, 1] == 128


def test_box_may_reach_outside_the_image():
    frame = random_frame()
    white = np.full((40, 40, 3), 255.0, np.float32)
    edited = frame.blend_rgb(-15, -11, white, np.ones((40, 40), np.float32))
    assert np.all(edited.rgb()[:28, :24] >= 253)
    np.testing.assert_array_equal(edited.planes[0][29:], frame.planes[0][29:])
    np.testing.assert_array_equal(edited.planes[0][:, 25:], frame.planes[0][:, 25:])
    outside = frame.blend_rgb(500, 500, white, np.ones((40, 40), np.float32))
    np.testing.assert_array_equal(outside.i420, frame.i420)


def test_alpha_that_is_no_number_changes_nothing():
    frame = random_frame()
    edited = frame.blend_rgb(0, 0, np.zeros((8, 8, 3), np.float32), np.full((8, 8), np.nan, np.float32))
    np.testing.assert_array_equal(edited.i420, frame.i420)


def test_broken_colors_with_alpha_0_change_nothing():
    frame = random_frame()
    alpha = np.zeros((8, 8), np.float32)
    alpha[:4] = 1
    for value in (np.nan, np.inf):
        edited = frame.blend_rgb(0, 0, np.full((8, 8, 3), value, np.float32), alpha)
        kept = np.ones((frame.height, frame.width), bool)
        kept[:4, :8] = False
        np.testing.assert_array_equal(edited.planes[0][kept], frame.planes[0][kept])
        np.testing.assert_array_equal(edited.planes[1][kept[::2, ::2]], frame.planes[1][kept[::2, ::2]])


def test_scaled_rgb():
    image = np.zeros((64, 96, 3), np.float32)
    image[:, :48] = (220, 60, 40)
    image[:, 48:] = (30, 90, 200)
    frame = VideoFrame.from_rgb(image, ColorTags(1, 1))
    assert frame.rgb(1000).shape == (64, 96, 3)
    for side in (48, 40, 13):
        small = frame.rgb(side)
        assert small.shape == (round(64 * side / 96), side, 3)
        assert np.abs(small[2, 1].astype(int) - (220, 60, 40)).max() <= 3
        assert np.abs(small[-2, -2].astype(int) - (30, 90, 200)).max() <= 3


def test_odd_planes_are_padded_with_their_edge():
    y = np.arange(15, dtype=np.uint8).reshape(3, 5)
    chroma = np.full((2, 3), 128, np.uint8)
    frame = VideoFrame.from_planes(y, chroma, chroma)
    assert (frame.width, frame.height) == (6, 4)
    np.testing.assert_array_equal(frame.planes[0][:3, :5], y)
    np.testing.assert_array_equal(frame.planes[0][:, 5], [4, 9, 14, 14])
    np.testing.assert_array_equal(frame.planes[0][3], frame.planes[0][2])


@pytest.mark.parametrize("box", [(-1, 0, 4, 4), (0, 0, 97, 4), (4, 4, 4, 8)])
def test_crop_outside_is_refused(box):
    with pytest.raises(ValueError, match="not inside"):
        random_frame().crop_rgb(*box)


@pytest.mark.parametrize("tags", [ColorTags(1, 1), ColorTags(6, 1), ColorTags(9, 1), ColorTags(1, 2), ColorTags(6, 2)])
def test_fixed_point_conversion_is_within_one_step_of_the_exact_one(tags):
    data = np.random.default_rng(0).integers(0, 256, (96, 64), dtype=np.uint8)
    frame = VideoFrame(data, tags)
    y, u, v = frame.planes
    yuv = np.stack([y, *(plane.repeat(2, 0).repeat(2, 1) for plane in (u, v))], axis=-1).astype(np.float64)
    matrix = yuv_to_rgb_matrix(tags.resolved_matrix(64, 64), tags.is_full_range).astype(np.float64)
    exact = np.clip(yuv @ matrix[:, :3].T + matrix[:, 3], 0, 255)
    assert np.abs(frame.rgb() - exact).max() <= 1.0
