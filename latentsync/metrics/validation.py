"""Sync confidence of a finished video, as a training run measures its validation videos.

Legend: T frames, R pixels.
"""

from contextlib import closing
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latentsync.constants import FPS, SAMPLE_RATE
from latentsync.data.clips import to_pixel_values
from latentsync.faces.factory import create_detector
from latentsync.faces.tracking import FaceTracker
from latentsync.media.audio import load_audio
from latentsync.media.probe import probe_video
from latentsync.media.timeline import open_timeline
from latentsync.metrics.sync import SyncScorer
from latentsync.pipelines.face_stream import FaceAligner, tracked_frames
from latentsync.utils.affine_transform import AlignRestore
from latentsync.utils.errors import UserError


class VideoSyncScorer:
    """Measures of a video: sync_confidence and sync_offset (frames by which the sound is late)."""

    def __init__(self, scorer: SyncScorer) -> None:
        self.scorer = scorer

    def __call__(self, path: Path) -> dict[str, float]:
        """Raises UserError when the video cannot be read, shows no face in some frame, or is too short."""
        wave = load_audio(path, SAMPLE_RATE)
        score = self.scorer.score(aligned_faces(path, self.scorer.resolution), wave)
        return {"sync_confidence": score.confidence, "sync_offset": float(score.offset)}


def aligned_faces(path: str | Path, resolution: int) -> Tensor:
    """The largest face of each frame at 25 frames/s, aligned: (T, 3, R, R) in [-1, 1].

    Raises:
        UserError: the video cannot be read, or some frame shows no face.
    """
    info = probe_video(path)
    duration = Fraction(info.duration or 0).limit_denominator(SAMPLE_RATE)
    aligner = AlignRestore(resolution=resolution, device="cpu", dtype=torch.float32)
    with (
        closing(open_timeline(info, duration, Fraction(FPS), "freeze")) as timeline,
        closing(create_detector("auto")) as detector,
    ):
        frames = tracked_frames(timeline, FaceAligner(FaceTracker(detector, fps=float(FPS)), aligner))
        faces = [item.face.pixels if item.face is not None else None for item in frames]
    missing = sum(face is None for face in faces)
    if missing or not faces:
        raise UserError(f"{path}: {missing} of {len(faces)} frames show no face; sync cannot be measured")
    return to_pixel_values(np.stack(faces))
