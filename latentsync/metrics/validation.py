"""Sync of a finished video, as a training run scores its validation videos."""

from pathlib import Path

from latentsync.constants import SAMPLE_RATE
from latentsync.data.clips import to_pixel_values
from latentsync.media.audio import load_audio
from latentsync.media.probe import probe_video
from latentsync.metrics.faces import FPS, aligned_runs
from latentsync.metrics.sync import SyncScorer
from latentsync.utils.errors import UserError


class VideoSyncScorer:
    """Scores the longest run of frames that show a face.

    Returns sync_confidence and sync_offset, the frames by which the audio is early (see `latentsync.metrics.sync`).
    """

    def __init__(self, scorer: SyncScorer) -> None:
        self.scorer = scorer

    def __call__(self, path: Path) -> dict[str, float]:
        """Raises UserError when the video cannot be read, shows no face, or is too short."""
        wave = load_audio(path, SAMPLE_RATE)
        runs = aligned_runs(probe_video(path), self.scorer.resolution)
        start, faces = max(runs, key=lambda run: len(run[1]), default=(0, None))
        if faces is None:
            raise UserError(f"{path}: no frame shows a face; sync cannot be scored")
        first, last = (index * SAMPLE_RATE // FPS for index in (start, start + len(faces)))
        score = self.scorer.score(to_pixel_values(faces), wave[first:last])
        return {"sync_confidence": score.confidence, "sync_offset": float(score.offset)}
