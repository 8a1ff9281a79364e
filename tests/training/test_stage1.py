"""Stage 1: targets, weights, noise, and a run that goes on where it stopped."""

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.training_utils import EMAModel

from latentsync.models.unet import UNet3DConditionModel
from latentsync.training.stage1 import (
    KEPT_WEIGHT,
    MOUTH_BOX,
    TrainState,
    loss_weights,
    mixed_noise,
    stage1_loss,
    training_target,
)
from latentsync.utils.errors import UserError

MODEL = {
    "sample_size": 8,
    "in_channels": 7,
    "out_channels": 2,
    "block_out_channels": [8, 16],
    "down_block_types": ["CrossAttnDownBlock3D", "DownBlock3D"],
    "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D"],
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "cross_attention_dim": 6,
    "norm_num_groups": 4,
    "zero_initialize_conv_in": False,
}


def make_batch(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: (2, 3, 2, 8, 8) for name in ("latents", "masked_latents", "ref_latents")} | {"audio": (2, 3, 10, 6)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def make_state() -> TrainState:
    torch.manual_seed(0)
    unet = UNet3DConditionModel.from_config(MODEL).train()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3)
    return TrainState(unet, EMAModel(unet.parameters(), decay=0.9), optimizer, torch.Generator().manual_seed(0))


def step(state: TrainState, scheduler: DDIMScheduler) -> dict[str, torch.Tensor]:
    mask = torch.ones(1, 1, 1, 8, 8)
    mask[..., 3:, 1:7] = 0
    losses = stage1_loss(state.unet, scheduler, make_batch(state.step), mask, loss_weights(mask), 1.0, state.generator)
    losses["loss"].backward()
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.ema.step(state.unet.parameters())
    state.step += 1
    return losses


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_targets_follow_the_prediction_type():
    latents, noise, timesteps = torch.randn(2, 1, 1, 4, 4), torch.randn(2, 1, 1, 4, 4), torch.tensor([10, 900])
    assert training_target(DDIMScheduler(), latents, noise, timesteps) is noise
    assert training_target(DDIMScheduler(prediction_type="sample"), latents, noise, timesteps) is latents
    scheduler = DDIMScheduler(prediction_type="v_prediction")
    alpha = scheduler.alphas_cumprod[timesteps].view(2, 1, 1, 1, 1)
    expected = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    assert torch.allclose(training_target(scheduler, latents, noise, timesteps), expected, atol=1e-6)


def test_unknown_prediction_type_is_named():
    scheduler = DDIMScheduler()
    scheduler.register_to_config(prediction_type="flow")
    with pytest.raises(UserError, match="flow"):
        training_target(scheduler, *[torch.zeros(1)] * 3)


def test_weights_stress_the_mouth_and_average_one():
    mask = torch.ones(1, 1, 1, 32, 32)
    mask[..., 12:30, 2:30] = 0
    weights = loss_weights(mask)
    top, _, left, _ = (round(32 * f) for f in MOUTH_BOX)
    assert weights.mean() == pytest.approx(1.0)
    assert weights[..., top, left] > weights[..., 13, 3] > weights[..., 0, 0] > 0
    assert (weights[..., 0, 0] / weights[..., 13, 3]).item() == pytest.approx(KEPT_WEIGHT)


def test_mixed_noise_is_unit_and_half_shared():
    noise = mixed_noise(torch.Size((64, 4, 5, 8, 8)), 1.0, torch.Generator().manual_seed(0))
    assert noise.std() == pytest.approx(1.0, abs=0.02)
    shared = (noise[:, :, 0] * noise[:, :, 1]).mean()
    assert shared == pytest.approx(0.5, abs=0.02)
    alone = mixed_noise(torch.Size((64, 4, 5, 8, 8)), 0.0, torch.Generator().manual_seed(0))
    assert (alone[:, :, 0] * alone[:, :, 1]).mean() == pytest.approx(0.0, abs=0.02)


def test_training_lowers_the_loss():
    state, scheduler = make_state(), DDIMScheduler(prediction_type="v_prediction")
    batch, mask = make_batch(), torch.zeros(1, 1, 1, 8, 8)
    history = []
    for _ in range(40):
        generator = torch.Generator().manual_seed(5)
        loss = stage1_loss(state.unet, scheduler, batch, mask, loss_weights(mask), 1.0, generator)["loss"]
        loss.backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
        history.append(loss.item())
    assert history[-1] < 0.8 * history[0]


def test_a_restored_run_equals_one_that_never_stopped(tmp_path):
    scheduler = DDIMScheduler(prediction_type="v_prediction")
    whole = make_state()
    for _ in range(4):
        step(whole, scheduler)
    first = make_state()
    for _ in range(2):
        step(first, scheduler)
    first.save(tmp_path / "state.pt")
    second = make_state()
    second.restore(tmp_path / "state.pt")
    for _ in range(2):
        step(second, scheduler)
    assert second.step == whole.step == 4
    for a, b in zip(whole.unet.parameters(), second.unet.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(whole.ema.shadow_params, second.ema.shadow_params, strict=True):
        assert torch.equal(a, b)
    assert not list(tmp_path.glob("*.tmp"))
