"""Utilization of a GPU: nothing in a run waits for the device, copies come back complete, guidance in the middle.

The meta device stands for the GPU: like one, it has no values that the host could read without waiting; it raises.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from latentsync.faces.mask import load_mask
from latentsync.loading import load_scheduler
from latentsync.models.unet import UNet3DConditionModel
from latentsync.models.unet_config import UNetConfig
from latentsync.models.vae import LatentCodec
from latentsync.pipelines.denoise import denoise_latents, guidance_steps, regenerate_faces
from latentsync.pipelines.sampling import Sampling
from latentsync.pipelines.transfer import Download, SideStream, upload
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


def test_copies_arrive_on_a_cpu_at_once(tmp_path: Path):
    values = torch.arange(6.0)
    assert torch.equal(upload(values, torch.device("cpu")), values)
    first, second = Download(values, values > 2).wait()
    assert torch.equal(first, values) and second.tolist() == (values > 2).tolist()
    with SideStream(torch.device("cpu")).after(values):
        assert torch.equal(values + 1, torch.arange(1.0, 7.0))
