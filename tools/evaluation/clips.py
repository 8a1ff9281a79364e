"""Held-out clips: lists of them, what is in them, and which voice is lent to whom.

Legend: T frames, R pixels.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
from torch import Tensor

from latentsync.data.clips import Clip, read_fileslist, read_frames, to_pixel_values
from latentsync.media.audio import load_audio
from latentsync.utils.errors import UserError

SAMPLE_RATE, FPS = 16000, 25
SEEN, UNSEEN = "seen", "unseen"


@dataclass(frozen=True)
class HeldOutClip:
    """A clip never trained on; `seen` says whether others of the same person were."""

    path: Path
    person: str
    seen: bool

    @property
    def name(self) -> str:
        """Of the files made from it: the file's name, the person's before it where it does not say who is seen."""
        stem = self.path.stem
        return stem if stem.startswith(self.person) else f"{self.person}_{stem}"


@dataclass(frozen=True)
class LoadedClip:
    """frames (T, R, R, 3) uint8 aligned faces at 25 frames/s; wave (N,) their sound, mono at 16 kHz."""

    clip: HeldOutClip
    frames: np.ndarray
    wave: np.ndarray

    @property
    def faces(self) -> Tensor:
        """The frames as (T, 3, R, R) in [-1, 1]."""
        return to_pixel_values(self.frames)

    def cut(self, num_frames: int) -> "LoadedClip":
        """The first `num_frames` frames and their sound."""
        return replace(self, frames=self.frames[:num_frames], wave=self.wave[: num_frames * SAMPLE_RATE // FPS])


@dataclass(frozen=True)
class Voice:
    """A voice that is lent: wave (N,), mono at 16 kHz."""

    name: str
    wave: np.ndarray

    @property
    def num_frames(self) -> int:
        """Frames at 25 a second."""
        return len(self.wave) * FPS // SAMPLE_RATE


def load_voice(path: Path, num_frames: int) -> Voice:
    """The first `num_frames` frames of a sound file. Raises UserError when it cannot be read."""
    return Voice(path.stem, load_audio(path, SAMPLE_RATE)[: num_frames * SAMPLE_RATE // FPS])


def read_held_out(path: Path, training_list: Path) -> list[HeldOutClip]:
    """Read a list of `clip<TAB>person<TAB>seen|unseen`; paths are relative to the list.

    Where the third column is absent, a person with clips in the training list is seen.

    Raises:
        UserError: a list cannot be read, the third column is something else, or a clip was trained on.
    """
    trained = read_fileslist(training_list) if training_list.is_file() else []
    people = {clip.person for clip in trained}
    clips = []
    for clip in read_fileslist(path):
        person, _, column = clip.person.partition("\t")
        if not column and not trained:
            raise UserError(
                f"{path}: {clip.path.name} is not marked seen or unseen and {training_list}, which would tell, is not "
                "there; add the third column or give --training_list"
            )
        if column not in (SEEN, UNSEEN, ""):
            raise UserError(f"{path}: the third column must be {SEEN} or {UNSEEN}, not {column!r}")
        clips.append(HeldOutClip(clip.path, person, column == SEEN if column else person in people))
    _refuse_trained(clips, trained, training_list)
    return clips


def _refuse_trained(clips: Sequence[HeldOutClip], trained: Sequence[Clip], training_list: Path) -> None:
    known = {(clip.person, clip.path.stem) for clip in trained}
    leaked = [clip.path.name for clip in clips if (clip.person, clip.path.stem) in known]
    if leaked:
        raise UserError(
            f"{leaked[0]}: is in {training_list} as well ({len(leaked)} such clips); a clip that was trained on "
            "measures nothing, take it off one of the lists"
        )


def load_clip(clip: HeldOutClip, resolution: int) -> LoadedClip:
    """Frames and sound of a clip.

    Raises:
        UserError: it cannot be read, is not at 25 frames/s, has no sound, or its faces have another size.
    """
    frames = read_frames(clip.path, fps=FPS)
    height, width = frames.shape[1:3]
    if (height, width) != (resolution, resolution):
        raise UserError(
            f"{clip.path}: is {width}x{height} pixels, the model works on {resolution}x{resolution}; cut faces with "
            f"`python -m preprocess.data_processing_pipeline --resolution {resolution}`"
        )
    return LoadedClip(clip, frames, load_audio(clip.path, SAMPLE_RATE))


def spread(clips: Sequence[HeldOutClip], count: int) -> list[HeldOutClip]:
    """At most `count` clips (0: all), the people taking turns so that none outnumbers the others; unseen ones first."""
    people = defaultdict(list)
    for clip in clips:
        people[clip.seen, clip.person].append(clip)
    rounds = zip_longest(*(people[key] for key in sorted(people)))
    turns = [clip for turn in rounds for clip in turn if clip is not None]
    return turns[: count or None]


def other_voices(clips: Sequence[HeldOutClip], index: int, count: int) -> list[HeldOutClip]:
    """Two to `count` clips whose voice is lent to clip `index`: the next ones of other people, round the end.

    Raises:
        UserError: there are fewer than two.
    """
    following = [*clips[index + 1 :], *clips[:index]]
    others = [clip for clip in following if clip.person != clips[index].person]
    if len(others) < 2:
        raise UserError(
            f"{clips[index].path}: a voice to speak and a wrong one to compare with are needed, but there are only "
            f"{len(others)} held-out clips of other people; add some"
        )
    return others[:count]
