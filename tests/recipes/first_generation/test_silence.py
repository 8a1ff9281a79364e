"""Silent windows: a resting mouth played back and forth, silence around speech, and a reference outside the pause."""

from fractions import Fraction

import av
import numpy as np
import torch
from safetensors.torch import save_file

from latentsync.data.encoded_clips import EncodedClip
from latentsync.data.sampler import SampleId
from latentsync.data.unet_dataset import LatentClipDataset
from recipes.embedded.first_generation.augmented_copies import AugmentedClip
from recipes.embedded.first_generation.silence import SilentWindows, back_and_forth, draw_apart
from tests.data.conftest import NUM_FRAMES, same

FRAMES, RATE = 40, 640  # RATE: samples of a video frame


def spoken(path, pauses: list[tuple[int, int]]) -> EncodedClip:
    """A clip of 40 frames, loud but in the pauses, whose latents are frame numbers."""
    wave = np.random.default_rng(1).normal(0, 0.2, FRAMES * RATE)
    for start, end in pauses:
        wave[start * RATE : end * RATE] *= 0.005
    with av.open(str(path), "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        samples = (wave.clip(-1, 1) * 32767).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = 16000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    entry = path.with_suffix(".safetensors")
    latents = torch.arange(float(FRAMES)).view(-1, 1, 1, 1).half()
    states = torch.full((2 * FRAMES, 1, 1), 7.0).half()
    save_file({"latents": latents, "masked_latents": -latents, "audio_states": states}, entry)
    return EncodedClip(path, "a", FRAMES, entry, 2 * FRAMES)


def still(clip: EncodedClip) -> np.ndarray:
    """Openings of a mouth that is shut but for some frames, in which all clips here speak."""
    return np.where((np.arange(FRAMES) >= 14) & (np.arange(FRAMES) < 25), 0.1, 0.01)


def test_a_pause_is_played_back_and_forth_with_a_reference_beside_it(tmp_path, audio):
    clip = spoken(tmp_path / "a.wav", [(0, 12)])
    silent = SilentWindows([clip], audio, 6, audio.audio_feat_length, 1.0, still)
    dataset = LatentClipDataset([clip], audio.audio_feat_length, 6, draw_window=silent)
    starts = set()
    for key in range(20):
        item = dataset[SampleId(0, key)]
        run, reference = item["latents"].flatten(), item["ref_latents"].flatten()
        assert item["has_speech"] == 0 and run.max() < 8  # 4 frames before the speech count as neither
        assert torch.equal(run.diff().abs(), torch.ones(5)) and torch.equal(item["masked_latents"].flatten(), -run)
        assert reference.min() >= 8 and torch.equal(reference.diff(), torch.ones(5))
        assert item["audio"].shape == (6, audio.num_tokens, audio.width) and item["audio"].unique().numel() > 1
        assert same(item, dataset[SampleId(0, key)])
        starts.add(item["start_idx"])
    assert len(starts) > 3


def test_a_copy_rests_where_its_clip_does(tmp_path, audio):
    clip = spoken(tmp_path / "a.wav", [(0, 12)])
    quick = AugmentedClip(clip.path, clip.person, 32, clip.entry, clip.num_rows, Fraction(5, 4), 1)
    silent = SilentWindows([quick, clip], audio, 6, audio.audio_feat_length, 1.0, still)
    runs = [silent(quick, np.random.default_rng(seed)) for seed in range(20)]
    assert set(np.concatenate([run.frames for run in runs]).tolist()) == set(range(6))  # 8 of the clip's
    assert min(run.reference for run in runs) >= 6


def test_without_a_rest_all_windows_speak(tmp_path, audio, caplog):
    loud = spoken(tmp_path / "b.wav", [])
    silent = SilentWindows([loud], audio, 6, audio.audio_feat_length, 1.0, still)
    assert silent(loud, np.random.default_rng(0)) is None and "no clip shows a closed mouth" in caplog.text


def test_the_share_is_kept_and_clips_without_a_pause_speak(tmp_path, audio):
    quiet, loud = spoken(tmp_path / "a.wav", [(25, 40)]), spoken(tmp_path / "b.wav", [])
    silent = SilentWindows([quiet, loud], audio, NUM_FRAMES, audio.audio_feat_length, 0.5, still)
    dataset = LatentClipDataset([quiet, loud], audio.audio_feat_length, NUM_FRAMES, draw_window=silent)
    flags = [1 - dataset[SampleId(0, key)]["has_speech"] for key in range(100)]
    assert 30 < sum(flags) < 70
    assert all(dataset[SampleId(1, key)]["has_speech"] for key in range(10))


def test_a_mouth_that_is_open_in_a_pause_is_not_at_rest(tmp_path, audio):
    clip = spoken(tmp_path / "a.wav", [(0, 16), (26, 40)])

    def parted_at_first(clip: EncodedClip) -> np.ndarray:
        openings = np.full(FRAMES, 0.01)
        openings[:9], openings[16:26], openings[34] = 0.05, 0.08, np.nan
        return openings

    silent = SilentWindows([clip], audio, 4, audio.audio_feat_length, 1.0, parted_at_first)
    runs = [silent(clip, np.random.default_rng(seed)).frames for seed in range(30)]
    assert {int(frame) for frame in np.concatenate(runs)} == {35, 36, 37, 38, 39}  # 30 to 33 is the shorter run


def test_pauses_with_open_lips_are_not_used(tmp_path, audio, caplog):
    clip = spoken(tmp_path / "a.wav", [(0, 12)])

    def parted(clip: EncodedClip) -> np.ndarray:
        return np.where(np.arange(FRAMES) < 12, 0.05, 0.01)

    silent = SilentWindows([clip], audio, NUM_FRAMES, audio.audio_feat_length, 1.0, parted)
    assert silent(clip, np.random.default_rng(0)) is None and "no clip shows a closed mouth" in caplog.text


def test_mouths_are_examined_only_in_pauses_of_the_audio(tmp_path, audio):
    quiet, loud = spoken(tmp_path / "a.wav", [(25, 40)]), spoken(tmp_path / "b.wav", [])
    seen = []

    def openings(clip: EncodedClip) -> np.ndarray:
        seen.append(clip.path)
        return still(clip)

    SilentWindows([quiet, loud], audio, NUM_FRAMES, audio.audio_feat_length, 0.5, openings)
    assert seen == [quiet.path]


def test_no_room_for_a_reference():
    rng = np.random.default_rng(0)
    assert draw_apart(10, 4, 2, 8, rng) is None
    assert {draw_apart(10, 4, 4, 7, rng) for _ in range(20)} == {0}
    assert {draw_apart(10, 4, 0, 5, rng) for _ in range(30)} == {5, 6}
    assert sorted({int(frame) for frame in back_and_forth(3, 6, 20, rng)}) == [3, 4, 5]
