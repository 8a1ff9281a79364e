"""Flicker: nothing for motion of steady images, the level of the noise where there is noise."""

import math

import cv2
import numpy as np
import pytest

from latentsync.metrics.flicker import FlickerMetric

SIDE, FRAMES, NOISE = 128, 8, 6.0


def texture() -> np.ndarray:
    noise = np.random.default_rng(0).uniform(0, 255, (SIDE + 40, SIDE + 40)).astype(np.float32)
    return np.clip((cv2.GaussianBlur(noise, (0, 0), 5) - 127) * 8 + 127, 0, 255)


def moving(pixels: float) -> np.ndarray:
    """A texture that moves so far from frame to frame, to the side and half as far down: (T, R, R, 3)."""
    frames = []
    for index in range(FRAMES):
        matrix = np.float32([[1, 0, -index * pixels], [0, 1, -index * pixels / 2]])
        frames.append(cv2.warpAffine(texture(), matrix, (SIDE, SIDE), flags=cv2.INTER_CUBIC))
    return np.repeat(np.clip(np.rint(frames), 0, 255).astype(np.uint8)[..., None], 3, axis=-1)


def noisy(faces: np.ndarray, level: float = NOISE) -> np.ndarray:
    grain = np.random.default_rng(1).normal(0, level, faces.shape[:3])[..., None]
    return np.clip(np.rint(faces + grain), 0, 255).astype(np.uint8)


def flicker(faces: np.ndarray, *starts: int) -> float:
    """Of one clip (T, R, R, 3), in chunks as evaluation gives them; `starts`: frames that continue none."""
    metric, new = FlickerMetric(), np.isin(np.arange(len(faces)), (0, *starts))
    for first in range(0, len(faces), 3):
        metric.update(faces[first : first + 3], new[first : first + 3])
    return metric.compute()


@pytest.mark.parametrize("pixels", [0, 1.3, 3])
def test_motion_of_a_constant_texture_is_no_flicker(pixels):
    faces = moving(pixels)
    unmoved = np.abs(np.diff(faces.astype(float), axis=0)).mean()
    assert flicker(faces) < 0.8
    assert pixels == 0 or flicker(faces) < unmoved / 10


@pytest.mark.parametrize("pixels", [0, 1.3, 3])
def test_noise_gives_its_level(pixels):
    assert flicker(noisy(moving(pixels))) == pytest.approx(2 * NOISE / math.sqrt(math.pi), rel=0.15)


def test_pulsing_light_is_flicker():
    faces = moving(0).astype(int) // 2 + 40
    faces[::2] += 5
    assert flicker(faces.astype(np.uint8)) == pytest.approx(5, abs=0.2)


def test_only_the_mouth_counts():
    faces = moving(0)
    restless = faces.copy()
    restless[::2, : SIDE // 4] = 255 - restless[::2, : SIDE // 4]
    assert flicker(restless) == pytest.approx(flicker(faces), abs=0.2)


def test_cuts_are_not_compared():
    shots = np.concatenate([moving(0)[:4] // 2, moving(0)[:4] // 2 + 40])
    assert flicker(shots) == pytest.approx(40 / 7, abs=0.2)  # one of seven pairs
    assert flicker(shots, 4) < 0.1
    assert math.isnan(flicker(shots[:1])) and math.isnan(flicker(shots[3:5], 1))


def test_unaligned_faces_are_refused():
    with pytest.raises(ValueError, match="aligned faces must be"):
        FlickerMetric().update(moving(0)[..., 0], np.zeros(FRAMES, bool))
