"""Count the outcomes of the command lines for odd and hostile inputs: `python -m tests.scripts.odd_inputs`.

Writes one input of each kind, runs the command on it, with random models small enough to run in milliseconds, and
prints a table. Exit code 1 if a command raises, prints more than one line of error, takes longer than `HANG_SECONDS`,
or ends in another way than expected.
"""

import argparse
import faulthandler
import io
import os
import pickle
import signal
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from tests.media.synthetic import tone, write_audio, write_clip, write_frames
from tests.media.untrusted import write_raw_wav
from tests.pipelines.scenes import draw_scene, head
from tests.scripts.odd_media import odd_audio, odd_videos
from tests.tiny_model import TinyFiles, write_tiny_model

HANG_SECONDS = 300
DONE, REFUSED, USAGE = 0, 1, 2
EITHER = (DONE, REFUSED)
MAX_LINE = 600
OUTCOMES = ("result", "clear error", "wrong outcome", "traceback", "unclear error", "hang")
FACE = Image.fromarray(head())


class Hang(BaseException):
    """A command took too long; not caught by handlers of Exception."""


@dataclass(frozen=True)
class Case:
    """A command line. expect: the exit codes that are right."""

    group: str
    name: str
    words: tuple[str, ...]
    expect: tuple[int, ...] = EITHER


class Bench:
    """A folder with the inputs, and the words that the cases share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tiny = folder / "tiny"
        tiny.mkdir()
        self.model: TinyFiles = write_tiny_model(tiny)
        self.face = self.image("face.png")
        self.voice = folder / "voice.wav"
        write_audio(self.voice, tone(16000, 0.2))

    def image(self, name: str, image: Image.Image = FACE, **options) -> Path:
        image.save(self.folder / name, **options)
        return self.folder / name

    def file(self, name: str | bytes, content: bytes | str) -> Path:
        path = self.folder / os.fsdecode(name)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def infer(self, *words: object, video: object = None, audio: object = None, out: object = "out.mp4") -> list[str]:
        return [
            "infer", *self.model.options, "--quiet", "--min_face=20", "--max_seconds=0.2",
            f"--video_path={video or self.face}", f"--audio_path={audio or self.voice}",
            f"--video_out_path={self.folder / str(out)}", *map(str, words),
        ]  # fmt: skip


def write_stream(
    path: Path,
    images: list[np.ndarray],
    codec: str,
    pix_fmt: str,
    rate: Fraction | int = 25,
    stamps: list[int] | None = None,
    with_audio: bool = False,
    **options: str,
) -> Path:
    """A video of images (H, W, 3) with any codec, pixel format, rate and stamps (in frames)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pix_fmt
        if with_audio:
            voice = container.add_stream("aac", rate=16000, layout="mono")
            write_frames(container, voice, tone(16000, 0.4), 16000, "mono")
        for index, pixels in enumerate(images):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24").reformat(format=pix_fmt)
            frame.pts = index
            frame.time_base = 1 / Fraction(rate)
            packets = stream.encode(frame)
            for packet in packets if stamps else ():
                packet.pts = packet.dts = stamps[packet.pts]  # encoders refuse some stamps, containers do not
            container.mux(packets)
        container.mux(stream.encode(None))
    return path


