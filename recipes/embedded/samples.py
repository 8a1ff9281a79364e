"""Training samples of the UNet: 16 frames of a face, a reference, and the audio of the frames.

Legend: F frames of a sample, R pixels of a face, S audio tokens, D their width, C old latent channels, h cells.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from latentsync.constants import SAMPLE_RATE
from latentsync.data.clip_dataset import draw_start_and_reference
from latentsync.faces.mask import load_mask
from latentsync.faces.mouth import closed_opening
from latentsync.media.silence import runs_of, silence_and_speech
from recipes.embedded.first_generation.silence import back_and_forth, draw_apart
from recipes.embedded.pack import Pack, PackedClip
from recipes.embedded.teacher import FRAMES, TeacherChunk, Voices, read_chunks

LUMA = (0.299, 0.587, 0.114)
REST_OPENING = 0.15  # of a person's wide opening: a mouth no further open is at rest
WIDE_PERCENTILE = 90
SHORTEST_REST = 4
SHORTEST_SILENT_REST = 3  # without audio nothing but the mouth itself says that it rests
CLOSED_OPENING = 0.08  # so it must be further closed
SILENCE_SECONDS = 2.5
RETRIEVED_SHARE = 0.6  # of the windows without audio, those whose openings find the best match, are used
TWIN_SHARE = 0.8  # of the samples have the frame itself with another mouth for a reference
KEPT_ROWS = 12  # of 32: above the part that is regenerated
MOVED_SIGMA, MOVED_REACH = 4.0, 13  # at 256 px: sigma of the blur before comparing, diameter of the dilation
BENDS, BEND = 5, 0.025  # points of a side that move freely, at most so far (standard deviation, of the side)
HUE, SATURATION = 0.12, (0.5, 1.4)  # radians
MOVED_LEVELS = (4.0, 12.0)  # differences of 255 that count as none and as movement
APART, NEAREST = 8, 6  # frames
LEAST_MOTION = 0.08  # standard deviation of the openings of a window that is worth a guess at its audio
RETRIEVED_WEIGHT = 0.5  # their audio is a guess
KINDS = ("teacher", "real", "retrieved", "silent")


@dataclass(frozen=True)
class Sample:
    """`kind` is one of `KINDS`. Target and reference faces (F, 3, R, R) uint8, until they are on the device; tokens
    (F, S, D).

    teacher: latents (F, C, h, h) of the first generation in place of the target, None for other kinds.
    weight: of the reconstruction. has_own_audio: the tokens are the speech of the target, for a sync loss.
    """

    kind: str
    target: Tensor
    reference: Tensor
    tokens: Tensor
    teacher: Tensor | None = None
    weight: float = 1.0

    def to(self, device: torch.device) -> "Sample":
        """The same on a device, with faces in [-1, 1]."""
        faces = [x.to(device, non_blocking=True).float() / 127.5 - 1 for x in (self.target, self.reference)]
        teacher = None if self.teacher is None else self.teacher.to(device)
        return Sample(self.kind, *faces, self.tokens.to(device, non_blocking=True), teacher, self.weight)

    @property
    def has_own_audio(self) -> bool:
        return self.kind in ("teacher", "real")


def relative_openings(openings: np.ndarray) -> np.ndarray:
    """Openings of a person's clip (T,) -> 0 at rest, 1 wide open; NaN where no mesh was found."""
    closed = closed_opening(openings)
    wide = np.nanpercentile(openings, WIDE_PERCENTILE) if np.isfinite(openings).any() else np.nan
    return (openings - closed) / max(wide - closed, 1e-3)


