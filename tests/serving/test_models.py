"""Loaded models: kept for jobs that ask for the same, and for no others."""

from latentsync.serving import models
from latentsync.serving.options import JobOptions


def test_a_pipeline_is_kept_for_jobs_that_ask_for_the_same(monkeypatch):
    asked = []
    monkeypatch.setattr(models, "load_pipeline", lambda name, device, **options: asked.append((name, options)))
    cache = models.ModelCache("cpu", most=2)
    for options in ({}, {"seed": 3, "crf": 20}, {"match_colour": True}, {"enable_upscale": True}, {}):
        cache.get(JobOptions(**options))
    plain = {"match_color": False, "upscale": False, "lora": None}
    wanted = [{}, {"match_color": True}, {"upscale": True}]
    assert asked == [("embedded", plain | own) for own in (*wanted, {})]  # the first was let go for the third
