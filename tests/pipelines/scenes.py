"""Small images and clips with a real face (the shipped portrait) at chosen places."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from tests.media.synthetic import write_clip

PORTRAIT = Path(__file__).resolve().parents[2] / "assets" / "demo_portrait.png"
SIDE = 120  # of one head with its surroundings; the face itself is about 44 x 51 pixels
WIDTH, HEIGHT = 160, 120
BACKGROUND = (90, 110, 130)

Places = tuple[tuple[int, int], ...]  # left upper corners of heads


@cache
def head() -> np.ndarray:
    """(SIDE, SIDE, 3) uint8: the portrait's head."""
    with Image.open(PORTRAIT) as image:
        draw_scene = np.asarray(image.convert("RGB"))[0:256, 96:352]
    return cv2.resize(draw_scene, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def draw_scene(places: Places = ((20, 0),), background: tuple[int, int, int] = BACKGROUND, width: int = WIDTH):
    """(HEIGHT, width, 3) uint8 with a head at each place."""
    canvas = np.full((HEIGHT, width, 3), background, np.uint8)
    for x, y in places:
        part = head()[: HEIGHT - y, : width - x]
        canvas[y : y + part.shape[0], x : x + part.shape[1]] = part
    return canvas


def clip(path: Path, count: int, draw: Callable[[int], np.ndarray] | None = None, **options) -> Path:
    """A clip of `count` images; by default of a head that sways."""
    draw = draw or (lambda index: draw_scene(((16 + index % 8, 0),)))
    images = [draw(index) for index in range(count)]
    height, width = images[0].shape[:2]
    return write_clip(path, count, size=(width, height), images=images, **options)
