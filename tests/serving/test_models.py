"""Loaded models: kept for jobs that ask for the same, and for no others."""

import pytest
import torch

import gradio_app
from latentsync.options import GenerationOptions
from latentsync.serving import models
from latentsync.serving.settings import ServingSettings
from latentsync.serving.worker import make_runner
from latentsync.utils.errors import UserError
from scripts import batch, serve


def test_a_pipeline_is_kept_for_jobs_that_ask_for_the_same(monkeypatch):
    asked = []
    monkeypatch.setattr(models, "load_pipeline", lambda *places, **named: asked.append((places, named)))
    monkeypatch.setattr(models, "find_lora", lambda name: name)
    cache = models.ModelCache("cpu", most=2, dtype="bfloat16")
    loras = ({}, {"lora": "a"}, {"lora": "a", "lora_scale": 0.5}, {})
    for options in loras:
        cache.get(GenerationOptions(**options))
        cache.get(GenerationOptions(**options, seed=3, crf=20, match_color=True, enable_upscale=True))
    plain = {"lora": None, "lora_scale": 1.0, "preset": "best", "weights": "full", "compile": False}
    wanted = [(("embedded", "cpu", torch.bfloat16), plain | options) for options in loras]
    assert asked == wanted  # the first was unloaded for the third


def test_precision_and_compilation_belong_to_the_process(tmp_path):
    for build in (serve.build_parser, gradio_app.build_parser, batch.build_parser):
        assert build().parse_args([*(["--list=x"] if build is batch.build_parser else []), "--dtype=bfloat16"]).dtype
    settings = serve.build_settings(
        serve.build_parser().parse_args([f"--workspace={tmp_path}", "--dtype=bfloat16", "--weights=fp8", "--compile"])
    )
    cache = make_runner(ServingSettings(**settings.as_plain()), "cpu").cache
    assert cache.dtype is torch.bfloat16 and cache.weights == "fp8" and cache.compile
    with pytest.raises(UserError, match="dtype must be one of float32, float16, bfloat16, not 'half'"):
        ServingSettings(tmp_path, dtype="half")
    with pytest.raises(UserError, match="weights must be one of full, fp8, host, not 'disk'"):
        ServingSettings(tmp_path, weights="disk")


def test_a_replaced_file_is_loaded_anew(monkeypatch, tmp_path):
    """Other jobs keep what is loaded; the old weights are unloaded."""
    loaded = []
    monkeypatch.setattr(models, "load_pipeline", lambda *places, **named: loaded.append(named["lora"]))
    path = tmp_path / "unet-1.safetensors"
    path.write_bytes(b"first")
    monkeypatch.setattr(models, "find_lora", lambda name: path)
    cache = models.ModelCache("cpu")
    for _ in range(2):
        cache.get(GenerationOptions(lora="a"))
    path.write_bytes(b"trained longer")
    cache.get(GenerationOptions(lora="a"))
    assert len(loaded) == 2 and len(cache.names) == 1
