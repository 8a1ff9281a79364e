"""Reconstruct faces from another part of a clip: `python -m eval.reconstruction --pairs list.csv --output_dir out`.

The model regenerates the masked region of each face from the clip's own audio and reference frames from elsewhere in
the clip. (Color matching, if a model uses it, still compares with the real face.) The report compares the result with
the real face, and with two baselines: the reference's pixels pasted unchanged, which the model must beat, and the
autoencoder alone, an upper bound. Exit codes: 0 written, 1 invalid input, 2 wrong usage.
"""

import argparse
import logging
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eval.clip_metrics import face_metrics
from eval.frames import FaceChunk
from eval.inference_videos import add_generation_options, generation_options, open_pipeline, pick_model, precision_of
from eval.methods import GROUND_TRUTH, Method
from eval.metrics import ClipMetrics, MetricModels, add_metric_options, check_metric_options, metric_settings
from eval.output_folder import output_folder
from eval.pairs import Pair, read_pairs
from eval.report import PAGE, Report, describe
from eval.summary import Failure
from latentsync.arguments import OptionParser, given_options
from latentsync.constants import SAMPLE_RATE, SAMPLES_PER_FRAME
from latentsync.data.clips import to_pixel_values
from latentsync.faces.mask import load_mask
from latentsync.loading import pick_device
from latentsync.media.audio import load_audio
from latentsync.media.probe import probe_video
from latentsync.metrics.faces import aligned_tracks
from latentsync.options import AUTO, GenerationOptions
from latentsync.pipelines.face_generator import NUM_FRAMES
from latentsync.pipelines.lipsync_pipeline import LipsyncPipeline
from latentsync.utils.commands import command
from latentsync.utils.errors import UserError, one_line
from preprocess.write import write_faces

logger = logging.getLogger("reconstruction")
METHODS = ("model", "reference pasted", "autoencoder")
NOT_SCORED = "sync is not scored in reconstruction"


def build_parser() -> OptionParser:
    parser = OptionParser(
        prog="python -m eval.reconstruction",
        usage="%(prog)s --pairs CSV --output_dir DIR [--option value ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--pairs", type=Path, required=True, help="CSV with the columns video, id, group; audio is ignored")
    add("--output_dir", type=Path, required=True, help="output folder")
    add("--max_frames", type=int, default=250, help="use the first N frames of each clip (default: %(default)s)")
    add_metric_options(parser)
    add_generation_options(parser)
    return parser


