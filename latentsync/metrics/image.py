"""Image similarity and sharpness, on whole frames or inside a box.

Legend: N images, H W pixels. Images are RGB uint8 (N, H, W, 3). A box is a pair of slices: rows, columns.
"""

from collections.abc import Callable

import cv2
import numpy as np
import torch.nn.functional as F
from skimage.metrics import structural_similarity
from torch import Tensor

Box = tuple[slice, slice]
Filter = Callable[[np.ndarray], np.ndarray]
WHOLE: Box = (slice(None), slice(None))
PEAK = 255
SSIM_SIGMA, SSIM_BORDER = 1.5, 5  # Gaussian window of 11 pixels, as in Wang et al. 2004
SSIM_WINDOW = 2 * SSIM_BORDER + 1
DETAIL_WINDOW = 5  # pixels: detail is the difference from the mean over this window
MIN_PATCH = 64  # pixels: side of the patches that LPIPS was calibrated on


def psnr(first: np.ndarray, second: np.ndarray, box: Box = WHOLE) -> np.ndarray:
    """Peak signal-to-noise ratio in dB, (N,); infinite for equal images.

    Raises:
        ValueError: the shapes differ, or the box is empty.
    """
    _check(first, second, box)
    difference = first[:, *box].astype(np.float64) - second[:, *box]
    with np.errstate(divide="ignore"):
        return 10 * np.log10(PEAK**2 / np.square(difference).mean(axis=(1, 2, 3)))


def ssim(first: np.ndarray, second: np.ndarray, box: Box = WHOLE) -> np.ndarray:
    """Structural similarity (Wang et al. 2004) by scikit-image, (N,); 1 for equal images.

    Gaussian window of 11 pixels, sigma 1.5, K1 = 0.01, K2 = 0.03, mean of the color channels. The map is averaged over
    the windows that are inside the image and whose centers are in the box.

    Raises:
        ValueError: as `psnr`, or the images are smaller than the window.
    """
    _check(first, second, box)
    if min(first.shape[1:3]) < SSIM_WINDOW:
        raise ValueError(f"images of {first.shape[1:3]} pixels are smaller than the window of {SSIM_WINDOW}")
    counted = np.zeros(first.shape[1:3], bool)
    counted[box] = True
    counted[:SSIM_BORDER] = counted[-SSIM_BORDER:] = counted[:, :SSIM_BORDER] = counted[:, -SSIM_BORDER:] = False
    return np.array([_ssim_map(one, other)[counted].mean() for one, other in zip(first, second, strict=True)])


def _ssim_map(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return structural_similarity(
        first,
        second,
        data_range=PEAK,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=SSIM_SIGMA,
        use_sample_covariance=False,
        full=True,
    )[1]


def mean_difference(first: np.ndarray, second: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Mean absolute difference over the pixels `where` (H, W) bool and the color channels, (N,) in gray levels."""
    _check(first, second, WHOLE)
    return np.abs(first[:, where].astype(np.int16) - second[:, where]).mean(axis=(1, 2))


def detail_ratio(result: np.ndarray, source: np.ndarray, box: Box = WHOLE) -> np.ndarray:
    """Sharpness of a result relative to its source, (N,); NaN for a flat source.

    Standard deviation of the luma minus its 5x5 mean, in the result over that in the source.
    """
    return _ratio(result, source, box, lambda luma: luma - cv2.blur(luma, (DETAIL_WINDOW, DETAIL_WINDOW)), np.std)


def laplacian_ratio(result: np.ndarray, source: np.ndarray, box: Box = WHOLE) -> np.ndarray:
    """Mean |Laplacian| of the luma in the result over that in the source, (N,); NaN for a flat source."""
    return _ratio(
        result, source, box, lambda luma: cv2.Laplacian(luma, cv2.CV_32F), lambda values: np.abs(values).mean()
    )


def _ratio(
    result: np.ndarray, source: np.ndarray, box: Box, filter_: Filter, reduce: Callable[[np.ndarray], np.floating]
) -> np.ndarray:
    _check(result, source, box)

    def amounts(images: np.ndarray) -> np.ndarray:
        # in float: rounded to gray levels, the luma of a smooth image would be full of edges
        lumas = (cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2GRAY) for image in images)
        return np.array([float(reduce(filter_(luma)[box])) for luma in lumas])

    above, below = amounts(result), amounts(source)
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


def crop_box(pixels: Tensor, box: Box, smallest: int = MIN_PATCH) -> Tensor:
    """A box of images (N, 3, H, W), enlarged (bilinear) so that its shorter side has at least `smallest` pixels."""
    cut = pixels[..., box[0], box[1]]
    scale = smallest / min(cut.shape[-2:])
    if scale <= 1:
        return cut
    size = [round(side * scale) for side in cut.shape[-2:]]
    return F.interpolate(cut, size=size, mode="bilinear", align_corners=False)


def _check(first: np.ndarray, second: np.ndarray, box: Box) -> None:
    if first.ndim != 4 or first.shape != second.shape or first.dtype != np.uint8 or second.dtype != np.uint8:
        raise ValueError(
            f"expected two uint8 arrays of equal shape (N, H, W, 3), got {first.dtype} {first.shape} and "
            f"{second.dtype} {second.shape}"
        )
    if not first[:, *box].size:
        raise ValueError("the box is empty")
