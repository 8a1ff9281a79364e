"""How far a mouth is open, frame by frame, and whether the sound is silent there.

Legend: T frames, R pixels. Faces are aligned (see `latentsync.faces.align`), uint8 RGB (T, R, R, 3).
"""

import math

import numpy as np

from latentsync.faces.mediapipe_detector import POINTS, region_from_mesh
from latentsync.faces.mediapipe_graphs import MeshNet, Region

# MediaPipe mesh: pairs of points on the inner edges of upper and lower lip, left, middle, right.
INNER_LIPS = [(82, 87), (13, 14), (312, 317)]
FOREHEAD, CHIN = 10, 152
MESH_POINTS = POINTS + [index for pair in INNER_LIPS for index in pair] + [FOREHEAD, CHIN]

# Where the mesh network looks first in an aligned face: centre and side as fractions of R. Means over real clips; the
# second look starts from the first mesh.
LOOK_CENTRE = (0.48, 0.46)
LOOK_SIDE = 1.4

CLOSED_PERCENTILE = 10  # of a person's openings in real frames: the mouth at rest

FPS = 25
SAMPLE_RATE = 16000
LOUD_PERCENTILE = 95  # of the frames' RMS: how loud the speech is
SILENCE_BELOW_SPEECH = 10 ** (-20 / 20)  # recordings of real rooms are seldom quieter
SILENCE_FLOOR = 10 ** (-60 / 20)  # of full scale: silent whatever the speech is like
SHORTEST_SILENCE = 8  # frames; shorter gaps are stops and breaths between words
SETTLE = 4  # frames next to speech that count as neither: lips open before a word and close after it


def mouth_opening(points: np.ndarray) -> float:
    """Distance of the inner lips over the height of the face (forehead to chin).

    points (len(MESH_POINTS), 2). Measured along the face, so that noise of closed lips averages to 0: about 0 closed,
    0.05 to 0.15 in speech, slightly negative where the network sees the lips overlap.
    """
    forehead, chin = points[-2:]
    axis = chin - forehead
    lips = points[len(POINTS) : -2].reshape(-1, 2, 2)
    gap = (lips[:, 1] - lips[:, 0]).mean(axis=0)
    return float(gap @ axis / (axis @ axis))


class MouthMeter:
    """Measures mouths with MediaPipe's mesh. Every frame is looked at afresh: equal pictures give equal openings."""

    def __init__(self) -> None:
        self._mesh = MeshNet()

    def openings(self, faces: np.ndarray) -> np.ndarray:
        """(T,) float64 of `mouth_opening`, NaN where no face is seen. `faces` (T, R, R, 3) uint8."""
        if faces.dtype != np.uint8 or faces.ndim != 4 or faces.shape[1] != faces.shape[2] or faces.shape[3] != 3:
            raise ValueError(f"aligned faces must be (T, R, R, 3) uint8, not {faces.shape} {faces.dtype}")
        return np.array([self._opening(face) for face in faces])

    def _opening(self, face: np.ndarray) -> float:
        side = len(face)
        points = self._mesh.points(face, Region(np.array(LOOK_CENTRE) * side, LOOK_SIDE * side, 0.0), POINTS)
        if points is not None:
            points = self._mesh.points(face, region_from_mesh(points), MESH_POINTS)
        return math.nan if points is None else mouth_opening(points)

    def close(self) -> None:
        """Release the network."""
        self._mesh.close()


def closed_opening(openings: np.ndarray) -> float:
    """What the meter shows for this person's closed mouth, from the openings (T,) of a real clip; NaN without any."""
    seen = openings[np.isfinite(openings)]
    return float(np.percentile(seen, CLOSED_PERCENTILE)) if seen.size else math.nan


def mean_opening(openings: np.ndarray, where: np.ndarray, closed: float) -> float:
    """Mean opening above the closed mouth in the frames of `where` (T,) bool, at least 0; NaN when there are none."""
    chosen = openings[where & np.isfinite(openings)]
    return float(np.maximum(chosen.mean() - closed, 0)) if chosen.size else math.nan


def silence_and_speech(wave: np.ndarray, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Which video frames (25 a second) lie in silence and which in speech: two (num_frames,) bool, never both.

    Silence is a stretch of at least 8 frames whose sound is 20 dB below the speech (or 60 dB below full scale), less 4
    frames next to the speech. Speech is all that is outside such stretches, pauses within it included.

    Args:
        wave: (N,) mono at 16 kHz in [-1, 1]; where it ends before the frames do, silence follows.
    """
    levels = frame_rms(wave, num_frames)
    threshold = max(SILENCE_FLOOR, SILENCE_BELOW_SPEECH * float(np.percentile(levels, LOUD_PERCENTILE)))
    silence, speech = np.zeros(num_frames, bool), np.ones(num_frames, bool)
    for start, end in _runs(levels < threshold):
        if end - start < SHORTEST_SILENCE:
            continue
        speech[start:end] = False
        silence[start + SETTLE * (start > 0) : end - SETTLE * (end < num_frames)] = True
    return silence, speech


def frame_rms(wave: np.ndarray, num_frames: int) -> np.ndarray:
    """Root mean square of the sound of each video frame: (num_frames,)."""
    samples = SAMPLE_RATE // FPS
    padded = np.zeros(num_frames * samples)
    count = min(len(wave), len(padded))
    padded[:count] = wave[:count]
    return np.sqrt((padded.reshape(num_frames, samples) ** 2).mean(axis=1))


def _runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """[start, end) of the stretches where the flags (T,) are set."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]
