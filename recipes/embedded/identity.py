"""Do results show the same person? `python -m recipes.embedded.identity --results DIR --sources VIDEO ...`.

Compares results of `tools.evaluate_embedded`, driven by another voice, with their sources by dlib's face recognition
network (King 2017; 128 numbers a face, trained on 3 million faces). The similarity of two moments of the
source is the standard. Needs `pip install dlib-bin face_recognition_models`.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from latentsync.data.clips import read_frames
from latentsync.utils.commands import command
from latentsync.utils.errors import UserError

PACKAGES = "dlib-bin face_recognition_models"
SUFFIX = "_other_voice.mp4"
STEP, APART = 8, 24  # frames: between compared ones, and at least between two moments
NETWORK = "dlib_face_recognition_resnet_model_v1.dat"
LANDMARKS = "shape_predictor_5_face_landmarks.dat"


class DlibEmbedder:
    """Embeddings of faces in whole frames. Two of one person are less than 0.6 apart, the network's authors say.

    Raises:
        UserError: a package is missing.
    """

    def __init__(self) -> None:
        package = find_spec(
            "face_recognition_models"
        )  # not imported: it needs pkg_resources, which new setuptools lack
        if package is None or package.origin is None or find_spec("dlib") is None:
            raise UserError(f"the face recognition network is missing; run `pip install {PACKAGES}`")
        import dlib

        models = Path(package.origin).parent / "models"
        self._detector: Any = dlib.get_frontal_face_detector()
        self._landmarks: Any = dlib.shape_predictor(str(models / LANDMARKS))
        self._network: Any = dlib.face_recognition_model_v1(str(models / NETWORK))

    def __call__(self, frame: np.ndarray) -> np.ndarray | None:
        """(H, W, 3) uint8 -> (128,) of the largest face; None where there is none."""
        boxes = self._detector(frame, 1)
        if not boxes:
            return None
        box = max(boxes, key=lambda found: found.area())
        return np.array(self._network.compute_face_descriptor(frame, self._landmarks(frame, box)))


def compare(source: Sequence[np.ndarray], result: Sequence[np.ndarray]) -> dict[str, float]:
    """Mean cosine similarity and distance of embeddings (n, 128) at different moments, `STEP` frames apart.

    real: of the source to itself. result: of the result to the source.
    """
    pairs = [(i, j) for i in range(len(source)) for j in range(len(source)) if abs(i - j) * STEP >= APART]
    if not pairs:
        raise UserError(f"too few frames with a face: {len(source)}")
    first, second = (np.array(side) for side in zip(*pairs, strict=True))
    real, fake = np.array(source), np.array(result)
    return {
        "similarity_real": _cosine(real[first], real[second]),
        "similarity_result": _cosine(fake[first], real[second]),
        "distance_real": float(np.linalg.norm(real[first] - real[second], axis=1).mean()),
        "distance_result": float(np.linalg.norm(fake[first] - real[second], axis=1).mean()),
    }


def _cosine(x: np.ndarray, y: np.ndarray) -> float:
    return float(((x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)).mean())


def compare_files(embed: DlibEmbedder, source: Path, result: Path) -> dict[str, float]:
    """`compare` of two videos, in the frames where both show a face."""
    frames = zip(read_frames(source)[::STEP], read_frames(result)[::STEP], strict=False)
    found = [(embed(real), embed(fake)) for real, fake in frames]
    seen = [(real, fake) for real, fake in found if real is not None and fake is not None]
    return compare([real for real, _ in seen], [fake for _, fake in seen])


def parse(description: str, argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments of the commands that compare results with their sources."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--results", type=Path, required=True, help=f"folder with VIDEO{SUFFIX}")
    parser.add_argument("--sources", type=Path, nargs="+", required=True, help="the videos")
    return parser.parse_args(argv)


def pairs_of(args: argparse.Namespace) -> Iterator[tuple[Path, Path]]:
    """Each source and its result. Raises UserError where there is none."""
    for source in args.sources:
        result = args.results / f"{source.stem}{SUFFIX}"
        if not result.is_file():
            raise UserError(f"{result}: no such file")
        yield source, result


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(__doc__.split("\n")[0], argv)
    embed, rows = DlibEmbedder(), []
    for source, result in pairs_of(args):
        rows.append(compare_files(embed, source, result))
        print(source.stem, " ".join(f"{name} {value:.4f}" for name, value in rows[-1].items()), flush=True)
    mean = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    worst = min(row["similarity_result"] / row["similarity_real"] for row in rows)
    print("mean", " ".join(f"{name} {value:.4f}" for name, value in mean.items()))
    print(f"similarity, result / real: {mean['similarity_result'] / mean['similarity_real']:.4f}, worst {worst:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
