"""From aligned faces to speaking faces: the published computation, and properties that callers rely on."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from whisper.model import ModelDimensions, Whisper

from latentsync.faces.mask import load_mask
from latentsync.models.unet import UNet3DConditionModel
from latentsync.models.vae import LatentCodec
from latentsync.pipelines.denoise import denoise_latents, regenerate_faces, shared_noise, unet_input
from latentsync.whisper.audio2feature import Audio2Feature
from tests.conformance.seeded import fill_, seeded_input

CONFORMANCE = Path(__file__).parents[1] / "conformance"
SCHEDULER = Path(__file__).parents[2] / "configs" / "scheduler_config.json"


@pytest.fixture(scope="module")
def case():
    stored = np.load(CONFORMANCE / "denoise_faces.npz")
    meta = json.loads(str(stored["meta"]))
    codec = LatentCodec(fill_(AutoencoderKL(**meta["vae_config"], scaling_factor=meta["scaling_factor"]), meta["seed"]))
    unet = fill_(UNet3DConditionModel.from_config(meta["unet_config"]), meta["seed"]).eval()
    small = seeded_input("faces", (meta["num_faces"], 3, 8, 8), meta["seed"])
    faces = torch.tanh(small).mul(127.5).add(127.5).round().to(torch.uint8)
    pixels = faces.repeat_interleave(8, -1).repeat_interleave(8, -2).float() / 127.5 - 1
    return {
        "meta": meta,
        "expected": torch.from_numpy(stored["faces"].astype(np.float32)),
        "codec": codec,
        "unet": unet,
        "scheduler": DDIMScheduler.from_config(json.loads(SCHEDULER.read_text())),
        "pixels": pixels,
        "mask": load_mask(meta["resolution"]),
        "noise": seeded_input("init_noise", (1, 4, 1, 8, 8), meta["seed"]),
    }


@pytest.fixture(scope="module")
def tokens(case, tmp_path_factory):
    stored = np.load(CONFORMANCE / "whisper_features.npz")
    meta = json.loads(str(stored["meta"]))
    model = fill_(Whisper(ModelDimensions(**meta["dims"])), meta["seed"])
    path = tmp_path_factory.mktemp("whisper") / "seeded.pt"
    torch.save({"dims": meta["dims"], "model_state_dict": model.state_dict()}, path)
    audio = Audio2Feature(path, "cpu", audio_feat_length=meta["audio_feat_length"], overlap_seconds=0)
    features = audio.wave2feat(stored["wave"].astype(np.float32) / 32768)
    return torch.stack(audio.feature2chunks(features, meta["fps"])[: case["meta"]["num_faces"]])


def run(case, pixels, audio, **changes):
    settings = {
        "num_inference_steps": case["meta"]["steps"],
        "guidance_scale": case["meta"]["guidance_scale"],
        **changes,
    }
    return regenerate_faces(
        case["unet"], case["codec"], case["scheduler"], pixels, audio, case["mask"], case["noise"], **settings
    )


def test_matches_the_published_chain(case, tokens):
    chunks = [
        run(case, case["pixels"][None, start : start + 16], tokens[None, start : start + 16])[0] for start in (0, 16)
    ]
    assert (torch.cat(chunks) - case["expected"]).abs().max() < 5e-3


def test_kept_pixels_are_the_original_ones(case, tokens):
    pixels = case["pixels"][None, :2]
    out = run(case, pixels, tokens[None, :2], num_inference_steps=1)
    kept = (case["mask"] == 1).expand_as(pixels[0])
    assert torch.equal(out[0][kept], pixels[0][kept])
    assert (out - pixels).abs().max() > 0.05


def test_guidance_in_two_passes_equals_guidance_in_one(case, tokens):
    pixels, audio = case["pixels"][None, :4], tokens[None, :4]
    assert case["meta"]["guidance_scale"] > 1
    sizes: list[int] = []
    hook = case["unet"].conv_in.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    together, apart = (
        run(case, pixels, audio, num_inference_steps=2, guidance_in_turn=in_turn) for in_turn in (False, True)
    )
    hook.remove()
    assert sizes == [8, 8] + 4 * [4]
    assert (together - apart).abs().max() < 1e-3


def test_chunks_in_a_batch_equal_chunks_one_by_one(case, tokens):
    pixels = case["pixels"][:8].unflatten(0, (2, 4))
    audio = tokens[:8].unflatten(0, (2, 4))
    together = run(case, pixels, audio, num_inference_steps=2)
    apart = torch.cat([run(case, pixels[i : i + 1], audio[i : i + 1], num_inference_steps=2) for i in range(2)])
    assert (together - apart).abs().max() < 1e-3  # other sums in other orders, amplified by random weights


def test_a_still_run_equals_the_same_frames_encoded_one_by_one(case, tokens):
    still = case["pixels"][:1].repeat(3, 1, 1, 1)[None]
    nearly = still.clone()
    nearly[0, 1, 0, 0, 0] += 1e-6  # no longer exactly still: takes the general path
    difference = run(case, still, tokens[None, :3], num_inference_steps=1) - run(
        case, nearly, tokens[None, :3], num_inference_steps=1
    )
    assert difference.abs().max() < 1e-4


def test_guidance_of_one_is_one_forward_a_step(case, tokens):
    sizes = []
    handle = case["unet"].conv_in.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    run(case, case["pixels"][None, :2], tokens[None, :2], guidance_scale=1.0, num_inference_steps=2)
    run(case, case["pixels"][None, :2], tokens[None, :2], guidance_scale=1.5, num_inference_steps=2)
    handle.remove()
    assert sizes == [2, 2, 4, 4]


def test_callback_sees_every_step(case):
    seen = []
    latents = torch.zeros(1, 4, 2, 8, 8)
    denoise_latents(
        case["unet"], case["scheduler"], case["noise"], torch.ones(1, 1, 1, 8, 8), latents, latents,
        torch.zeros(1, 2, 30, 32), 3, 1.0, on_step=lambda step, timestep, x: seen.append((step, timestep, x.shape)),
    )  # fmt: skip
    assert [step for step, _, _ in seen] == [0, 1, 2]
    assert [t for _, t, _ in seen] == sorted((t for _, t, _ in seen), reverse=True)
    assert seen[0][2] == latents.shape


def test_input_channels_are_noise_mask_masked_reference():
    noisy, masked, reference = (torch.full((2, 4, 3, 8, 8), value) for value in (1.0, 3.0, 4.0))
    stacked = unet_input(noisy, torch.full((1, 1, 1, 8, 8), 2.0), masked, reference)
    assert stacked.shape == (2, 13, 3, 8, 8)
    assert stacked[1, :, 2, 0, 0].tolist() == [1.0] * 4 + [2.0] + [3.0] * 4 + [4.0] * 4


def test_noise_follows_the_seed(case):
    first, second, other = (shared_noise(case["codec"], 64, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert first.shape == (1, 4, 1, 8, 8)
