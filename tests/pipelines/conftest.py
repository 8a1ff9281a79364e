"""A tiny pipeline, and the data between its stages."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from latentsync.loading import ModelPaths, load_pipeline
from latentsync.media.frame import VideoFrame
from latentsync.media.writer import VideoWriter
from latentsync.pipelines.face_generator import PendingFaces
from latentsync.pipelines.lipsync_pipeline import LipsyncPipeline, LipsyncResult
from tests.tiny_model import TinyFiles


@pytest.fixture(scope="session")
def loaded(tiny_files: TinyFiles) -> LipsyncPipeline:
    return load_pipeline(ModelPaths(**vars(tiny_files)), "cpu")


@pytest.fixture
def pipeline(loaded: LipsyncPipeline, shared_detector: None) -> Iterator[LipsyncPipeline]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield loaded
    torch.set_num_threads(threads)


@pytest.fixture
def run(pipeline: LipsyncPipeline) -> Callable[..., LipsyncResult]:
    """The pipeline with one step and no guidance: seconds become tens of milliseconds."""

    def call(video: Path, audio: Path, out: Path, seed: int = 0, **options) -> LipsyncResult:
        options = {"num_inference_steps": 1, "guidance_scale": 1.0, **options}
        return pipeline(video, audio, out, generator=torch.Generator().manual_seed(seed), **options)

    return call


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Samples (3H/2, W) of each frame given to the encoder."""
    frames: list[np.ndarray] = []
    write = VideoWriter.write

    def spy(self: VideoWriter, frame: VideoFrame) -> None:
        frames.append(frame.i420)
        write(self, frame)

    monkeypatch.setattr(VideoWriter, "write", spy)
    return frames


@pytest.fixture
def spoken(pipeline: LipsyncPipeline, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(chunks, frames) of each batch of faces that the model ran on."""
    shapes: list[tuple[int, int]] = []
    begin = pipeline.begin

    def spy(faces: torch.Tensor, *rest) -> PendingFaces:
        shapes.append(tuple(faces.shape[:2]))
        return begin(faces, *rest)

    monkeypatch.setattr(pipeline, "begin", spy)
    return shapes
