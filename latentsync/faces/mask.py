"""The mask of the regenerated face region: 1 keeps a pixel, 0 gives it to the network."""

from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from latentsync.utils.errors import UserError

MASK_SIDE = 256
FEATHER = 1 / 48  # of the face's side: sigma of the blur between what is regenerated and what is kept
# Outline of the regenerated region in the aligned 256x256 face: a U over cheeks, mouth and jaw that spares the nose.
# The released checkpoints were trained with this shape.
REGENERATED_OUTLINE = np.array(
    [(9, 95), (9, 135), (10, 136), (11, 163), (12, 164), (12, 170), (22, 188), (34, 202), (49, 215), (60, 222)]
    + [(82, 233), (95, 238), (103, 239), (108, 241), (152, 242), (164, 239), (176, 233), (183, 231), (202, 220)]
    + [(210, 214), (223, 201), (240, 177), (244, 169), (246, 135), (247, 134), (247, 128), (246, 127), (246, 95)]
    + [(178, 95), (178, 127), (177, 128), (78, 128), (77, 127), (77, 95)]
)

# Where the lips are in an aligned face, as fractions of its side (top, bottom, left, right).
MOUTH_BOX = (0.56, 0.85, 0.28, 0.72)


def mouth_slices(size: int) -> tuple[slice, slice]:
    """Rows and columns of the lips in an aligned face of `size` pixels, or a map of `size` cells, a side."""
    top, bottom, left, right = (round(size * fraction) for fraction in MOUTH_BOX)
    return slice(top, bottom), slice(left, right)


def load_mask(resolution: int, path: str | Path | None = None) -> torch.Tensor:
    """Mask at a working resolution.

    Args:
        resolution: side in pixels.
        path: mask picture of any size, white keeps, black regenerates; None draws the built-in shape.

    Returns:
        (1, 1, resolution, resolution) float32 in [0, 1]; edges are soft where the picture was resized (Lanczos).

    Raises:
        UserError: the picture cannot be read, or keeps or regenerates everything.
    """
    if resolution < 1:
        raise ValueError(f"resolution must be positive, got {resolution}")
    picture = draw_mask() if path is None else _read_mask(Path(path))
    if picture.shape != (resolution, resolution):
        picture = cv2.resize(picture, (resolution, resolution), interpolation=cv2.INTER_LANCZOS4)
    return torch.from_numpy(picture.astype(np.float32) / 255)[None, None]


def draw_mask() -> np.ndarray:
    """The built-in mask: (256, 256) uint8, 255 keeps, 0 regenerates."""
    picture = np.full((MASK_SIDE, MASK_SIDE), 255, np.uint8)
    cv2.fillPoly(picture, [REGENERATED_OUTLINE.astype(np.int32)], 0)
    return picture


def _read_mask(path: Path) -> np.ndarray:
    """(H, W) uint8 of a mask file."""
    if not path.is_file():
        raise UserError(f"mask image {path} does not exist or is not a file: give a PNG, or leave the option out")
    encoded = np.fromfile(path, dtype=np.uint8)
    picture = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE) if encoded.size else None
    if picture is None:
        raise UserError(f"mask image {path} cannot be read as a picture: give an 8-bit PNG, white keeps, black is made")
    if picture.min() > 127 or picture.max() <= 127:
        everything = "keeps" if picture.min() > 127 else "regenerates"
        raise UserError(f"mask image {path} {everything} the whole face: it needs white (keep) and black (made) parts")
    return picture


def resize_mask_to_latents(mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Mask (B, 1, H, W) -> (B, 1, height, width) of the latents, by nearest pixel as the checkpoints were trained."""
    return F.interpolate(mask, size=size, mode="nearest")


def blend_weight(mask: torch.Tensor, inset: float = 0.0) -> np.ndarray:
    """Where a regenerated face replaces the frame: mask (1, 1, R, R), 1 = keep -> (R, R) float32 in [0, 1].

    1 in the regenerated region, 0 a little outside it, a smooth step between. What the network was told to keep
    comes from the frame itself and not from its smaller, resampled copy. `inset`, as a share of R, draws the step
    inwards and softens it: the outline of the face is then the frame's own, right for models that move it little.
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
