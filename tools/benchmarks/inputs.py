"""Inputs of the benchmarks: frames, clips and audio made from the demo's portrait and speech."""

import math
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import cv2
import numpy as np

from latentsync import constants
from latentsync.constants import SAMPLE_RATE
from latentsync.faces.align import TEMPLATE_ANCHORS, TEMPLATE_SIZE, similarity_from_anchors
from latentsync.faces.factory import create_detector
from latentsync.media.audio import load_audio
from latentsync.media.color import ColorTags
from latentsync.media.frame import VideoFrame
from latentsync.media.probe import first_video_stream
from latentsync.media.writer import VideoWriter
from latentsync.utils.paths import PROJECT_ROOT

PORTRAIT = PROJECT_ROOT / "assets" / "demo_portrait.png"
SPEECH = PROJECT_ROOT / "assets" / "demo_voice.wav"
FPS = Fraction(constants.FPS)

GRAIN = 1.5  # standard deviation of the luma noise in 8-bit steps, as of a good camera indoors
GRAIN_FIELDS = 8
PERIOD_SECONDS = 5.0  # of the motion; clips of whole periods loop seamlessly
SWAY = 0.02  # of the frame's width
TILT_DEGREES = 2.0
BT709_LIMITED = ColorTags(1, 1, 1, 1)
INPUT_CRF = 20.0


@cache
def _portrait() -> tuple[np.ndarray, np.ndarray]:
    """The portrait (H, W, 3) uint8 RGB and the anchors (3, 2) of its face."""
    image = cv2.cvtColor(cv2.imread(str(PORTRAIT), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    detector = create_detector("mediapipe", static=True)
    try:
        return image, detector.detect(image)[0].anchors
    finally:
        detector.close()


def portrait_frame(size: tuple[int, int], crop_width: float) -> tuple[VideoFrame, np.ndarray]:
    """A frame (`size` = width, height) with the portrait's face at its center, and the face's anchors (3, 2).

    The face is scaled so that its aligned crop is `crop_width` pixels wide in the frame. The background is a blurred
    enlargement of the portrait.
    """
    image, anchors = _portrait()
    matrix, _ = similarity_from_anchors(anchors, TEMPLATE_ANCHORS, smooth=False)
    scale = crop_width * float(np.hypot(*matrix[0, :2])) / TEMPLATE_SIZE[0]
    shift = np.array(size) / 2 - scale * anchors.mean(axis=0)
    background = cv2.GaussianBlur(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), (0, 0), size[0] / 40)
    placed = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    frame = cv2.warpAffine(image, placed, size, background, cv2.INTER_LINEAR, cv2.BORDER_TRANSPARENT)
    return VideoFrame.from_rgb(frame, BT709_LIMITED), scale * anchors + shift


def moving_frames(size: tuple[int, int], crop_width: float, count: int) -> Iterator[tuple[VideoFrame, np.ndarray]]:
    """Frames with a swaying and tilting portrait and new grain in each, and their anchors."""
    still, anchors = portrait_frame(size, crop_width)
    random = np.random.default_rng(0)
    width, height = size
    grain = [random.normal(0, GRAIN, (height, width)).astype(np.float32) for _ in range(GRAIN_FIELDS)]
    for index in range(count):
        phase = 2 * math.pi * index / float(FPS * Fraction(PERIOD_SECONDS))
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), TILT_DEGREES * math.sin(phase), 1.0)
        matrix[:, 2] += SWAY * width * np.array([math.sin(2 * phase), 0.5 * math.cos(phase)])
        to_chroma = np.column_stack([matrix[:, :2], matrix[:, 2] / 2])
        y, u, v = (
            cv2.warpAffine(plane, move, plane.shape[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
            for plane, move in zip(still.planes, (matrix, to_chroma, to_chroma), strict=True)
        )
        noise = np.roll(grain[index % GRAIN_FIELDS], random.integers(0, width), axis=1)
        y = cv2.add(y, noise, dtype=cv2.CV_8U)
        yield VideoFrame.from_planes(y, u, v, still.color), anchors @ matrix[:, :2].T + matrix[:, 2]


def make_clip(path: Path, size: tuple[int, int], crop_width: float, seconds: float) -> Path:
    """Write a moving, grainy clip without audio."""
    with VideoWriter(path, *size, FPS, color=BT709_LIMITED, crf=INPUT_CRF, preset="veryfast") as writer:
        for frame, _ in moving_frames(size, crop_width, max(1, round(seconds * FPS))):
            writer.write(frame)
    return path


def loop_clip(source: Path, path: Path, seconds: float) -> Path:
    """Repeat the packets of `source`, without encoding, until the clip is `seconds` long."""
    with av.open(str(source)) as given, av.open(str(path), "w") as output:
        stream = first_video_stream(given, source)
        packets = [packet for packet in given.demux(stream) if packet.pts is not None and packet.dts is not None]
        length = sum(packet.duration or 0 for packet in packets)
        target = output.add_stream_from_template(stream)
        for turn in range(math.ceil(seconds / float(length * (stream.time_base or 0)))):
            for packet in packets:
                copy = av.Packet(bytes(packet))
                copy.pts, copy.dts = (packet.pts or 0) + turn * length, (packet.dts or 0) + turn * length
                copy.duration, copy.time_base = packet.duration, packet.time_base
                copy.is_keyframe = packet.is_keyframe
                copy.stream = target
                output.mux(copy)
    return path


def make_speech(path: Path, seconds: float) -> Path:
    """Write the demo's speech, repeated to exactly `seconds`, as 16-bit PCM."""
    samples = np.resize(load_audio(SPEECH, SAMPLE_RATE), round(seconds * SAMPLE_RATE))
    with av.open(str(path), "w") as output:
        stream = output.add_stream("pcm_s16le", rate=SAMPLE_RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray((samples[None] * 32767).astype(np.int16), format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path
