"""How well the mouth of a video fits its sound: one interface over the published SyncNet and the one that ships here.

Legend: T frames at 25 a second, R pixels, N samples at 16 kHz, W windows.
"""

import logging
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch

from latentsync.config.syncnet import load_syncnet_config
from latentsync.constants import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from latentsync.data.clips import to_pixel_values
from latentsync.faces.detector import FaceDetector
from latentsync.faces.factory import create_detector
from latentsync.faces.s3fd import S3FD
from latentsync.faces.tracking import FaceTracker
from latentsync.media.audio import load_audio
from latentsync.media.frame import VideoFrame
from latentsync.media.probe import VideoInfo, probe_video
from latentsync.media.timeline import Timeline, available_frames, open_timeline
from latentsync.metrics.face_tracks import MIN_FACE, MIN_FRAMES, FaceTrack, crop_faces, find_tracks
from latentsync.metrics.published_sync import PublishedScore, score_faces
from latentsync.metrics.sync import SyncScorer, offset_score
from latentsync.models.syncnet_v2 import FACE_SIZE, WINDOW_FRAMES, SyncNetV2
from latentsync.models.syncnets import SYNCNET_SCHEMAS
from latentsync.models.vae import WEIGHTS_NAMES, LatentCodec
from latentsync.pipelines.face_stream import DETECTION_SIDE, FaceAligner, face_runs, tracked_frames
from latentsync.utils.affine_transform import AlignRestore
from latentsync.utils.errors import UserError
from latentsync.utils.registry import (
    AUXILIARY,
    CHECKPOINTS_DIR,
    DOWNLOAD_COMMAND,
    EMBEDDED_SYNCNET,
    PROJECT_ROOT,
    resolve,
)
from latentsync.whisper.audio2feature import Audio2Feature

logger = logging.getLogger(__name__)

SCORERS = ("auto", "syncnet_v2", "embedded")
PUBLISHED_THRESHOLD = 3.0  # confidence that training clips of the reference have
EMBEDDED_THRESHOLD = 0.15  # between real clips (0.2 to 0.9 where it can judge) and shuffled sound (0.05 to 0.15)
EMBEDDED_CONFIG = PROJECT_ROOT / "configs" / "syncnet" / "embedded.yaml"
MAX_RUN = 15000  # frames of one face held at once: ten minutes


@dataclass(frozen=True)
class ClipSync:
    """Sync of one face with the sound.

    offset: frames by which the sound is EARLY, as the published script prints it (15 - argmin): what is seen at i was
        heard at i - offset. confidence and min_distance: Sync-C and Sync-D in the scorer's own units, to be compared
        with the same scorer's only. window_confidences (W,). start: first frame. frames: how many were scored.
    """

    scorer: str
    offset: int
    confidence: float
    min_distance: float
    window_confidences: np.ndarray
    start: int = 0
    frames: int = 0


class ClipSyncScorer(Protocol):
    """What a scorer offers. `min_frames`: the shortest clip it takes; `default_threshold`: confidence of good clips;
    `files`: the weights and configs that its scores depend on."""

    name: str
    files: tuple[Path, ...]
    min_frames: int
    default_threshold: float

    def score_faces(self, faces: np.ndarray, wave: np.ndarray) -> ClipSync:
        """Aligned faces (T, R, R, 3) uint8 and their sound (N,). Raises UserError for a clip that is too short."""

    def score_video(self, path: str | Path) -> list[ClipSync]:
        """Each face of a video, the longest in sight first. The sound is scored as it is decoded.

        Raises:
            UserError: no picture, no sound, or no face for long enough.
        """


def open_sync_scorer(
    name: str = "auto", device: str = "cpu", model_path: str | Path | None = None, checkpoints: Path | None = None
) -> ClipSyncScorer:
    """The scorer of that name; "auto" is the published SyncNet where its weights are, else the one that ships here.

    Args:
        model_path: of `syncnet_v2.model`, where it lies elsewhere.

    Raises:
        UserError: unknown name, or its weights are missing.
    """
    if name not in SCORERS:
        raise UserError(f"sync scorer {name!r} is unknown: choose one of {', '.join(SCORERS)}")
    published = Path(model_path) if model_path else AUXILIARY[0].find(checkpoints)
    if name == "syncnet_v2" or (name == "auto" and published is not None):
        if published is None:
            place = (checkpoints or CHECKPOINTS_DIR) / AUXILIARY[0].path
            raise UserError(f"the published SyncNet is missing ({place}); run `{DOWNLOAD_COMMAND} auxiliary`")
        return PublishedScorer(published, AUXILIARY[1].find(checkpoints), device)
    if name == "auto":
        logger.info("sync is scored by the SyncNet that ships here; the published one is not in %s", CHECKPOINTS_DIR)
    return EmbeddedScorer(device)