def still_images(bench: Bench) -> Iterator[tuple[str, Path, tuple[int, ...]]]:
    """Still images: sizes, modes, depths, animations, damage."""
    yield "1x1", bench.image("1x1.png", Image.new("RGB", (1, 1))), (REFUSED,)
    yield "2x1", bench.image("2x1.png", Image.new("RGB", (2, 1))), (REFUSED,)
    yield "16384x2", bench.image("wide.png", Image.new("RGB", (16384, 2))), (REFUSED,)
    yield "16384x16384", bench.image("huge.png", Image.new("1", (16384, 16384))), (REFUSED,)
    yield "121x119", bench.image("odd.png", FACE.resize((121, 119))), (DONE,)
    alpha = FACE.convert("RGBA")
    alpha.putalpha(128)
    yield "alpha", bench.image("alpha.png", alpha), (DONE,)
    yield "palette, transparent", bench.image("palette.png", FACE.quantize(64), transparency=0), (DONE,)
    gray16 = Image.fromarray(np.asarray(FACE.convert("L")).astype(np.uint16) * 257)
    yield "16-bit gray", bench.image("gray16.png", gray16), (DONE,)
    yield "CMYK", bench.image("cmyk.jpg", FACE.convert("CMYK")), (DONE,)
    yield "gray with alpha", bench.image("la.png", alpha.convert("LA")), (DONE,)
    for turn in (2, 6):
        tags = Image.Exif()
        tags[274] = turn
        stored = FACE.transpose(Image.Transpose.ROTATE_90 if turn == 6 else Image.Transpose.FLIP_LEFT_RIGHT)
        yield f"Exif orientation {turn}", bench.image(f"exif{turn}.jpg", stored, exif=tags), (DONE,)
    moving = [FACE.rotate(angle) for angle in (0, 3, 6)]
    for suffix in ("png", "gif", "webp"):
        animation = bench.image(f"moving.{suffix}", moving[0], save_all=True, append_images=moving[1:], duration=80)
        yield f"animated {suffix}", animation, (DONE,)
    yield "1-bit TIFF", bench.image("one.tif", FACE.convert("1")), EITHER
    yield "TIFF of two pages", bench.image("pages.tif", FACE, save_all=True, append_images=[FACE]), (DONE,)
    yield "float TIFF", bench.image("float.tif", FACE.convert("F")), EITHER
    yield "Lab TIFF", bench.image("lab.tif", FACE.convert("LAB")), EITHER
    yield "broken color profile", bench.image("icc.png", FACE, icc_profile=b"\xff" * 300), (DONE,)
    jpeg = io.BytesIO()
    FACE.save(jpeg, "JPEG")
    yield "half a JPEG", bench.file("half.jpg", jpeg.getvalue()[: len(jpeg.getvalue()) // 2]), EITHER
    bitmap = bytearray(b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54 + 3072, 0, 0, 54, 40, 32, -32, 1, 24, *[0] * 6))
    yield "BMP of negative height", bench.file("down.bmp", bytes(bitmap) + bytes(3072)), (REFUSED,)
    text = zlib.compress(b"a" * 200_000_000, 9)
    chunk = b"zTXtcomment\0\0" + text
    png = bench.face.read_bytes()
    bomb = png[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:]
    yield "PNG with a text of 200 MB", bench.file("text.png", bomb), EITHER


def videos(bench: Bench) -> Iterator[tuple[str, Path, tuple[int, ...]]]:
    """Videos: pixel formats, rates, stamps, streams, containers."""
    shown = [draw_scene(((16 + index, 0),)) for index in range(6)]
    odd = [pixels[:119, :159] for pixels in shown]

    def made(name: str, *args, images: list[np.ndarray] = shown, **options) -> Path:
        return write_stream(bench.folder / name, images, *args, **options)

    yield "odd size, 4:4:4", made("odd444.mkv", "ffv1", "yuv444p", images=odd), (DONE,)
    yield "gbrp", made("gbrp.avi", "utvideo", "gbrp"), (DONE,)
    for pix_fmt in ("yuva420p", "gray", "gray10le", "yuv420p10le", "yuv411p", "bgra", "rgb48le"):
        yield pix_fmt, made(f"{pix_fmt}.mkv", "ffv1", pix_fmt), (DONE,)
    yield "1000 frames/s", made("fast.mkv", "ffv1", "yuv420p", rate=1000, images=shown * 20), (DONE,)
    yield "a frame in 10 s", made("slow.mkv", "ffv1", "yuv420p", rate=Fraction(1, 10)), (DONE,)
    yield "negative stamps", made("negative.mkv", "mpeg4", "yuv420p", stamps=[-3, -2, -1, 0, 1, 2]), EITHER
    yield (
        "a first stamp of 11 days",
        made("late.mkv", "ffv1", "yuv420p", stamps=[25_000_000 + i for i in range(6)]),
        (DONE,),
    )
    yield "a gap of 100 s", made("gap.mkv", "ffv1", "yuv420p", stamps=[0, 1, 2, 2500, 2501, 2502]), (DONE,)
    yield "nobody", made("nobody.mkv", "ffv1", "yuv420p", images=[np.zeros_like(shown[0])] * 6), (REFUSED,)
    yield "4x4", made("small.mkv", "ffv1", "yuv420p", images=[pixels[:4, :4] for pixels in shown]), (REFUSED,)
    yield "one frame", made("one.mp4", "mpeg4", "yuv420p", images=shown[:1]), (DONE,)
    yield "MPEG-TS", made("a.ts", "mpeg2video", "yuv420p", with_audio=True), (DONE,)
    stream = (bench.folder / "a.ts").read_bytes()
    yield "MPEG-TS from its middle", bench.file("middle.ts", stream[1000:]), EITHER
    yield "Motion JPEG AVI", made("a.avi", "mjpeg", "yuvj420p"), (DONE,)
    yield "YUV4MPEG", made("a.y4m", "rawvideo", "yuv420p"), EITHER
    first = made("a.h264", "libx264", "yuv420p").read_bytes()
    second = made("b.h264", "libx264", "yuv420p", images=[np.kron(p, np.ones((2, 2, 1), np.uint8)) for p in shown])
    yield "raw H.264", bench.folder / "a.h264", (DONE,)
    yield "a size that changes", bench.file("change.h264", first + second.read_bytes()), EITHER
    clip = write_clip(bench.folder / "clip.mp4", 6, images=shown, size=(160, 120), tone_seconds=0.24)
    data = clip.read_bytes()
    yield "an MP4 with 1 GB of zeros promised", bench.file("promise.mp4", data + b"\x3f\xff\xff\xffmdat"), EITHER
    yield "an MP4 twice in a row", bench.file("twice.mp4", data + data), EITHER
    yield "boxes nested in themselves", bench.file("nest.mp4", data[:32] + b"\x00\x00\x00\x00moov" * 5000), (REFUSED,)
    write_audio(bench.folder / "only.m4a", tone(16000, 0.3), 16000, codec="aac")
    yield "audio alone", bench.folder / "only.m4a", (REFUSED,)
    yield "subtitles alone", bench.file("a.srt", "1\n00:00:00,000 --> 00:00:02,000\nhello\n"), (REFUSED,)
    yield "a stream without a frame", _silent_stream(bench.folder / "header.mkv"), (REFUSED,)
    yield from odd_videos(bench.folder, write_stream)


def _silent_stream(path: Path) -> Path:
    """A video stream without a frame, and audio."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        voice = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        write_frames(container, voice, tone(16000, 0.3), 16000, "mono")
    return path


def audio_files(bench: Bench) -> Iterator[tuple[str, Path, tuple[int, ...]]]:
    """Audio: rates, channels, depths, values, damage."""

    def made(name: str, rate: int, codec: str, samples: np.ndarray | None = None, layout: str = "mono") -> Path:
        write_audio(
            bench.folder / name, tone(rate, 0.3) if samples is None else samples, rate, layout=layout, codec=codec
        )
        return bench.folder / name

    for rate in (4000, 11025, 96000, 192000):
        yield f"{rate} Hz", made(f"{rate}.wav", rate, "pcm_s16le"), (DONE,)
    for codec in ("pcm_alaw", "pcm_u8", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le"):
        yield codec, made(f"{codec}.wav", 8000, codec), (DONE,)
    yield "6 channels", made("six.wav", 48000, "pcm_s16le", np.tile(tone(48000, 0.3), (6, 1)), "5.1"), (DONE,)
    broken = np.full(4800, np.nan, np.float32)
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + 19200, b"WAVE", b"fmt ", 16, 3, 1, 16000, 64000, 4, 32, b"data", 19200
    )
    yield "not-a-number samples", bench.file("nan.wav", header + broken.tobytes()), (DONE,)
    yield "infinite samples", bench.file("inf.wav", header + np.full(4800, np.inf, np.float32).tobytes()), (DONE,)
    yield "no sample", write_raw_wav(bench.folder / "none.wav", 1, 16000, 0), (REFUSED,)
    yield "one sample", write_raw_wav(bench.folder / "single.wav", 1, 16000, 1), EITHER
    yield "a length of 4 GB", write_raw_wav(bench.folder / "liar.wav", 1, 16000, 4000, 2**32 - 100), (DONE,)
    yield "silence", made("silence.wav", 16000, "pcm_s16le", np.zeros(4800, np.float32)), (DONE,)
    yield "Opus in WebM", made("a.webm", 48000, "libopus"), (DONE,)
    mp3 = made("a.mp3", 16000, "libmp3lame").read_bytes()
    other = made("b.mp3", 44100, "libmp3lame").read_bytes()
    yield "a rate that changes", bench.file("change.mp3", mp3 + other), (DONE,)
    yield (
        "MP3 after a tag of 1 MB",
        bench.file("tag.mp3", b"ID3\x04\0\0\0\x3f\x7f\x7f" + bytes(1_048_447) + mp3),
        EITHER,
    )
    yield "an image", bench.face, (REFUSED,)
    clip = write_clip(bench.folder / "mute.mp4", 3)
    yield "a video without audio", clip, (REFUSED,)
    yield from odd_audio(bench.folder)


def names(bench: Bench) -> Iterator[tuple[str, list[str], tuple[int, ...]]]:
    """File names, folders, links, devices, disks."""
    content = bench.face.read_bytes()
    for label, name in (
        ("a line break", b"a\nb.png"),
        ("a per cent sign", b"100%d.png"),
        ("brackets", b"a[1]*?.png"),
        ("an emoji", "\N{GRINNING FACE}.png".encode()),
        ("bytes that are no text", b"\xff\xfe.png"),
        ("a colon", b"concat:a.png"),
        ("250 characters", b"n" * 246 + b".png"),
    ):
        yield f"a name with {label}", bench.infer(video=bench.file(name, content)), (DONE,)
    (bench.folder / "loop").symlink_to(bench.folder / "loop")
    (bench.folder / "dangling.mp4").symlink_to(bench.folder / "nowhere" / "x.mp4")
    yield "a link to itself", bench.infer(video=bench.folder / "loop"), (REFUSED,)
    yield "a folder", bench.infer(video=bench.folder), (REFUSED,)
    yield "/dev/zero", bench.infer(video="/dev/zero"), (REFUSED,)
    yield "/proc/self/mem", bench.infer(video="/proc/self/mem"), (REFUSED,)
    yield "a name of 300 characters", bench.infer(video="v" * 300), (REFUSED,)
    yield "a result into a dangling link", bench.infer(out="dangling.mp4"), (REFUSED,)
    yield "a result over the link to itself", bench.infer(out="loop"), (REFUSED,)
    yield "a result on /sys", bench.infer(out="/sys/out.mp4"), (REFUSED,)
    yield "a result named as the input", bench.infer(video=bench.folder / "clip.mp4", out="clip.mp4"), (REFUSED,)
    yield "a result of 300 characters", bench.infer(out="o" * 300 + ".mp4"), (REFUSED,)
    yield "a report in a missing folder", bench.infer("--report", bench.folder / "no" / "r.json"), EITHER
    yield "a report on /sys", bench.infer("--report", "/sys/r.json"), (REFUSED,)
    yield "a temp_dir that is a file", bench.infer("--temp_dir", bench.face), (REFUSED,)


def settings(bench: Bench) -> Iterator[tuple[str, list[str], tuple[int, ...]]]:
    """Config files, checkpoints, scripts, masks."""
    for label, content in (
        ("binary", bytes(range(256))),
        ("in UTF-16", "seed: 3\n".encode("utf-16")),
        ("that is a list", b"- 1\n- 2\n"),
        ("with a Python object", b"seed: !!python/object/apply:os.system ['true']\n"),
        ("that contains itself", b"&a [*a]\n"),
        ("with a name twice", b"seed: 3\nseed: 4\n"),
        ("with a tab", b"seed:\t3\n\tsolver: x\n"),
    ):
        yield f"a config {label}", bench.infer("--config", bench.file("c.yaml", content)), EITHER

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(bench.folder / "executed"),)

    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("unet/data.pkl", bytes(50_000_000))
    for label, name, content in (
        ("that is empty", "u.pt", b""),
        ("that is text", "u.pt", b"not a checkpoint"),
        ("that runs code", "u.pt", pickle.dumps(Evil())),
        ("that is a zip of zeros", "u.pt", archive.getvalue()),
        ("with a header of 2^60 bytes", "u.safetensors", struct.pack("<Q", 2**60) + b"{}"),
        ("with a header that is no JSON", "u.safetensors", struct.pack("<Q", 4) + b"\xff\xff\xff\xff"),
        ("cut off", "u.pt", bench.model.unet.read_bytes()[:5000]),
    ):
        yield f"a checkpoint {label}", bench.infer("--inference_ckpt_path", bench.file(name, content)), (REFUSED,)
    yield "a checkpoint that is a folder", bench.infer("--inference_ckpt_path", bench.folder), (REFUSED,)
    for label, name, content in (
        ("with a NUL", "s.csv", b"start,end,face,audio\n0,1,left,\0voice.wav\n"),
        ("in Latin-1", "s.csv", b"start,end,face,audio\n0,1,left,voil\xe0.wav\n"),
        ("without rows", "s.csv", b"start,end,face,audio\n"),
        ("with quotes left open", "s.csv", b'start,end,face,audio\n0,1,left,"voice.wav\n'),
        ("that runs backward", "s.csv", b"start,end,face,audio\n2,1,largest,voice.wav\n"),
        ("with a start that is no number", "s.json", b'[{"start": NaN, "face": "left", "audio": "voice.wav"}]'),
        ("with a field of 1 MB", "s.csv", b"start,end,face,audio\n0,1,left," + b"x" * 1_000_000),
        ("nested too deep", "s.json", b"[" * 100_000),
        ("with a huge number", "s.json", b'[{"start": 1' + b"0" * 5000 + b', "face": "left", "audio": "voice.wav"}]'),
    ):
        words = [word for word in bench.infer("--script", bench.file(name, content)) if "audio_path" not in word]
        yield f"a script {label}", words, (REFUSED,)
    tiny = bench.image("mask1.png", Image.new("L", (1, 1)))
    yield "a mask of 1x1", bench.infer("--mask_image_path", tiny), (REFUSED,)
    yield "a mask that is a video", bench.infer("--mask_image_path", bench.folder / "clip.mp4"), (REFUSED,)
    yield "a frame rate of 1/0", bench.infer("--video_fps", "1/0"), (REFUSED, USAGE)
    yield "a seed of 400 digits", bench.infer("--seed", "9" * 400), (REFUSED, USAGE)
    yield "a face at infinity", bench.infer("--face", "inf,nan"), (REFUSED, USAGE)
    yield (
        "a voice that is an image",
        [*(word for word in bench.infer("--text", "hello", "--voice", bench.face) if "audio_path" not in word)],
        (REFUSED,),
    )


def others(bench: Bench) -> Iterator[tuple[str, list[str], tuple[int, ...]]]:
    """The other commands: lists, folders, models."""
    odd = {
        "binary": bytes(range(256)) * 10,
        "empty": b"",
        "a header alone": b"video,audio,out\n",
        "NUL": b"video,audio,out\na\0,b,c.mp4\n",
        "two rows for one result": b"video,audio,out\nface.png,voice.wav,o.mp4\nface.png,voice.wav,o.mp4\n",
        "a long row": b"video,audio,out\n" + b",".join([b"x"] * 5000) + b"\n",
    }
    for label, content in odd.items():
        path = bench.file("list.csv", content)
        yield (
            f"batch: a list: {label}",
            ["batch", "--list", str(path), "--quiet", *bench.model.options[:0]],
            (1, 2, 3, 4),
        )
        out = str(bench.folder / "eval")
        yield f"eval: pairs: {label}", ["eval", "run", "--pairs", str(path), "--output_dir", out], (1, 2)
    yield "batch: a list that is a folder", ["batch", "--list", str(bench.folder)], (1, 2)
    yield (
        "batch: a pattern without files",
        ["batch", "--videos", f"{bench.folder}/absent*", "--audio", str(bench.voice), "--out", str(bench.folder / "b")],
        (1, 2),
    )
    nothing = bench.folder / "nothing"
    nothing.mkdir()
    yield (
        "preprocess: an empty folder",
        ["preprocess", "--input_dir", str(nothing), "--output_dir", str(bench.folder / "p0")],
        EITHER,
    )
    yield (
        "preprocess: a file",
        ["preprocess", "--input_dir", str(bench.face), "--output_dir", str(bench.folder / "p1")],
        (REFUSED,),
    )
    yield (
        "preprocess: into /sys",
        ["preprocess", "--input_dir", str(bench.folder), "--output_dir", "/sys/p"],
        (REFUSED,),
    )
    yield "preprocess: an unknown step", ["preprocess", "--input_dir", str(nothing), "--steps", "a\nb"], (1, 2)
    yield "eval: a folder as video", ["eval", "sync-conf", "--videos_dir", str(nothing)], (1, 2)
    yield (
        "eval: FVD of empty folders",
        ["eval", "fvd", "--real_videos_dir", str(nothing), "--fake_videos_dir", str(nothing)],
        (1, 2),
    )
    yield "download: an unknown model", ["download", "no-such-model"], (1, 2)
    yield "people: no media", ["people", str(bench.file("x.mp4", b"x"))], (1, 2)
    yield "people: nobody", ["people", str(bench.folder / "nobody.mkv")], EITHER


def cases(bench: Bench) -> Iterator[Case]:
    """All cases, one after another: a file may replace that of an earlier one."""
    for name, path, expect in still_images(bench):
        yield Case("image", name, tuple(bench.infer(video=path)), expect)
    for name, path, expect in videos(bench):
        yield Case("video", name, tuple(bench.infer(video=path)), expect)
    for name, path, expect in audio_files(bench):
        yield Case("audio", name, tuple(bench.infer(audio=path)), expect)
    for group, some in (("name, folder, disk", names), ("settings, weights", settings), ("other commands", others)):
        for name, words, codes in some(bench):
            yield Case(group, name, tuple(words), codes)


def outcome(case: Case) -> tuple[str, str]:
    """One of `OUTCOMES`, and what was printed to standard error."""
    from latentsync.cli import main

    shown = io.StringIO()
    previous = signal.signal(signal.SIGALRM, _hang)
    signal.alarm(HANG_SECONDS)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(shown):
            code = main(list(case.words))
    except SystemExit as stop:
        code = int(stop.code or 0)
    except Hang:
        return "hang", shown.getvalue()
    except BaseException as error:  # what a user would see as a traceback
        return "traceback", f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    printed = shown.getvalue()
    errors = [line for line in printed.splitlines() if "error:" in line]
    if code not in case.expect:
        return "wrong outcome", f"exit code {code}: {printed}"
    if code == REFUSED and (len(errors) != 1 or len(errors[0]) > MAX_LINE or "Traceback" in printed):
        return "unclear error", printed
    return ("result" if code == DONE else "clear error"), printed


def _hang(signal_number: int, frame: object) -> None:
    raise Hang


@contextmanager
def one_detector() -> Iterator[None]:
    """All runs share MediaPipe's networks, whose start takes longer than a run."""
    from latentsync.faces import presence, video
    from latentsync.faces.factory import create_detector

    detector = create_detector("mediapipe")
    close, opened = detector.close, {module: module.create_detector for module in (presence, video)}

    def create(name: str = "", device: str = "", static: bool = False):
        detector.reset()
        detector.static = static
        return detector

    detector.close = lambda: None
    for module in opened:
        module.create_detector = create
    try:
        yield
    finally:
        for module, original in opened.items():
            module.create_detector = original
        close()


def table(counts: dict[str, Counter]) -> str:
    """Markdown, with a line for all together."""
    lines = [f"| input | number | {' | '.join(OUTCOMES)} |", "|---" * (len(OUTCOMES) + 2) + "|"]
    for group, found in [*counts.items(), ("**all**", sum(counts.values(), Counter()))]:
        lines.append(f"| {group} | {found.total()} | {' | '.join(str(found[name]) for name in OUTCOMES)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose group and name begin with this text")
    only = parser.parse_args().only
    faulthandler.enable()
    counts: dict[str, Counter] = {}
    with tempfile.TemporaryDirectory() as folder, one_detector():
        for case in cases(Bench(Path(folder))):
            if not f"{case.group}: {case.name}".startswith(only):
                continue
            began = time.monotonic()
            found, printed = outcome(case)
            counts.setdefault(case.group, Counter())[found] += 1
            last = printed.strip().splitlines()[-1][:200] if printed.strip() else ""
            print(f"{found:14} {time.monotonic() - began:6.1f} s  {case.group}: {case.name}: {last}", flush=True)
            if found in OUTCOMES[2:]:
                print(printed[-1500:], flush=True)
        if (Path(folder) / "executed").exists():
            print("a checkpoint ran code")
            return 1
    print(table(counts))
    return int(any(found[name] for found in counts.values() for name in OUTCOMES[2:]))


if __name__ == "__main__":
    sys.exit(main())
