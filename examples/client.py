"""Use the REST API from Python: `python examples/client.py person.mp4 speech.wav result.mp4`.

LATENTSYNC_URL is the server (default http://127.0.0.1:8000), LATENTSYNC_API_KEY the key, if it requires one.
"""

import os
import sys

from latentsync.client import Client, JobEnded, UserError


def main(video: str, audio: str, out: str) -> None:
    with Client(os.environ.get("LATENTSYNC_URL", "http://127.0.0.1:8000")) as client:
        queued = client.submit(video, audio)
        for job in client.follow(queued.id):
            print(job.state, job.progress.stage, f"{job.progress.fraction:.0%}")
        if job.state != "done":
            raise JobEnded(job)
        client.download(job, out)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:4])
    except UserError as error:
        sys.exit(str(error))
