"""Metrics of one clip, computed in one pass over its frames.

Legend: T frames, F frames of a chunk, R pixels of an aligned face.
"""

import math
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from eval.frames import FaceChunk, PairedFaces
from eval.methods import Method
from eval.metrics import METRICS, ClipMetrics, MetricModels
from eval.pairs import Pair, speaks_own_audio
from latentsync.constants import SAMPLE_RATE
from latentsync.data.clips import to_pixel_values
from latentsync.faces.mask import load_mask, mouth_slices
from latentsync.faces.mouth import closed_opening, mean_opening
from latentsync.media.audio import load_audio
from latentsync.media.silence import silence_and_speech
from latentsync.metrics.boundary import BoundaryMetric
from latentsync.metrics.fid import frame_features
from latentsync.metrics.flicker import FlickerMetric
from latentsync.metrics.fvd import SIDE, ClipFeatures
from latentsync.metrics.identity import identity_similarity
from latentsync.metrics.image import (
    WHOLE,
    Box,
    crop_box,
    detail_ratio,
    laplacian_ratio,
    mean_difference,
    psnr,
    ssim,
)
from latentsync.metrics.landmarks import LIPS, STILL, JitterMetric, landmark_distance, openings
from latentsync.metrics.lip_reading import MIN_FRAMES, LipScore
from latentsync.metrics.seams import Speed, seam_ratio
from latentsync.utils.errors import UserError

NO_FACE, NO_MOVEMENT = "no face was found in the result", "no face was found, or the source does not move"
NO_SILENCE, NO_SPEECH = "the audio has no silence of 0.3 s", "the audio is silent throughout"
NO_AUDIO, EQUAL = "the video has no audio", "infinite: the result is the source itself"
NO_PAIR, NO_DETAIL = "no two consecutive frames could be compared", "the source's mouth is flat"
NO_TRACK = f"the face is in view for less than {MIN_FRAMES} frames"
NO_SEAM, AT_REST = (
    "the face is in view for less than two chunks",
    "no silence of 0.3 s in which the mouth of the source opens",
)
OPENINGS = ("leak", "leak_ratio", "opening")
MIN_OPENING = 0.2  # percent of the face's height: a source's mouth that opens less in silence cannot leak
FEATURES = ("fid", "fid_mouth")  # of sets, not averaged
REASONS = {
    "leak": NO_SILENCE,
    "leak_ratio": AT_REST,
    "seam": NO_SEAM,
    "lip_seam": NO_SEAM,
    "lip_score": NO_TRACK,
    "opening": NO_SPEECH,
    "jitter": NO_MOVEMENT,
    "lip_jitter": NO_MOVEMENT,
    "flicker": NO_PAIR,
    "psnr": EQUAL,
    "psnr_mouth": EQUAL,
    "sharpness": NO_DETAIL,
    "laplacian": NO_DETAIL,
}
OTHER_AUDIO, REFERENCE = "other audio: there is no real video to compare with", "is the reference"


def compute_metrics(pair: Pair, method: Method, models: MetricModels) -> ClipMetrics:
    """All metrics of one result.

    Raises:
        UserError: a file is missing or unreadable, or the source shows no face.
    """
    result = method.result(pair)
    # The ground truth is the video with its own audio, whatever audio drives the results.
    seconds = models.settings.seconds
    own = method.is_ground_truth
    wave = _own_audio(pair.video, seconds) if own else load_audio(pair.driving_audio, SAMPLE_RATE, seconds)
    faces = PairedFaces(pair.video, result, models.settings.resolution, models.settings.face, seconds)
    compared = not method.is_ground_truth and speaks_own_audio(pair)
    metrics = face_metrics(faces, wave, models, faces.num_frames, compared)
    if not metrics.faces:
        raise UserError(f"{pair.video}: no face was found; leave it out")
    _add_sync(metrics, result, wave, models)
    if not compared:
        reason = REFERENCE if method.is_ground_truth else OTHER_AUDIO
        metrics.missing |= {metric.key: reason for metric in METRICS if metric.needs_own_audio}
    metrics.missing |= models.missing
    return metrics


