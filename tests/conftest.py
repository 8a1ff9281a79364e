"""Shared fixtures: threads and signals, a tiny model as files, a clip with speech, one face detector."""

import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from latentsync.utils.cores import worker_environment  # sets the thread budget

# Before anything imports torch: pytest-xdist workers divide the thread budget, and so do their child processes.
if WORKERS := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.update(worker_environment(WORKERS))

import numpy  # noqa: E402
import pytest  # noqa: E402

from tests.tiny_model import TinyFiles, write_tiny_model  # noqa: E402

SIGNALS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that fork come first: threads that earlier tests started in the same process do not live in its forks,
    which may then wait for them."""
    items.sort(key=lambda item: not hasattr(getattr(item, "module", None), "run_forked"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Every test sees the same random numbers, in whatever order and process it runs."""
    random.seed(0)
    numpy.random.seed(0)
    if "torch" in sys.modules:  # else it is seeded when it is imported
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def default_signals() -> Iterator[None]:
    """The tests run with default signal handling, and so do their child processes.

    `nohup` and a script's background jobs ignore SIGINT or SIGHUP, and an ignored signal is inherited.
    """
    inherited = {number: signal.signal(number, handler) for number, handler in SIGNALS.items()}
    yield
    for number, handler in inherited.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """PyTorch uses one thread: the results do not depend on the number of cores, and small networks are faster."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def no_charts() -> Iterator[None]:
    """Training draws no charts, which take most of the time of a tiny run; test_report.py looks at them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("latentsync.training.report._open_tensorboard", lambda folder, step: None)
        patch.setattr("latentsync.training.report.Report.draw_chart", lambda report: None)
        yield


@pytest.fixture(autouse=True)
def signal_handlers(default_signals: None) -> Iterator[None]:
    """Remove the handlers set by programs under test, which would catch the signals sent by later tests."""
    yield
    for number, handler in SIGNALS.items():
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

    def create(name: str, device: str, static: bool = False):
        detector.reset()
        detector.static = static
        return detector

    monkeypatch.setattr(detector, "close", lambda: None)
    monkeypatch.setattr(video, "create_detector", create)
