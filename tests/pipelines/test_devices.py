"""Several chunks at once and several devices for one video: the same frames. Two CPU "devices" stand for two GPUs."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from latentsync.loading import ModelPaths, load_pipeline
from latentsync.options import GenerationOptions
from latentsync.pipelines import face_generator, memory
from latentsync.pipelines.components import pick_devices
from latentsync.pipelines.face_generator import FaceGenerator, PendingFaces
from latentsync.utils.errors import UserError
from tests.media.synthetic import tone, write_audio
from tests.pipelines.scenes import clip, draw_scene

FAST = GenerationOptions(inference_steps=1, guidance_scale=1.0, silence="model")


@pytest.fixture
def both(tiny_files, shared_detector):
    return load_pipeline(ModelPaths(**vars(tiny_files)), "cpu,cpu")


def test_two_devices_share_a_video(both, pipeline, media):
    images: list[int] = []
    networks = [both.unet, *(other.unet for other in both._copies)]
    for number, unet in enumerate(networks):
        unet.conv_in.register_forward_hook(lambda *_, number=number: images.append(number))
    inputs = (media / "clip.mp4", media / "voice.wav", FAST)
    for overlap in (0, 2):
        images.clear()
        alone, shared = (
            np.stack([np.asarray(frame) for frame in one.frames(*inputs, num_frames=4, chunk_overlap=overlap)])
            for one in (pipeline, both)
        )
        assert np.array_equal(alone, shared)
        assert images == [0, 1, 0, 1][: len(images)] and len(images) >= 3
    assert both.devices == [torch.device("cpu")] * 2


def test_chunks_awaited_after_the_next_one_has_begun(both, media, tmp_path, monkeypatch):
    """As on GPUs, where the work is only queued: as many chunks ahead as devices, and the same frames in order."""
    events: list[str] = []
    begin, wait = FaceGenerator.begin, PendingFaces.wait

    def log(name: str, call: Callable) -> Callable:
        return lambda *given: events.append(name) or call(*given)

    monkeypatch.setattr(FaceGenerator, "begin", log("begin", begin))
    monkeypatch.setattr(PendingFaces, "wait", log("wait", wait))
    faces = clip(tmp_path / "v.mp4", 14, lambda index: draw_scene(((20, 0),) if index != 11 else ()))
    inputs = (faces, write_audio(tmp_path / "a.wav", tone(16000, 0.56)), FAST)
    shown = []
    for queues_work in (False, True):
        monkeypatch.setattr(type(both), "_queues_work", property(lambda _, value=queues_work: value))
        shown.append(np.stack([np.asarray(frame) for frame in both.frames(*inputs, num_frames=4)]))
    assert np.array_equal(*shown) and len(shown[0]) == 14
    at_once, ahead = events[: len(events) // 2], events[len(events) // 2 :]
    assert at_once == ["begin", "wait"] * (len(at_once) // 2) and len(at_once) == 12
    assert "".join(name[0] for name in ahead) == "bbb" + "wb" * 2 + "www" + "bw"  # frame 11 has no face


def test_copies_are_compiled_as_well(both):
    both.compile(backend="eager").use_devices(["cpu"])
    [other] = both._copies
    assert other.unet is not both.unet and other.unet._compiled is not both.unet._compiled is not None
    assert list(other.unet.state_dict()) == list(both.unet.state_dict())


def test_names_of_devices():
    assert pick_devices("cpu, cpu") == [torch.device("cpu")] * 2 and len(pick_devices()) == 1
    with pytest.raises(UserError, match="unknown device 'gpu7'"):
        pick_devices("cpu,gpu7")


def test_chunks_that_fit():
    gigabyte = 2**30
    one, two = 3 * gigabyte, 5 * gigabyte
    counts = [memory.chunks_that_fit(free * gigabyte, one, two) for free in (1, 5, 6, 10, 80)]
    assert counts == [1, 1, 1, 3, memory.MAX_CHUNKS]  # of a fifth less
    assert [memory.chunks_that_fit(free, 100, 100) for free in (10, 200)] == [1, memory.MAX_CHUNKS]


def test_as_many_chunks_as_fit(pipeline, monkeypatch):
    """Measured once for the same settings, and without a caller's callbacks."""
    measured, called = [], []

    def peak(call, device):
        call()
        measured.append(device)
        return 100 * len(measured)

    assert pipeline._prepare(None, chunk_batch_size="auto").chunks_at_once == 1  # on a CPU
    monkeypatch.setattr(face_generator, "peak_memory", peak)
    monkeypatch.setattr(face_generator, "free_memory", lambda device: 400)
    monkeypatch.setattr(type(pipeline), "_measures_memory", property(lambda _: True))
    run = pipeline._prepare(FAST, chunk_batch_size="auto", callback=lambda *step: called.append(step))
    assert run.chunks_at_once == 3 and run.options.chunk_batch_size == 3
    assert pipeline._prepare(FAST, chunk_batch_size="auto").chunks_at_once == 3
    assert len(measured) == 2 and not called  # one chunk, and two
    pipeline._chunk_memory.clear()

    def run_out(call, device):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(face_generator, "peak_memory", run_out)
    assert pipeline._prepare(FAST, chunk_batch_size="auto").chunks_at_once == 1
