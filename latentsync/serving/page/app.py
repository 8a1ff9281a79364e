"""The whole page."""

import socket
import threading

import gradio as gr
from starlette.middleware import Middleware

from latentsync.serving.api.access import LOOPBACK_NAMES, BrowserGuard, check_port, is_loopback
from latentsync.serving.page.frames_tab import FramesTab
from latentsync.serving.page.lipsync_tab import LipsyncTab
from latentsync.serving.page.results_tab import ResultsTab
from latentsync.serving.service import JobService
from latentsync.utils.errors import UserError

TITLE = "LatentSync"
INTRODUCTION = """# LatentSync
Upload a video or an image of a person, and speech: the mouth follows the speech. Use a person's face and voice only
with their consent, and label the result as synthetic."""
CSS = """
.gradio-container { max-width: 1100px !important; margin: 0 auto !important; }
.status { margin: 0.25rem 0; }
.status.failed { color: #b42318; }
.dark .status.failed { color: #ff8a80; }
progress { appearance: none; width: 100%; height: 0.6rem; border: 0; border-radius: 0.3rem; overflow: hidden; }
progress, progress::-webkit-progress-bar { background: var(--neutral-200); }
.dark progress, .dark progress::-webkit-progress-bar { background: var(--neutral-700); }
progress::-webkit-progress-value { background: var(--primary-500); }
progress::-moz-progress-bar { background: var(--primary-500); }
progress:indeterminate { animation: waiting 1.5s ease-in-out infinite alternate; }
@keyframes waiting { to { opacity: 0.3; } }
#faces img { cursor: pointer; }
#jobs .grid-container { box-sizing: border-box; padding-top: 1.8rem; }
#jobs .caption-label {
    opacity: 1 !important; max-width: 100%; white-space: normal; overflow-wrap: anywhere;
    display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2;
}
@media (max-width: 600px) {
    #jobs .grid-container { grid-template-columns: repeat(2, 1fr) !important; }
    #jobs .caption-label { font-size: 0.65rem; padding: 0.1rem 0.3rem; -webkit-line-clamp: 3; }
}
"""


def build_page(service: JobService) -> gr.Blocks:
    """The page of a started service. Launch it with `css=CSS` and a theme."""
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Tabs():
            with gr.Tab("Lip-sync"):
                LipsyncTab(service, page)
            with gr.Tab("Frame rate (RIFE)"):
                FramesTab(service, page)
            with gr.Tab("Results") as results:
                ResultsTab(service, page, results)
    return page


def serve_page(
    service: JobService, host: str, port: int, *, login: tuple[str, str] | None = None, share: bool = False
) -> None:
    """Serve the page of a started service until it is interrupted.

    Args:
        port: 0 for a free one.
        login: user name and password that visitors need.
        share: also create a public link through Gradio's servers.

    Raises:
        UserError: the address is not available.
    """
    check_port(port)
    page = build_page(service)
    guards = []
    if login is None and not share and is_loopback(host):
        # Without a login, a page of another site could reach this one through a name that leads here.
        guards.append(Middleware(BrowserGuard, hosts=(*LOOPBACK_NAMES, host)))
    try:
        _, url, _ = page.launch(
            server_name=host,
            server_port=port or _free_port(host),
            share=share,
            auth=login,
            css=CSS,
            app_kwargs={"middleware": guards},
            allowed_paths=[str(service.workspace.jobs)],
            max_file_size=service.settings.max_upload_bytes,
            show_error=True,
            quiet=True,
            footer_links=[],
            ssr_mode=False,
            enable_monitoring=False,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise UserError(f"cannot listen on {host} port {port} ({error}); choose another --host or --port") from error
    print(f"listening on {url}", flush=True)
    wait_for_signal(page)


def wait_for_signal(page: gr.Blocks) -> None:
    """Serve until a signal handler raises. `page.block_thread` would wait up to five seconds for open connections."""
    threading.Event().wait()


def _free_port(host: str) -> int:
    with socket.create_server((host, 0)) as server:
        return server.getsockname()[1]
