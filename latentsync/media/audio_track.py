"""The audio track of an output file: copied where its container can hold it as it is, otherwise encoded.

The encoder is AAC in .mp4 and .mov. In .mkv it is FLAC: Matroska has no edit list to hide AAC's encoder delay.
"""

import logging
import math
from collections.abc import Generator
from fractions import Fraction

import av
from av.audio.stream import AudioStream
from av.container import OutputContainer

from latentsync.media.audio import resampled
from latentsync.media.audio_frames import GAP_SECONDS, trimmed
from latentsync.media.audio_stream import (
    AudioSource,
    decoded_frames,
    first_audible,
    first_audio_stream,
    has_one_format,
)
from latentsync.media.paths import open_input
from latentsync.media.stamps import duration_of, starts_anew, time_of

logger = logging.getLogger(__name__)

_COMMON = frozenset({"aac", "mp3", "ac3", "eac3", "alac"})
_PCM = frozenset({"pcm_s16le", "pcm_s24le", "pcm_s32le"})
COPIED_CODECS = {
    ".mp4": _COMMON,
    ".mov": _COMMON | _PCM,
    ".mkv": _COMMON | _PCM | frozenset({"flac", "opus", "vorbis", "dts", "truehd", "mp2"}),
}

# Samples of encoder delay, at most; if more of the start is inaudible, an edit list has cut it away.
MAX_PRIMING = 2112
STAMP_ROUNDING = Fraction(1, 1000)  # seconds, of Matroska

# Layouts of the encoders by number of channels; other numbers are mixed to stereo.
_AAC_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 8: "7.1"}
_FLAC_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "quad", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
_MAX_FLAC_RATE = 655_350  # and a multiple of 10 beyond 16 bits
_BLOCK = 1024  # samples per frame handed to the encoder


