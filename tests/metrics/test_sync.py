"""Offsets and preferences on made-up embeddings, and the scorer with a network that reads brightness and loudness."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latentsync.metrics.sync import SyncScorer, offset_score, preference
from latentsync.models.framewise_syncnet import FramewiseSyncNet, FramewiseSyncNetConfig
from latentsync.utils.errors import UserError

FRAMES, RATE = 60, 640  # frames of a clip; samples of a frame


def unit(count: int, width: int = 32, seed: int = 0) -> Tensor:
    vectors = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return nn.functional.normalize(vectors, dim=1)


@pytest.mark.parametrize("early", [-15, -3, 0, 7])
def test_positive_offset_means_that_the_audio_is_early(early):
    track = unit(100)
    vision, audio = track[20:80], track[20 + early : 80 + early]  # the mouth at i belongs to the audio at i - early
    score = offset_score(vision, audio)
    assert score.offset == early
    assert score.distances.min() == pytest.approx(0, abs=1e-6)
    assert score.confidence == pytest.approx(float(np.median(score.distances)), abs=1e-6)
    assert 1.2 < score.confidence < 1.6  # random directions are about sqrt(2) apart


def test_distances_are_means_over_existing_pairs():
    vision, audio = unit(20, seed=1), unit(20, seed=2)
    score = offset_score(vision, audio, reach=3)
    assert score.offsets.tolist() == [-3, -2, -1, 0, 1, 2, 3]
    for place, offset in enumerate(range(-3, 4)):
        pairs = [(i, i - offset) for i in range(20) if 0 <= i - offset < 20]
        expected = np.mean([float((vision[i] - audio[j]).norm()) for i, j in pairs])
        assert score.distances[place] == pytest.approx(expected, abs=1e-5)


def test_unrelated_audio_gives_low_confidence():
    assert offset_score(unit(60, seed=1), unit(60, seed=2)).confidence < 0.1


def test_too_few_windows_are_refused():
    with pytest.raises(ValueError, match="too few"):
        offset_score(unit(15), unit(15))
    with pytest.raises(ValueError, match="of equal shape"):
        offset_score(unit(30), unit(31))


def test_preference_counts_far_windows_only():
    vision = audio = unit(30)
    assert preference(vision, audio).eq(1).all()
    wrong = audio.roll(2, dims=0)  # each window's audio is two frames away; near windows are no negatives
    assert preference(vision, wrong).mean() < 0.8
    similarity = torch.eye(8)
    similarity[0, 7] = 2  # one of the two far windows of the first wins against it
    shares = preference(torch.eye(8), similarity.T)
    assert shares.tolist() == [0.5, 1.0, 1.0, 1.0]


def test_preference_of_a_constant_network_is_zero():
    assert preference(torch.ones(20, 4), torch.ones(20, 4)).sum() == 0


class AudioOnlyNet(nn.Module):
    """Sees the brightness of each frame, hears the loudness of each frame: unit vectors of the centered course."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))
        self.shapes = []

    def embed_images(self, images: Tensor) -> Tensor:
        self.shapes.append(tuple(images.shape))
        return self._unit(images.unflatten(1, (-1, 3)).mean(dim=(2, 3, 4)))

    def embed_audio(self, mel: Tensor) -> Tensor:
        self.shapes.append(tuple(mel.shape))
        course = mel.mean(dim=(1, 2))
        return self._unit(nn.functional.interpolate(course[:, None], 16, mode="area")[:, 0])

    def _unit(self, course: Tensor) -> Tensor:
        return nn.functional.normalize(course - course.mean(dim=1, keepdim=True), dim=1)


