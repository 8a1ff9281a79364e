"""The face picker: a frame of an upload with its faces marked, and the face at a click."""

import threading
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from latentsync.faces.detector import Face, FaceDetector
from latentsync.faces.factory import create_detector
from latentsync.media.first_frame import first_frame

SHOWN_SIDE = 960  # longer side of the displayed frame in pixels
CHOSEN, OTHER = (46, 160, 67), (255, 255, 255)
DARK = (20, 20, 20)


@dataclass(frozen=True)
class ShownFrame:
    """pixels: (H, W, 3) uint8 as displayed; scale: displayed over real size; faces: left to right, in these pixels;
    second: of the video."""

    pixels: np.ndarray
    scale: float
    faces: tuple[Face, ...]
    second: float = 0.0

    def face_at(self, x: float, y: float) -> int | None:
        """Index of the face at a click: the nearest one, if the click is close enough; None otherwise."""
        if not self.faces:
            return None
        distances = [float(np.abs((face.center - (x, y)) / np.maximum(face.size, 1)).max()) for face in self.faces]
        nearest = int(np.argmin(distances))
        return nearest if distances[nearest] <= 1 else None

    def face_of(self, option: str) -> int | None:
        """Index of the face that the `face` option stands for, as far as this frame tells; else the largest."""
        x, comma, y = option.partition(",")
        try:
            if comma and (found := self.face_at(float(x) * self.scale, float(y) * self.scale)) is not None:
                return found
        except ValueError:  # x,y of another frame
            pass
        if option in ("left", "right") and self.faces:
            return 0 if option == "left" else len(self.faces) - 1
        sizes = [float(np.prod(face.size)) for face in self.faces]
        return int(np.argmax(sizes)) if sizes else None

    def option(self, number: int) -> str:
        """The value of the `face` option for this face: its center in pixels of the video."""
        x, y = self.faces[number].center / self.scale
        return f"{max(0.0, x):.0f},{max(0.0, y):.0f}" + (f"@{self.second:g}" if self.second else "")

    def marked(self, chosen: int | None) -> np.ndarray:
        """The frame with a numbered box around each face; the chosen one is green."""
        image = self.pixels.copy()
        side = max(image.shape[:2])
        width = max(2, round(side / 300))
        for number, face in enumerate(self.faces):
            color = CHOSEN if number == chosen else OTHER
            left, top, right, bottom = (int(round(float(value))) for value in face.box[:4])
            for ink, thickness in ((DARK, width + 2), (color, width)):
                cv2.rectangle(image, (left, top), (right, bottom), ink, thickness)
            _tag(image, str(number), (left, top), side / 500, color)
        return image


def _tag(image: np.ndarray, text: str, corner: tuple[int, int], scale: float, color: tuple[int, int, int]) -> None:
    """Write a text on a filled box above a corner, or below it at the edge of the image."""
    thickness = max(1, round(2 * scale))
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
    pad = max(2, height // 3)
    left, bottom = max(0, corner[0]), max(corner[1], height + 2 * pad)
    cv2.rectangle(image, (left, bottom - height - 2 * pad), (left + width + 2 * pad, bottom), color, cv2.FILLED)
    ink = OTHER if color == CHOSEN else DARK
    place = (left + pad, bottom - pad)
    cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, ink, thickness, cv2.LINE_AA)


class FaceFinder:
    """Finds faces in first frames, with one detector that is loaded on first use and used by one caller at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._detector: FaceDetector | None = None

    def find(self, path: Path, second: float = 0.0) -> ShownFrame:
        """The frame of a file at `second` with its faces. Raises UserError if there is none."""
        pixels = first_frame(path, second)
        with self._lock:
            if self._detector is None:
                self._detector = create_detector(static=True)
            faces = self._detector.detect(pixels)
        scale = min(1.0, SHOWN_SIDE / max(pixels.shape[:2]))
        if scale < 1:
            pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        ordered = sorted((face.scaled(scale) for face in faces), key=lambda face: float(face.center[0]))
        return ShownFrame(pixels, scale, tuple(ordered), second)