class AudioTrack:
    """The audio stream of an output file, written in step with the video so that little is buffered.

    The first audible sample is due at the source's delay: encoder delay goes before it, where the containers hide it.
    Audio that an edit list cuts away is not in the file.
    """

    def __init__(
        self, output: OutputContainer, suffix: str, source: AudioSource, max_seconds: float | None = None
    ) -> None:
        """Add the stream to `output` (before its header is written); it ends at `max_seconds`.

        Raises UserError when the source has no audio.
        """
        self._output = output
        self._limit = source.cut(max_seconds).seconds
        self._source = source
        self._origin = first_audible(source.path, source.track)
        with open_input(source.path, "audio") as container:
            stream = first_audio_stream(container, source.path, source.track)
            name = stream.codec_context.codec.canonical_name
            self.is_copied = name in COPIED_CODECS[suffix] and self._can_copy(container, stream, suffix)
            self._packets: Generator[av.Packet]
            if self.is_copied:
                self._stream = output.add_stream_from_template(stream, opaque=True)
                self._packets = self._copied()
            else:
                self._stream = (_add_flac_stream if suffix == ".mkv" else _add_aac_stream)(output, stream)
                self._packets = self._encoded()
        self._next = next(self._packets, None)

    def mux_until(self, seconds: Fraction | float) -> None:
        """Write all packets that begin before `seconds`."""
        while self._next is not None and (time_of(self._next) or 0) < seconds:
            packet, self._next = self._next, next(self._packets, None)
            self._output.mux(packet)

    def finish(self) -> None:
        """Write the rest."""
        self.mux_until(math.inf)

    def close(self) -> None:
        """Close the input file."""
        self._packets.close()

    def _can_copy(self, container: av.container.InputContainer, stream: AudioStream, suffix: str) -> bool:
        """Whether the packets of the source, as they are, play from the first audible sample on."""
        if self._source.delay < 0 or (suffix == ".mkv" and self._limit is not None):
            return False  # packets cannot be cut, and Matroska does not hide the rest of the last one
        if any(entry.is_discard and entry.timestamp >= 0 for entry in stream.index_entries or ()):
            return False  # an edit list cuts out a later part
        first = next((packet for packet in container.demux(stream) if packet.pts is not None), None)
        hidden = Fraction(0) if first is None else self._origin - (time_of(first) or 0)
        codec = stream.codec_context
        # Matroska states the delay of the codec, which is copied from sources that state it too; it has no edit list.
        priming = int(codec.delay) if suffix == ".mkv" else MAX_PRIMING
        if hidden > Fraction(priming, codec.sample_rate) + STAMP_ROUNDING:
            return False
        return has_one_format(self._source.path, self._source.track, self._limit)  # the output states a single one

    def _encoded(self) -> Generator[av.Packet]:
        codec, source = self._stream.codec_context, self._source
        frames = resampled(
            decoded_frames(source.path, source.track, source.delay),
            codec.format.name,
            codec.layout.name,
            codec.sample_rate,
            _BLOCK,
        )
        limit = math.inf if self._limit is None else round(self._limit * codec.sample_rate)
        position = 0
        for frame in frames:
            if position >= limit:
                break
            frame = trimmed(frame, 0, int(min(frame.samples, limit - position)))
            frame.pts, frame.time_base = position, Fraction(1, codec.sample_rate)
            position += frame.samples
            yield from self._stream.encode(frame)
        yield from self._stream.encode(None)

    def _copied(self) -> Generator[av.Packet]:
        last_dts: int | None = None
        end = 0
        with open_input(self._source.path, "audio") as container:
            stream = first_audio_stream(container, self._source.path, self._source.track)
            tick = stream.time_base or Fraction(1, stream.codec_context.sample_rate)
            shift = round((self._source.delay - self._origin) / tick)
            try:
                for packet in container.demux(stream):
                    if packet.dts is None:  # the end marker
                        continue
                    if last_dts is not None:
                        step = (packet.dts - last_dts) * tick
                        if starts_anew(step, GAP_SECONDS):
                            shift += end - packet.dts
                        elif step <= 0:
                            continue  # no container takes a stamp that runs backward
                    last_dts, end = packet.dts, packet.dts + max(1, packet.duration or 0)
                    packet.pts = (packet.dts if packet.pts is None else packet.pts) + shift
                    packet.dts += shift
                    packet.stream = self._stream
                    if self._limit is not None:
                        remaining = self._limit - packet.pts * tick
                        if remaining <= 0:
                            return
                        if duration_of(packet) > remaining:
                            packet.duration = max(1, round(remaining / tick))
                    yield packet
            except av.error.FFmpegError as error:
                logger.warning("%s: reading the audio stopped early (%s)", self._source.path, error.strerror)


def _add_aac_stream(output: OutputContainer, source: AudioStream) -> AudioStream:
    """An AAC stream at the source's rate and channels, or the nearest that AAC has."""
    rates = av.codec.Codec("aac", "w").audio_rates or []
    wanted = source.codec_context.sample_rate
    rate = min((r for r in rates if r >= wanted), default=max(rates))
    layout = _AAC_LAYOUTS.get(source.codec_context.channels, "stereo")
    stream = output.add_stream("aac", rate=rate)
    stream.codec_context.layout = layout
    stream.codec_context.format = "fltp"
    # Transparent for speech and music; an AAC frame cannot hold more than 6 bits per sample.
    stream.codec_context.bit_rate = min(96_000, 4 * rate) * stream.codec_context.channels
    if rate != wanted:
        logger.info("audio at %d Hz is stored at %d Hz, the nearest that AAC has", wanted, rate)
    return stream


def _add_flac_stream(output: OutputContainer, source: AudioStream) -> AudioStream:
    """A FLAC stream at the source's rate and channels; 24 bits for uncompressed audio of more than 16, else 16."""
    codec = source.codec_context
    rate = codec.sample_rate
    if rate > 0xFFFF and (rate % 10 or rate > _MAX_FLAC_RATE):
        rate = 96_000
    stream = output.add_stream("flac", rate=rate)
    stream.codec_context.layout = _FLAC_LAYOUTS.get(codec.channels, "stereo")
    stream.codec_context.format = "s32" if codec.format.name in ("s32", "flt", "dbl") else "s16"
    return stream