@pytest.fixture(scope="module")
def clip() -> tuple[Tensor, np.ndarray]:
    """Faces whose lower half is as bright as the audio is loud, frame by frame."""
    rng = np.random.default_rng(3)
    loudness = np.convolve(rng.random(FRAMES + 2), np.ones(3) / 3, mode="valid")
    wave = np.repeat(loudness, RATE) * rng.normal(0, 0.3, FRAMES * RATE)
    faces = torch.zeros(FRAMES, 3, 32, 32)
    faces[:, :, 16:] = torch.from_numpy(np.log(loudness + 1e-3)).float().clamp(-1, 1)[:, None, None, None]
    return faces, wave.astype(np.float32)


def test_scorer_finds_the_offset_of_a_clip(clip):
    faces, wave = clip
    scorer = SyncScorer(AudioOnlyNet(), 16, 32, batch_size=16)
    assert scorer.shortest_clip == 31
    found = scorer.score(faces, wave)
    assert abs(found.offset) <= 1
    late = np.concatenate([np.zeros(6 * RATE, np.float32), wave])
    assert scorer.score(faces, late).offset == found.offset - 6
    assert found.confidence > 2 * scorer.score(faces, wave[::-1].copy()).confidence


def test_network_inputs_are_those_of_training(clip):
    faces, wave = clip
    net = AudioOnlyNet()
    vision, audio = SyncScorer(net, 16, 24, batch_size=100).embed(faces, wave)
    assert len(vision) == len(audio) == FRAMES - 15
    assert net.shapes == [(45, 48, 12, 24), (45, 1, 80, 52)]


def test_the_shorter_of_frames_and_audio_counts(clip):
    faces, wave = clip
    scorer = SyncScorer(AudioOnlyNet(), 16, 32)
    assert len(scorer.embed(faces, wave[: 40 * RATE])[0]) == 25
    with pytest.raises(UserError, match="30 frames with audio, sync needs 31"):
        scorer.score(faces[:30], wave)


def test_whisper_rows_and_latents_reach_the_network(clip, tiny_files):
    from latentsync.models.vae import LatentCodec
    from latentsync.whisper.audio2feature import Audio2Feature

    class Shapes(AudioOnlyNet):
        def embed_images(self, images: Tensor) -> Tensor:
            self.shapes.append(tuple(images.shape))
            return torch.ones(len(images), 2)

        embed_audio = embed_images

    net, codec = Shapes(), LatentCodec.from_pretrained(tiny_files.vae)
    audio = Audio2Feature(tiny_files.whisper)
    faces, wave = clip
    scorer = SyncScorer(
        net, 8, 32, lower_half=False, latent_space=True, audio_features="whisper", codec=codec, audio=audio
    )
    vision, embeds = scorer.embed(faces[:20], wave)
    assert vision.shape == embeds.shape == (13, 2)
    states = audio.num_layers * audio.width
    assert net.shapes == [(13, 8 * 4, 4, 4), (13, states, 1, 16)]


def test_missing_encoders_are_reported():
    with pytest.raises(UserError, match="autoencoder"):
        SyncScorer(AudioOnlyNet(), latent_space=True)
    with pytest.raises(UserError, match="Whisper"):
        SyncScorer(AudioOnlyNet(), audio_features="whisper")


def test_processing_frames_once_gives_the_same_embeddings(monkeypatch):
    """Windows on both sides of where two runs meet are those that the network gives one by one."""
    monkeypatch.setattr("latentsync.metrics.sync.CHUNK_WINDOWS", 8)
    torch.manual_seed(0)
    config = FramewiseSyncNetConfig(
        window_stride=2, frame_channels=3, frame_size=(4, 8), frame_widths=(8, 8, 8), window_widths=(8, 8)
    )
    scorer = SyncScorer(FramewiseSyncNet(config), resolution=8)
    faces = torch.rand(37, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        single = [scorer.net.embed_images(faces[i : i + 16, :, 4:].flatten(0, 1)[None]) for i in range(22)]
    assert torch.allclose(scorer.embed_faces(faces), torch.cat(single), atol=1e-5)
    assert (single[0] - single[9]).abs().max() > 1e-3
