"""Detection of silence and speech."""

import numpy as np

from latentsync.media.silence import silence_and_speech

RATE = 640  # samples of a video frame


def test_silence_before_and_after_speech():
    rng = np.random.default_rng(0)
    speech = rng.normal(0, 0.1, 40 * RATE)
    speech[18 * RATE : 22 * RATE] = 0  # a pause between words
    wave = np.concatenate([np.zeros(30 * RATE), speech, rng.normal(0, 0.001, 30 * RATE)])
    silence, spoken = silence_and_speech(wave, 100)
    assert np.flatnonzero(silence).tolist() == [*range(26), *range(74, 100)]
    assert np.flatnonzero(spoken).tolist() == list(range(30, 70))


def test_frames_after_the_audio_are_silent_and_silence_is_no_speech():
    silence, speech = silence_and_speech(np.full(20 * RATE, 0.1), 40)
    assert np.flatnonzero(silence).tolist() == list(range(24, 40)) and speech[:20].all()
    silence, speech = silence_and_speech(np.zeros(40 * RATE), 40)
    assert silence.all() and not speech.any()
