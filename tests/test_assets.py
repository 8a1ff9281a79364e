"""The demo input matches its README."""

import wave
from pathlib import Path

import av
import cv2
import numpy as np

ASSETS = Path(__file__).resolve().parents[1] / "assets"


def test_demo_voice() -> None:
    with wave.open(str(ASSETS / "demo_voice.wav")) as voice:
        assert (voice.getframerate(), voice.getnchannels(), voice.getsampwidth()) == (16000, 1, 2)
        samples = np.frombuffer(voice.readframes(voice.getnframes()), np.int16)
    assert len(samples) == 5 * 16000
    assert samples[0] == samples[-1] == 0 and np.abs(samples).max() > 8000


def test_examples() -> None:
    assert cv2.imread(str(ASSETS / "demo_two.jpg")).shape == (400, 680, 3)
    with av.open(str(ASSETS / "demo_video.mp4")) as video:
        sizes = [(frame.width, frame.height) for frame in video.decode(video=0)]
    assert sizes == [(360, 288)] * 75


def test_demo_portrait() -> None:
    assert cv2.imread(str(ASSETS / "demo_portrait.png")).shape == (512, 512, 3)
