"""What tests of several parts share: a tiny model as files, a clip with a voice, one face detector for all."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny_model import TinyFiles, write_tiny_model


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that fork come first: threads that earlier tests started in the same process do not live in its forks,
    which may then wait for them."""
    items.sort(key=lambda item: not hasattr(getattr(item, "module", None), "run_forked"))


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[None]:
    """Programs that a test calls set handlers of their own, which would swallow what later tests send."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    return write_tiny_model(tmp_path_factory.mktemp("tiny_model"))


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with clip.mp4 (a face, 12 frames at 25 fps) and voice.wav (0.4 s: 10 frames)."""
    from tests.media.synthetic import tone, write_audio
    from tests.pipelines.scenes import clip

    folder = tmp_path_factory.mktemp("media")
    clip(folder / "clip.mp4", 12)
    write_audio(folder / "voice.wav", tone(16000, 0.4))
    return folder


@pytest.fixture(scope="session")
def detector():
    """MediaPipe takes a second to start: one for all tests, reset instead of closed."""
    from latentsync.faces.factory import create_detector

    return create_detector("mediapipe")


@pytest.fixture
def shared_detector(detector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pipelines get the one detector."""
    from latentsync.faces import video

    def lend(name: str, device: str, static: bool = False):
        detector.reset()
        detector.static = static
        return detector

    monkeypatch.setattr(detector, "close", lambda: None)
    monkeypatch.setattr(video, "create_detector", lend)
