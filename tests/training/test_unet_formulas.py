"""The arithmetic of a training step: targets, weights, noise, and the estimate of the clean latents."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from latentsync.data.sampler import sample_generators
from latentsync.faces.mask import MOUTH_BOX
from latentsync.loading import load_scheduler
from latentsync.training.losses import KEPT_WEIGHT, mouth_weights
from latentsync.training.unet_task import (
    check_one_step,
    draw_audio_mask,
    mixed_noise,
    one_step_estimate,
    sample_noise,
    training_target,
    uniform_timesteps,
)
from latentsync.utils.errors import UserError
from recipes.embedded.first_generation.recipe import Recipe, visited_timesteps
from tests.conformance.seeded import seeded_input
from tests.tiny_model import PROJECT_ROOT, SCHEDULER

CASE = Path(__file__).parents[1] / "conformance" / "one_step.npz"


def generators(*keys: int) -> list[torch.Generator]:
    return sample_generators(7, torch.tensor(keys))


def test_one_step_matches_the_reference():
    with np.load(CASE) as case:
        meta, expected = json.loads(str(case["meta"])), {name: torch.from_numpy(case[name]) for name in ("x_t", "x0")}
    scheduler, timesteps = load_scheduler(SCHEDULER), torch.tensor(meta["t"])
    latents, noise, error = (seeded_input(name, meta["shape"], meta["seed"]) for name in ("lat", "noise", "err"))
    noisy = scheduler.add_noise(latents, noise, timesteps)
    assert torch.allclose(noisy, expected["x_t"], atol=1e-5)
    estimate = one_step_estimate(scheduler, noise + 0.1 * error, noisy, timesteps)
    assert torch.allclose(estimate, expected["x0"], atol=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_perfect_prediction_gives_the_clean_latents(kind):
    scheduler, timesteps = DDIMScheduler(prediction_type=kind), torch.tensor([10, 900])
    latents, noise = seeded_input("a", (2, 2, 3, 4, 4)), seeded_input("b", (2, 2, 3, 4, 4))
    target = training_target(scheduler, latents, noise, timesteps)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    assert torch.allclose(one_step_estimate(scheduler, target, noisy, timesteps), latents, atol=1e-4)


def test_unknown_prediction_type_is_named():
    scheduler = DDIMScheduler()
    scheduler.register_to_config(prediction_type="flow")
    with pytest.raises(UserError, match="flow"):
        training_target(scheduler, *[torch.zeros(1)] * 3)
    with pytest.raises(UserError, match="flow"):
        one_step_estimate(scheduler, *[torch.zeros(1, 1, 1, 1, 1)] * 2, torch.tensor([1]))


def test_a_schedule_that_ends_in_pure_noise_needs_another_prediction():
    check_one_step(load_scheduler(PROJECT_ROOT / "checkpoints" / "embedded" / "scheduler_config.json"))
    with pytest.raises(UserError, match="prediction_type"):
        check_one_step(DDIMScheduler(rescale_betas_zero_snr=True))


def test_weights_stress_the_mouth_and_average_one():
    mask = torch.ones(1, 1, 1, 32, 32)
    mask[..., 12:30, 2:30] = 0
    weights = mouth_weights(mask)
    top, _, left, _ = (round(32 * f) for f in MOUTH_BOX)
    assert weights.mean() == pytest.approx(1.0)
    assert weights[..., top, left] > weights[..., 13, 3] > weights[..., 0, 0] > 0
    assert (weights[..., 0, 0] / weights[..., 13, 3]).item() == pytest.approx(KEPT_WEIGHT)


def test_mixed_noise_is_unit_and_half_shared():
    noise = mixed_noise((64, 4, 5, 8, 8), 1.0, torch.Generator().manual_seed(0))
    assert noise.std() == pytest.approx(1.0, abs=0.02)
    assert (noise[:, :, 0] * noise[:, :, 1]).mean() == pytest.approx(0.5, abs=0.02)
    alone = mixed_noise((64, 4, 5, 8, 8), 0.0, torch.Generator().manual_seed(0))
    assert (alone[:, :, 0] * alone[:, :, 1]).mean() == pytest.approx(0.0, abs=0.02)


def test_a_sample_draws_the_same_in_any_batch():
    def draw(*keys: int) -> tuple[torch.Tensor, ...]:
        own = generators(*keys)
        return (
            Recipe(train_sampled_timesteps=True).timestep_sampler(DDIMScheduler(), 2)(own),
            draw_audio_mask(0.5, own),
            sample_noise((len(keys), 2, 3, 4, 4), 1.0, own),
        )

    together, first, second = draw(3, 8), draw(3), draw(8)
    for both, *halves in zip(together, first, second, strict=True):
        assert torch.equal(both, torch.cat(halves))


def test_timesteps_that_sampling_visits_come_up_often():
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    visited = visited_timesteps(scheduler, 4)
    assert scheduler.num_inference_steps is None  # left as it was
    drawn = Recipe(train_sampled_timesteps=True).timestep_sampler(scheduler, 4)(generators(*range(400)))
    assert torch.isin(drawn, visited).float().mean() == pytest.approx(0.75, abs=0.08)
    assert Recipe().timestep_sampler(scheduler, 4) is None
    assert not torch.isin(uniform_timesteps(1000, generators(*range(40))), visited).all()


def test_audio_dropout_has_its_share():
    assert draw_audio_mask(0.1, generators(*range(500))).float().mean() == pytest.approx(0.9, abs=0.04)
    assert draw_audio_mask(0.0, generators(*range(50))).all()
