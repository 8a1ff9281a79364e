"""The clips and the audio encoder of the data tests."""

from tests.data.conftest import audio, clips

__all__ = ["audio", "clips"]
