"""Utilization of a GPU: nothing in a run waits for the device, copies come back complete, guidance in the middle.

The meta device stands for the GPU: like one, it has no values that the host could read without waiting; it raises.
`uploads` finds the copies in the other direction for which a GPU's host would wait.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from latentsync.faces.chunks import split_chunks
from latentsync.faces.mask import load_mask
from latentsync.loading import ModelPaths, load_pipeline, load_scheduler
from latentsync.models.unet import UNet3DConditionModel
from latentsync.models.unet_config import UNetConfig
from latentsync.models.vae import LatentCodec
from latentsync.pipelines import denoise, face_generator, transfer
from latentsync.pipelines.crossfade import CrossFade
from latentsync.pipelines.denoise import denoise_latents, guidance_steps, regenerate_faces, unet_input
from latentsync.pipelines.sampling import Sampling
from latentsync.pipelines.transfer import Download, SideStream, upload
from tests.conformance.seeded import fill_, seeded_input
from tests.tiny_model import RESOLUTION, SCHEDULER, UNET, tiny_vae

FRAMES = 3


def on_meta(*shape: int) -> Tensor:
    return torch.zeros(shape, device="meta")


def test_the_meta_device_refuses_to_be_waited_for():
    for wait in (Tensor.item, Tensor.nonzero, bool, Tensor.cpu, lambda values: torch.equal(values, values)):
        with pytest.raises((NotImplementedError, RuntimeError)):
            wait(on_meta(1))


@pytest.mark.parametrize("still", [True, False])
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("solver", ["ddim", "dpm++"])
def test_nothing_waits_for_the_device(solver: str, cached: bool, still: bool):
    unet = UNet3DConditionModel(UNetConfig.from_dict(UNET)).to("meta").eval()
    codec = LatentCodec(tiny_vae()).to("meta")
    if cached:
        unet.enable_deepcache()
    scheduler = Sampling(4, 1.5, solver=solver).scheduler(load_scheduler(SCHEDULER))
    made = regenerate_faces(
        unet,
        codec,
        scheduler,
        on_meta(2, FRAMES, 3, RESOLUTION, RESOLUTION),
        torch.zeros(2, FRAMES, 30, 32),
        load_mask(RESOLUTION),
        on_meta(1, 4, 1, 8, 8),
        4,
        1.5,
        guidance_share=0.5,
        still=still,
    )
    assert made.device.type == "meta"
    assert made.shape == (2, FRAMES, 3, RESOLUTION, RESOLUTION)


class Copies(TorchDispatchMode):
    """Names of operations that take values from the host to the device. Single numbers beside tensors are no copies."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        copies = func._schema.name in ("aten::_to_copy", "aten::copy_")
        given, made = ([x for x in tree_leaves(values) if isinstance(x, Tensor)] for values in ((args, kwargs), result))
        on_host = [value for value in given if value.device.type == "cpu" and (copies or value.ndim)]
        if on_host and any(value.is_meta for value in made):
            self.found.append(str(func))
        return result


class Literals(TorchFunctionMode):
    """Names of functions that make a tensor on the device from numbers of Python: on a GPU, a copy as well."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor, Tensor.new_tensor) and result.is_meta and result is not args[0]:
            self.found.append(func.__name__)
        return result


@contextmanager
def uploads() -> Iterator[list[str]]:
    """What a GPU's host would wait for in the block; complete after it."""
    found: list[str] = []
    with Copies() as copies, Literals() as literals:
        yield found
    found += copies.found + literals.found


def test_uploads_are_found():
    values, number = on_meta(2), torch.tensor(2.0)
    for copy in (
        lambda: torch.arange(2).to(values),
        lambda: number.to("meta"),
        lambda: torch.tensor([1.0, 2.0], device="meta"),
        lambda: torch.as_tensor(500, device="meta"),
        lambda: values[torch.arange(2)],
    ):
        with uploads() as found:
            copy()
        assert found
    with uploads() as found:
        values * number + torch.arange(2, device="meta") / 2
    assert not found


