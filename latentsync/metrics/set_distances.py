"""Frechet distance between two sets of features modeled as Gaussians, for FID and FVD.

Legend: N samples, D width of the features.
"""

import numpy as np

BLOCK = 1024  # rows of a kernel matrix in memory at once


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """|m1 - m2|^2 + Tr(S1 + S2 - 2 (S1 S2)^(1/2)) of features (N1, D) and (N2, D); 0 for equal sets, never below.

    m are the means, S the unbiased covariances (Dowson and Landau 1982; Heusel et al. 2017). The square root of the
    product, a nearly singular asymmetric matrix, is not computed: with S = F^T F its trace is the sum of the singular
    values of F1 F2^T. This is exact up to rounding, even with fewer samples than features. All in float64.

    With few samples, two sets of one distribution have a distance well above 0. Compare values of equal N only.

    Raises:
        ValueError: not two matrices of equal width, fewer than two samples, or values that are not finite.
    """
    first, second = _checked(first), _checked(second)
    _check_widths(first, second)
    shift = first.mean(axis=0) - second.mean(axis=0)
    factor1, factor2 = covariance_factor(first), covariance_factor(second)
    spread = np.square(factor1).sum() + np.square(factor2).sum()  # both traces
    overlap = np.linalg.svd(factor1 @ factor2.T, compute_uv=False).sum()
    return max(0.0, float(shift @ shift + spread - 2 * overlap))


def kernel_distance(first: np.ndarray, second: np.ndarray) -> float:
    """KID (Binkowski et al. 2018) of features (N1, D) and (N2, D): unbiased squared maximum mean discrepancy.

    Kernel (x y / D + 1)^3, over all pairs instead of random subsets. Unlike the Frechet distance its mean does not
    depend on N; for two sets of one distribution it is 0 on average and may be negative.

    Raises:
        ValueError: as `frechet_distance`.
    """
    first, second = _checked(first), _checked(second)
    _check_widths(first, second)

    def mean_kernel(one: np.ndarray, other: np.ndarray, same: bool) -> float:
        rows = np.split(one, range(BLOCK, len(one), BLOCK))
        total = sum(float(((part @ other.T / one.shape[1] + 1) ** 3).sum()) for part in rows)
        diagonal = float(((np.square(one).mean(axis=1) + 1) ** 3).sum()) if same else 0.0
        return (total - diagonal) / (len(one) * (len(other) - same))

    own = mean_kernel(first, first, same=True) + mean_kernel(second, second, same=True)
    return float(own - 2 * mean_kernel(first, second, same=False))


def covariance_factor(features: np.ndarray) -> np.ndarray:
    """F with F^T F the unbiased covariance of features (N, D): (min(N, D), D)."""
    centered = (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
    return centered if len(features) <= features.shape[1] else np.asarray(np.linalg.qr(centered, mode="r"))


def _check_widths(first: np.ndarray, second: np.ndarray) -> None:
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"expected features of equal width, got {first.shape} and {second.shape}")


def _checked(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"expected two or more samples (N, D), got {features.shape}")
    if not np.isfinite(features).all():
        raise ValueError("some features are not finite numbers")
    return features