class PublishedScorer:
    """SyncNet of Chung & Zisserman. Faces are found by S3FD where `s3fd_path` is given, else by MediaPipe; the name
    says which."""

    min_frames = WINDOW_FRAMES + 1
    default_threshold = PUBLISHED_THRESHOLD

    def __init__(self, model_path: str | Path, s3fd_path: str | Path | None = None, device: str = "cpu"):
        self.net = SyncNetV2.from_pretrained(model_path).to(device)
        self.s3fd = S3FD.from_pretrained(s3fd_path).to(device) if s3fd_path else None
        self.name = "syncnet_v2" if s3fd_path else "syncnet_v2 (MediaPipe faces)"
        self.files = tuple(Path(path) for path in (model_path, s3fd_path) if path)

    def score_faces(self, faces: np.ndarray, wave: np.ndarray) -> ClipSync:
        """The whole aligned face takes the place of the crop around a track: both hold the face from brow to chin."""
        if min(len(faces), len(wave) // SAMPLES_PER_FRAME) < self.min_frames:
            raise UserError(f"the clip has {len(faces)} frames, {self.min_frames} with sound are needed; leave it out")
        track = FaceTrack(0, np.tile([0.0, 0.0, faces.shape[2], faces.shape[1]], (len(faces), 1)))
        crops = (_square(face) for face in faces)
        return self._result(score_faces(self.net, crops, wave), track)

    def score_video(self, path: str | Path) -> list[ClipSync]:
        info, wave = _open(path)
        with closing(create_detector("mediapipe")) as detector, closing(_frames(info)) as frames:
            boxes = [self._boxes(frame, detector) for frame in frames]
        tracks = find_tracks(boxes)
        if not tracks:
            raise UserError(f"{path}: no face of {MIN_FACE} pixels is in sight for {MIN_FRAMES} frames; leave it out")
        return [self._score_track(info, wave, track) for track in tracks]

    def _boxes(self, frame: VideoFrame, detector: FaceDetector) -> list[np.ndarray]:
        if self.s3fd is not None:
            return [row[:4] for row in self.s3fd.detect(frame.rgb())]
        image = frame.rgb(DETECTION_SIDE)
        return [face.box * frame.width / image.shape[1] for face in detector.detect(image)]

    def _score_track(self, info: VideoInfo, wave: np.ndarray, track: FaceTrack) -> ClipSync:
        sound = wave[track.start * SAMPLES_PER_FRAME : track.end * SAMPLES_PER_FRAME]
        with closing(_frames(info)) as frames:
            pictures = (frame.rgb() for frame in islice(frames, track.start, track.end))
            return self._result(score_faces(self.net, crop_faces(pictures, track), sound), track)

    def _result(self, score: PublishedScore, track: FaceTrack) -> ClipSync:
        return ClipSync(
            self.name,
            score.offset,
            score.confidence,
            score.min_distance,
            score.window_confidences,
            track.start,
            len(track.boxes),
        )


class EmbeddedScorer:
    """The SyncNet that ships with the embedded model, on aligned faces. Its confidence is of unit vectors (0 to 2)."""

    name = "embedded"
    default_threshold = EMBEDDED_THRESHOLD

    def __init__(self, device: str = "cpu"):
        model, weights = resolve("embedded"), CHECKPOINTS_DIR / EMBEDDED_SYNCNET.path
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
        pixels = to_pixel_values(faces)
        vision, audio = self.scorer.embed(pixels, wave)
        score = offset_score(vision, audio)
        near = torch.cdist(vision.double(), audio.double()).numpy()
        own = _along(near, score.offset)
        others = np.stack([_along(near, offset) for offset in score.offsets])
        windows = np.nanmedian(others, axis=0) - own
        return ClipSync(
            self.name, -score.offset, score.confidence, float(score.distances.min()), windows, 0, len(faces)
        )

    def score_video(self, path: str | Path) -> list[ClipSync]:
        info, wave = _open(path)
        found = []
        for start, faces in aligned_runs(info, self.scorer.resolution):
            sound = wave[start * SAMPLES_PER_FRAME : (start + len(faces)) * SAMPLES_PER_FRAME]
            if self.scorer.frames_of(faces, sound) >= self.min_frames:
                result = self.score_faces(faces, sound)
                found.append(ClipSync(**(vars(result) | {"start": start})))
        if not found:
            raise UserError(f"{path}: no face is in sight for {self.min_frames} frames with sound; leave it out")
        return sorted(found, key=lambda result: (-result.frames, result.start))


def aligned_runs(info: VideoInfo, resolution: int, face: str = "largest") -> Iterator[tuple[int, np.ndarray]]:
    """Stretches in which one person's face is in sight without a cut: first frame and faces (T, R, R, 3) uint8."""
    with closing(create_detector("auto")) as detector, closing(_frames(info)) as frames:
        align = FaceAligner(FaceTracker(detector, face, fps=FPS), AlignRestore(resolution=resolution))
        for run in face_runs(tracked_frames(frames, align), MAX_RUN):
            if run[0].face is not None:
                yield run[0].index, np.stack([item.face.pixels for item in run])


def _open(path: str | Path) -> tuple[VideoInfo, np.ndarray]:
    info = probe_video(path)
    if info.is_still:
        raise UserError(f"{path}: is a picture; sync is measured on videos with sound")
    return info, load_audio(path, SAMPLE_RATE)


def _frames(info: VideoInfo) -> Timeline:
    fps = Fraction(FPS)
    return open_timeline(info, available_frames(info, fps) / fps, fps)


def _square(face: np.ndarray) -> np.ndarray:
    return cv2.resize(face, (FACE_SIZE, FACE_SIZE))


def _along(distances: np.ndarray, offset: int) -> np.ndarray:
    """(W,) distance of each window to the sound `offset` frames later, NaN where there is none."""
    count = len(distances)
    result = np.full(count, np.nan)
    rows = np.arange(max(0, -offset), min(count, count - offset))
    result[rows] = distances[rows, rows + offset]
    return result
