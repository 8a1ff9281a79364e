"""Increase the frame rate: `python ECCV2022-RIFE/inference_video.py --video in.mp4 --exp 1 --output out.mp4`.

Uses RIFE if its weights are present (checkpoints/auxiliary/rife/flownet.pkl, or --model), else optical flow; the log
says which. Exit codes: 0 done, 1 invalid input, 2 wrong usage.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs as a file, like the original

from tqdm import tqdm  # noqa: E402
from tqdm.contrib.logging import logging_redirect_tqdm  # noqa: E402

from latentsync.media.interpolation import INTERPOLATORS, change_frame_rate  # noqa: E402
from latentsync.media.writer import DEFAULT_CRF  # noqa: E402
from latentsync.utils.commands import command  # noqa: E402
from latentsync.utils.errors import UserError  # noqa: E402
from latentsync.utils.files import parent_folders  # noqa: E402
from latentsync.utils.progress import Progress  # noqa: E402

MAX_EXP = 5
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--video", type=Path, required=True, help="video to interpolate; its audio is kept")
    add("--output", type=Path, help="result (default: <video>_<fps>fps.mp4 beside it)")
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("--exp", type=int, default=1, help="multiply the frame rate by 2^EXP (default: 1)")
    rate.add_argument("--fps", type=float, help="frame rate of the result")
    add("--scale", type=float, choices=SCALES, default=1.0, help="resolution of the flow; 0.5 for 4K (RIFE only)")
    add("--model", type=Path, help="RIFE weights, flownet.pkl")
    add(
        "--interpolator",
        choices=INTERPOLATORS,
        default="auto",
        help="method (default: %(default)s)",
    )
    add("--device", default="cpu", help="cpu, cuda or cuda:N (RIFE only)")
    add("--crf", type=int, default=DEFAULT_CRF, help="H.264 quality, 0 (lossless) to 51 (default: %(default)s)")
    return parser


def default_output(args: argparse.Namespace) -> Path:
    rate = f"{float(args.fps):g}fps" if args.fps else f"{2**args.exp}x"
    return args.video.with_name(f"{args.video.stem}_{rate}.mp4")


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("latentsync").setLevel(logging.INFO)
    output = args.output or default_output(args)
    if not 1 <= args.exp <= MAX_EXP:
        raise UserError(f"--exp must be between 1 and {MAX_EXP}, not {args.exp}")
    # The redirection keeps log lines out of the progress bar.
    with parent_folders(output), logging_redirect_tqdm(), tqdm(unit="frame", leave=False) as bar:

        def show(progress: Progress) -> None:
            bar.total = progress.total
            bar.update(progress.done - bar.n)

        change_frame_rate(
            args.video,
            output,
            args.fps,
            factor=2**args.exp,
            interpolator=args.interpolator,
            scale=args.scale,
            device=args.device,
            rife_path=args.model,
            crf=args.crf,
            on_progress=show,
        )
    print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
