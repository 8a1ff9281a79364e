"""The API against its own OpenAPI document, with generated requests. Needs schemathesis."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from latentsync.options import GenerationOptions
from latentsync.serving.api import create_app, schema
from latentsync.serving.api.submission import request_body_docs
from latentsync.serving.jobs import JobKind, JobState
from latentsync.serving.service import JobService
from latentsync.serving.workspace import RESULT
from tests.serving.fakes import write_files
from tests.serving.live import make_service, serving
from tests.waiting import HANG_SECONDS

PROJECT_ROOT = Path(__file__).resolve().parents[2]
EXAMPLES, SEED = 5, 7
OPEN_JOBS, DONE_JOBS = 100, 3


def add_jobs(service: JobService, media: Path, folder: Path) -> dict[str, list[str]]:
    """Jobs without and with a result."""
    files = write_files(folder)
    done = [service.submit(JobKind.LIPSYNC, files, GenerationOptions()).id for _ in range(DONE_JOBS)]
    for job_id in done:
        row = service.store.claim("test")
        assert row.id == job_id
        (service.workspace.folder(job_id) / RESULT).write_bytes((media / "clip.mp4").read_bytes())
        service.store.finish(row, JobState.DONE, result=RESULT)
    queued = [f"{number:032x}" for number in range(OPEN_JOBS)]
    for job_id in queued:
        names = service.workspace.fill(job_id, files, move=False)
        service.store.add(job_id, JobKind.LIPSYNC, GenerationOptions(), {"video": "a"}, names, 10**6)
    return {"open": queued, "done": done}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("schemathesis") is None, reason="needs schemathesis")
def test_the_api_keeps_its_word(tmp_path, media):
    """No failed check, and a success of each documented operation but four."""
    service = make_service(tmp_path / "workspace", max_queue=10**6, lease_seconds=HANG_SECONDS)
    jobs = add_jobs(service, media, tmp_path / "in")
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    environment = {
        "SCHEMATHESIS_HOOKS": "tests.serving.schemathesis_hooks",
        "JOBS_FILE": str(tmp_path / "jobs.json"),
        "PYTHONPATH": str(PROJECT_ROOT),
    }
    with serving(service) as client:
        service.store.worker_beat("test", os.getpid(), "cpu", [])
        command = [
            sys.executable, "-m", "schemathesis.cli", "run", f"{client.base_url}/openapi.json", "--seed", str(SEED),
            "--max-examples", str(EXAMPLES), "--generation-database", "none", "--no-color", "--warnings", "off",
            "--phases", "examples,fuzzing", "--request-timeout", "60", "--suppress-health-check", "all",
            # That a file must be a video, and which kind needs audio, is more than a schema can say.
            "--exclude-checks", "positive_data_acceptance",
        ]  # fmt: skip
        done = subprocess.run(command, cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True)
        document = client.get("/openapi.json").json()
        metrics = client.get("/metrics").text
    print(done.stdout[-20_000:])  # shown when the test fails
    assert done.returncode == 0, done.stderr[-2000:]
    answered = re.findall(r'http_requests_total\{method="(\w+)",route="([^"]+)",status="2\d\d"\}', metrics)
    documented = [(method.upper(), path) for path, methods in document["paths"].items() for method in methods]
    # Generated files are no videos, and a job that can be retried has to be cancelled first: see test_api.py.
    elsewhere = {("POST", path) for path in ("/v1/jobs", "/v1/batches", "/v1/people", "/v1/jobs/{job_id}/retry")}
    assert set(documented) - elsewhere <= set(answered)
    assert not re.search(r'http_requests_total\{[^}]*status="500"\}', metrics)


def test_every_route_has_examples_that_are_valid(tmp_path):
    """Of each parameter, request body and JSON response; those of models are parsed."""
    document = create_app(make_service(tmp_path / "ws")).openapi()
    schemas = document["components"]["schemas"]
    seen = 0
    for path, methods in document["paths"].items():
        for operation in methods.values():
            for parameter in operation.get("parameters", []):
                given = parameter.get("example") or parameter.get("examples") or parameter["schema"].get("examples")
                assert given, (path, parameter["name"])
            bodies = list(operation.get("requestBody", {}).get("content", {}).values())
            answers = [answer for status, answer in operation["responses"].items() if status.startswith("2")]
            bodies += [content for answer in answers for content in answer.get("content", {}).values()]
            for body in bodies:
                name = body.get("schema", {}).get("$ref", "").rpartition("/")[2]
                binary = body.get("schema", {}).get("format") == "binary"
                assert binary or "example" in body or schemas[name].get("examples"), (path, body)
                for value in schemas[name]["examples"] if name else []:
                    getattr(schema, name).model_validate(value)
                    seen += 1
    assert seen > 5


def test_no_option_of_the_form_may_be_null():
    """A form has no null; an option that is not given is left out."""
    form = request_body_docs()["content"]["multipart/form-data"]["schema"]["properties"]
    assert "null" not in json.dumps(form) and form["max_seconds"]["type"] == "number"
