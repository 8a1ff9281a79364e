"""Former place of `latentsync.faces.video`."""

from latentsync.faces.video import (
    DETECTION_SIDE,
    AlignedFace,
    FaceAligner,
    TrackedFrame,
    face_runs,
)
from latentsync.faces.video import (
    align_frames as tracked_frames,
)

__all__ = ["DETECTION_SIDE", "AlignedFace", "FaceAligner", "TrackedFrame", "face_runs", "tracked_frames"]
