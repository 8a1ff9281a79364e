"""Paste-back: warps an edited face back into its frame and blends it with a soft edge.

Only the bounding box of the face is processed. Results equal those of the full-frame method: the validity mask of the
crop is warped into the frame, eroded in proportion to its size and blurred, and used to blend the warped face.
"""

import cv2
import numpy as np

from latentsync.faces.align import shift_source, source_box
from latentsync.faces.resample import resize_bicubic, warp_rgb

Box = tuple[int, int, int, int]
EMPTY = (0, 0, 0, 0), np.zeros((0, 0, 3), np.float32), np.zeros((0, 0), np.float32)
STRIP_PIXELS = 1 << 15  # pixels blended at a time, so that float temporaries fit the CPU cache


def paste_region(
    frame_size: tuple[int, int],
    face: np.ndarray,
    matrix: np.ndarray,
    size: tuple[int, int],
    weight: np.ndarray | None = None,
) -> tuple[Box, np.ndarray, np.ndarray]:
    """Warp a face back into its frame, within its bounding box.

    Args:
        frame_size: (height, width) of the frame.
        face: (h, w, 3), uint8 or float, 0..255; resized to the crop size if it differs.
        matrix: (2, 3), frame -> crop, as used for the alignment.
        size: (width, height) of the crop.
        weight: (h, w) float32 in [0, 1], multiplied with the soft edge; None for 1 everywhere.

    Returns:
        box (x0, y0, x1, y1) of the changed region, end exclusive, inside the frame; rgb (h', w', 3) float32 0..255;
        alpha (h', w') float32 0..1, exactly 0 where the frame must not change.
        An empty box and empty arrays if no part of the face lies in the frame.
    """
    x0, y0, x1, y1 = source_box(matrix, size, frame_size)
    if x0 == x1:
        return EMPTY
    box_size = (x1 - x0, y1 - y0)
    to_box = cv2.invertAffineTransform(shift_source(matrix, x0, y0))
    part = (0, 0, *box_size)  # left, top, width, height in the box
    if weight is None:
        alpha = soft_mask(to_box, size, box_size)
    else:
        share = cv2.resize(weight, size, interpolation=cv2.INTER_LINEAR)
        share = cv2.warpAffine(share, to_box, box_size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        part = cv2.boundingRect((share > 0).view(np.uint8))  # skip the rest: a third of the box with the default mask
        if part[2] == 0:
            return EMPTY
        alpha = soft_mask(to_box, size, box_size, part) * share[_slices(part)]
    inner = cv2.boundingRect((alpha > 0).view(np.uint8))
    if inner[2] == 0:
        return EMPTY
    left, top, (width, height) = part[0] + inner[0], part[1] + inner[1], inner[2:]
    to_box[:, 2] -= (left, top)
    # The mask ends inside the crop; replicated borders keep black from bleeding into its last rows.
    rgb = warp_rgb(resize_face(face, size), to_box, (width, height), border=cv2.BORDER_REPLICATE)
    box = (x0 + left, y0 + top, x0 + left + width, y0 + top + height)
    return box, rgb, alpha[_slices(inner)]


def resize_face(face: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w, 3) of any number type, 0..255 -> (height, width, 3) float32: bicubic, antialiased, clipped to 0..255."""
    if face.ndim != 3 or face.shape[2] != 3:
        raise ValueError(f"face must be (height, width, 3), got {face.shape}")
    pixels = np.ascontiguousarray(face, dtype=np.float32)
    width, height = size
    if pixels.shape[:2] == (height, width):
        return pixels
    resized = resize_bicubic(pixels, size)
    return np.clip(resized, 0, 255, out=resized)


def soft_mask(
    to_box: np.ndarray, size: tuple[int, int], box_size: tuple[int, int], part: Box | None = None
) -> np.ndarray:
    """Blending weight of a crop, in a part of the box of a frame.

    Args:
        to_box: (2, 3), crop -> box.
        size: (width, height) of the crop.
        box_size: (width, height) of the box; its sides lie on the border of the frame or outside the crop.
        part: left, top, width, height inside the box; by default all of it.

    Returns:
        (height, width) of the part, float32 in [0, 1].
    """
    width, height = size
    part = part or (0, 0, *box_size)
    valid = cv2.warpAffine(np.ones((height, width), np.float32), to_box, box_size, flags=cv2.INTER_LINEAR)
    valid = cv2.erode(valid, np.ones((2, 2), np.uint8))
    edge = int(np.sqrt(valid.sum(dtype=np.float64))) // 20
    if edge == 0:
        return valid[_slices(part)]
    # Erosion and blur reach up to 2 `edge` pixels: pixels farther from the part do not matter.
    left, top = max(part[0] - 2 * edge, 0), max(part[1] - 2 * edge, 0)
    near = valid[top : part[1] + part[3] + 2 * edge, left : part[0] + part[2] + 2 * edge]
    rows, columns = _slices((part[0] - left, part[1] - top, *part[2:]))
    blurred = _blur_convex(_erode_convex(near, edge), edge, rows)
    return np.minimum(blurred[rows, columns], 1.0)  # rounding in the blur may exceed 1


def _slices(part: Box) -> tuple[slice, slice]:
    """Rows and columns of a part given as left, top, width, height."""
    return slice(part[1], part[1] + part[3]), slice(part[0], part[0] + part[2])


def _erode_convex(mask: np.ndarray, edge: int) -> np.ndarray:
    """Erosion by a (2 edge)-square window, offsets -edge .. edge - 1, clipped to the array.

    The mask's superlevel sets are convex (a rotated rectangle with linear ramps), so its minimum over a window is at a
    corner of the window: four comparisons per pixel for any window size.
    """
    height, width = mask.shape
    padded = cv2.copyMakeBorder(mask, edge, edge - 1, edge, edge - 1, cv2.BORDER_REPLICATE)
    shift = 2 * edge - 1
    rows = cv2.min(padded[:height], padded[shift : shift + height])
    return cv2.min(rows[:, :width], rows[:, shift : shift + width])


def _blur_convex(mask: np.ndarray, radius: int, rows: slice) -> np.ndarray:
    """Gaussian blur of an eroded mask, right in `rows`. Most of it is 1 far into the mask and stays 1: only the columns
    to the left and to the right of that are blurred."""
    kernel, sigma = 2 * radius + 1, 0.3 * (radius - 1) + 0.8

    def blur(part: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(part, (kernel, kernel), sigma, borderType=cv2.BORDER_REFLECT_101)

    lowest = cv2.reduce(mask[max(rows.start - radius, 0) : rows.stop + radius], 0, cv2.REDUCE_MIN)[0]
    full = np.flatnonzero(lowest > 1 - 1e-6)
    first, last = (int(full[0]) + radius, int(full[-1]) + 1 - radius) if full.size else (0, 0)
    if first >= last:
        return blur(mask)
    result = np.ones_like(mask)
    result[:, :first] = blur(mask[:, : first + radius])[:, :first]
    result[:, last:] = blur(mask[:, last - radius :])[:, radius:]
    return result


def blend_region(image: np.ndarray, box: Box, rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Blend a region into a copy of a frame; the result is truncated to uint8, as in the reference.

    Args:
        image: (H, W, 3) uint8.
        box, rgb, alpha: as returned by `paste_region`.
    """
    result = image.copy()
    x0, y0, x1, y1 = box
    if x0 == x1:
        return result
    step = max(1, STRIP_PIXELS // (x1 - x0))
    for row in range(0, y1 - y0, step):
        part = slice(row, min(row + step, y1 - y0))
        target = result[y0 + part.start : y0 + part.stop, x0:x1]
        background = target.astype(np.float32)
        blended = rgb[part] - background
        blended *= alpha[part][..., None]
        blended += background
        target[...] = blended.astype(np.uint8)
    return result
