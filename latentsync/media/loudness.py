"""Loudness of audio by EBU R 128, measured by FFmpeg's filter."""

from collections.abc import Iterator
from fractions import Fraction

import av
from av.filter import Graph

from latentsync.media.audio import resampled
from latentsync.media.audio_frames import filtered
from latentsync.media.audio_stream import AudioSource, decoded_frames

RATE = 48_000
BLOCK = 4800  # samples
QUIETEST = -70.0  # LUFS: the absolute gate; nothing quieter is measured


def integrated_loudness(source: AudioSource) -> float | None:
    """Integrated loudness in LUFS; None for silence, or less than 0.4 s."""
    graph = Graph()
    entry = graph.add_abuffer(sample_rate=RATE, format="flt", layout="stereo", time_base=Fraction(1, RATE))
    graph.link_nodes(entry, graph.add("ebur128", "metadata=1"), graph.add("abuffersink")).configure()
    loudness = QUIETEST
    for frame in filtered(graph, _frames(source)):
        loudness = float(frame.metadata.get("lavfi.r128.I", loudness))
    return None if loudness <= QUIETEST else loudness


def _frames(source: AudioSource) -> Iterator[av.AudioFrame | None]:
    """The audio as the filter takes it, to its end; None at last."""
    position = 0
    for frame in resampled(decoded_frames(source.path, source.track, source.delay), "flt", "stereo", RATE, BLOCK):
        if source.seconds is not None and position >= source.seconds * RATE:
            break
        frame.pts, frame.time_base = position, Fraction(1, RATE)
        position += frame.samples
        yield frame
    yield None
