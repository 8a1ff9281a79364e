"""Face tracks and square crops as in the published SyncNet pipeline (Chung & Zisserman 2016).

Legend: T frames of a track. Boxes are (x0, y0, x1, y1) in pixels of the frame.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.signal import medfilt

from latentsync.faces.detector import overlap
from latentsync.pretrained.syncnet_v2 import FACE_SIZE

SAME_FACE = 0.5  # intersection over union of consecutive boxes
SAME_PERSON = 0.2  # of the boxes of two detectors
MAX_GAP = 25  # frames without a detection before a track ends
MIN_FRAMES = 50
MIN_FACE = 100  # pixels
SMOOTHING = 13  # frames of the median filter
CROP_SCALE = 0.4
PADDING = 110  # gray level around the frame


@dataclass(frozen=True)
class FaceTrack:
    """One face from frame `start` on: boxes (T, 4), with gaps interpolated."""

    start: int
    boxes: np.ndarray

    @property
    def end(self) -> int:
        """One past the last frame."""
        return self.start + len(self.boxes)

    @property
    def size(self) -> float:
        """Mean length of the longer side in pixels."""
        sides = self.boxes[:, 2:] - self.boxes[:, :2]
        return float(sides.mean(axis=0).max())


def find_tracks(
    detections: Iterable[Sequence[np.ndarray]], min_frames: int = MIN_FRAMES, min_face: float = MIN_FACE
) -> list[FaceTrack]:
    """Link the boxes of each frame into tracks, longest first; short tracks and small faces are left out."""
    open_tracks: list[list[tuple[int, np.ndarray]]] = []
    done: list[list[tuple[int, np.ndarray]]] = []
    for index, boxes in enumerate(detections):
        done += [track for track in open_tracks if index - track[-1][0] > MAX_GAP]
        open_tracks = [track for track in open_tracks if index - track[-1][0] <= MAX_GAP]
        for box in boxes:
            candidates = [track for track in open_tracks if track[-1][0] < index]
            best = max(candidates, key=lambda track: overlap(track[-1][1], box), default=None)
            if best is not None and overlap(best[-1][1], box) > SAME_FACE:
                best.append((index, np.asarray(box, dtype=float)))
            else:
                open_tracks.append([(index, np.asarray(box, dtype=float))])
    tracks = [_filled(track) for track in done + open_tracks]
    fit = [track for track in tracks if len(track.boxes) >= min_frames and track.size >= min_face]
    return sorted(fit, key=lambda track: (-len(track.boxes), track.start))


def track_of(tracks: Sequence[FaceTrack], boxes: Mapping[int, np.ndarray]) -> FaceTrack | None:
    """The track that shows the person with these boxes (4,) by frame, in the most frames; None if none does."""

    def shared(track: FaceTrack) -> int:
        inside = (index for index in boxes if track.start <= index < track.end)
        return sum(overlap(track.boxes[index - track.start], boxes[index]) > SAME_PERSON for index in inside)

    best = max(tracks, key=shared, default=None)
    return best if best is not None and shared(best) else None


def _filled(track: list[tuple[int, np.ndarray]]) -> FaceTrack:
    """Interpolate boxes linearly between the frames with a detection."""
    indices, boxes = zip(*track, strict=True)
    frames = np.arange(indices[0], indices[-1] + 1)
    columns = [np.interp(frames, indices, column) for column in np.stack(boxes).T]
    return FaceTrack(indices[0], np.stack(columns, axis=1))


def crop_faces(frames: Iterable[np.ndarray], track: FaceTrack) -> Iterator[np.ndarray]:
    """Crop each frame of a track: frames (H, W, 3) uint8 in order -> crops (224, 224, 3) uint8.

    The crop is square: 1 + 2 * 0.4 times the face's longer side, centered horizontally on the face and starting at its
    upper edge. Position and size are smoothed by a median over 13 frames.
    """
    boxes = track.boxes
    half = medfilt((boxes[:, 2:] - boxes[:, :2]).max(axis=1) / 2, SMOOTHING)
    center_x = medfilt((boxes[:, 0] + boxes[:, 2]) / 2, SMOOTHING)
    center_y = medfilt((boxes[:, 1] + boxes[:, 3]) / 2, SMOOTHING)
    for frame, size, x, y in zip(frames, half, center_x, center_y, strict=True):
        border = int(size * (1 + 2 * CROP_SCALE))
        padded = np.pad(frame, ((border, border), (border, border), (0, 0)), constant_values=PADDING)
        top, bottom = int(y + border - size), int(y + border + size * (1 + 2 * CROP_SCALE))
        left, right = int(x + border - size * (1 + CROP_SCALE)), int(x + border + size * (1 + CROP_SCALE))
        crop = padded[max(top, 0) : bottom, max(left, 0) : right]
        yield cv2.resize(crop, (FACE_SIZE, FACE_SIZE))
