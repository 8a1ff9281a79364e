"""Sync score of a generated video, for validation during training."""

from pathlib import Path

from latentsync.constants import SAMPLE_RATE, SAMPLES_PER_FRAME
from latentsync.data.clips import to_pixel_values
from latentsync.media.audio import load_audio
from latentsync.media.probe import probe_video
from latentsync.metrics.faces import aligned_tracks
from latentsync.metrics.sync import SyncScorer
from latentsync.utils.errors import UserError


class VideoSyncScorer:
    """Scores the longest track of a face.

    Returns `sync_confidence` and `sync_offset`, see `latentsync.metrics.sync`.
    """

    def __init__(self, scorer: SyncScorer) -> None:
        self.scorer = scorer

    def __call__(self, path: Path) -> dict[str, float]:
        """Raises UserError if the video cannot be read, shows no face, or is too short."""
        wave = load_audio(path, SAMPLE_RATE)
        tracks = aligned_tracks(probe_video(path), self.scorer.resolution)
        start, faces = max(tracks, key=lambda track: len(track[1]), default=(0, None))
        if faces is None:
            raise UserError(f"{path}: no frame shows a face; sync cannot be scored")
        audio = wave[start * SAMPLES_PER_FRAME : (start + len(faces)) * SAMPLES_PER_FRAME]
        score = self.scorer.score(to_pixel_values(faces), audio)
        return {"sync_confidence": score.confidence, "sync_offset": float(score.offset)}
