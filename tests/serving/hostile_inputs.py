"""Count the outcomes of hostile uploads: `python -m tests.serving.hostile_inputs`.

Writes a catalog of files, the same in each run, examines each as the API and the web UI do, decodes the first frame of
those that pass, and prints a table. Exit code 1 if one of them crashes or hangs a decoder, gets an unclear error, or is
accepted although it must be refused.
"""

import argparse
import os
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from latentsync.media.first_frame import first_frame
from latentsync.serving.inspection import inspect_file
from latentsync.serving.settings import ServingSettings
from latentsync.utils.errors import UserError
from tests.media.synthetic import tone, write_audio, write_clip
from tests.media.untrusted import write_gaps, write_raw_wav, write_webp

PLAYLISTS = {
    "itself": "ffconcat version 1.0\nfile {name}\n",
    "other": "ffconcat version 1.0\nfile clip.mp4\n",
    "pipe": "ffconcat version 1.0\nfile pipe\n",
    "live": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:2,\nclip.mp4\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="dynamic"><Period></Period></MPD>',
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "svg": '<svg xmlns="http://www.w3.org/2000/svg"><image href="clip.mp4"/></svg>',
    "text": "art\n" * 100,
}
NAMES = ("video", "a.mp4", "a.wav", "a.ffconcat", "a.m3u8", "a.txt", "a.png", "a%d.jpg")
SOURCES = ("a.mp4", "a.mkv", "a.webm", "a.flac", "a.png", "a.gif", "a.webp")
OUTCOMES = ("accepted", "refused", "accepted wrongly", "unclear error", "crash", "hang")
GOOD = OUTCOMES[:2]
HANG_SECONDS = 30.0  # beyond every limit of the examination of a small file


@dataclass(frozen=True)
class Input:
    """A file of the catalog. refuse: whether it must be refused; other files may pass or not."""

    group: str
    role: str
    path: Path
    refuse: bool


def catalog(folder: Path, mutations: int) -> Iterator[Input]:
    """Write the files one after another. mutations: number of changed versions of each source."""
    yield from _playlists(folder / "playlists")
    yield from _oversized(folder / "oversized")
    yield from _no_media(folder / "other")
    for name in SOURCES:
        role = "audio" if name.endswith(".flac") else "video"
        for path in mutated(folder / "mutated" / name, mutations, seed=7):
            yield Input(f"mutated {path.suffix[1:]}", role, path, refuse=False)


def outcome(entry: Input, settings: ServingSettings) -> str:
    """One of `OUTCOMES`."""
    began = time.monotonic()
    try:
        inspect_file(entry.role, "it", entry.path, settings)
        if entry.role == "video":
            first_frame(entry.path)
        found = "accepted wrongly" if entry.refuse else "accepted"
    except UserError as error:
        message = str(error)
        if "crashed" in message:
            return "crash"
        if "too long to examine" in message:
            return "hang"
        # Messages of the second step name the file in the workspace; the server shows the name of the upload instead.
        clear = "\n" not in message and "Traceback" not in message and len(message) < 500
        found = "refused" if clear else "unclear error"
    return "hang" if time.monotonic() - began > HANG_SECONDS else found


def count(mutations: int) -> dict[str, Counter]:
    """Outcomes by group."""
    counts: dict[str, Counter] = {}
    with tempfile.TemporaryDirectory() as folder:
        limits = {"max_pixels": 4096 * 2160, "max_audio_seconds": 600, "max_video_seconds": 600}
        settings = ServingSettings(Path(folder) / "workspace", **limits)
        for entry in catalog(Path(folder), mutations):
            counts.setdefault(entry.group, Counter())[outcome(entry, settings)] += 1
    return counts


def table(counts: dict[str, Counter]) -> str:
    """Markdown, with a line for all together."""
    lines = [f"| input | number | {' | '.join(OUTCOMES)} |", "|---" * (len(OUTCOMES) + 2) + "|"]
    for group, found in [*counts.items(), ("**all**", sum(counts.values(), Counter()))]:
        lines.append(f"| {group} | {found.total()} | {' | '.join(str(found[name]) for name in OUTCOMES)} |")
    return "\n".join(lines)


