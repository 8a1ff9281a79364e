"""The sound of the output: copied as it is where the container takes its codec, else encoded to AAC."""

import logging
import math
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
from av.audio.stream import AudioStream
from av.container import OutputContainer

from latentsync.media.audio import decoded_frames, first_audio_stream, resampled
from latentsync.media.paths import check_input_path, open_input
from latentsync.utils.errors import UserError

logger = logging.getLogger(__name__)

_COMMON = frozenset({"aac", "mp3", "ac3", "eac3", "alac"})
_PCM = frozenset({"pcm_s16le", "pcm_s24le", "pcm_s32le"})
COPIED_CODECS = {
    ".mp4": _COMMON,
    ".mov": _COMMON | _PCM,
    ".mkv": _COMMON | _PCM | frozenset({"flac", "opus", "vorbis", "dts", "truehd", "mp2"}),
}

# Layouts of the AAC encoder by number of channels; other numbers are mixed to stereo.
_AAC_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 8: "7.1"}
_AAC_FRAME = 1024


class AudioTrack:
    """The audio stream of an output file, fed in step with the video so that little is buffered.

    The first audible sample lies at time 0: encoder delay goes before it, where the containers' edit lists hide it.
    """

    def __init__(
        self, output: OutputContainer, suffix: str, path: str | os.PathLike, max_seconds: float | None = None
    ) -> None:
        """Add the stream to `output` (before its header is written); packets from `max_seconds` on are left out.

        Raises UserError when `path` has no sound.
        """
        self._output = output
        self._limit = math.inf if max_seconds is None else max_seconds
        self._path = check_input_path(path, "audio")
        with open_input(self._path, "audio") as source:
            stream = first_audio_stream(source, self._path)
            self.is_copied = stream.codec_context.codec.canonical_name in COPIED_CODECS[suffix]
            if self.is_copied:
                self._stream = output.add_stream_from_template(stream, opaque=True)
                self._packets = self._copied()
            else:
                self._stream = _add_aac_stream(output, stream)
                self._packets = self._encoded()
        self._next = next(self._packets, None)

    def mux_until(self, seconds: Fraction | float) -> None:
        """Write all packets that begin before `seconds`, and before the limit."""
        seconds = min(seconds, self._limit)
        while self._next is not None and self._next.pts * self._next.time_base < seconds:
            packet, self._next = self._next, next(self._packets, None)
            self._output.mux(packet)

    def finish(self) -> None:
        """Write what is left, to the end of the sound."""
        self.mux_until(math.inf)

    def close(self) -> None:
        """Let go of the input file."""
        self._packets.close()

    def _encoded(self) -> Iterator[av.Packet]:
        codec = self._stream.codec_context
        frames = resampled(
            decoded_frames(self._path), codec.format.name, codec.layout.name, codec.sample_rate, _AAC_FRAME
        )
        position = 0
        for frame in frames:
            frame.pts, frame.time_base = position, Fraction(1, codec.sample_rate)
            position += frame.samples
            yield from self._stream.encode(frame)
        yield from self._stream.encode(None)

    def _copied(self) -> Iterator[av.Packet]:
        origin = _first_audible(self._path)
        last_dts: int | None = None
        with open_input(self._path, "audio") as source:
            stream = first_audio_stream(source, self._path)
            shift = round(origin / stream.time_base)
            try:
                for packet in source.demux(stream):
                    if packet.dts is None or (last_dts is not None and packet.dts <= last_dts):
                        continue  # the end marker, or a stamp that runs backward and no container takes
                    last_dts = packet.dts
                    packet.pts = (packet.dts if packet.pts is None else packet.pts) - shift
                    packet.dts -= shift
                    packet.stream = self._stream
                    yield packet
            except av.error.FFmpegError as error:
                logger.warning("%s: reading the audio stopped early (%s)", self._path, error.strerror)


def _first_audible(path: Path) -> Fraction:
    """Time stamp, in the file's own time, of the first sample a player gives (after encoder delay), in seconds."""
    with open_input(path, "audio") as container:
        stream = first_audio_stream(container, path)
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except MemoryError:
                raise
            except av.error.FFmpegError:  # a damaged packet
                continue
            if frames:
                frame = frames[0]
                return Fraction(0) if frame.pts is None else frame.pts * frame.time_base
    raise UserError(f"{path}: the audio has no samples; give a file with sound")


def _add_aac_stream(output: OutputContainer, source: AudioStream) -> AudioStream:
    """An AAC stream at the source's rate and channels, or the nearest that AAC has."""
    codec = av.codec.Codec("aac", "w")
    wanted = source.codec_context.sample_rate
    rate = min((r for r in codec.audio_rates if r >= wanted), default=max(codec.audio_rates))
    layout = _AAC_LAYOUTS.get(source.codec_context.channels, "stereo")
    stream = output.add_stream("aac", rate=rate)
    stream.layout = layout
    stream.codec_context.format = "fltp"
    # Transparent for speech and music; an AAC frame cannot hold more than 6 bits a sample.
    stream.bit_rate = min(96_000, 4 * rate) * stream.codec_context.channels
    if rate != wanted:
        logger.info("audio at %d Hz is stored at %d Hz, the nearest that AAC has", wanted, rate)
    return stream
