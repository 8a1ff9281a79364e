"""Pack faces as a video, for a machine that takes few megabytes: `python -m recipes.embedded.compact PACK OUTPUT`.

A twentieth of the JPEG images' size at 41 dB; `recipes.embedded.train` reads either.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
import torch

from latentsync.constants import FPS
from latentsync.utils.commands import command
from recipes.embedded.pack import Pack, write_pack

CRF = 17
KEPT = ("openings", "waves")


def encode_video(faces: Iterable[np.ndarray], path: Path, side: int, crf: int = CRF) -> None:
    """Faces (side, side, 3) uint8 RGB as H.264 with full chroma."""
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS), options={"crf": str(crf), "preset": "slow"})
        stream.width = stream.height = side
        stream.pix_fmt = "yuv444p"
        for face in faces:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(face), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def compact(pack: Pack, output: Path, crf: int = CRF) -> float:
    """Write the pack with a video in place of its images; returns the video's PSNR in dB."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "faces.mp4"
        encode_video((pack.face(frame) for frame in range(len(pack.openings))), path, pack.resolution, crf)
        video = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    tensors = {name: pack.tensors[name] for name in KEPT if name in pack.tensors}
    write_pack(output, tensors | {"video": video}, pack.resolution, pack.clips)
    written = Pack(output)
    errors = [np.square(written.face(i).astype(np.float32) - pack.face(i)).mean() for i in range(len(pack.openings))]
    return float(10 * np.log10(255**2 / np.mean(errors)))


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pack", type=Path, help="file written by recipes.embedded.prepare")
    parser.add_argument("output", type=Path, help="file to write")
    parser.add_argument("--crf", type=int, default=CRF, help="quality of the video (default: %(default)s)")
    args = parser.parse_args(argv)
    quality = compact(Pack(args.pack), args.output, args.crf)
    print(f"{args.output}: {args.output.stat().st_size / 2**20:.1f} MiB, {quality:.1f} dB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
