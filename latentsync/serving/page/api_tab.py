"""The tab about the REST API: its addresses on this server, and commands to copy."""

import gradio as gr

MOUNT = "/rest"  # where the page's server also serves the REST API
NOT_SERVED = """This page is protected by a password, and there is no API key, so it does not serve the REST API. Set
`LATENTSYNC_API_KEY` and restart the page, or run `latentsync serve`."""
TEXT = """The REST API runs on this server and shares its queue: jobs that are submitted to it appear under Results.
All routes and fields are documented at [{base}/docs]({base}/docs); the OpenAPI document is at
[{base}/openapi.json]({base}/openapi.json).

```bash
# Submit; prints the job with its id.
curl{key} -F video=@person.mp4 -F audio=@speech.wav {base}/v1/jobs
# State and progress.
curl{key} {base}/v1/jobs/ID
# Progress as server-sent events.
curl{key} -N {base}/v1/jobs/ID/events
# The finished video.
curl{key} -o result.mp4 {base}/v1/jobs/ID/result
```

```python
from latentsync.client import Client

client = Client("{base}"{argument})
job = client.submit("person.mp4", "speech.wav")
client.download(client.wait(job.id), "result.mp4")
```
"""


class ApiTab:
    """The components of the tab. served: whether the REST API is mounted; needs_key: whether it requires a key."""

    def __init__(self, page: gr.Blocks, *, served: bool, needs_key: bool) -> None:
        self.needs_key = needs_key
        self.text = gr.Markdown(NOT_SERVED, elem_id="api")
        if served:
            page.load(self.describe, None, self.text, show_progress="hidden", api_visibility="private")

    def describe(self, request: gr.Request) -> str:
        """The text with the address that the visitor uses."""
        base = f"{str(request.request.base_url).rstrip('/')}{MOUNT}"
        key = ' -H "X-API-Key: $LATENTSYNC_API_KEY"' if self.needs_key else ""
        argument = ', api_key="..."' if self.needs_key else ""
        return TEXT.format(base=base, key=key, argument=argument)