def mutated(path: Path, number: int, seed: int) -> Iterator[Path]:
    """Versions of a file with up to 11 changed bytes, some of them cut off, one after another under the same name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_source(path)
    content, random = path.read_bytes(), np.random.default_rng(seed)
    for _ in range(number):
        data = bytearray(content)
        for place in random.integers(0, min(len(data), 2000), random.integers(1, 12)):
            data[place] = random.integers(0, 256)
        path.write_bytes(data[: random.integers(1, len(data) + 1)] if random.random() < 0.3 else data)
        yield path


def _write_source(path: Path) -> None:
    if path.suffix in (".mp4", ".mkv"):
        write_clip(path, 5, tone_seconds=0.3)
    elif path.suffix == ".webm":
        write_clip(path, 3, codec="libvpx")
    elif path.suffix == ".flac":
        write_audio(path, tone(8000, 0.5), 8000, codec="flac")
    elif path.suffix == ".webp":
        write_webp(path, 64, 48, [40] * 5)
    else:
        Image.new("RGB", (64, 48)).save(path)


def _playlists(folder: Path) -> Iterator[Input]:
    folder.mkdir()
    write_clip(folder / "clip.mp4", 2)
    os.mkfifo(folder / "pipe")
    for role in ("video", "audio"):
        yield Input("named pipe", role, folder / "pipe", refuse=True)
    for text in PLAYLISTS.values():
        for name in NAMES:
            (folder / name).write_text(text.format(name=name))
            for role in ("video", "audio"):
                yield Input("playlists and texts that name files", role, folder / name, refuse=True)


def _oversized(folder: Path) -> Iterator[Input]:
    folder.mkdir()
    writers: dict[str, Callable[[Path], object]] = {
        "wide.png": lambda path: Image.new("1", (20_000, 20_000)).save(path),
        "wide.webp": lambda path: write_webp(path, 13_000, 13_000, [40]),
        "long.webp": lambda path: write_webp(path, 8, 8, [60_000] * 200),
        "bomb.gif": _gif_bomb,
        "holes.mkv": lambda path: write_gaps(path, 3, 5_000),
        "channels.wav": lambda path: write_raw_wav(path, 200, 16_000, 100),
        "rate.wav": lambda path: write_raw_wav(path, 1, 2**31 - 1, 100),
        "slow.wav": lambda path: write_raw_wav(path, 1, 1, 100_000),
    }
    for name, write in writers.items():
        write(folder / name)
        role = "audio" if name.endswith((".wav", ".mkv")) else "video"
        yield Input("beyond a limit", role, folder / name, refuse=True)


def _gif_bomb(path: Path) -> None:
    Image.new("L", (4, 4)).save(path)
    data = bytearray(path.read_bytes())
    data[6:10] = struct.pack("<HH", 65535, 65535)
    path.write_bytes(data)


def _no_media(folder: Path) -> Iterator[Input]:
    folder.mkdir()
    write_clip(folder / "clip.mp4", 5)
    contents = {
        "empty": b"",
        "html": b"<html><script>alert(1)</script></html>",
        "zip": b"PK\x03\x04" + bytes(5000),
        "zeros": bytes(100_000),
        "noise": np.random.default_rng(0).bytes(200_000),
        "half": (folder / "clip.mp4").read_bytes()[:500],
        "nested": b"[" * 100_000,
        "jpeg": b"\xff\xd8\xff\xe0" + bytes(100),
        "riff": b"RIFF\xff\xff\xff\xffWAVEfmt ",
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
        for role in ("video", "audio"):
            yield Input("no media, or cut off", role, folder / name, refuse=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=300, help="of each kind of file (default: %(default)s)")
    counts = count(parser.parse_args().mutations)
    print(table(counts))
    return int(any(found[name] for found in counts.values() for name in OUTCOMES if name not in GOOD))


if __name__ == "__main__":
    sys.exit(main())
