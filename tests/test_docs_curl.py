"""The curl commands of the docs and of the page work as pasted, on a live server."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("gradio")

from latentsync.serving.api.fetch import Fetcher
from latentsync.serving.api.webhooks import WebhookSender
from latentsync.serving.jobs import JobKind
from latentsync.serving.page.api_tab import TEXT
from latentsync.utils.paths import PROJECT_ROOT
from tests.serving.live import make_service, serving
from tests.serving.test_api import finish, submit

BLOCK = re.compile(r"```bash\n(.*?)```", re.DOTALL)
SERVER = re.compile(r"http://(?:127\.0\.0\.1|localhost):8000")
EXAMPLE_ID = "0123456789abcdef0123456789abcdef"
VIDEOS, VOICES = ("person", "anna", "talk", "two"), ("speech", "1", "2", "anna", "ben", "ben_again")
NOT_HERE = "https://example.org/person.mp4"  # there is no network in tests


def commands(text: str) -> list[str]:
    """The curl commands in a text, with the definitions of variables before them."""
    found = []
    for block in BLOCK.findall(text):
        lines = re.sub(r"\\\n\s*|\n\s+", " ", block).splitlines()
        found += [line for line in lines if re.match(r"curl |[A-Z]+=", line)]
    return found


PAGES = ("README.md", "docs/api.md", "docs/dubbing.md")
COMMANDS = {page: commands((PROJECT_ROOT / page).read_text(encoding="utf-8")) for page in PAGES}
COMMANDS["Use via API"] = commands(TEXT.format(base="http://127.0.0.1:8000", key="", argument=""))


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("page", COMMANDS)
def test_curl_commands_work_as_pasted(page, tmp_path, media):
    assert any(line.startswith("curl") for line in COMMANDS[page])
    for name in VIDEOS:
        shutil.copy(media / "clip.mp4", tmp_path / f"{name}.mp4")
    for name in VOICES:
        shutil.copy(media / "voice.wav", tmp_path / f"{name}.wav")
    cues = re.search(r"```csv\n(.*?)```", (PROJECT_ROOT / "docs/dubbing.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "cues.csv").write_text(cues[1])
    service = make_service(tmp_path / "workspace", max_queue=100)
    fetcher = Fetcher(10**6, resolver=lambda *_: ["93.184.215.14"], accepts=lambda address: True)
    webhooks = WebhookSender(service, b"a secret of 24 characters", fetcher)
    refused = Fetcher(10**6, resolver=lambda *_: ["127.0.0.1"])
    with serving(service, fetcher=refused, webhooks=webhooks, allowed_hosts=("127.0.0.1", "localhost")) as client:
        done = submit(client, media)["id"]
        finish(service, done, b"result")
        address = str(client.base_url).rstrip("/")
        defined: list[str] = []
        for line in COMMANDS[page]:
            here = SERVER.sub(address, line).replace(EXAMPLE_ID, done).replace("/jobs/ID", f"/jobs/{done}")
            if not line.startswith("curl"):
                defined.append(here)
                continue
            script = "\n".join([*defined, here.replace("curl ", "curl -sS ", 1)])
            ran = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
            assert ran.returncode == 0, (line, ran.stderr)
            check_output(line, ran.stdout, tmp_path)
        submitted = service.list(limit=100)
        assert any(job.kind is JobKind.LIPSYNC and job.id != done for job in submitted)
    if page == "docs/api.md":
        assert (tmp_path / "result.mp4").read_bytes() == b"result"
        assert [job.tags for job in submitted if job.tags == ("autumn", "draft")] and any(
            job.webhook for job in submitted
        )


def check_output(line: str, output: str, folder: Path) -> None:
    """What a command prints is no error, but for files that are not on this machine."""
    if "/events" in line:
        assert "event: final" in output, output
    elif NOT_HERE in line:
        assert json.loads(output)["error"]["code"] == "refused_url"
    elif "/readyz" in line:  # there are no workers
        assert json.loads(output)["ready"] is False
    elif " -o " not in line:
        answer = json.loads(output)
        assert answer.get("error") is None, (line, output)
        assert all(outcome.get("error") is None for outcome in answer.get("jobs", ())), (line, output)
