"""Overlapping chunks: the cross-fade alone and in a run."""

from itertools import count

import numpy as np
import pytest
import torch

from latentsync.faces.chunks import split_chunks
from latentsync.pipelines.crossfade import CrossFade
from tests.media.synthetic import tone, write_audio
from tests.pipelines.scenes import clip, draw_scene

FAST = {"inference_steps": 1, "guidance_scale": 1.0}


def latents_of(batch, level) -> torch.Tensor:
    """(B, 1, F, 1, 1): `level` of the chunk, plus the number of the frame."""
    values = [[level(chunk) + frame for frame in chunk.frames] for chunk in batch]
    return torch.tensor(values, dtype=torch.float32)[:, None, :, None, None]


def test_shared_frames_pass_linearly_from_one_chunk_to_the_next():
    chunks = list(split_chunks(10, 6, 2))
    fade = CrossFade()
    made = [fade.of([chunk])(latents_of([chunk], lambda chunk: 300.0 * bool(chunk.shared))) for chunk in chunks]
    joined = torch.cat(made, dim=2).flatten() - torch.arange(10)
    assert joined.tolist() == pytest.approx([0, 0, 0, 0, 100, 200, 300, 300, 300, 300])


@pytest.mark.parametrize("overlap", [0, 1, 2])
def test_batches_join_like_single_chunks(overlap):
    chunks = list(split_chunks(24, 6, overlap))
    draw = torch.Generator().manual_seed(0)
    noise = {chunk.frames[0]: torch.randn(1, 3, len(chunk.frames), 2, 2, generator=draw) for chunk in chunks}

    def run(size: int) -> torch.Tensor:
        fade, whole, made = CrossFade(), chunks[:-1], []
        for batch in [*(whole[i : i + size] for i in range(0, len(whole), size)), chunks[-1:]]:
            made += list(fade.of(batch)(torch.cat([noise[chunk.frames[0]] for chunk in batch])))
        return torch.cat(made, dim=1)

    assert run(1).shape == (3, 24, 2, 2)
    assert torch.equal(run(1), run(3))


@pytest.fixture(scope="module")
def faces() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (10, 64, 64, 3), np.uint8)


def test_speech_in_overlapping_chunks(pipeline, faces):
    """Chunks of 0-3, 2-5, 4-7 and 6-9; the faces in 0-1 and 8-9 come from one chunk each."""
    tokens = pipeline.audio_encoder.stream(tone(16000, 0.4).astype(np.float32), 25, 10).chunks(0, 10)
    number = count()  # of the chunk: each differs from the one before

    def shift(pipeline, step, timestep, tensors):
        return {"latents": tensors["latents"] + next(number)}

    joined = pipeline.speak(faces, tokens, num_frames=4, callback_on_step_end=shift, **FAST)
    number = count()
    apart = [
        pipeline.speak(faces[i : i + 4], tokens[i : i + 4], callback_on_step_end=shift, **FAST) for i in (0, 2, 4, 6)
    ]
    assert joined.shape == faces.shape
    assert (joined[:2] - apart[0][:2]).abs().max() < 0.01 and (joined[8:] - apart[3][2:]).abs().max() < 0.01
    for frame, nearer in ((2, 0), (3, 1)):
        distances = [float((joined[frame] - chunk).abs().mean()) for chunk in (apart[0][frame], apart[1][frame - 2])]
        assert 0 < 1.2 * distances[nearer] < distances[1 - nearer]


def test_overlapping_chunks_in_batches(pipeline, faces):
    wave = tone(16000, 0.4).astype(np.float32)
    one, several = (pipeline.speak(faces, wave, num_frames=4, chunk_batch_size=size, **FAST) for size in (1, 3))
    assert (one - several).abs().max() < 0.5


def test_no_overlap_equals_independent_chunks(pipeline, faces):
    tokens = pipeline.audio_encoder.stream(tone(16000, 0.4).astype(np.float32), 25, 10).chunks(0, 10)
    made = pipeline.speak(faces, tokens, num_frames=4, chunk_overlap=0, **FAST)
    apart = [pipeline.speak(faces[i : i + 4], tokens[i : i + 4], **FAST) for i in (0, 4, 8)]
    assert torch.equal(made, torch.cat(apart))
    other = pipeline.speak(faces, tokens, faces[::-1].copy(), num_frames=4, **FAST)  # as references need
    parts = [
        pipeline.speak(faces[i : i + 4], tokens[i : i + 4], faces[::-1][i : i + 4].copy(), **FAST) for i in (0, 4, 8)
    ]
    assert torch.equal(other, torch.cat(parts))


def test_a_video_of_one_chunk_does_not_depend_on_the_overlap(run, media, written, tmp_path):
    for overlap in (0, 2):
        run(media / "clip.mp4", media / "voice.wav", tmp_path / "out.mp4", chunk_overlap=overlap)
    assert len(written) == 20
    assert all(np.array_equal(one, other) for one, other in zip(written[:10], written[10:], strict=True))


def test_a_gap_ends_the_overlap(run, written, spoken, tmp_path):
    """Faces in frames 0-6 and 8-13: frames 0-3, 2-5, 4-6; 8-11, 10-13."""
    video = clip(tmp_path / "v.mp4", 14, lambda index: draw_scene(((20, 0),) if index != 7 else ()))
    updates = []
    result = run(
        video,
        write_audio(tmp_path / "a.wav", tone(16000, 0.56)),
        tmp_path / "out.mp4",
        num_frames=4,
        on_progress=updates.append,
    )
    assert (result.num_frames, result.faces, len(written)) == (14, 13, 14)
    assert spoken == [(1, 4), (1, 4), (1, 3), (1, 4), (1, 4)]
    assert {progress.done for progress in updates} == set(range(15))
    fractions = [progress.fraction for progress in updates]
    assert fractions == sorted(fractions) and fractions[-1] <= 1


def test_memory_and_caching_modes_overlap_as_well(run, media, written, tmp_path):
    modes = ({}, {"vram_efficient": True}, {"chunk_batch_size": 2}, {"enable_deepcache": True})
    for mode in modes:
        run(media / "clip.mp4", media / "voice.wav", tmp_path / "out.mp4", num_frames=4, **mode)
    assert len(written) == 10 * len(modes)
    plain = np.stack(written[:10]).astype(int)
    for number in range(1, len(modes)):  # with one step, cached features are the computed ones
        assert np.abs(plain - np.stack(written[10 * number : 10 * number + 10])).max() <= 2
