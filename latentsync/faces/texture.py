"""Restore the detail of the frame in a generated face.

What a small network cannot know averages out: its skin and lips are soft, its lips are rarely the person's color. The
frame shows both, with the mouth in another position. So its fine detail is moved to where the generated face has the
same points of MediaPipe's mesh, and takes the place of the detail there. Coarse structure, which
carries the speech, and the inside of the mouth stay as generated: otherwise the speech of the source shows through.

Legend: R pixels of a side of an aligned face, N points of the mesh.
"""

import cv2
import numpy as np

from latentsync.faces.color import LUMA
from latentsync.faces.contour import MeshFinder, fill_polygon
from latentsync.faces.lips import INNER_LIPS, OUTER_LIPS
from latentsync.faces.sharpen import DetailMatch
from latentsync.faces.video import AlignedFace

TOP = 0.35  # of R: rows above are not regenerated
DETAIL_SIGMA = 3 / 256  # of R: a Gaussian of this width separates detail from coarse structure
CELLS = 64  # of the grid of displacements, a side
SMOOTH, SPARSE = 1.25, 3.75  # cells: sigma of the smoothing between points, and where there are few
NO_POINTS = 1e-2  # weight of the wide smoothing
MOUTH_SIGMA = 1.5 / 256  # of R: soft edge of the inner mouth
LIPS_SIGMA = 2 / 256  # of R: soft edge of the lips' color
MEMORY = 0.95  # weight of the frames before in the color of the lips: about a second


class DetailRestorer:
    """Gives the generated faces of one person the detail of the frames: `TextureTransfer`, then `DetailMatch`.

    Args:
        mesh: finds the points of aligned faces. Shared; not closed here.
    """

    def __init__(self, mesh: MeshFinder) -> None:
        self._mesh, self._texture, self._match = mesh, TextureTransfer(), DetailMatch()

    def __call__(self, generated: np.ndarray, face: AlignedFace) -> tuple[np.ndarray, np.ndarray | None]:
        """The faces of consecutive frames, one after another.

        Args:
            generated: (R, R, 3) float32 in 0..255.
            face: the face in the frame, also R pixels a side.

        Returns:
            the face, of the same shape and range, and the mesh (N, 2) of the generated one; None if it was not found.
        """
        points = None
        if face.contour is not None:
            points = self._mesh.find(generated.clip(0, 255).astype(np.uint8), face.contour)
            wanted = None if points is None else self._mesh.find(face.pixels, face.contour)
            if points is not None and wanted is not None:
                generated = self._texture(generated, face.pixels, points, wanted, face.starts)
        return self._match(generated, face.pixels, face.starts), points


class TextureTransfer:
    """Replaces the detail of the generated faces of one person by that of the frames; see the module's docstring.

    The mean color of the lips follows the frames slowly, or else it would carry over their speech.
    """

    def __init__(self) -> None:
        self._lip_color: np.ndarray | None = None

    def __call__(
        self, generated: np.ndarray, original: np.ndarray, points: np.ndarray, wanted: np.ndarray, starts: bool = False
    ) -> np.ndarray:
        """The faces of consecutive frames, one after another.

        Args:
            generated: (R, R, 3) float32 in 0..255.
            original: the aligned face of the frame, (R, R, 3) uint8.
            points, wanted: the same points of the mesh in both, (N, 2), all 468.
            starts: whether this is the first frame after a cut.

        Returns:
            (R, R, 3) float32 in 0..255.
        """
        side = len(generated)
        rows = slice(round(TOP * side), None)
        places = spread(points, wanted - points, side)[rows]
        places += np.stack(np.meshgrid(np.arange(side), np.arange(rows.start, side)), -1).astype(np.float32)
        moved = cv2.remap(original, places, None, cv2.INTER_CUBIC, None, cv2.BORDER_REPLICATE)
        missing = cv2.subtract(moved, generated[rows], dtype=cv2.CV_32F)
        coarse = cv2.GaussianBlur(missing, (0, 0), DETAIL_SIGMA * side)
        # The inside of the mouth is neither replaced nor copied: teeth of the frame would show through closed lips.
        shown = cv2.remap(_fill(side, wanted[INNER_LIPS]), places, None, cv2.INTER_LINEAR)
        mouth = np.maximum(_fill(side, points[INNER_LIPS])[rows], shown)
        outside = 1 - cv2.GaussianBlur(mouth, (0, 0), MOUTH_SIGMA * side)
        lips = cv2.GaussianBlur(_fill(side, points[OUTER_LIPS])[rows], (0, 0), LIPS_SIGMA * side) * outside
        added = (missing - coarse) * outside[..., None] + lips[..., None] * self._color(coarse, lips, starts)
        restored = generated.copy()
        restored[rows] = (restored[rows] + added).clip(0, 255)
        return restored

    def _color(self, missing: np.ndarray, lips: np.ndarray, starts: bool) -> np.ndarray:
        """(3,) the chroma that the lips lack, averaged over them and over time."""
        weight = float(lips.sum())
        if weight > 0:
            color = np.einsum("hwc,hw->c", missing, lips) / weight
            color -= color @ LUMA
            if self._lip_color is not None and not starts:
                color = MEMORY * self._lip_color + (1 - MEMORY) * color
            self._lip_color = color
        return np.zeros(3, np.float32) if self._lip_color is None else self._lip_color.astype(np.float32)


def spread(points: np.ndarray, steps: np.ndarray, side: int) -> np.ndarray:
    """Steps (N, 2) at points (N, 2), in pixels, -> steps of all pixels (R, R, 2) float32; 0 far from all points."""
    cells = np.rint((points + 0.5) * (CELLS / side) - 0.5).astype(int)
    inside = ((cells >= 0) & (cells < CELLS)).all(axis=1)
    total = np.zeros((CELLS, CELLS, 3), np.float32)
    values = np.column_stack([steps, np.ones(len(steps))])
    np.add.at(total, (cells[inside, 1], cells[inside, 0]), values[inside])
    near, wide = (cv2.GaussianBlur(total, (0, 0), sigma) for sigma in (SMOOTH, SPARSE))
    there = wide[..., :2] / (wide[..., 2:] + NO_POINTS**2)
    mean = (near[..., :2] + NO_POINTS * there) / (near[..., 2:] + NO_POINTS)
    return cv2.resize(mean, (side, side), interpolation=cv2.INTER_LINEAR)


def _fill(side: int, polygon: np.ndarray) -> np.ndarray:
    """(R, R) float32, 1 inside the polygon and on its edge."""
    return cv2.dilate(fill_polygon(side, polygon), np.ones((3, 3), np.uint8)).astype(np.float32) / 255