def reference_start(start: int, count: int, total: int) -> int:
    """First reference frame for the frames [start, start + count): about half the clip away, without overlap.

    Raises:
        UserError: the clip is too short for both.
    """
    later = min(start + total // 2, total - count)
    if later >= start + count:
        return later
    earlier = max(start - total // 2, 0)
    if earlier + count > start:
        raise UserError(f"a clip of {total} frames has no reference outside of frames {start} to {start + count - 1}")
    return earlier


def reference_frames(total: int, size: int = NUM_FRAMES) -> np.ndarray:
    """Index of each frame's reference (T,), for chunks of `size` frames."""
    chunks = []
    for start in range(0, total, size):
        count = min(size, total - start)
        first = reference_start(start, count, total)
        chunks.append(np.arange(first, first + count))
    return np.concatenate(chunks)


@torch.no_grad()
def rebuild(
    pipeline: LipsyncPipeline, faces: np.ndarray, wave: np.ndarray, options: GenerationOptions
) -> dict[str, np.ndarray]:
    """Reconstruct real faces (T, R, R, 3) uint8 with their audio (N,); returns faces of that shape by method.

    Outside the mask, all results are the real faces.

    Raises:
        UserError: the clip is too short for references.
    """
    made = regenerate(pipeline, faces, wave, options)
    reference = torch.from_numpy(faces[reference_frames(len(faces))]).float()
    codec = pipeline.codec
    decoded = [codec.decode(codec.encode(part)).float().cpu() for part in to_pixel_values(faces).split(NUM_FRAMES)]
    images = [reference, (torch.cat(decoded).permute(0, 2, 3, 1) + 1) * 127.5]
    pasted = [_onto(faces, image, options) for image in images]
    return dict(zip(METHODS, [made, *pasted], strict=True))


def regenerate(
    pipeline: LipsyncPipeline,
    faces: np.ndarray,
    wave: np.ndarray,
    options: GenerationOptions,
    num_frames: int = NUM_FRAMES,
) -> np.ndarray:
    """The model's reconstruction of real faces (T, R, R, 3) uint8 with their audio (N,), in chunks of `num_frames`.

    Raises:
        UserError: the clip is too short for references.
    """
    reference = faces[reference_frames(len(faces), num_frames)]
    return _onto(faces, pipeline.speak(faces, wave, reference, options, num_frames=num_frames), options)


def longest_track(
    video: Path, resolution: int, max_frames: int, face: str = "largest"
) -> tuple[np.ndarray, np.ndarray]:
    """The first `max_frames` aligned faces (T, R, R, 3) uint8 of the longest track of a video, and their audio (N,).

    Raises:
        UserError: the video cannot be read, has no audio, or shows no face.
    """
    tracks = aligned_tracks(probe_video(video), resolution, face)
    start, faces = max(tracks, key=lambda track: len(track[1]), default=(0, np.empty(0)))
    if not len(faces):
        raise UserError(f"{video}: no face was found; leave it out")
    faces = faces[:max_frames]
    return faces, load_audio(video, SAMPLE_RATE)[start * SAMPLES_PER_FRAME :][: len(faces) * SAMPLES_PER_FRAME]


def evaluate(
    pair: Pair, pipeline: LipsyncPipeline, options: GenerationOptions, models: MetricModels, folder: Path, limit: int
) -> dict[str, ClipMetrics]:
    """Metrics by method, on the longest face track of a video; the faces are written to `folder`/method/<id>.mp4.

    Raises:
        UserError: the video cannot be read, or shows no face for long enough.
    """
    real, wave = longest_track(pair.video, pipeline.resolution, limit, options.face)
    results = rebuild(pipeline, real, wave, options)
    found = {}
    for name, faces in results.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        write_faces(folder / name / f"{pair.id}.mp4", faces, wave)
        found[name] = face_metrics(chunks_of(faces, real), wave, models, len(real), compared=True)
        found[name].missing |= models.missing | dict.fromkeys(("lse_c", "lse_d", "offset"), NOT_SCORED)
    return found


def chunks_of(result: np.ndarray, source: np.ndarray) -> Iterator[FaceChunk]:
    """Split faces (T, R, R, 3) of one track into chunks."""
    for start in range(0, len(result), NUM_FRAMES):
        part = slice(start, start + NUM_FRAMES)
        indices = np.arange(len(result))[part]
        yield FaceChunk(indices, indices == 0, result[part], source[part])


def run(arguments: argparse.Namespace, command: str) -> Report:
    """Reconstruct and evaluate all clips, and write the report."""
    pairs = read_pairs(arguments.pairs)
    options = generation_options(arguments, pick_model(given_options(arguments).get("model", AUTO), arguments.device))
    pipeline = open_pipeline(options, arguments)
    settings = replace(metric_settings(arguments), resolution=pipeline.resolution, overlap=0)
    results = arguments.output_dir / "results"
    cells: dict[tuple[str, str], ClipMetrics] = {}
    failures = []
    with (
        output_folder(arguments.output_dir),
        closing(MetricModels(settings, str(pick_device(arguments.device)))) as models,
    ):
        about = describe(command, models) | {
            "inference": {"model": {**options.model_dump(mode="json"), **precision_of(arguments)}}
        }
        for pair in pairs:
            try:
                found = evaluate(pair, pipeline, options, models, results, arguments.max_frames)
                cells |= {(name, pair.id): metrics for name, metrics in found.items()}
                logger.info("%s: %d frames", pair.id, found["model"].frames)
            except UserError as error:
                failures += [Failure(pair.id, name, str(error)) for name in METHODS]
                logger.info("%s: FAILED: %s", pair.id, one_line(error))
        methods = [Method(GROUND_TRUTH, None), *(Method(name, results / name) for name in METHODS)]
        report = Report(methods, pairs, cells, failures, about)
        report.write(arguments.output_dir)
    if not cells:
        raise UserError(f"{arguments.pairs}: no clip could be evaluated; see {arguments.output_dir / PAGE}")
    return report


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    arguments = parser.parse_args(argv)
    check_metric_options(parser, arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    words = sys.argv[1:] if argv is None else argv
    run(arguments, f"python -m eval.reconstruction {shlex.join(words)}")
    print(arguments.output_dir / PAGE)
    return 0


def _onto(faces: np.ndarray, images: Tensor, options: GenerationOptions) -> np.ndarray:
    """Images (T, R, R, 3) in [0, 255] inside the mask, real faces outside, uint8."""
    mask = load_mask(faces.shape[1], options.mask_image_path)[0, 0, :, :, None]
    mixed = torch.lerp(images, torch.from_numpy(faces).float(), mask)
    return mixed.clamp(0, 255).round().byte().numpy()


if __name__ == "__main__":
    sys.exit(main())
