"""An aligned face to measure: the demo's portrait."""

from functools import cache

import cv2
import numpy as np

from latentsync.faces.align import resize_to_square
from latentsync.faces.mediapipe_detector import MediaPipeDetector
from latentsync.utils.affine_transform import AlignRestore
from latentsync.utils.paths import PROJECT_ROOT


@cache
def aligned_portrait(side: int) -> np.ndarray:
    """(side, side, 3) uint8 RGB."""
    image = cv2.cvtColor(cv2.imread(str(PROJECT_ROOT / "assets" / "demo_portrait.png")), cv2.COLOR_BGR2RGB)
    detector = MediaPipeDetector(static=True)
    anchors = detector.detect(image)[0].anchors
    detector.close()
    return resize_to_square(AlignRestore(resolution=side).align_warp_face(image, anchors)[0], side)
