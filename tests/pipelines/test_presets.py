"""Presets: the options they set, the number of evaluations of the UNet, and the faces of the same options."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from latentsync.options import GenerationOptions, Preset
from latentsync.pipelines.presets import PRESETS, apply_preset

# Complete evaluations of the UNet and evaluations of its outermost layers, for each preset: see docs/performance.md.
EVALUATIONS = {"best": (40, 0), "balanced": (15, 0), "fast": (6, 6), "realtime": (4, 0)}


def resolved(own_steps: int = 20, **given) -> tuple:
    options, share = apply_preset(GenerationOptions(**given), own_steps, 1.5)
    return options.inference_steps, options.guidance_scale, options.solver, options.enable_deepcache, share


def test_every_preset_is_defined():
    assert tuple(PRESETS) == get_args(Preset) == tuple(EVALUATIONS)


def test_values_of_the_presets():
    assert resolved() == resolved(preset="best") == (20, 1.5, "ddim", False, 1.0)
    assert resolved(preset="balanced") == (10, 1.5, "dpm++", False, 0.5)
    assert resolved(preset="fast") == (8, 1.5, "dpm++", True, 0.5)
    assert resolved(preset="realtime") == (4, 1.0, "dpm++", False, 1.0)


def test_options_that_are_given_take_precedence():
    assert resolved(preset="fast", inference_steps=12, solver="ddim") == (12, 1.5, "ddim", True, 0.5)
    assert resolved(preset="realtime", guidance_scale=2) == (4, 2.0, "dpm++", False, 1.0)
    assert resolved(preset="balanced", enable_deepcache=True) == (10, 1.5, "dpm++", True, 0.5)


def test_models_with_few_steps_keep_their_own():
    for preset in PRESETS:
        assert resolved(4, preset=preset) == (4, 1.5, "ddim", False, 1.0)
    assert resolved(4, preset="fast", inference_steps=6)[0] == 6


@pytest.fixture
def guided(pipeline, monkeypatch):
    """A pipeline with the settings of the released models."""
    monkeypatch.setattr(pipeline, "num_inference_steps", 20)
    monkeypatch.setattr(pipeline, "guidance_scale", 1.5)
    return pipeline


@pytest.mark.parametrize("preset", PRESETS)
def test_evaluations_of_the_unet(guided, preset):
    sizes: dict[str, list[int]] = {"conv_in": [], "mid_block": []}
    hooks = [
        getattr(guided.unet, name).register_forward_hook(
            lambda module, inputs, output, name=name: sizes[name].append(len(inputs[0]))
        )
        for name in sizes
    ]
    guided.speak(np.zeros((1, 64, 64, 3), np.uint8), torch.zeros(1, 30, 32), preset=preset)
    for hook in hooks:
        hook.remove()
    complete = sum(sizes["mid_block"])
    assert (complete, sum(sizes["conv_in"]) - complete) == EVALUATIONS[preset]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_equals_its_options(guided, preset):
    given = np.zeros((2, 64, 64, 3), np.uint8), torch.randn(2, 30, 32)
    steps, guidance, solver, cached, share = resolved(preset=preset)
    run = guided._prepare(
        None, inference_steps=steps, guidance_scale=guidance, solver=solver, enable_deepcache=cached, height=64
    )
    spelled = guided.speak(*given, run=replace(run, sampling=replace(run.sampling, guidance_share=share)))
    assert torch.equal(guided.speak(*given, preset=preset), spelled)
    assert torch.equal(guided.speak(*given), spelled) == (preset == "best")
