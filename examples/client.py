"""Use the REST API from Python: `python examples/client.py person.mp4 speech.wav result.mp4`. Needs only httpx."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx


class LatentSyncClient:
    """Client of a server at `url`; `api_key` if the server requires one."""

    def __init__(self, url: str = "http://127.0.0.1:8000", api_key: str | None = None) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.http = httpx.Client(base_url=url, headers=headers, timeout=httpx.Timeout(60, write=600))

    def submit(self, video: str, audio: str | None = None, **options: object) -> dict:
        """Upload the files, streamed from disk; returns the queued job. /docs lists the options."""
        with ExitStack() as stack:
            paths = {"video": video, "audio": audio}
            files = {role: stack.enter_context(open(path, "rb")) for role, path in paths.items() if path}
            return self._json(
                "POST", "/v1/jobs", files=files, data={name: str(value) for name, value in options.items()}
            )

    def follow(self, job_id: str) -> Iterator[dict]:
        """Yield the job after each change, the finished one last."""
        with self.http.stream("GET", f"/v1/jobs/{job_id}/events", timeout=60) as response:
            for line in response.raise_for_status().iter_lines():
                if line.startswith("data: "):
                    yield json.loads(line.removeprefix("data: "))

    def download(self, job: dict, path: str) -> None:
        """Save the result of a finished job."""
        with self.http.stream("GET", job["links"]["result"]) as response, Path(path).open("wb") as file:
            for piece in response.raise_for_status().iter_bytes():
                file.write(piece)

    def cancel(self, job_id: str) -> dict:
        return self._json("POST", f"/v1/jobs/{job_id}/cancel")

    def _json(self, method: str, path: str, **parts) -> dict:
        response = self.http.request(method, path, **parts)
        if response.is_error:
            raise RuntimeError(response.json()["error"]["message"])
        return response.json()


if __name__ == "__main__":
    video, audio, out = sys.argv[1:4]
    client = LatentSyncClient(
        os.environ.get("LATENTSYNC_URL", "http://127.0.0.1:8000"), os.environ.get("LATENTSYNC_API_KEY")
    )
    queued = client.submit(video, audio)
    for job in client.follow(queued["id"]):
        print(job["state"], job["progress"]["stage"], f"{job['progress']['done']}/{job['progress']['total']}")
    if job["state"] != "done":
        sys.exit(f"{job['state']}: {job['error']}")
    client.download(job, out)
