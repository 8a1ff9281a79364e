"""List the people in a video: `python -m scripts.people VIDEO`.

Prints a name for each, which the option `face` takes, and writes an image of them next to the video or where `--strip`
says. Exit codes: 0 done, 1 an input is not valid, 2 wrong usage.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from latentsync.arguments import OptionParser
from latentsync.options import AUTO, DETECTORS
from latentsync.utils.commands import command
from latentsync.utils.errors import UserError


def build_parser() -> OptionParser:
    parser = OptionParser(prog="latentsync people", description="List the people in a video.")
    add = parser.add_argument
    add("video", type=Path, help="video file")
    add("--strip", type=Path, help="image of the people to write, .jpg or .png")
    add("--speaking", action="store_true", help="compare each mouth with the audio, to tell who speaks (slower)")
    add("--json", action="store_true", help="print JSON")
    add("--detector", choices=DETECTORS, default=AUTO, help="face detector (default: %(default)s)")
    add("--device", default="cpu", help="device of the networks (default: %(default)s)")
    return parser


def run(options: argparse.Namespace) -> None:
    """Find the people, write the image, print the list."""
    from latentsync.media.paths import check_input_path
    from latentsync.pipelines.people import find_people, likely_speaker, people_strip

    check_input_path(options.video)
    if options.strip is not None and options.strip.suffix.lower() not in (".jpg", ".jpeg", ".png"):
        raise UserError(f"{options.strip}: choose a name that ends in .jpg or .png")
    people = find_people(options.video, detector=options.detector, device=options.device, speaking=options.speaking)
    if not people:
        raise UserError(f"{options.video}: no face was found in any frame")
    if options.strip is not None:
        write_image(options.strip, people_strip(people))
    if options.json:
        print(json.dumps([found.describe() for found in people], indent=2))
        return
    for found in people:
        spans = ", ".join(
            f"{float(track.sightings[0].time):.1f}-{float(track.sightings[-1].time):.1f} s"
            for track in found.person.tracks
        )
        sync = "" if found.distance is None else f"; distance from the audio {found.distance:.2f}"
        print(f"{found.person.name}: {spans}{sync}")
    if options.speaking:
        print(f"{likely_speaker(people).person.name} is the likely speaker")


def write_image(path: Path, pixels: "np.ndarray") -> None:  # noqa: F821  # NumPy is imported late
    """Write (H, W, 3) uint8 RGB. Raises UserError if that fails."""
    from PIL import Image

    try:
        Image.fromarray(pixels).save(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error})") from error


@command(interrupted="interrupted")
def main(argv: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    run(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