@pytest.mark.parametrize("options", [{}, {"match_color": True}, {"solver": "dpm++", "enable_deepcache": True}])
def test_a_batch_is_queued_without_waiting(tiny_files, monkeypatch, options):
    """Overlapping chunks, from the faces to the download. `upload` is the only copy to the device: it does not wait."""
    sent: list[tuple] = []

    def upload(tensor: Tensor, device: torch.device) -> Tensor:
        sent.append(tuple(tensor.shape))
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)

    monkeypatch.setattr(denoise, "upload", upload)
    monkeypatch.setattr(face_generator, "upload", upload)
    monkeypatch.setattr(face_generator, "Download", lambda *tensors: tensors)
    pipeline = load_pipeline(ModelPaths(**vars(tiny_files)), "cpu")
    run = pipeline._prepare(None, num_frames=4, inference_steps=4, guidance_scale=1.5, **options)
    run = replace(run, noise=run.noise.to("meta"))
    pipeline.to("meta")
    fade = CrossFade()
    for chunk in split_chunks(6, 4, 2):
        faces = torch.randint(255, (1, 4, RESOLUTION, RESOLUTION, 3), dtype=torch.uint8)
        with uploads() as found:
            pending = pipeline.begin(faces, torch.zeros(1, 4, 30, 32), None, run, fade.of([chunk]))
        assert not found
        made, finite = pending._download
        assert made.is_meta and finite.is_meta and made.shape[1] == len(chunk.delivered)
    assert sent.count((1, 4, RESOLUTION, RESOLUTION, 3)) == 2


def test_the_decoder_has_one_stream_for_each_device(monkeypatch):
    made = Mock(side_effect=lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "Stream", made)
    transfer._second_stream.cache_clear()
    first, second = torch.device("cuda:0"), torch.device("cuda:1")
    streams = [SideStream(device)._stream for device in (first, second, first)]
    assert streams == ["stream of cuda:0", "stream of cuda:1", "stream of cuda:0"] and made.call_count == 2
    assert SideStream(first, enabled=False)._stream is None
    transfer._second_stream.cache_clear()


@pytest.mark.parametrize(
    "steps, share, expected", [(20, 1.0, range(20)), (20, 0.5, range(5, 15)), (4, 0.5, range(1, 3)), (1, 0.0, range(1))]
)
def test_guidance_in_the_middle_of_the_schedule(steps: int, share: float, expected: range):
    assert guidance_steps(steps, share) == expected


def test_only_steps_with_guidance_run_twice():
    unet = UNet3DConditionModel(UNetConfig.from_dict(UNET)).eval()
    sizes: list[int] = []
    unet.conv_in.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    latents = torch.zeros(1, 4, 2, 8, 8)
    inputs = (torch.zeros(1, 4, 1, 8, 8), torch.ones(1, 1, 1, 8, 8), latents, latents, torch.zeros(1, 2, 30, 32))
    denoise_latents(unet, load_scheduler(SCHEDULER), *inputs, 4, 1.5, guidance_share=0.5)
    assert sizes == [2, 4, 4, 2]


def test_guidance_in_the_middle_is_that_of_single_steps():
    """Equal to steps of one, with guidance only where it belongs; each half of a guided step alone."""
    unet = fill_(UNet3DConditionModel(UNetConfig.from_dict(UNET))).eval()
    masked, reference = (seeded_input(name, (1, 4, 2, 8, 8)) for name in ("masked", "reference"))
    noise, audio, mask = (
        seeded_input("noise", (1, 4, 1, 8, 8)),
        seeded_input("audio", (1, 2, 30, 32)),
        torch.ones(1, 1, 1, 8, 8),
    )
    scheduler = load_scheduler(SCHEDULER)
    scheduler.set_timesteps(4)
    expected = {}
    with torch.no_grad():
        for share, guided in ((0.5, [1, 2]), (1.0, [0, 1, 2, 3])):
            latents = noise.expand(1, 4, 2, 8, 8)
            for step, timestep in enumerate(scheduler.timesteps):
                sample = unet_input(latents, mask, masked, reference)
                prediction = unet(sample, timestep, audio).sample
                if step in guided:
                    silent = unet(sample, timestep, torch.zeros_like(audio)).sample
                    prediction = silent + 1.5 * (prediction - silent)
                latents = scheduler.step(prediction, timestep, latents).prev_sample
            expected[share] = latents
    inputs = (unet, scheduler, noise, mask, masked, reference, audio, 4, 1.5)
    size = expected[1.0].abs().max()
    for share, values in expected.items():
        assert (denoise_latents(*inputs, guidance_share=share) - values).abs().max() < 1e-4 * size
    assert (expected[0.5] - expected[1.0]).abs().max() > 1e-2 * size


def test_copies_arrive_on_a_cpu_at_once(tmp_path: Path):
    values = torch.arange(6.0)
    assert torch.equal(upload(values, torch.device("cpu")), values)
    first, second = Download(values, values > 2).wait()
    assert torch.equal(first, values) and second.tolist() == (values > 2).tolist()
    with SideStream(torch.device("cpu")).after(values):
        assert torch.equal(values + 1, torch.arange(1.0, 7.0))