@dataclass(frozen=True)
class FaceAugmentation:
    """How the faces of a sample are changed, target and reference alike: few people become many.

    Other proportions and colors of lips and skin leave no way to know a person but the reference.

    Args:
        places: (R, R, 2) float32, where each pixel comes from.
        table: (256, 3) uint8, exposure and light.
        colors: (3, 3), turns hue and saturation.
    """

    places: np.ndarray
    table: np.ndarray
    colors: np.ndarray

    @classmethod
    def draw(cls, side: int, rng: np.random.Generator) -> "FaceAugmentation":
        matrix = cv2.getRotationMatrix2D((side / 2, side / 2), rng.uniform(-5, 5), 1 + rng.uniform(-0.05, 0.08))
        matrix[0] *= rng.choice([-1.0, 1.0]) * rng.uniform(0.93, 1.03)
        center = matrix @ [side / 2, side / 2, 1]
        matrix[:, 2] += side / 2 - center + side * rng.uniform(-0.025, 0.025, 2)
        columns, rows = np.meshgrid(np.arange(side), np.arange(side))
        places = np.stack([columns, rows, np.ones_like(rows)], -1) @ cv2.invertAffineTransform(matrix).T
        bends = rng.normal(0, side * rng.uniform(0, BEND), (BENDS, BENDS, 2))
        places += cv2.resize(bends, (side, side), interpolation=cv2.INTER_CUBIC)
        gain = rng.uniform(0.8, 1.12) * rng.uniform(0.93, 1.07, 3)
        values = (np.linspace(0, 1, 256)[:, None] * gain).clip(0, 1) ** (2 ** rng.uniform(-0.35, 0.35))
        colors = turned_colors(rng.normal(0, HUE), rng.uniform(*SATURATION))
        return cls(places.astype(np.float32), (values * 255).round().astype(np.uint8), colors)

    def __call__(self, face: np.ndarray) -> np.ndarray:
        moved = cv2.remap(face, self.places, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
        lit = np.stack([self.table[moved[..., color], color] for color in range(3)], -1)
        return cv2.transform(lit, self.colors)


def turned_colors(hue: float, saturation: float) -> np.ndarray:
    """(3, 3) that turns RGB about the gray axis by `hue` radians and multiplies its distance to luma."""
    axis = np.cross(np.eye(3), np.full(3, 3**-0.5))
    gray = np.full((3, 3), 1 / 3)
    turned = np.cos(hue) * np.eye(3) + (1 - np.cos(hue)) * gray + np.sin(hue) * axis
    luma = np.tile(LUMA, (3, 1))
    return luma + saturation * (turned - luma @ turned)


def with_other_mouth(face: np.ndarray, other: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """A face (R, R, 3) whose moving pixels are taken from `other`; all others are unchanged.

    In inference the reference is the frame itself: cheeks and jaw are in place, the mouth is not. Such a twin shows a
    model that it may take texture from the reference, and no lips.

    Args:
        kept: (R, R), 1 where a model sees the frame itself.
    """
    scale = len(face) / 256
    blurred = [cv2.GaussianBlur(x, (0, 0), MOVED_SIGMA * scale) for x in (face, other)]
    difference = np.maximum.reduce(cv2.split(cv2.absdiff(*blurred))).astype(np.float32)
    moved = ((difference - MOVED_LEVELS[0]) / (MOVED_LEVELS[1] - MOVED_LEVELS[0])).clip(0, 1)
    reach = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (round(MOVED_REACH * scale) | 1,) * 2)
    weight = cv2.GaussianBlur(cv2.dilate(moved * (1 - kept), reach), (0, 0), MOVED_SIGMA * scale) * (1 - kept)
    return (face + weight[..., None] * (other.astype(np.float32) - face)).round().astype(np.uint8)


class SampleMaker:
    """Draws samples, balanced by person.

    Args:
        pack: training faces.
        voices: audio that may drive them.
        chunks: the first generation's results, see `teacher`.
    """

    def __init__(self, pack: Pack, voices: Voices, chunks: Path) -> None:
        self.pack, self.voices, self._folder = pack, voices, chunks
        self.chunks: list[TeacherChunk] = []
        by_person = [clips for _, clips in pack.by_person()]
        self._with_audio = self._people([[c for c in clips if c.has_audio] for clips in by_person], 2 * FRAMES)
        self._seen = self._people([[c for c in clips if not c.has_audio] for clips in by_person], 2 * FRAMES)
        self.openings = {
            clip.name: relative_openings(pack.openings[clip.first : clip.first + clip.length]) for clip in pack.clips
        }
        self._poses: dict[str, np.ndarray] = {}
        self._kept = load_mask(pack.resolution)[0, 0].numpy()
        self._retrieved = self._retrieve()
        people = [*self._with_audio, *self._seen]
        rests = [[rest for clip in clips if (rest := self._longest_rest(clip))] for clips in people]
        self._rests = [found for found in rests if found]
        speaking = [clip for clip in pack.clips if clip.has_audio]
        self._silences = [self._silence(clip) for clip in speaking[:: max(1, len(speaking) // 6)]]

    @staticmethod
    def _people(people: Sequence[list[PackedClip]], shortest: int) -> list[list[PackedClip]]:
        long = [[clip for clip in clips if clip.length >= shortest] for clips in people]
        return [clips for clips in long if clips]

    def _windows(self, clips: Sequence[PackedClip]) -> tuple[np.ndarray, list[tuple[PackedClip, int]]]:
        """Openings (n, F) of all windows that are seen throughout, and where they are."""
        rows, places = [], []
        for clip in clips:
            curve = self.openings[clip.name]
            for start in range(clip.length - FRAMES + 1):
                if np.isfinite(curve[start : start + FRAMES]).all():
                    rows.append(curve[start : start + FRAMES])
                    places.append((clip, start))
        return np.array(rows, np.float32).reshape(-1, FRAMES), places

    def _retrieve(self) -> list[list[tuple[PackedClip, int, str, int]]]:
        """For each person without audio: windows, and the audio of the window whose mouth opens most alike."""
        bank, sources = self._windows([clip for clips in self._with_audio for clip in clips])
        found = []
        for clips in self._seen:
            curves, places = self._windows(clips)
            if not len(curves) or not len(bank):
                continue
            moving = curves.std(1) >= LEAST_MOTION
            curves, places = curves[moving], [place for place, moves in zip(places, moving, strict=True) if moves]
            if not len(curves):
                continue
            distances = np.square(curves[:, None, ::2] - bank[None, :, ::2]).mean(-1)
            best = distances.argmin(1)
            close = distances[np.arange(len(best)), best]
            limit = np.quantile(close, RETRIEVED_SHARE)
            found.append(
                [
                    (clip, start, sources[index][0].name, sources[index][1])
                    for (clip, start), index, distance in zip(places, best, close, strict=True)
                    if distance <= limit
                ]
            )
        return found

    def _longest_rest(self, clip: PackedClip) -> tuple[PackedClip, int, int] | None:
        openings = np.nan_to_num(self.openings[clip.name], nan=9.0)
        if clip.has_audio:
            silence, _ = silence_and_speech(self.pack.wave(clip), clip.length)
            flags, shortest = silence & (openings <= REST_OPENING), SHORTEST_REST
        else:
            flags, shortest = openings <= CLOSED_OPENING, SHORTEST_SILENT_REST
        runs = [run for run in runs_of(flags) if run[1] - run[0] >= shortest]
        return (clip, *max(runs, key=lambda run: run[1] - run[0])) if runs else None

    def _silence(self, clip: PackedClip) -> Tensor:
        """Whisper states of silence, then the clip's audio, then silence."""
        return self.pack.whisper.wave2feat(np.pad(self.pack.wave(clip), round(SILENCE_SECONDS * SAMPLE_RATE)))

    @property
    def kinds(self) -> tuple[str, ...]:
        """Those of `KINDS` that the data can give."""
        there = (self.chunks or read_chunks(self._folder), self._with_audio, self._retrieved, self._rests)
        return tuple(kind for kind, found in zip(KINDS, there, strict=True) if found)

    def draw(self, kind: str, rng: np.random.Generator) -> Sample:
        """A sample of a kind."""
        return getattr(self, f"_draw_{kind}")(rng)

    def _decode(self, frames: Sequence[int]) -> dict[int, np.ndarray]:
        """Faces of the pack by frame, each decoded once."""
        return {frame: self.pack.face(frame) for frame in {int(frame) for frame in frames}}

    def _show(self, frames: Sequence[int], faces: Mapping[int, np.ndarray], augment: FaceAugmentation | None) -> Tensor:
        shown = (
            faces if augment is None else {frame: augment(faces[frame]) for frame in {int(frame) for frame in frames}}
        )
        return self._to_tensor([shown[int(frame)] for frame in frames])

    @staticmethod
    def _to_tensor(faces: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(faces)).permute(0, 3, 1, 2)

    def _draw_teacher(self, rng: np.random.Generator) -> Sample:
        if not self.chunks or rng.random() < 0.02:
            self.chunks = read_chunks(self._folder)
        chunk = self.chunks[rng.integers(len(self.chunks))]
        frames = range(chunk.first, chunk.first + FRAMES)
        faces = self._show(frames, self._decode(frames), None)
        tokens = self.voices.tokens(chunk.voice, chunk.start)
        return Sample("teacher", faces, faces, tokens, chunk.latents.float())

    def _draw_real(self, rng: np.random.Generator) -> Sample:
        people = np.array([len(clips) for clips in self._with_audio]) ** 0.5
        clips = self._with_audio[rng.choice(len(people), p=people / people.sum())]
        clip = clips[rng.integers(len(clips))]
        start, other = draw_start_and_reference(clip.length, FRAMES, rng)
        return self._pair("real", clip, start + np.arange(FRAMES), other, self.voices.tokens(clip.name, start), rng)

    def _draw_retrieved(self, rng: np.random.Generator) -> Sample:
        windows = self._retrieved[rng.integers(len(self._retrieved))]
        clip, start, voice, first = windows[rng.integers(len(windows))]
        other = draw_apart(clip.length, FRAMES, start, start + FRAMES, rng)
        other = int(rng.integers(clip.length - FRAMES + 1)) if other is None else other
        return self._pair("retrieved", clip, start + np.arange(FRAMES), other, self.voices.tokens(voice, first), rng)

    def _draw_silent(self, rng: np.random.Generator) -> Sample:
        rests = self._rests[rng.integers(len(self._rests))]
        clip, start, end = rests[rng.integers(len(rests))]
        other = draw_apart(clip.length, FRAMES, start, end, rng)
        other = int(rng.integers(clip.length - FRAMES + 1)) if other is None else other
        return self._pair("silent", clip, back_and_forth(start, end, FRAMES, rng), other, self._quiet(rng), rng)

    def _quiet(self, rng: np.random.Generator) -> Tensor:
        """Tokens of silence before or after speech."""
        states = self._silences[rng.integers(len(self._silences))]
        quiet = round(SILENCE_SECONDS * 25) - FRAMES - 4
        first = int(rng.integers(quiet))
        if rng.random() < 0.5:
            first = len(states) // 2 - FRAMES - first
        return self.voices.window(states, first)

    def _same_pose(self, clip: PackedClip, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """For each frame one of another moment in which the head is held alike and the mouth is rather not."""
        if clip.name not in self._poses:
            faces = [
                cv2.resize(self.pack.face(clip.first + i), (32, 32), interpolation=cv2.INTER_AREA)
                for i in range(clip.length)
            ]
            kept = np.stack(faces)[:, :KEPT_ROWS].reshape(clip.length, -1).astype(np.float32)
            squares = np.square(kept).sum(1)
            self._poses[clip.name] = squares[:, None] + squares - 2 * kept @ kept.T
        distances = self._poses[clip.name][frames].copy()
        distances[np.abs(frames[:, None] - np.arange(clip.length)) < APART] = np.inf
        nearest = distances.argsort(1)[:, :NEAREST]
        curve = np.nan_to_num(self.openings[clip.name])
        difference = np.abs(curve[nearest] - curve[frames][:, None]) + rng.uniform(0, 0.5, nearest.shape)
        return nearest[np.arange(len(frames)), difference.argmax(1)]

    def _pair(
        self, kind: str, clip: PackedClip, frames: np.ndarray, other: int, tokens: Tensor, rng: np.random.Generator
    ) -> Sample:
        augment = FaceAugmentation.draw(self.pack.resolution, rng)
        is_twin = rng.random() < TWIN_SHARE
        shown = clip.first + frames
        others = clip.first + (self._same_pose(clip, frames, rng) if is_twin else np.arange(other, other + FRAMES))
        faces = self._decode([*shown, *others])
        if is_twin:
            pairs = zip(shown, others, strict=True)
            twins = [augment(with_other_mouth(faces[int(own)], faces[int(new)], self._kept)) for own, new in pairs]
            reference = self._to_tensor(twins)
        else:
            reference = self._show(others, faces, augment)
        target = self._show(shown, faces, augment)
        return Sample(kind, target, reference, tokens, weight=RETRIEVED_WEIGHT if kind == "retrieved" else 1.0)
