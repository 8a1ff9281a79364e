"""Cut the faces of the corpus out once: `python -m recipes.embedded.prepare CORPUS_FOLDER OUTPUT_FOLDER`.

CORPUS_FOLDER holds MANIFEST.csv (columns file, kind, use) and the files it lists. Writes train.safetensors (clips that
may be trained on), held_out.safetensors (people and clips that are never trained on) and voices.safetensors (speech
recordings), see `recipes.embedded.pack`.
"""

import argparse
import csv
import fnmatch
import logging
import multiprocessing
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from latentsync.constants import SAMPLE_RATE
from latentsync.faces.mouth import OpeningEstimator
from latentsync.media.audio import load_audio
from latentsync.utils.commands import command
from latentsync.utils.errors import UserError
from preprocess.lists import spread
from preprocess.settings import ProcessSettings
from preprocess.steps.faces import faces
from preprocess.steps.probe import probe
from preprocess.steps.resample import AudioReader, resample
from preprocess.steps.segments import segments
from preprocess.steps.shots import shots
from preprocess.tools import Tools
from recipes.embedded.pack import PackWriter, encode_face, to_int16

logger = logging.getLogger("prepare")

# Never trained on: other corpora, whole people, and one clip each of two people who are trained on.
HELD_OUT = ["hdtf_*", "retalking_*", "infinitetalk_*", "grid_s27_*", "grid_s24_*", "grid_s1_bbaf2n", "grid_s4_bbilzs"]
HELD_OUT += ["lpd0_*", "lpd3_*", "astronaut"]
# The audio may not belong to the face.
WITHOUT_AUDIO = ["latentsync_demo[23]", "infinitetalk_*"]
# The audio is out of step with the face by two frames or more.
OUT_OF_SYNC = ["grid_s1_brwt4n", "grid_s1_sbat7s", "grid_s1_sgib8n", "grid_s1_srbu7s", "grid_s4_bbilzs"]
CLIPS_PER_PERSON = 40
SEGMENT_SECONDS = 30.0
SHORTEST_SECONDS = 0.5
RESOLUTION = 256


@dataclass(frozen=True)
class SourceFile:
    """A row of the manifest. `has_audio`: its audio may be used."""

    path: Path
    person: str
    held_out: bool
    has_audio: bool
    is_still: bool


def person_of(stem: str) -> str:
    """The file name up to its last underscore; files named after one project show different people."""
    return stem if stem.startswith(("latentsync_", "echomimic_")) or "_" not in stem else stem.rpartition("_")[0]


def matches(stem: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(stem, pattern) for pattern in patterns)


def read_manifest(corpus: Path) -> tuple[list[SourceFile], list[Path]]:
    """Sources of faces, balanced by person, and speech recordings."""
    manifest = corpus / "MANIFEST.csv"
    if not manifest.is_file():
        raise UserError(f"{corpus}: MANIFEST.csv is missing; give the corpus folder")
    with manifest.open(newline="") as file:
        rows = list(csv.DictReader(file))
    groups: dict[tuple[str, bool, str], list[SourceFile]] = defaultdict(list)
    for row in rows:
        path = corpus / row["file"]
        held_out = matches(path.stem, HELD_OUT) or row["use"] == "test_only"
        is_still = row["kind"] == "portrait"
        if row["kind"] == "speech" or matches(path.stem, OUT_OF_SYNC) or (is_still and path.stem.startswith("grid_")):
            continue
        silent = (
            row["use"] == "picture_ok" or matches(path.stem, WITHOUT_AUDIO) or is_still or row["has_audio"] != "yes"
        )
        person = person_of(path.stem)
        groups[person, held_out, row["kind"]].append(SourceFile(path, person, held_out, not silent, is_still))
    sources = [group[i] for group in groups.values() for i in spread(len(group), CLIPS_PER_PERSON)]
    voices = [corpus / row["file"] for row in rows if row["kind"] == "speech" and row["use"] == "train_ok"]
    return sources, voices


@dataclass(frozen=True)
class CutClip:
    """Encoded faces of one person, with the audio where it may be used."""

    name: str
    source: SourceFile
    jpegs: list[bytes]
    openings: np.ndarray
    wave: np.ndarray | None


def cut_faces(source: SourceFile) -> list[CutClip]:
    """Every stretch of the source in which the largest face is in view, at 25 frames/s."""
    torch.set_num_threads(1)
    settings = ProcessSettings(
        steps=("shots", "faces"),
        resolution=RESOLUTION,
        segment_seconds=SEGMENT_SECONDS,
        min_seconds=SHORTEST_SECONDS,
        many_faces="largest",
        keep_silent=True,
    )
    estimator, clips = OpeningEstimator(), []
    with Tools(settings) as tools:
        for clip in _clips(source, settings, tools):
            if clip.drop is not None:
                logger.info("%s: dropped: %s", source.path.name, clip.drop.reason)
                continue
            openings = estimator.openings(clip.faces)
            jpegs = [encode_face(face) for face in clip.faces]
            name = f"{source.path.stem}-{clip.segment}-{clip.start}"
            wave = clip.wave if source.has_audio else None
            clips.append(CutClip(name, source, jpegs, openings, wave))
    estimator.close()
    return clips


def _clips(source: SourceFile, settings: ProcessSettings, tools: Tools) -> Iterator:
    opened = probe(source.path, settings.audio_track, keep_silent=True)
    with AudioReader(opened) as sound:
        samples = shots(resample(opened), settings.shot_threshold)
        for segment in segments(samples, source.path.name, sound, settings.segment_frames, opened.info.is_still):
            yield from faces(segment, settings, tools)


def prepare(corpus: Path, output: Path, processes: int) -> None:
    """Write the three files."""
    sources, voices = read_manifest(corpus)
    logger.info("%d sources of %d people", len(sources), len({source.person for source in sources}))
    train, held_out = PackWriter(), PackWriter()
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for done, clips in enumerate(pool.imap(cut_faces, sources), 1):
            for clip in clips:
                writer = held_out if clip.source.held_out else train
                writer.add(clip.name, clip.source.person, clip.jpegs, clip.openings, clip.wave)
            if done % 10 == 0:
                logger.info("%d of %d sources", done, len(sources))
    train.write(output / "train.safetensors", RESOLUTION)
    held_out.write(output / "held_out.safetensors", RESOLUTION)
    waves = {path.stem: torch.from_numpy(to_int16(load_audio(path, SAMPLE_RATE))) for path in voices}
    save_file(waves, output / "voices.safetensors")


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("corpus", type=Path, help="folder with MANIFEST.csv")
    parser.add_argument("output", type=Path, help="folder for the packed files")
    parser.add_argument("--processes", type=int, default=2, help="worker processes (default: %(default)s)")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    prepare(args.corpus, args.output, args.processes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
