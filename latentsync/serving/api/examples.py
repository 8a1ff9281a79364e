"""Examples in the OpenAPI document."""

import json
from typing import Any

JOB: dict[str, Any] = {
    "id": "0123456789abcdef0123456789abcdef",
    "kind": "lipsync",
    "state": "running",
    "position": None,
    "progress": {"stage": "lip-sync", "done": 42, "total": 100, "fraction": 0.42, "eta_seconds": 35.5},
    "options": {"seed": 7},
    "inputs": {"video": "me.mp4", "audio": "speech.wav"},
    "tags": ["campaign-7", "draft"],
    "created": "2026-01-31T12:00:00.250000Z",
    "started": "2026-01-31T12:00:01Z",
    "finished": None,
    "attempts": 1,
    "error": None,
    "expired": False,
    "links": {
        "self": "/v1/jobs/0123456789abcdef0123456789abcdef",
        "events": "/v1/jobs/0123456789abcdef0123456789abcdef/events",
        "result": None,
        "thumbnail": "/v1/jobs/0123456789abcdef0123456789abcdef/thumbnail",
    },
}
PERSON: dict[str, Any] = {
    "name": "person1",
    "seconds": [[0.0, 4.2]],
    "first_box": [127, 55, 205, 146],
    "portrait": "data:image/jpeg;base64,/9j/4AAQ",
}
MODEL: dict[str, Any] = {
    "name": "embedded",
    "summary": "Part of the repository; runs on a CPU.",
    "resolution": 256,
    "present": True,
    "missing": [],
}
URL_JOB: dict[str, Any] = {
    "video_url": "https://example.org/person.mp4",
    "audio_url": "https://example.org/speech.wav",
    "options": {"seed": 7},
}
FORM = {"video": "(person.mp4)", "audio": "(speech.wav)", "inference_steps": 20, "tags": "campaign-7,draft"}
BATCH_JOBS = '[{"video": "anna.mp4", "audio": "line1.wav"}, {"video": "anna.mp4", "audio": "line2.wav"}]'
EVENT = f"id: 5\nevent: progress\ndata: {json.dumps(JOB)}\n\n"
METRICS = "latentsync_queue_length 2.0\n"
# By model. Values that FastAPI would take from the models themselves lose their nulls.
OF_MODELS: dict[str, Any] = {
    "JobView": JOB,
    "JobList": {"jobs": [JOB]},
    "PeopleView": {"people": [PERSON]},
    "ModelList": {"models": [MODEL], "loras": ["anna.safetensors"], "can_upscale": False, "default": "auto"},
    "Health": {"status": "ok", "version": "1.0.0"},
    "Readiness": {"ready": True, "problems": []},
    "BatchView": {
        "jobs": [
            {"job": JOB, "error": None},
            {"job": None, "error": {"code": "invalid_options", "message": "seed must be a whole number"}},
        ]
    },
    "UrlJob": URL_JOB,
    "UrlBatch": {"jobs": [URL_JOB]},
}
