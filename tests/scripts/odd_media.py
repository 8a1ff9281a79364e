"""More odd media for `odd_inputs`: containers, geometry, codecs, and files with misleading names."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from tests.media.synthetic import tone, write_audio, write_clip
from tests.pipelines.scenes import draw_scene

DONE, REFUSED = (0,), (1,)
EITHER = (0, 1)
Made = Iterator[tuple[str, Path, tuple[int, ...]]]
SHOWN = [draw_scene(((16 + index, 0),)) for index in range(6)]


def odd_videos(folder: Path, write_stream: Callable[..., Path]) -> Made:
    """Containers, display matrices, pixel shapes, sizes, several streams."""
    for name, codec, pix_fmt in (
        ("a.mov", "prores_ks", "yuv422p10le"), ("hevc.mp4", "libx265", "yuv420p"), ("v.webm", "libvpx-vp9", "yuv420p"),
        ("alpha.webm", "libvpx-vp9", "yuva420p"), ("a.flv", "flv", "yuv420p"), ("a.mpg", "mpeg1video", "yuv420p"),
        ("av1.mp4", "libsvtav1", "yuv420p"), ("a.nut", "ffv1", "yuv420p"), ("a.3gp", "mpeg4", "yuv420p"),
        ("a.mxf", "mpeg2video", "yuv420p"), ("png.mov", "png", "rgb24"), ("qtrle.mov", "qtrle", "rgb24"),
    ):  # fmt: skip
        if codec in av.codecs_available:
            yield f"{codec} in {Path(name).suffix[1:]}", write_stream(folder / name, SHOWN, codec, pix_fmt), DONE
    for angle in (90, 180, 270, 45, -3):
        turned = [np.ascontiguousarray(np.rot90(pixels, round(angle / 90))) for pixels in SHOWN]
        path = folder / f"turned{angle}.mp4"
        size = turned[0].shape[1::-1]
        yield f"turned by {angle}", write_clip(path, 6, images=turned, size=size, rotation=angle), EITHER
    for name, rate in (("23.976", Fraction(24000, 1001)), ("12.5", Fraction(25, 2)), ("7/3", Fraction(7, 3))):
        path = folder / f"rate{len(name)}.mp4"
        yield f"{name} frames/s", write_stream(path, SHOWN, "mpeg4", "yuv420p", rate=rate), DONE
    for ratio in (Fraction(4, 3), Fraction(16, 1), Fraction(1, 100)):
        yield f"pixels of {ratio}", _pixels(folder / "sar.mkv", ratio), EITHER
    for width, height in ((1, 120), (120, 1), (2, 2), (6000, 16), (16, 6000)):
        still = [np.full((height, width, 3), 90, np.uint8)] * 3
        path = write_stream(folder / "size.mov", still, "png", "rgb24")
        yield f"{width}x{height}", path, REFUSED
    clip = write_clip(folder / "named.mp4", 6, images=SHOWN, size=(160, 120))
    for name in ("clip.png", "clip.wav", "clip.txt", "clip", "clip.mp4.exe", ".mp4", "clip.ffconcat", "-clip.mp4"):
        path = folder / name
        path.write_bytes(clip.read_bytes())
        yield f"an MP4 named {name}", path, DONE
    stamps = [0, 1, 1, 2, 2, 3]
    yield "stamps twice", write_stream(folder / "same.mkv", SHOWN, "mjpeg", "yuvj420p", stamps=stamps), EITHER
    yield "two video streams", _two_streams(folder / "two.mkv"), DONE
    half = bytearray(clip.read_bytes())
    half[len(half) // 3 : len(half) // 2] = bytes(len(half) // 2 - len(half) // 3)
    (folder / "holes.mp4").write_bytes(half)
    yield "a hole in the middle", folder / "holes.mp4", EITHER
    first, second = (write_clip(folder / f"part{n}.ts", 25, images=SHOWN * 5, size=(160, 120), tone_seconds=1.0)
                     for n in range(2))  # fmt: skip
    (folder / "joined.ts").write_bytes(first.read_bytes() + second.read_bytes())
    yield "recordings joined in one MPEG-TS", folder / "joined.ts", DONE
    cipher = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "76" * 16, "encryption_kid": "a7" * 16}
    locked = write_clip(folder / "locked.mp4", 6, images=SHOWN, size=(160, 120), container_options=cipher)
    yield "an encrypted MP4", locked, REFUSED
    fragments = {"movflags": "frag_keyframe+empty_moov"}
    fragmented = write_clip(folder / "frag.mp4", 6, images=SHOWN, size=(160, 120), container_options=fragments)
    yield "a fragmented MP4", fragmented, DONE
    data = fragmented.read_bytes()
    (folder / "frag_cut.mp4").write_bytes(data[: len(data) * 3 // 4])
    yield "half a fragmented MP4", folder / "frag_cut.mp4", EITHER


def odd_audio(folder: Path) -> Made:
    """Codecs, channels, and files with misleading names."""
    voice = tone(16000, 0.3)
    for name, codec, rate in (
        ("ms.wav", "adpcm_ms", 16000), ("ima.wav", "adpcm_ima_wav", 16000), ("a.aac", "aac", 16000),
        ("a.aiff", "pcm_s16be", 16000), ("a.au", "pcm_mulaw", 8000), ("a.ac3", "ac3", 48000), ("a.eac3", "eac3", 48000),
        ("a.caf", "alac", 16000), ("a.mp2", "mp2", 16000), ("a.opus", "libopus", 48000), ("a.w64", "pcm_s16le", 16000),
        ("a.tta", "tta", 16000), ("a.wv", "wavpack", 16000), ("a.mka", "flac", 16000), ("a.g722.wav", "g722", 16000),
    ):  # fmt: skip
        if codec in av.codecs_available:
            path = folder / name
            try:
                write_audio(path, tone(rate, 0.3), rate, codec=codec)
            except (av.error.FFmpegError, ValueError):  # a container that this build of libav cannot write
                continue
            yield f"{codec} in {path.suffix[1:]}", path, EITHER if name.endswith((".au", "g722.wav", ".mp2")) else DONE
    right = np.stack([np.zeros_like(voice), voice])
    write_audio(folder / "right.wav", right, 16000, layout="stereo", codec="pcm_s16le")
    yield "the right channel alone", folder / "right.wav", DONE
    opposite = np.stack([voice, -voice])
    write_audio(folder / "opposite.wav", opposite, 16000, layout="stereo", codec="pcm_s16le")
    yield "channels that cancel out", folder / "opposite.wav", DONE
    slow = write_audio(folder / "slow.aac", voice, 16000, codec="aac").read_bytes()
    fast = write_audio(folder / "fast.aac", np.stack([voice, voice]), 44100, "stereo", "aac").read_bytes()
    (folder / "changes.aac").write_bytes(slow + fast)
    yield "AAC whose rate and channels change", folder / "changes.aac", DONE
    parts = (write_audio(folder / f"{layout}.opus", np.tile(tone(48000, 0.3), (number, 1)), 48000, layout, "libopus")
             for number, layout in ((1, "mono"), (2, "stereo")))  # fmt: skip
    (folder / "chained.opus").write_bytes(b"".join(part.read_bytes() for part in parts))
    yield "chained Opus", folder / "chained.opus", DONE
    write_audio(folder / "eight.wav", np.tile(tone(48000, 0.3), (8, 1)), 48000, layout="7.1", codec="pcm_s16le")
    yield "8 channels", folder / "eight.wav", DONE
    write_audio(folder / "plain.wav", voice, 16000, codec="pcm_s16le")
    wav = (folder / "plain.wav").read_bytes()
    for name, content in (
        ("plain.mp3", wav), ("plain.mp4", wav), ("plain", wav), ("odd length.wav", wav[:-1]),
        ("no data chunk.wav", wav[:36]), ("no block size.wav", wav[:32] + b"\0\0" + wav[34:]),
        ("no channels.wav", wav[:22] + b"\0\0" + wav[24:]), ("no rate.wav", wav[:24] + bytes(4) + wav[28:]),
        ("named MP3 in its header.wav", wav[:20] + b"\x55\0" + wav[22:]),
        ("a second header.wav", wav + wav), ("garbage first.wav", b"\0" * 300 + wav),
    ):  # fmt: skip
        (folder / name).write_bytes(content)
        yield f"a WAV: {name}", folder / name, EITHER


def _pixels(path: Path, ratio: Fraction) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        stream.codec_context.sample_aspect_ratio = ratio
        for pixels in SHOWN:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        container.mux(stream.encode(None))
    return path


def _two_streams(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("ffv1", rate=25) for _ in range(2)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for pixels in SHOWN:
            for stream in streams:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        for stream in streams:
            container.mux(stream.encode(None))
    return path
