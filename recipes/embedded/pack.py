"""One file that holds every training face and its audio.

Faces are single JPEG images, or one H.264 video (see `compact`), which is decoded when the file is opened.
Legend: N frames of all clips, T frames of one clip, R pixels of a side, L Whisper states a row, D their width.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from tempfile import NamedTemporaryFile

import cv2
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from latentsync.checkpoints.files import EMBEDDED_WHISPER
from latentsync.constants import FPS, SAMPLE_RATE, WHISPER_ROWS_PER_SECOND
from latentsync.utils.errors import UserError
from latentsync.whisper.audio2feature import Audio2Feature

ROWS_PER_FRAME = WHISPER_ROWS_PER_SECOND // FPS
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS
JPEG_QUALITY = 97


@dataclass(frozen=True)
class PackedClip:
    """A clip of `length` frames from frame `first` of the pack on. `has_audio`: the audio is the speaker's own."""

    name: str
    person: str
    first: int
    length: int
    has_audio: bool


def encode_face(face: np.ndarray, quality: int = JPEG_QUALITY) -> bytes:
    """(R, R, 3) uint8 RGB -> JPEG without chroma subsampling."""
    settings = [
        cv2.IMWRITE_JPEG_QUALITY,
        quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ]
    return cv2.imencode(".jpg", face[..., ::-1], settings)[1].tobytes()


class PackWriter:
    """Collects clips, then writes them as one safetensors file."""

    def __init__(self) -> None:
        self.clips: list[PackedClip] = []
        self._jpegs: list[bytes] = []
        self._openings: list[np.ndarray] = []
        self._waves: list[np.ndarray] = []

    def add(
        self, name: str, person: str, jpegs: Sequence[bytes], openings: np.ndarray, wave: np.ndarray | None
    ) -> None:
        """Add a clip of T frames.

        Args:
            name, person: which clip, and whose face it shows.
            jpegs: (T) encoded faces.
            openings: (T,) mouth openings, NaN where no mesh was found.
            wave: (T * 640,) float32 in [-1, 1] at 16 kHz, or None where the audio is not the speaker's.
        """
        length = len(jpegs)
        self.clips.append(PackedClip(name, person, len(self._jpegs), length, wave is not None))
        self._jpegs += jpegs
        self._openings.append(openings.astype(np.float32))
        if wave is not None:
            samples = np.zeros(length * SAMPLES_PER_FRAME, np.float32)
            samples[: len(wave)] = wave[: len(samples)]
            self._waves.append(to_int16(samples))

    def write(self, path: Path, resolution: int) -> None:
        ends = np.cumsum([len(jpeg) for jpeg in self._jpegs])
        tensors = {
            "jpegs": torch.frombuffer(bytearray(b"".join(self._jpegs)), dtype=torch.uint8),
            "jpeg_ends": torch.from_numpy(ends.astype(np.int64)),
            "openings": torch.from_numpy(np.concatenate(self._openings)),
        }
        if self._waves:
            tensors["waves"] = torch.from_numpy(np.concatenate(self._waves))
        write_pack(path, tensors, resolution, self.clips)


def write_pack(path: Path, tensors: dict[str, Tensor], resolution: int, clips: Sequence[PackedClip]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {"resolution": str(resolution), "clips": json.dumps([asdict(clip) for clip in clips])})


def to_int16(wave: np.ndarray) -> np.ndarray:
    """Samples in [-1, 1] as 16-bit integers."""
    return (wave.clip(-1, 1) * 32767).astype(np.int16)


def from_int16(samples: np.ndarray) -> np.ndarray:
    return samples.astype(np.float32) / 32767


class Pack:
    """Reads a pack of `PackWriter` or `compact`. JPEG images are memory-mapped; a video takes N * R * R * 3 bytes.

    Raises:
        UserError: the file is missing.
    """

    def __init__(self, path: str | Path) -> None:
        if not Path(path).is_file():
            raise UserError(f"{path}: no such file; make it with python -m recipes.embedded.prepare")
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            self.tensors = {name: file.get_tensor(name) for name in file.keys()}
        self.resolution = int(metadata["resolution"])
        self.clips = [PackedClip(**values) for values in json.loads(metadata["clips"])]
        self.openings = self.tensors["openings"].numpy()
        self._images: np.ndarray | None = None
        if "video" in self.tensors:
            self._images = decode_video(self.tensors["video"].numpy(), len(self.openings), self.resolution)
        else:
            self._jpegs, self._ends = self.tensors["jpegs"].numpy(), self.tensors["jpeg_ends"].tolist()
        self._states: dict[str, Tensor] = {}
        self._audio_first, frames = {}, 0
        for clip in self.clips:
            if clip.has_audio:
                self._audio_first[clip.name] = frames
                frames += clip.length

    def face(self, frame: int) -> np.ndarray:
        """Frame of the pack -> (R, R, 3) uint8 RGB."""
        if self._images is not None:
            return self._images[frame]
        start = self._ends[frame - 1] if frame else 0
        return cv2.imdecode(self._jpegs[start : self._ends[frame]], cv2.IMREAD_COLOR)[..., ::-1]

    def faces(self, frames: Sequence[int]) -> Tensor:
        """Frames of the pack -> (T, 3, R, R) uint8."""
        distinct = {frame: self.face(frame) for frame in set(map(int, frames))}
        return torch.from_numpy(np.stack([distinct[int(frame)] for frame in frames])).permute(0, 3, 1, 2)

    @cached_property
    def whisper(self) -> Audio2Feature:
        """The encoder of the audio."""
        return Audio2Feature(EMBEDDED_WHISPER.location())

    def states(self, clip: PackedClip) -> Tensor:
        """Whisper states (2T, L, D) float16 of a clip with audio, computed once."""
        if clip.name not in self._states:
            states = self.whisper.wave2feat(self.wave(clip))[: clip.length * ROWS_PER_FRAME]
            self._states[clip.name] = states.half()
        return self._states[clip.name]

    def wave(self, clip: PackedClip) -> np.ndarray:
        """Audio (T * 640,) float32 of a clip with audio."""
        first = self._audio_first[clip.name] * SAMPLES_PER_FRAME
        return from_int16(self.tensors["waves"][first : first + clip.length * SAMPLES_PER_FRAME].numpy())

    def by_person(self) -> Iterator[tuple[str, list[PackedClip]]]:
        """Every person with their clips, in order of the names."""
        for person in sorted({clip.person for clip in self.clips}):
            yield person, [clip for clip in self.clips if clip.person == person]


def decode_video(data: np.ndarray, count: int, side: int) -> np.ndarray:
    """All frames (count, side, side, 3) uint8 RGB of a video file given as bytes.

    Raises:
        UserError: OpenCV cannot decode it.
    """
    images = np.empty((count, side, side, 3), np.uint8)
    with NamedTemporaryFile(suffix=".mp4") as file:
        file.write(data.tobytes())
        file.flush()
        video = cv2.VideoCapture(file.name)
        for index in range(count):
            is_read, image = video.read()
            if not is_read:
                raise UserError(f"the packed video ends after {index} of {count} frames; pack it again")
            images[index] = image[..., ::-1]
        video.release()
    return images
