"""Inputs of a SyncNet: half faces, stacked frames, and the Whisper rows of each frame."""

import pytest
import torch

from latentsync.models.syncnet_input import (
    audio_input,
    lower_half,
    stack_frames,
    stack_whisper,
    visual_input,
    whisper_rows,
)
from latentsync.whisper.windows import frame_rows, gather_tokens


def test_lower_half_and_stacking():
    frames = torch.arange(2 * 3 * 2 * 4 * 5.0).reshape(2, 3, 2, 4, 5)
    assert torch.equal(lower_half(frames), frames[..., 2:, :])
    stacked = stack_frames(frames)
    assert stacked.shape == (2, 6, 4, 5) and torch.equal(stacked[1, 2 * 2 + 1], frames[1, 2, 1])
    assert torch.equal(visual_input(frames, halve=True), stacked[:, :, 2:])
    assert torch.equal(visual_input(frames, halve=False), stacked)
    assert lower_half(torch.zeros(5, 2)).shape == (3, 2)


@pytest.mark.parametrize("window", [(2, 2), (0, 0), (1, 3)])
def test_whisper_rows_follow_each_other(window):
    states = torch.randn(40, 3, 8)  # rows, L, D
    indices = torch.stack([frame_rows(frame, 25, window, len(states)) for frame in range(4, 8)])
    tokens = gather_tokens(states, indices)[None]
    assert torch.equal(whisper_rows(tokens, 3, window)[0], states[8:16])


def test_whisper_rows_refuse_another_layout():
    with pytest.raises(ValueError, match="50 tokens a frame are not 10 rows of 4 states"):
        whisper_rows(torch.zeros(1, 2, 50, 8), 4)


def test_stack_whisper_normalizes_each_state():
    rows = torch.randn(2, 6, 3, 16) * torch.tensor([1.0, 100.0, 0.01])[:, None] + 5
    stacked = stack_whisper(rows)
    assert stacked.shape == (2, 48, 1, 6)
    state = stacked[1, 16:32, 0, 4]
    torch.testing.assert_close(state, (rows[1, 4, 1] - rows[1, 4, 1].mean()) / rows[1, 4, 1].std(correction=0))


def test_audio_input_by_kind():
    mel, rows = torch.randn(2, 1, 80, 52), torch.randn(2, 6, 3, 16)
    assert audio_input(mel, "mel") is mel
    assert torch.equal(audio_input(rows, "whisper"), stack_whisper(rows))
