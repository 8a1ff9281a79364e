"""The encoder of openai-whisper and its constants, without decoding and alignment, which import numba."""

from typing import TYPE_CHECKING

from latentsync.utils.light_imports import import_light

if TYPE_CHECKING:
    from whisper import audio
    from whisper.model import AudioEncoder
    from whisper.utils import exact_div
else:
    _model = import_light(
        "whisper.model", bare=("whisper",), placeholders=("whisper.decoding", "whisper.transcribe"), forget="whisper"
    )
    AudioEncoder = _model.AudioEncoder
    audio = import_light("whisper.audio", bare=("whisper",), forget="whisper")
    exact_div = audio.exact_div

HOP_LENGTH, N_FFT = audio.HOP_LENGTH, audio.N_FFT
SAMPLE_RATE, TOKENS_PER_SECOND = audio.SAMPLE_RATE, audio.TOKENS_PER_SECOND
mel_filters = audio.mel_filters

__all__ = ["HOP_LENGTH", "N_FFT", "SAMPLE_RATE", "TOKENS_PER_SECOND", "AudioEncoder", "exact_div", "mel_filters"]
