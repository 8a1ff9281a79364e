"""Measures one clip: the frames are gone through once, in chunks, and every meter looks at each chunk.

Legend: T frames, F frames of a chunk, R pixels of an aligned face, P points.
"""

import math
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch

from eval.frames import SAMPLE_RATE, FaceChunk, PairedFaces, with_voice
from eval.measures import MEASURES, Tools, Values
from eval.methods import Method
from eval.pairs import Pair, speaks_own_voice
from latentsync.data.clips import to_pixel_values
from latentsync.faces.mouth import closed_opening, mean_opening
from latentsync.media.audio import load_audio
from latentsync.media.silence import silence_and_speech
from latentsync.metrics.boundary import BoundaryMeter
from latentsync.metrics.fid import frame_features
from latentsync.metrics.flicker import FlickerMeter
from latentsync.metrics.fvd import SIDE, ClipFeatures
from latentsync.metrics.identity import identity_similarity
from latentsync.metrics.image import psnr, ssim
from latentsync.metrics.landmarks import LIPS, STILL, JitterMeter, landmark_distance, openings
from latentsync.utils.errors import UserError

NO_FACE, NO_MOVEMENT = "no face was seen in the result", "no face was seen, or the source does not move"
NO_SILENCE, NO_SPEECH = "the voice is never silent for 0.3 s", "the voice is silent throughout"
NO_SOUND, EQUAL = "the video has no sound", "infinite: the result is the source itself"
SPOKEN = ("leak", "opening")
NO_PAIR = "no two frames in a row could be compared"
REASONS = {
    "leak": NO_SILENCE,
    "opening": NO_SPEECH,
    "jitter": NO_MOVEMENT,
    "lip_jitter": NO_MOVEMENT,
    "flicker": NO_PAIR,
    "psnr": EQUAL,
}
OTHER_VOICE, REFERENCE = "another voice: there is no real video to compare with", "is what the others are compared with"


def measure(pair: Pair, method: Method, tools: Tools) -> Values:
    """All measures of one result.

    Raises:
        UserError: a file is missing or unreadable, or the source shows no face.
    """
    result = method.result(pair)
    # The ground truth is the video with its own sound, whatever it is to speak in the results.
    wave = _own_sound(pair.video) if method.is_ground_truth else load_audio(pair.voice, SAMPLE_RATE)
    faces = PairedFaces(pair.video, result, tools.settings.resolution, tools.settings.face)
    compared = not method.is_ground_truth and speaks_own_voice(pair)
    meters = Meters(tools, faces.num_frames, compared)
    for chunk in faces:
        meters.add(chunk)
    if not meters.faces:
        raise UserError(f"{pair.video}: no face was found; leave it out")
    values = meters.values(wave)
    _add_sync(values, result, None if method.is_ground_truth else wave, tools)
    reason = REFERENCE if method.is_ground_truth else OTHER_VOICE
    for item in MEASURES:
        if item.key in tools.missing:
            values.missing[item.key] = tools.missing[item.key]
        elif item.needs_own and not compared:
            values.missing[item.key] = reason
    return values


