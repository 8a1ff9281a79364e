"""Audio-visual sync of a video, scored by the published SyncNet or by the SyncNet of the embedded model.

Legend: T frames at 25 frames/s, R pixels, N samples at 16 kHz, W windows.
"""

import logging
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch

from latentsync.checkpoints import registry
from latentsync.checkpoints.registry import DOWNLOAD_COMMAND, EMBEDDED_SYNCNET, SYNCNET_V2, resolve
from latentsync.config.syncnet import load_syncnet_config
from latentsync.constants import SAMPLE_RATE, SAMPLES_PER_FRAME
from latentsync.data.clips import to_pixel_values
from latentsync.faces.detector import FaceDetector
from latentsync.faces.factory import create_detector
from latentsync.faces.video import DETECTION_SIDE
from latentsync.media.audio import load_audio
from latentsync.media.frame import VideoFrame
from latentsync.media.probe import VideoInfo, probe_video
from latentsync.metrics.face_tracks import MIN_FACE, MIN_FRAMES, FaceTrack, crop_faces, find_tracks, track_of
from latentsync.metrics.faces import aligned_tracks, clip_frames, is_aligned_clip, read_clip_faces
from latentsync.metrics.published_sync import PublishedScore, score_faces
from latentsync.metrics.sync import SyncScorer, offset_score
from latentsync.models.syncnets import SYNCNET_SCHEMAS
from latentsync.models.vae import WEIGHTS_NAMES, LatentCodec
from latentsync.pretrained.s3fd import S3FD
from latentsync.pretrained.syncnet_v2 import FACE_SIZE, WINDOW_FRAMES, SyncNetV2
from latentsync.utils.errors import UserError
from latentsync.utils.paths import CHECKPOINTS_DIR, PROJECT_ROOT
from latentsync.whisper.audio2feature import Audio2Feature

logger = logging.getLogger(__name__)

SCORERS = ("auto", "syncnet_v2", "embedded")
PUBLISHED_THRESHOLD = 3.0  # smallest confidence of training clips in the reference
EMBEDDED_THRESHOLD = (
    0.15  # most real clips are above it, and half of the dubbed ones: see `latentsync.metrics.sync_gate`
)
EMBEDDED_PREFERENCE = 0.9  # by `eval.sync_roc`, see docs/data_processing.md
EMBEDDED_CONFIG = PROJECT_ROOT / "configs" / "syncnet" / "embedded.yaml"


@dataclass(frozen=True)
class ClipSync:
    """Sync of one face with the audio.

    Args:
        offset: frames by which the audio is early, see `latentsync.metrics.sync`.
        confidence, min_distance: Sync-C and Sync-D; comparable only if computed by the same scorer.
        window_confidences: (W,).
        start, frames: first frame and number of frames scored.
        vision, audio: (W, D) embeddings of the windows.
    """

    scorer: str
    offset: int
    confidence: float
    min_distance: float
    window_confidences: np.ndarray
    start: int = 0
    frames: int = 0
    vision: np.ndarray = field(default_factory=partial(np.empty, (0, 0)))
    audio: np.ndarray = field(default_factory=partial(np.empty, (0, 0)))


class ClipSyncScorer(Protocol):
    """A sync scorer.

    Attributes:
        min_frames: length of the shortest clip that can be scored.
        default_threshold: lowest confidence of a good clip.
        default_preference: lowest preference of a good clip, see `latentsync.metrics.sync_gate`; None if unknown.
        files: weights and configs that the scores depend on.
    """

    name: str
    files: tuple[Path, ...]
    min_frames: int
    default_threshold: float
    default_preference: float | None

    def score_faces(self, faces: np.ndarray, wave: np.ndarray) -> ClipSync:
        """Score aligned faces (T, R, R, 3) uint8 with audio (N,). Raises UserError for a clip that is too short."""

    def score_video(self, path: str | Path, wave: np.ndarray | None = None, face: str | None = None) -> list[ClipSync]:
        """Score the faces of a video, starting with the longest track. A clip of aligned faces is not aligned again.

        Args:
            wave: audio (N,) to score instead of the file's own, mono at 16 kHz, starting at the first frame.
            face: score this person only, see `latentsync.faces.video.track_faces`; None for all faces that the scorer
                finds.

        Raises:
            UserError: the file has no video or no audio, or no face is in view for long enough.
        """