def face_metrics(
    chunks: Iterable[FaceChunk], wave: np.ndarray | None, models: MetricModels, num_frames: int, compared: bool
) -> ClipMetrics:
    """Metrics of aligned faces. `wave` drives the result; `compared`: the source is its ground truth."""
    faces = FaceMetrics(models, num_frames, compared)
    for chunk in chunks:
        faces.update(chunk)
    return faces.compute(wave)


class FaceMetrics:
    """Accumulates all metrics of aligned faces over a clip; see `face_metrics`."""

    def __init__(self, models: MetricModels, num_frames: int, compared: bool) -> None:
        self.models, self.compared = models, compared
        self.faces, self.num_frames = 0, num_frames
        resolution, self._chunk = models.settings.resolution, models.settings.chunk
        self._overlap = models.settings.overlap
        self._boxes: dict[str, Box] = {"": WHOLE, "_mouth": mouth_slices(resolution)}  # suffixes of metrics
        self._around_mouth = load_mask(resolution)[0, 0].numpy() < 0.5
        self._around_mouth[mouth_slices(resolution)] = False
        self._openings = {name: np.full(num_frames, np.nan) for name in ("result", "source")}
        self._jitter = {"jitter": JitterMetric(STILL), "lip_jitter": JitterMetric(LIPS)}
        self._boundary, self._flicker = BoundaryMetric(resolution), FlickerMetric()
        self._lip_speed, self._starts = Speed(LIPS), [np.zeros(0, bool)]
        self._per_frame: dict[str, list[np.ndarray]] = {}
        self._windows = ClipFeatures(models.i3d, models.settings.stride) if models.has("fvd") else None
        self._lip_score = LipScore(models.lip_reader) if compared and models.has("lip_score") else None

    def update(self, chunk: FaceChunk) -> None:
        """Add the next faces."""
        result, source = chunk.result, chunk.source
        self.faces += len(chunk.indices)
        self._add_landmarks(chunk)
        self._boundary.update(result, source)
        self._flicker.update(result, chunk.starts)
        self._starts.append(chunk.starts)
        self._append("sharpness", detail_ratio(result, source, self._boxes["_mouth"]))
        self._append("laplacian", laplacian_ratio(result, source, self._boxes["_mouth"]))
        self._append("around_mouth", mean_difference(result, source, self._around_mouth))
        if self.compared:
            for suffix, box in self._boxes.items():
                self._append(f"psnr{suffix}", psnr(result, source, box))
                self._append(f"ssim{suffix}", ssim(result, source, box))
        self._add_network_metrics(chunk)
        if self._windows is not None:
            add_windows(self._windows, chunk)
        if self._lip_score is not None:
            self._lip_score.update(result, source, chunk.starts)

    def compute(self, wave: np.ndarray | None) -> ClipMetrics:
        """Metrics of all faces so far; `wave` is None for a video without audio."""
        values = {"boundary": self._boundary.compute(), "flicker": self._flicker.compute(), **self._mouth(wave)}
        values |= {key: metric.compute() for key, metric in self._jitter.items()}
        joined = {key: np.concatenate(arrays) for key, arrays in self._per_frame.items()}
        joined["seam"] = self._flicker.values
        for key in ("seam", "lip_seam"):
            changes, starts = joined.pop(key, np.zeros(0)), np.concatenate(self._starts)
            values[key] = seam_ratio(changes, starts, self._chunk, self._overlap)
        arrays = {key: joined.pop(key) for key in FEATURES if key in joined}
        values |= {key: nanmean(array) for key, array in joined.items()}
        if self._lip_score is not None:
            values["lip_score"] = self._lip_score.compute()
        if self._windows is not None:
            arrays["fvd"] = self._windows.features()
        result = ClipMetrics(arrays=arrays, frames=self.num_frames, faces=self.faces)
        for key, value in values.items():
            if math.isfinite(value):
                result.values[key] = value
            else:
                result.missing[key] = NO_AUDIO if wave is None and key in OPENINGS else REASONS.get(key, NO_FACE)
        return result

    def _add_landmarks(self, chunk: FaceChunk) -> None:
        result = self.models.mesh.points(chunk.result)
        source = result if np.array_equal(chunk.result, chunk.source) else self.models.mesh.points(chunk.source)
        self._openings["result"][chunk.indices] = openings(result)
        self._openings["source"][chunk.indices] = openings(source)
        self._append("lip_seam", self._lip_speed.update(result))
        for metric in self._jitter.values():
            metric.update(result, source, chunk.starts)
        if self.compared:
            self._append("lmd_mouth", landmark_distance(result, source, LIPS))
            self._append("lmd_face", landmark_distance(result, source))

    @torch.no_grad()
    def _add_network_metrics(self, chunk: FaceChunk) -> None:
        """Metrics of large networks, on every n-th frame of the clip."""
        chosen = chunk.indices % self.models.settings.every == 0
        if not chosen.any():
            return
        result, source = chunk.result[chosen], chunk.source[chosen]
        if self.compared:
            for name in ("lpips", "mobilenet"):
                if self.models.has(name):
                    self._add_distances(name, getattr(self.models, name), result, source)
        if self.models.has("csim"):
            self._append("csim", identity_similarity(self.models.embedder, result, source))
        if self.models.has("fid"):
            rows, columns = self._boxes["_mouth"]
            self._append("fid", frame_features(self.models.inception, result))
            self._append("fid_mouth", frame_features(self.models.inception, result[:, rows, columns]))

    def _add_distances(self, name: str, distance: nn.Module, result: np.ndarray, source: np.ndarray) -> None:
        """A perceptual distance on the face and on the mouth."""
        pixels = [to_pixel_values(faces).to(self.models.device) for faces in (result, source)]
        for suffix, box in self._boxes.items():
            values = distance(*(crop_box(faces, box) for faces in pixels))
            self._append(f"{name}{suffix}", values.flatten().double().cpu().numpy())

    def _mouth(self, wave: np.ndarray | None) -> dict[str, float]:
        """Mouth openings in percent of the face's height, minus that of the person's closed mouth in the source."""
        if wave is None:
            return dict.fromkeys(OPENINGS, math.nan)
        silence, speech = silence_and_speech(wave, self.num_frames)
        closed = closed_opening(self._openings["source"])
        leak, opening = (100 * mean_opening(self._openings["result"], when, closed) for when in (silence, speech))
        source = 100 * mean_opening(self._openings["source"], silence, closed)
        ratio = 100 * leak / source if source >= MIN_OPENING else math.nan
        return {"leak": leak, "leak_ratio": ratio, "opening": opening}

    def _append(self, key: str, values: np.ndarray) -> None:
        self._per_frame.setdefault(key, []).append(values)