class Meters:
    """All that is measured on faces. `compared`: the source is what the result should look like."""

    def __init__(self, tools: Tools, num_frames: int, compared: bool) -> None:
        self.tools, self.compared = tools, compared
        self.faces, self.num_frames = 0, num_frames
        self._openings = {name: np.full(num_frames, np.nan) for name in ("result", "source")}
        self._jitter = {"jitter": JitterMeter(STILL), "lip_jitter": JitterMeter(LIPS)}
        self._boundary = BoundaryMeter(tools.settings.resolution)
        self._flicker = FlickerMeter()
        self._per_frame: dict[str, list[np.ndarray]] = {}
        self._windows = ClipFeatures(tools.i3d, tools.settings.stride) if tools.has("fvd") else None

    def add(self, chunk: FaceChunk) -> None:
        """The next faces."""
        self.faces += len(chunk.indices)
        self._add_points(chunk)
        self._boundary.add(chunk.result, chunk.source)
        self._flicker.add(chunk.result, chunk.starts)
        if self.compared:
            made, real = to_pixel_values(chunk.result), to_pixel_values(chunk.source)
            self._keep("psnr", psnr(made, real).numpy())
            self._keep("ssim", ssim(made, real).numpy())
        self._look_at_some(chunk)
        if self._windows is not None:
            add_windows(self._windows, chunk)

    def values(self, wave: np.ndarray | None) -> Values:
        """Of all faces so far; `wave` is the voice that the result speaks, None for no sound."""
        numbers = {"boundary": self._boundary.visibility(), "flicker": self._flicker.flicker(), **self._mouth(wave)}
        numbers |= {key: meter.ratio() for key, meter in self._jitter.items()}
        joined = {key: np.concatenate(parts) for key, parts in self._per_frame.items()}
        arrays = {"fid": joined.pop("fid")} if "fid" in joined else {}
        numbers |= {key: nanmean(array) for key, array in joined.items()}
        if self._windows is not None:
            arrays["fvd"] = self._windows.features()
        values = Values(arrays=arrays, frames=self.num_frames, faces=self.faces)
        for key, number in numbers.items():
            if math.isfinite(number):
                values.numbers[key] = number
            else:
                values.missing[key] = NO_SOUND if wave is None and key in SPOKEN else REASONS.get(key, NO_FACE)
        return values

    def _add_points(self, chunk: FaceChunk) -> None:
        made = self.tools.mesh.points(chunk.result)
        real = made if np.array_equal(chunk.result, chunk.source) else self.tools.mesh.points(chunk.source)
        self._openings["result"][chunk.indices] = openings(made)
        self._openings["source"][chunk.indices] = openings(real)
        for meter in self._jitter.values():
            meter.add(made, real, chunk.starts)
        if self.compared:
            self._keep("lmd_mouth", landmark_distance(made, real, LIPS))
            self._keep("lmd_face", landmark_distance(made, real))

    @torch.no_grad()
    def _look_at_some(self, chunk: FaceChunk) -> None:
        """What large networks see: every n-th frame of the clip."""
        chosen = chunk.indices % self.tools.settings.every == 0
        if not chosen.any():
            return
        made, real = chunk.result[chosen], chunk.source[chosen]
        if self.compared and self.tools.has("lpips"):
            device = self.tools.device
            distances = self.tools.lpips(to_pixel_values(made).to(device), to_pixel_values(real).to(device))
            self._keep("lpips", distances.flatten().double().cpu().numpy())
        if self.tools.has("csim"):
            self._keep("csim", identity_similarity(self.tools.embedder, made, real))
        if self.tools.has("fid"):
            self._keep("fid", frame_features(self.tools.inception, made))

    def _mouth(self, wave: np.ndarray | None) -> dict[str, float]:
        """In per cent of the face's height, above the person's closed mouth in the source."""
        if wave is None:
            return dict.fromkeys(SPOKEN, math.nan)
        silence, speech = silence_and_speech(wave, self.num_frames)
        closed = closed_opening(self._openings["source"])
        seen = self._openings["result"]
        return {
            "leak": 100 * mean_opening(seen, silence, closed),
            "opening": 100 * mean_opening(seen, speech, closed),
        }

    def _keep(self, key: str, values: np.ndarray) -> None:
        self._per_frame.setdefault(key, []).append(values)


def add_windows(clip: ClipFeatures, chunk: FaceChunk) -> None:
    """The result's faces for FVD, at the side its network takes."""
    for face, starts in zip(chunk.result, chunk.starts, strict=True):
        if starts:
            clip.end_stretch()
        clip.add(face if len(face) == SIDE else cv2.resize(face, (SIDE, SIDE), interpolation=cv2.INTER_AREA))


def nanmean(values: np.ndarray) -> float:
    """Mean of what is finite; NaN when nothing is."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else math.nan


def _add_sync(values: Values, result: Path, wave: np.ndarray | None, tools: Tools) -> None:
    """LSE-C, LSE-D, offset and the confidence over time, with `wave` as the sound, or the file's own."""
    try:
        with tempfile.TemporaryDirectory(prefix="latentsync-") as folder:
            score = _score(result, wave, tools, Path(folder))
    except UserError as error:
        values.missing |= {key: str(error) for key in ("lse_c", "lse_d", "offset")}
        return
    values.numbers |= {"lse_c": score.confidence, "lse_d": score.min_distance, "offset": float(abs(score.offset))}
    before = np.full(score.start, np.nan)  # the curve begins with the clip, also where the face comes later
    values.arrays["window_confidences"] = np.concatenate([before, score.window_confidences])


def _score(result: Path, wave: np.ndarray | None, tools: Tools, folder: Path):
    if wave is None:
        return tools.sync.score_video(result)[0]
    with with_voice(result, wave, folder) as voiced:
        try:
            return tools.sync.score_video(voiced)[0]
        except UserError as error:
            raise UserError(str(error).replace(str(voiced), str(result))) from error


def _own_sound(video: Path) -> np.ndarray | None:
    """(N,) mono at 16 kHz; None where a video, or a picture, has none."""
    try:
        return load_audio(video, SAMPLE_RATE)
    except UserError:
        return None
