"""Face alignment with a similarity transform estimated from three anchors.

The anchors are the center of the brow on the image's left, the center of the other brow and the nose (see
`latentsync.faces.detector`). The transform maps frame coordinates (x, y) to a crop in which the face has a fixed
position and size. All functions are pure, take numpy arrays and run on the CPU: warping a 210x280 crop takes less than
a millisecond, less than the transfer of a frame to a GPU.
"""

import math

import cv2
import numpy as np

from latentsync.faces.resample import resize_lanczos, warp_rgb

TEMPLATE_ANCHORS = np.array([[17.0, 20.0], [58.0, 20.0], [37.5, 40.0]])  # left brow, right brow, nose: (x, y)
TEMPLATE_SIZE = (75, 100)  # width, height of the crop in template units
TEMPLATE_SCALE = 2.8  # crop pixels per template unit at resolution 256
NEW_BIAS_WEIGHT = 0.8  # weight of the current frame in the running bias of the translation
OUTSIDE_VALUE = 127  # mid gray for crop pixels outside the frame
MAX_SAMPLES = 3  # maximum samples per crop pixel and dimension; the remaining aliasing is below one gray level
SAMPLING_SLACK = 0.25  # up to a downscaling of 1.25, one sample per crop pixel, as in the reference


def template_anchors(resolution: int) -> np.ndarray:
    """Template anchors (3, 2) in crop pixels, for a working `resolution` (256, 512, ...)."""
    return TEMPLATE_ANCHORS * _scale(resolution)


def crop_size(resolution: int) -> tuple[int, int]:
    """(width, height) in pixels of the aligned crop before it is resized to a square: (210, 280) for 256."""
    scale = _scale(resolution)
    return int(TEMPLATE_SIZE[0] * scale), int(TEMPLATE_SIZE[1] * scale)


def _scale(resolution: int) -> float:
    if resolution < 8:
        raise ValueError(f"resolution must be at least 8 pixels, got {resolution}")
    return TEMPLATE_SCALE * resolution / 256


def similarity_from_anchors(
    anchors: np.ndarray, template: np.ndarray, previous_bias: np.ndarray | None = None, smooth: bool = True
) -> tuple[np.ndarray, np.ndarray | None]:
    """Estimate the similarity transform from `anchors` to `template` (orthogonal Procrustes without reflections).

    Args:
        anchors: (3, 2) points in frame pixels.
        template: (3, 2) points in crop pixels.
        previous_bias: (2,) bias returned for the previous frame; None at the start of a clip or after a cut.
        smooth: add a running bias, which pulls the third point (the nose) toward its template position.

    Returns:
        matrix (2, 3) float64, frame pixels -> crop pixels, and the bias (2,) to pass to the next call
        (`previous_bias` unchanged if `smooth` is off).

    Raises:
        ValueError: anchors are not finite, or coincide.
    """
    source = np.asarray(anchors, dtype=np.float64)
    target = np.asarray(template, dtype=np.float64)
    if source.shape != (3, 2) or not np.isfinite(source).all():
        raise ValueError(f"anchors must be 3 finite (x, y) points, got {source.tolist()}")
    source_center, target_center = source.mean(axis=0), target.mean(axis=0)
    # Spread: unbiased standard deviation over all six coordinates.
    source_spread = (source - source_center).std(ddof=1)
    target_spread = (target - target_center).std(ddof=1)
    if source_spread < 1e-6:
        raise ValueError("anchors coincide: no transform maps them to the template")
    source_unit = (source - source_center) / source_spread
    target_unit = (target - target_center) / target_spread

    rotation = _best_rotation(source_unit, target_unit)
    linear = rotation * (target_spread / source_spread)
    translation = target_center - linear @ source_center
    bias = previous_bias
    if smooth:
        bias = target_unit[2] - source_unit[2]
        if previous_bias is not None:
            bias = NEW_BIAS_WEIGHT * bias + (1 - NEW_BIAS_WEIGHT) * np.asarray(previous_bias, dtype=np.float64)
        translation = translation + bias
    return np.column_stack([linear, translation]), bias


