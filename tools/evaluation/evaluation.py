"""The evaluation of one model: which clips, in which order, and what is kept of each."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor
from tqdm import tqdm

from latentsync.faces.mouth import MouthMeter
from latentsync.media.audio import load_audio
from latentsync.metrics.plots import plot_offsets
from latentsync.metrics.sync import SyncScorer
from latentsync.models.perceptual import LPIPS
from latentsync.utils.errors import UserError
from preprocess.write import write_faces
from tools.contact_sheet import contact_sheet
from tools.evaluation.clips import FPS, SAMPLE_RATE, HeldOutClip, LoadedClip, Voice, other_voices, spread
from tools.evaluation.measures import (
    identity,
    measure_reconstruction,
    measure_silence,
    measure_syncnet,
    pad_with_silence,
    score_voices,
    sync_values,
    to_uint8,
)
from tools.evaluation.report import (
    Entry,
    Figure,
    reconstruction_figures,
    silence_figures,
    sync_figures,
    syncnet_figures,
)
from tools.evaluation.synthesis import Talker, pingpong

SECTIONS = ("syncnet", "sync", "reconstruction", "silence")
WRONG_VOICES = 3  # a result is scored against, to know what confidence chance gives
SPEECH_SECONDS = 4.0
SHEET_COLUMNS, SHEET_HEIGHT = 10, 192


@dataclass(frozen=True)
class Outcome:
    """figures of the model; real: an entry for each real clip; results: one for each clip the model ran on."""

    figures: list[Figure]
    real: list[Entry]
    results: list[Entry]


@dataclass(frozen=True)
class Result:
    """Faces (T, 3, R, R) in [-1, 1] and the sound (N,) they are shown with."""

    faces: Tensor
    wave: np.ndarray


class Evaluation:
    """Runs the sections over clips and writes videos, sheets and charts as it goes.

    Args:
        talker: the model.
        scorers: by name; the first is the one that is itself measured.
        reference: another SyncNet, which puts the real clips in sync for some of that one's figures.
        perceptual, lpips_name: LPIPS, and what it is called in the report.
        speech: sound file of the silence test, of which the first 4 s are used.
        output_dir: where videos, sheets and charts go.
        max_clips, max_silence_clips: the model runs on that many, 0 for all.
        max_frames: of a clip that the model runs on.
        voices: that drive the clips and are wrong for them, in turns; none: the sounds of the other clips. Voices with
            a rhythm in common make wrong ones score well: sentences of one grammar, spoken at one pace, for instance.
    """

    def __init__(
        self,
        talker: Talker,
        scorers: Mapping[str, SyncScorer],
        perceptual: LPIPS,
        lpips_name: str,
        speech: Path,
        output_dir: Path,
        *,
        max_clips: int = 16,
        max_silence_clips: int = 8,
        max_frames: int = 75,
        voices: Sequence[Voice] = (),
        reference: SyncScorer | None = None,
    ):
        self.talker, self.scorers, self.reference = talker, scorers, reference
        self.perceptual, self.lpips_name = perceptual, lpips_name
        self.output_dir = output_dir
        self.voices = voices
        self.max_clips, self.max_silence_clips, self.max_frames = max_clips, max_silence_clips, max_frames
        self.padded_speech = pad_with_silence(load_audio(speech, SAMPLE_RATE)[: round(SPEECH_SECONDS * SAMPLE_RATE)])

    def run(self, clips: Sequence[LoadedClip], sections: Sequence[str] = SECTIONS) -> Outcome:
        """Measure; `clips` are all held-out clips, of which the model runs on some (see `spread`)."""
        figures: list[Figure] = []
        real: list[Entry] = []
        if "syncnet" in sections:
            scorer = next(iter(self.scorers.values()))
            real = [measure_syncnet(scorer, clip, self.reference) for clip in tqdm(clips, desc="real clips")]
            figures += syncnet_figures(real)
        of_model = [section for section in SECTIONS if section in sections and section != "syncnet"]
        results = self._run_model(clips, of_model) if of_model else []
        if "sync" in sections:
            figures += [figure for name in self.scorers for figure in sync_figures(results, name)]
        if "reconstruction" in sections:
            figures += reconstruction_figures(results, self.lpips_name)
        if "silence" in sections:
            figures += silence_figures(results)
        return Outcome(figures, real, results)

    def _run_model(self, clips: Sequence[LoadedClip], sections: Sequence[str]) -> list[Entry]:
        by_turns = spread([item.clip for item in clips], 0)
        loaded = {item.clip: item for item in clips}
        chosen = by_turns[: self.max_clips or None]
        lent = [self._lent(by_turns, loaded, index) for index in range(len(chosen))]
        entries = []
        with closing(MouthMeter()) as meter:
            for index, clip in enumerate(tqdm(chosen, desc="the model")):
                item = loaded[clip].cut(self.max_frames)
                entry: Entry = identity(clip)
                results = {"real": Result(item.faces, item.wave)}
                if "sync" in sections:
                    results |= self._sync(entry, item, lent[index])
                if "reconstruction" in sections:
                    results |= self._reconstruction(entry, item)
                self._write(clip.name, results)
                if "silence" in sections and (index < self.max_silence_clips or not self.max_silence_clips):
                    self._silence(entry, item, meter)
                entries.append(entry)
        return entries

    def _lent(self, clips: Sequence[HeldOutClip], loaded: Mapping[HeldOutClip, LoadedClip], index: int) -> list[Voice]:
        """The voice that drives clip `index`, and those that are wrong for the result."""
        if self.voices:
            return [self.voices[(index + turn) % len(self.voices)] for turn in range(1 + WRONG_VOICES)]
        others = [loaded[clip].cut(self.max_frames) for clip in other_voices(clips, index, 1 + WRONG_VOICES)]
        return [Voice(item.clip.name, item.wave) for item in others]

    def _silence(self, entry: Entry, clip: LoadedClip, meter: MouthMeter) -> None:
        values, made = measure_silence(self.talker, meter, clip, self.padded_speech)
        entry["opening"] = values
        self._write(f"{clip.clip.name}_silence", {"speech": Result(made, self.padded_speech)})

    def _reconstruction(self, entry: Entry, clip: LoadedClip) -> dict[str, Result]:
        entry["mouth"], made = measure_reconstruction(self.talker, self.perceptual, clip)
        return {"pasted": Result(made["pasted"], clip.wave), "rebuilt": Result(made["model"], clip.wave)}

    def _sync(self, entry: Entry, clip: LoadedClip, voices: Sequence[Voice]) -> dict[str, Result]:
        """Drive a clip by its own sound and by the first voice; the other voices are wrong for it."""
        voice, *wrong = voices
        self_driven = self.talker.drive(clip.faces, clip.wave)
        other_driven = self.talker.drive(pingpong(clip.faces, voice.num_frames), voice.wave)
        entry["voice"], entry["wrong_voices"] = voice.name, [item.name for item in wrong]
        entry["sync"] = {}
        for number, (name, scorer) in enumerate(self.scorers.items()):
            scores = score_voices(scorer, clip, self_driven, other_driven, voice, wrong)
            entry["sync"][name] = sync_values(scores)
            chart = self.output_dir / "offsets" / f"{clip.clip.name}{f'_{number}' if number else ''}.png"
            plot_offsets({kind: group[0] for kind, group in scores.items()}, chart, f"{clip.clip.name}, {name}")
        return {"self-driven": Result(self_driven, clip.wave), "other voice": Result(other_driven, voice.wave)}

    def _write(self, name: str, results: Mapping[str, Result]) -> None:
        """The results as videos with sound, and one sheet of moments over them all, a row each."""
        paths = []
        for kind, result in results.items():
            path = self.output_dir / "clips" / f"{name}_{kind.replace(' ', '_')}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_faces(path, to_uint8(result.faces), result.wave)
            paths.append(path)
        last = min(len(result.faces) for result in results.values()) - 1
        times = [Fraction(round(column * last / (SHEET_COLUMNS - 1)), FPS) for column in range(SHEET_COLUMNS)]
        sheet = contact_sheet(paths, times, SHEET_HEIGHT, face=False)
        path = self.output_dir / "sheets" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(str(path), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR)):
            raise UserError(f"{path}: cannot be written; choose another --output_dir")