def open_sync_scorer(
    name: str = "auto", device: str = "cpu", model_path: str | Path | None = None, checkpoints: Path | None = None
) -> ClipSyncScorer:
    """Open a scorer by name; "auto" is the published SyncNet if its weights are present, else the embedded one.

    Args:
        model_path: path of `syncnet_v2.model`, if not under `checkpoints`.

    Raises:
        UserError: unknown name, or missing weights.
    """
    if name not in SCORERS:
        raise UserError(f"sync scorer {name!r} is unknown: choose one of {', '.join(SCORERS)}")
    published = Path(model_path) if model_path else SYNCNET_V2.find(checkpoints)
    if name == "syncnet_v2" or (name == "auto" and published is not None):
        if published is None:
            place = (checkpoints or CHECKPOINTS_DIR) / SYNCNET_V2.path
            raise UserError(f"the published SyncNet is missing ({place}); run `{DOWNLOAD_COMMAND} auxiliary`")
        return PublishedScorer(published, registry.S3FD.find(checkpoints), device)
    if name == "auto":
        logger.info("scoring sync with the embedded SyncNet, since the published one is not in %s", CHECKPOINTS_DIR)
    return EmbeddedScorer(device)


class PublishedScorer:
    """SyncNet of Chung & Zisserman. Faces are detected by S3FD if `s3fd_path` is given, else by MediaPipe."""

    min_frames = WINDOW_FRAMES + 1
    default_threshold = PUBLISHED_THRESHOLD
    default_preference: float | None = None

    def __init__(self, model_path: str | Path, s3fd_path: str | Path | None = None, device: str = "cpu"):
        self.net = SyncNetV2.from_pretrained(model_path).to(device)
        self.s3fd = S3FD.from_pretrained(s3fd_path).to(device) if s3fd_path else None
        self.name = "syncnet_v2" if s3fd_path else "syncnet_v2 (MediaPipe faces)"
        self.files = tuple(Path(path) for path in (model_path, s3fd_path) if path)

    def score_faces(self, faces: np.ndarray, wave: np.ndarray) -> ClipSync:
        """Scores the whole aligned face, which like the published crop shows the face from brow to chin."""
        frames = min(len(faces), len(wave) // SAMPLES_PER_FRAME)
        _check_length(frames, self.min_frames)
        crops = (cv2.resize(face, (FACE_SIZE, FACE_SIZE)) for face in faces)
        return self._result(score_faces(self.net, crops, wave), 0, frames)

    def score_video(self, path: str | Path, wave: np.ndarray | None = None, face: str | None = None) -> list[ClipSync]:
        info, wave = _open(path, wave)
        if is_aligned_clip(info):
            return _score_tracks(self, path, aligned_tracks(info, FACE_SIZE), wave)
        with closing(create_detector("mediapipe")) as detector, closing(clip_frames(info)) as frames:
            boxes = [self._boxes(frame, detector) for frame in frames]
        tracks = find_tracks(boxes)
        if not tracks:
            raise UserError(f"{path}: no face of {MIN_FACE} pixels is in view for {MIN_FRAMES} frames; leave it out")
        if face is not None and (len(tracks) > 1 or face != "largest"):
            track = track_of(tracks, _boxes_of(info, face))
            if track is None:
                raise UserError(f"{path}: the face {face} is not in view for {MIN_FRAMES} frames; leave it out")
            tracks = [track]
        audio = [_audio_of(wave, track.start, len(track.boxes)) for track in tracks]
        with_audio = [
            pair for pair in zip(tracks, audio, strict=True) if len(pair[1]) >= self.min_frames * SAMPLES_PER_FRAME
        ]
        if not with_audio:
            raise UserError(f"{path}: no face is in view for {self.min_frames} frames with audio; leave it out")
        return [self._score_track(info, *pair) for pair in with_audio]

    def _boxes(self, frame: VideoFrame, detector: FaceDetector) -> list[np.ndarray]:
        if self.s3fd is not None:
            return [row[:4] for row in self.s3fd.detect(frame.rgb())]
        image = frame.rgb(DETECTION_SIDE)
        return [face.box * frame.width / image.shape[1] for face in detector.detect(image)]

    def _score_track(self, info: VideoInfo, track: FaceTrack, audio: np.ndarray) -> ClipSync:
        with closing(clip_frames(info)) as frames:
            images = (frame.rgb() for frame in islice(frames, track.start, track.end))
            score = score_faces(self.net, crop_faces(images, track), audio)
        return self._result(score, track.start, len(audio) // SAMPLES_PER_FRAME)

    def _result(self, score: PublishedScore, start: int, frames: int) -> ClipSync:
        return ClipSync(
            self.name,
            score.offset,
            score.confidence,
            score.min_distance,
            score.window_confidences,
            start,
            frames,
            score.vision,
            score.audio,
        )


class EmbeddedScorer:
    """SyncNet of the embedded model, on aligned faces. It compares unit vectors, so the confidence is 0 to 2."""

    name = "embedded"
    default_threshold = EMBEDDED_THRESHOLD
    default_preference: float | None = EMBEDDED_PREFERENCE

    def __init__(self, device: str = "cpu"):
        model, weights = resolve("embedded"), EMBEDDED_SYNCNET.find() or CHECKPOINTS_DIR / EMBEDDED_SYNCNET.path
        data = load_syncnet_config(EMBEDDED_CONFIG, *SYNCNET_SCHEMAS).data
        self.files: tuple[Path, ...] = (EMBEDDED_CONFIG, weights)
        codec = audio = None
        if data.latent_space:
            codec = LatentCodec.from_pretrained(model.vae).to(device)
            self.files += (model.vae / WEIGHTS_NAMES[0],)
        if data.audio_features == "whisper":
            audio = Audio2Feature(model.whisper, device)
            self.files += (model.whisper,)
        self.scorer = SyncScorer.from_pretrained(EMBEDDED_CONFIG, weights, codec, audio, device)
        self.min_frames = self.scorer.shortest_clip

    def score_faces(self, faces: np.ndarray, wave: np.ndarray) -> ClipSync:
        frames = self.scorer.frames_of(len(faces), wave)
        _check_length(frames, self.min_frames)
        vision, audio = self.scorer.embed(to_pixel_values(faces), wave)
        score = offset_score(vision, audio)
        distances = torch.cdist(vision.double(), audio.double()).numpy()
        by_offset = np.stack([_along(distances, offset) for offset in score.offsets])
        windows = np.nanmedian(by_offset, axis=0) - _along(distances, score.offset)
        least, embeddings = float(score.distances.min()), (vision.numpy(), audio.numpy())
        return ClipSync(self.name, score.offset, score.confidence, least, windows, 0, frames, *embeddings)

    def score_video(self, path: str | Path, wave: np.ndarray | None = None, face: str | None = None) -> list[ClipSync]:
        info, wave = _open(path, wave)
        return _score_tracks(self, path, aligned_tracks(info, self.scorer.resolution, face or "largest"), wave)


def _score_tracks(
    scorer: ClipSyncScorer, path: str | Path, tracks: Iterable[tuple[int, np.ndarray]], wave: np.ndarray
) -> list[ClipSync]:
    """Score tracks of aligned faces (first frame, faces) with their parts of the audio, the longest first."""
    found = []
    for start, faces in tracks:
        with suppress(UserError):  # too short
            found.append(replace(scorer.score_faces(faces, _audio_of(wave, start, len(faces))), start=start))
    if not found:
        raise UserError(f"{path}: no face is in view for {scorer.min_frames} frames with audio; leave it out")
    return sorted(found, key=lambda result: (-result.frames, result.start))


def _audio_of(wave: np.ndarray, start: int, frames: int) -> np.ndarray:
    """The samples of `frames` frames from `start` on, or as many as there are."""
    return wave[start * SAMPLES_PER_FRAME : (start + frames) * SAMPLES_PER_FRAME]


def _check_length(frames: int, needed: int) -> None:
    if frames < needed:
        raise UserError(f"the clip has {frames} frames, sync needs {needed} with audio; leave it out")


def _boxes_of(info: VideoInfo, face: str) -> dict[int, np.ndarray]:
    """Box (4,) of a person in each frame in which it is in view."""
    with closing(read_clip_faces(info, FACE_SIZE, face)) as frames:
        return {item.index: item.seen.box for item in frames if item.seen.box is not None}


def _open(path: str | Path, wave: np.ndarray | None) -> tuple[VideoInfo, np.ndarray]:
    info = probe_video(path)
    if info.is_still:
        raise UserError(f"{path}: is an image; sync is scored on videos with audio")
    return info, load_audio(path, SAMPLE_RATE) if wave is None else wave


def _along(distances: np.ndarray, offset: int) -> np.ndarray:
    """(W,) distance of each window to the audio `offset` frames before it; NaN outside the clip."""
    count = len(distances)
    result = np.full(count, np.nan)
    rows = np.arange(max(0, offset), min(count, count + offset))
    result[rows] = distances[rows, rows - offset]
    return result