def add_windows(features: ClipFeatures, chunk: FaceChunk) -> None:
    """Add the result's faces to the features of FVD, at the resolution of its network."""
    for face, starts in zip(chunk.result, chunk.starts, strict=True):
        if starts:
            features.end_track()
        features.add(face if len(face) == SIDE else cv2.resize(face, (SIDE, SIDE), interpolation=cv2.INTER_AREA))


def nanmean(values: np.ndarray) -> float:
    """Mean of the finite values; NaN if there are none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else math.nan


def _add_sync(metrics: ClipMetrics, result: Path, wave: np.ndarray | None, models: MetricModels) -> None:
    """Add LSE-C, LSE-D, offset and the confidence over time, scored with the samples that drove the result."""
    try:
        score = models.sync.score_video(result, wave, models.settings.face)[0]
    except UserError as error:
        metrics.missing |= {key: str(error) for key in ("lse_c", "lse_d", "offset")}
        return
    metrics.values |= {"lse_c": score.confidence, "lse_d": score.min_distance, "offset": float(abs(score.offset))}
    before = np.full(score.start, np.nan)  # the curve starts at the first frame, even if the face appears later
    metrics.arrays["window_confidences"] = np.concatenate([before, score.window_confidences])


def _own_audio(video: Path, seconds: float | None) -> np.ndarray | None:
    """(N,) mono at 16 kHz, at most `seconds`; None for a video without audio or an image."""
    try:
        return load_audio(video, SAMPLE_RATE, seconds)
    except UserError:
        return None
