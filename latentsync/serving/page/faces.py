"""The face picker: the first picture of an upload with its faces marked, and which face a click means."""

import threading
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from latentsync.faces.detector import Face, FaceDetector
from latentsync.faces.factory import create_detector
from latentsync.media.first_frame import first_frame

SHOWN_SIDE = 960  # pixels of the longer side of what is shown
CHOSEN, OTHER = (46, 160, 67), (255, 255, 255)
DARK = (20, 20, 20)


@dataclass(frozen=True)
class FirstPicture:
    """pixels: (H, W, 3) uint8 as shown; scale: shown over real size; faces: in shown pixels, from left to right."""

    pixels: np.ndarray
    scale: float
    faces: tuple[Face, ...]

    def face_at(self, x: float, y: float) -> int | None:
        """Number of the face that a click on shown pixels means: the nearest one, where it is within reach of it."""
        if not self.faces:
            return None
        distances = [float(np.abs((face.centre - (x, y)) / np.maximum(face.size, 1)).max()) for face in self.faces]
        nearest = int(np.argmin(distances))
        return nearest if distances[nearest] <= 1 else None

    def option(self, number: int) -> str:
        """The `face` option that means this face: its centre in pixels of the video."""
        x, y = self.faces[number].centre / self.scale
        return f"{max(0.0, x):.0f},{max(0.0, y):.0f}"

    def marked(self, chosen: int | None) -> np.ndarray:
        """The picture with a numbered frame around each face; the chosen one in green."""
        picture = self.pixels.copy()
        width = max(2, round(max(picture.shape[:2]) / 300))
        for number, face in enumerate(self.faces):
            colour = CHOSEN if number == chosen else OTHER
            corners = [tuple(int(round(float(v))) for v in face.box[i : i + 2]) for i in (0, 2)]
            cv2.rectangle(picture, *corners, DARK, width + 2)
            cv2.rectangle(picture, *corners, colour, width)
            place = (corners[0][0], max(16 * width, corners[0][1] - 3 * width))
            for ink, thickness in ((DARK, 3 * width), (colour, width)):
                cv2.putText(picture, str(number), place, cv2.FONT_HERSHEY_SIMPLEX, 0.6 * width, ink, thickness)
        return picture


class FaceFinder:
    """Finds the faces of first pictures; one detector, loaded when it is first needed, used by one caller at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._detector: FaceDetector | None = None

    def look(self, path: Path) -> FirstPicture:
        """Raises UserError where the file has no picture."""
        pixels = first_frame(path)
        with self._lock:
            if self._detector is None:
                self._detector = create_detector(static=True)
            faces = self._detector.detect(pixels)
        scale = min(1.0, SHOWN_SIDE / max(pixels.shape[:2]))
        if scale < 1:
            pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        ordered = sorted((face.scaled(scale) for face in faces), key=lambda face: float(face.centre[0]))
        return FirstPicture(pixels, scale, tuple(ordered))
