"""Mask of the regenerated face region: 1 keeps a pixel, 0 regenerates it."""

from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from latentsync.utils.errors import UserError

MASK_SIDE = 256
FEATHER = 1 / 48  # of the face's side: sigma of the blur at the edge of the regenerated region
# Outline of the regenerated region in the aligned 256x256 face: a U over cheeks, mouth and jaw that leaves out the
# nose. The released checkpoints were trained with this shape.
REGENERATED_OUTLINE = np.array(
    [(9, 95), (9, 135), (10, 136), (11, 163), (12, 164), (12, 170), (22, 188), (34, 202), (49, 215), (60, 222)]
    + [(82, 233), (95, 238), (103, 239), (108, 241), (152, 242), (164, 239), (176, 233), (183, 231), (202, 220)]
    + [(210, 214), (223, 201), (240, 177), (244, 169), (246, 135), (247, 134), (247, 128), (246, 127), (246, 95)]
    + [(178, 95), (178, 127), (177, 128), (78, 128), (77, 127), (77, 95)]
)

# Bounding box of the lips in an aligned face, as fractions of its side (top, bottom, left, right).
MOUTH_BOX = (0.56, 0.85, 0.28, 0.72)


def mouth_slices(size: int) -> tuple[slice, slice]:
    """Rows and columns of the lips in an aligned face with `size` pixels (or feature map cells) per side."""
    top, bottom, left, right = (round(size * fraction) for fraction in MOUTH_BOX)
    return slice(top, bottom), slice(left, right)


def load_mask(resolution: int, path: str | Path | None = None) -> torch.Tensor:
    """Load a mask, or draw the built-in one.

    Args:
        resolution: side of the mask in pixels.
        path: mask image of any size; white is kept, black is regenerated. None draws the built-in mask.

    Returns:
        (1, 1, resolution, resolution) float32 in [0, 1]; Lanczos resampling softens the edges.

    Raises:
        UserError: unreadable image, or a mask that keeps or regenerates everything.
    """
    if resolution < 1:
        raise ValueError(f"resolution must be positive, got {resolution}")
    image = draw_mask() if path is None else _read_mask(Path(path))
    if image.shape != (resolution, resolution):
        image = cv2.resize(image, (resolution, resolution), interpolation=cv2.INTER_LANCZOS4)
    return torch.from_numpy(image.astype(np.float32) / 255)[None, None]


def draw_mask() -> np.ndarray:
    """Draw the built-in mask: (256, 256) uint8, 255 = keep, 0 = regenerate."""
    image = np.full((MASK_SIDE, MASK_SIDE), 255, np.uint8)
    cv2.fillPoly(image, [REGENERATED_OUTLINE.astype(np.int32)], 0)
    return image


def _read_mask(path: Path) -> np.ndarray:
    """Read a mask image as (H, W) uint8."""
    if not path.is_file():
        raise UserError(f"mask image {path} does not exist or is not a file: use a PNG file, or omit the option")
    encoded = np.fromfile(path, dtype=np.uint8)
    image = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE) if encoded.size else None
    if image is None:
        raise UserError(f"mask image {path} cannot be decoded: use an 8-bit PNG, white = keep, black = regenerate")
    if image.min() > 127 or image.max() <= 127:
        everything = "keeps" if image.min() > 127 else "regenerates"
        raise UserError(f"mask image {path} {everything} the whole face: use both white (keep) and black (regenerate)")
    return image


def resize_mask_to_latents(mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Mask (B, 1, H, W) -> (B, 1, height, width) at latent size, by nearest-neighbor interpolation, as in training."""
    return F.interpolate(mask, size=size, mode="nearest")


def blend_weight(mask: torch.Tensor, inset: float = 0.0) -> np.ndarray:
    """Blending weight of a regenerated face: mask (1, 1, R, R), 1 = keep -> (R, R) float32 in [0, 1].

    The weight is 1 in the regenerated region and falls off smoothly to 0 just outside, so that pixels to keep come from
    the frame and not from its resampled copy. `inset`, as a fraction of R, moves the edge inwards and softens it, which
    keeps the original outline of the face; suitable for models that hardly change it.
    """
    region = 1 - mask[0, 0].clamp(0, 1).numpy()
    side = len(region)
    if radius := round(inset * side):
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
        region = cv2.erode(region, disc, borderType=cv2.BORDER_REPLICATE)
    sigma = max(FEATHER, inset / 2) * side
    weight = cv2.GaussianBlur(region, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    weight[weight < 1 / 255] = 0
    return weight
