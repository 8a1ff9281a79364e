"""Samples of the embedded model's UNet: target, reference and audio of each kind; the losses on latents."""

import numpy as np
import pytest
import torch

from recipes.embedded.denoiser import OLD_CHANNELS, channel_weights, distillation_loss, reconstruction_loss
from recipes.embedded.pack import Pack
from recipes.embedded.samples import APART, LUMA, SampleMaker, relative_openings, turned_colors, with_other_mouth
from recipes.embedded.teacher import FRAMES, Voices
from tests.conformance.seeded import seeded_input
from tests.recipes.drawn_faces import write_pack, write_voice


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> SampleMaker:
    folder = tmp_path_factory.mktemp("samples")
    write_pack(folder / "train.safetensors")
    write_voice(folder / "voices.safetensors")
    pack = Pack(folder / "train.safetensors")
    return SampleMaker(pack, Voices(pack, folder / "voices.safetensors"), folder / "none")


def test_kinds_without_data_are_left_out(maker: SampleMaker):
    assert maker.kinds == ("real", "retrieved", "silent")


@pytest.mark.parametrize("kind", ["real", "retrieved", "silent"])
def test_a_sample_has_one_look_and_repeats(maker: SampleMaker, kind: str):
    first, again = (maker.draw(kind, np.random.default_rng(3)) for _ in range(2))
    assert first.target.shape == first.reference.shape == (FRAMES, 3, 256, 256)
    assert first.tokens.shape == (FRAMES, 50, 384)
    assert torch.equal(first.target, again.target) and torch.equal(first.tokens, again.tokens)
    assert first.has_own_audio == (kind == "real")


def test_a_reference_of_the_same_pose_is_of_another_moment(maker: SampleMaker):
    clip, frames = maker.pack.clips[0], np.arange(10, 10 + FRAMES)
    found = maker._same_pose(clip, frames, np.random.default_rng(0))
    assert np.abs(found - frames).min() >= APART


def test_a_twin_has_the_other_mouth_and_the_skin_of_the_target():
    rng = np.random.default_rng(0)
    face = np.full((256, 256, 3), 120, np.uint8) + rng.integers(0, 5, (256, 256, 3), np.uint8)  # skin with texture
    other, kept = face[::-1].copy(), np.zeros((256, 256), np.float32)
    kept[:100] = 1
    other[180:200, 100:156] = 20  # an open mouth
    other[40:60, 100:156] = 20  # closed eyes
    twin = with_other_mouth(face, other, kept)
    assert (twin[182:198, 104:152] == 20).all()
    assert np.array_equal(twin[:100], face[:100]) and np.array_equal(twin[:, :40], face[:, :40])


def test_colors_turn_about_gray_and_keep_luma():
    matrix = turned_colors(0.3, 0.7)
    np.testing.assert_allclose(matrix @ np.ones(3), np.ones(3))
    np.testing.assert_allclose(np.array(LUMA) @ matrix, LUMA)
    np.testing.assert_allclose(turned_colors(0.0, 1.0), np.eye(3), atol=1e-12)


def test_openings_are_relative_to_the_person():
    openings = np.concatenate([np.full(20, 0.02), np.linspace(0.02, 0.12, 80)])
    relative = relative_openings(openings)
    assert abs(relative[:20]).max() < 0.05 and 0.9 < relative[80:].max() < 1.3


def test_where_the_teacher_moves_nothing_the_frame_is_the_target():
    shape = (OLD_CHANNELS + 8, 2, 4, 4)
    latents, mask = seeded_input("latents", shape), torch.zeros(1, 1, 1, 4, 4)
    weights = channel_weights(shape[0], 2.0)
    teacher = latents[:OLD_CHANNELS].clone()
    assert distillation_loss(latents, latents, teacher, mask[0], weights) == 0
    teacher[:, :, 2:] += 3.0  # a mouth that has moved: its texture is free
    wanted = latents.clone()
    wanted[:OLD_CHANNELS, :, 2:] += 3.0
    wanted[OLD_CHANNELS:, :, 2:] += 1.0
    assert distillation_loss(wanted, latents, teacher, mask[0], weights) < 1e-6


def test_reconstruction_measures_changes_between_frames():
    latents = seeded_input("latents", (OLD_CHANNELS + 8, 3, 4, 4))
    cells, weights = torch.ones(1, 1, 1, 4, 4), channel_weights(OLD_CHANNELS + 8, 1.0)
    shifted, trembling = latents + 0.1, latents.clone()
    trembling[:, 1] += 0.1 * 3**0.5  # the same squared error
    losses = [reconstruction_loss(x, latents, cells[0], weights, 1.0) for x in (shifted, trembling)]
    assert losses[1] > 2 * losses[0]
