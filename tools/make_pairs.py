"""Alter the lips of training clips: `python -m tools.make_pairs --fileslist train.txt --output_dir DIR`.

Every clip gets a twin in which a trained model makes the person speak the audio of another clip. Trained with the
twin as condition and the clip itself as target (`data.pairs_dir`, `model.whole_condition`), a UNet learns to edit a
frame without hiding the mouth. The clips are aligned faces, as data processing writes them, at the resolution of the
model. Existing twins are kept, so an interrupted run resumes.

Exit codes: 0 done, 1 invalid input, 2 wrong usage.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from latentsync.constants import SAMPLE_RATE, SAMPLES_PER_FRAME
from latentsync.data.clips import Clip, examine_clips, read_fileslist, read_frames
from latentsync.data.unet_dataset import twin_path
from latentsync.loading import load_pipeline
from latentsync.media.audio import load_audio
from latentsync.options import AUTO
from latentsync.pipelines.lipsync_pipeline import LipsyncPipeline
from latentsync.utils.commands import command
from latentsync.utils.errors import UserError
from latentsync.utils.files import staged_output
from preprocess.write import write_faces

logger = logging.getLogger(__name__)


def other_voice(clips: Sequence[Clip], index: int) -> Clip:
    """The clip whose audio drives the twin of another one: the next of another person, else the next of all."""
    following = [clips[(index + step) % len(clips)] for step in range(1, len(clips))]
    return next((clip for clip in following if clip.person != clips[index].person), following[0])


def make_twin(pipeline: LipsyncPipeline, clip: Clip, voice: Clip) -> np.ndarray:
    """The faces of a clip, (T, R, R, 3) uint8, with the lips of another voice, which is repeated where it is shorter.

    Raises:
        UserError: a clip cannot be read, or has another size than the model.
    """
    with clip.local() as path, voice.local() as sound:
        faces, wave = read_frames(path, resolution=pipeline.resolution), load_audio(sound, SAMPLE_RATE)
    made = pipeline.speak(faces, np.resize(wave, len(faces) * SAMPLES_PER_FRAME))
    return made.round().clamp(0, 255).byte().numpy()


def make_pairs(pipeline: LipsyncPipeline, clips: Sequence[Clip], folder: Path) -> int:
    """Write the twins that are missing; returns their number.

    Raises:
        UserError: there are fewer than two usable clips, or one of them cannot be read.
    """
    usable = examine_clips(clips, min_frames=2, resolution=pipeline.resolution)
    if len(usable) < 2:
        raise UserError("pairs need at least two clips, since a twin speaks the audio of another one; give more")
    folder.mkdir(parents=True, exist_ok=True)
    made = 0
    for index, clip in enumerate(usable):
        path = twin_path(folder, clip)
        if path.exists():
            continue
        twin = make_twin(pipeline, clip, other_voice(usable, index))
        with staged_output(path, None) as staged:
            write_faces(staged, twin, None)
        made += 1
        logger.info("%d of %d: %s", index + 1, len(usable), clip.name)
    return made


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.make_pairs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--fileslist", type=Path, required=True, help="text list of clips, see tools.write_fileslist")
    add("--output_dir", type=Path, required=True, help="folder of the twins, the later data.pairs_dir")
    add("--model", default=AUTO, help="model that alters the clips (default: the best one present)")
    add("--device", help="cuda, cuda:N, mps or cpu (default: the best one)")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    options = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    pipeline = load_pipeline(options.model, options.device)
    made = make_pairs(pipeline, read_fileslist(options.fileslist), options.output_dir)
    print(f"{options.output_dir}: {made} twins made")
    return 0


if __name__ == "__main__":
    sys.exit(main())