def _best_rotation(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Rotation (2, 2) that best aligns the rows of `source` with `target`; a reflection is undone in the last row."""
    u, _, vt = np.linalg.svd(source.T @ target)
    if np.linalg.det(u @ vt) < 0:
        vt = vt.copy()
        vt[-1] *= -1
    return (u @ vt).T


def warp_to_crop(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Warp a frame to the aligned crop with bilinear interpolation. Pixels outside the frame are 127.

    When downscaling, several samples are averaged per crop pixel: plain bilinear interpolation would alias, and fine
    texture would flicker as the head moves.

    Args:
        image: (H, W, 3) uint8.
        matrix: (2, 3), frame -> crop.
        size: (width, height) of the crop.

    Returns:
        (height, width, 3) uint8.
    """
    samples = _samples_per_side(matrix)
    # Pixel centers: x in the crop is samples * x + (samples - 1) / 2 in the supersampled crop.
    supersampled = samples * np.asarray(matrix, dtype=np.float64)
    supersampled[:, 2] += (samples - 1) / 2
    crop = warp_rgb(image, supersampled, (samples * size[0], samples * size[1]), value=OUTSIDE_VALUE)
    return crop if samples == 1 else cv2.resize(crop, size, interpolation=cv2.INTER_AREA)


def _samples_per_side(matrix: np.ndarray) -> int:
    """Samples per crop pixel and dimension: about one per frame pixel, at most `MAX_SAMPLES`."""
    scale = max(math.sqrt(abs(np.linalg.det(np.asarray(matrix, dtype=np.float64)[:, :2]))), 1e-9)
    return min(max(math.ceil(1 / scale - SAMPLING_SLACK), 1), MAX_SAMPLES)


def source_box(matrix: np.ndarray, size: tuple[int, int], frame_size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Frame region covered by a crop with a margin of one pixel, clipped to the frame: x0, y0, x1, y1 (end exclusive).

    Args:
        matrix: (2, 3), frame -> crop.
        size: (width, height) of the crop.
        frame_size: (height, width) of the frame.

    Returns:
        the box, or (0, 0, 0, 0) if crop and frame do not overlap.
    """
    width, height = size
    corners = np.array([[-1.0, -1.0], [width, -1.0], [-1.0, height], [width, height]])
    corners = cv2.transform(corners[None], cv2.invertAffineTransform(np.asarray(matrix, dtype=np.float64)))[0]
    low = np.floor(corners.min(axis=0)).astype(int) - 1
    high = np.ceil(corners.max(axis=0)).astype(int) + 2
    x0, y0 = max(int(low[0]), 0), max(int(low[1]), 0)
    x1, y1 = min(int(high[0]), frame_size[1]), min(int(high[1]), frame_size[0])
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else (0, 0, 0, 0)


def shift_source(matrix: np.ndarray, x0: float, y0: float) -> np.ndarray:
    """The same transform for a frame cropped at (x0, y0)."""
    shifted = np.array(matrix, dtype=np.float64)
    shifted[:, 2] += shifted[:, :2] @ (x0, y0)
    return shifted


def resize_to_square(crop: np.ndarray, resolution: int) -> np.ndarray:
    """Aligned crop (h, w, 3) uint8 -> (resolution, resolution, 3) uint8, with Lanczos resampling, as network input."""
    return resize_lanczos(crop, (resolution, resolution))


def frame_to_square(points: np.ndarray, matrix: np.ndarray, size: tuple[int, int], resolution: int) -> np.ndarray:
    """Points (N, 2) in frame pixels -> pixels of the aligned face of `resolution` squared.

    `matrix` (2, 3) maps the frame to the crop of `size` (width, height), which is resized to the square.
    """
    crop = points @ matrix[:, :2].T + matrix[:, 2]
    return (crop + 0.5) * (resolution / np.array(size)) - 0.5  # pixel centers lie at integer coordinates


def require_aligned(faces: np.ndarray) -> None:
    """Raises ValueError unless `faces` is (T, R, R, 3) uint8."""
    if faces.dtype != np.uint8 or faces.ndim != 4 or faces.shape[1] != faces.shape[2] or faces.shape[3] != 3:
        raise ValueError(f"aligned faces must be (T, R, R, 3) uint8, not {faces.shape} {faces.dtype}")
