"""FVD of two folders of videos: `python -m eval.eval_fvd --real_videos_dir REAL --fake_videos_dir FAKE`.

Frechet distance of I3D features of 16-frame windows of the aligned face, at 224 x 224 pixels and 25 frames/s. No window
spans a cut or a frame without a face. Needs checkpoints/auxiliary/i3d_torchscript.pt.
Exit codes: 0 done, 1 invalid input, 2 wrong usage.
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from eval.clip_metrics import add_windows
from eval.frames import FaceChunk, PairedFaces
from eval.videos import find_videos
from latentsync.loading import pick_device
from latentsync.metrics.fvd import I3D, SIDE, STRIDE, ClipFeatures, VideoFeatures
from latentsync.metrics.set_distances import frechet_distance
from latentsync.utils.commands import command
from latentsync.utils.errors import UserError, one_line
from latentsync.utils.files import write_text

logger = logging.getLogger("eval_fvd")
ENOUGH = 400  # windows: as many as the features are wide
Faces = Callable[[Path], Iterable[FaceChunk]]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="latentsync eval fvd",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--real_videos_dir", type=Path, required=True, help="folder of real videos")
    add("--fake_videos_dir", type=Path, required=True, help="folder of results")
    add("--i3d_path", type=Path, default=I3D, help="I3D as TorchScript (default: %(default)s)")
    add("--trust", action="store_true", help="load an --i3d_path that is not the published file; executes its code")
    add("--stride", type=int, default=STRIDE, help="frames between the windows (default: %(default)s)")
    add("--device", help="cuda, cuda:N, mps or cpu (default: the best one available)")
    add(
        "--output", type=Path, help="JSON file to write: the value, the settings and the number of windows of each clip"
    )
    return parser


def aligned_faces(path: Path) -> PairedFaces:
    """The faces of a video, in chunks of (F, 224, 224, 3)."""
    return PairedFaces(path, path, SIDE)


def features_of(
    videos: Sequence[Path], network: VideoFeatures, stride: int, faces: Faces = aligned_faces
) -> tuple[np.ndarray, dict[str, int]]:
    """Features (W, D) of all videos, and the number of windows of each; unusable ones have none.

    Raises:
        UserError: there are fewer than two windows.
    """
    rows: list[np.ndarray] = []
    counts: dict[str, int] = {}
    for path in videos:
        clip = ClipFeatures(network, stride)
        try:
            for chunk in faces(path):
                add_windows(clip, chunk)
        except UserError as error:
            logger.warning("left out: %s", one_line(error))
            counts[str(path)] = 0
            continue
        found = clip.features()
        counts[str(path)] = len(found)
        rows += [found] if len(found) else []
        logger.info("%s: %d windows", one_line(path.name), len(found))
    if sum(counts.values()) < 2:
        raise UserError(
            f"{videos[0].parent}: FVD needs more windows; fewer than two with a face in all 16 frames were found"
        )
    return np.concatenate(rows), counts


def run(options: argparse.Namespace) -> float:
    """Compute the distance, and write it if an output is given."""
    folders = {"real": options.real_videos_dir, "fake": options.fake_videos_dir}
    videos = {name: find_videos(folder) for name, folder in folders.items()}
    device = str(pick_device(options.device))
    network = VideoFeatures.from_pretrained(options.i3d_path, device, trust=options.trust)
    found = {name: features_of(paths, network, options.stride) for name, paths in videos.items()}
    distance = frechet_distance(found["real"][0], found["fake"][0])
    fewest = min(len(features) for features, _ in found.values())
    if fewest < ENOUGH:
        logger.warning("only %d windows: the value is biased upward; compare it only at equal counts", fewest)
    if options.output is not None:
        content = {
            "fvd": distance,
            "stride": options.stride,
            "i3d": str(options.i3d_path),
            "device": device,
            "windows": {name: counts for name, (_, counts) in found.items()},
        }
        write_text(options.output, lambda file: json.dump(content, file, indent=2))
    return distance


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.stride < 1:
        parser.error("--stride must be 1 or more")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print(f"FVD {run(options):.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
