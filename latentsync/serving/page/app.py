"""The whole page."""

import socket
import threading

import gradio as gr
from starlette.middleware import Middleware

from latentsync.serving.api import create_app
from latentsync.serving.api.access import LOOPBACK_NAMES, BrowserGuard, check_port, is_loopback
from latentsync.serving.page.api_tab import MOUNT, ApiTab
from latentsync.serving.page.compare import CSS as COMPARE_CSS
from latentsync.serving.page.compare import HEAD
from latentsync.serving.page.downloads import NamedDownloads
from latentsync.serving.page.frames_tab import FramesTab
from latentsync.serving.page.job_panel import remembered_job
from latentsync.serving.page.lipsync_tab import LipsyncTab
from latentsync.serving.page.options_form import model_line
from latentsync.serving.page.results_tab import LIPSYNC, ResultsTab
from latentsync.serving.service import JobService
from latentsync.utils.errors import UserError

TITLE = "LatentSync"
PARALLEL_EVENTS = 4  # of one kind, such as the examination of uploads; Gradio's default is one visitor at a time
INTRODUCTION = """# LatentSync
Upload a video or an image of a person, and speech: the mouth follows the speech. Use a person's face and voice only
with their consent, and label the result as synthetic."""
# Fonts of the system: the default theme would load its own from the network. Colors have a contrast of 4.5 or more.
THEME = gr.themes.Default(
    font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"], primary_hue="blue"
).set(
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_dark="*primary_600",
    button_primary_background_fill_hover="*primary_700",
    button_primary_background_fill_hover_dark="*primary_700",
    button_cancel_background_fill="#b42318",
    button_cancel_background_fill_dark="#b42318",
    button_cancel_background_fill_hover="#912018",
    button_cancel_background_fill_hover_dark="#912018",
    button_cancel_text_color="#ffffff",
    button_cancel_text_color_dark="#ffffff",
    color_accent="*primary_600",
    body_text_color_subdued="#52525b",
    body_text_color_subdued_dark="#d4d4d8",
    block_label_text_color="#52525b",
    block_label_text_color_dark="#d4d4d8",
    block_info_text_color="#52525b",
    block_info_text_color_dark="#d4d4d8",
    input_placeholder_color="#6b7280",
    input_placeholder_color_dark="#a1a1aa",
)
CSS = (
    COMPARE_CSS
    + """
.gradio-container { max-width: 1100px !important; margin: 0 auto !important; }
.or { color: var(--body-text-color-subdued) !important; }
/* Low fields for files: only the words, below the label. */
:is(#video, #frames-video, #script, #more-audio, #mask_image_path) [data-testid=upload-icon] { display: none; }
:is(#video, #frames-video, #script, #more-audio, #mask_image_path) [data-testid=upload-text] {
    font-size: 0.9rem; line-height: 1.3; padding-top: 1.6rem; min-height: 0;
}
.help p { font-size: 0.75rem; color: var(--block-info-text-color); }
.group h2 { font-size: 0.95rem !important; margin: 0.4rem 0 0 !important; }
.dark button[role=tab][aria-selected=true] { color: var(--primary-300) !important; }
#examples .grid-wrap, #people .grid-wrap, #jobs .grid-wrap { min-height: 0; height: auto; }
#jobs .grid-wrap { max-height: 34rem; overflow-y: auto; }
#examples .grid-container, #people .grid-container, #jobs .grid-container {
    box-sizing: border-box; padding-top: 1.8rem;
}
#examples .grid-container { grid-template-columns: repeat(3, minmax(0, 1fr)) !important; }
#examples .thumbnail-item, #people .thumbnail-item { min-width: 0; width: 100%; }
#examples .caption-label { opacity: 1 !important; max-width: 100%; font-size: 0.75rem; padding: 0.1rem 0.3rem; }
#examples .grid-wrap, #people .grid-wrap { overflow-y: visible !important; }
#api .token { color: inherit !important; background: none !important; }
#audio .component-wrapper, #audio .component-wrapper * { color: var(--body-text-color-subdued); }
.download a.button {
    display: block; padding: var(--button-large-padding); border-radius: var(--button-large-radius);
    background: var(--button-secondary-background-fill); color: var(--button-secondary-text-color) !important;
    font-size: var(--button-large-text-size); font-weight: var(--button-large-text-weight);
    text-align: center; text-decoration: none !important;
}
.download a.button:hover { background: var(--button-secondary-background-fill-hover); }
#results-actions { flex-wrap: wrap; } #results-actions button { min-width: max-content; }
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
#faces .image-container { box-sizing: border-box; padding-top: 1.8rem; } /* below the label */
#people .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)) !important; }
#people .caption-label {
    opacity: 1 !important; max-width: 100%; white-space: normal; font-size: 0.65rem; padding: 0.1rem 0.3rem;
}
#jobs .caption-label {
    opacity: 1 !important; max-width: 100%; white-space: normal; overflow-wrap: anywhere; padding-bottom: 0;
    display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3;
}
@media (max-width: 600px) {
    .tabs { min-width: 0 !important; overflow-x: clip; }
    #api, #api * { min-width: 0; max-width: 100%; overflow-wrap: anywhere; }
    #api pre, #api code { white-space: pre-wrap !important; }
    #jobs .grid-container { grid-template-columns: repeat(2, 1fr) !important; }
    #jobs .caption-label { font-size: 0.65rem; padding: 0.1rem 0.3rem 0; }
    #start textarea::placeholder, #end textarea::placeholder { font-size: 0.7rem; }
    #speak, #preview { padding-inline: 0.4rem; font-size: 0.95rem; white-space: nowrap; }
    .tab-container button { padding: 0 0.3rem !important; font-size: 0.8rem !important; } /* all four fit */
}
#given video { width: 100%; height: 14rem; background: #000; } /* a fixed height, so that the page does not jump */
table.settings { font-size: 0.85rem; } table.settings th { text-align: left; padding-right: 1rem; font-weight: 600; }
"""
)

# In the page head, because Gradio scopes the rules of its `css` argument inside @media to its own container.
PHONE = "<style>@media (max-width: 600px) { .gradio-container > .main { padding: 0.5rem !important; } }</style>"


def build_page(service: JobService, *, serves_api: bool = False, needs_key: bool = False) -> gr.Blocks:
    """The page of a started service. Launch it with `css=CSS`, `head=HEAD + PHONE` and a theme.

    serves_api: whether the REST API is mounted beside it; needs_key: whether that requires a key.
    """
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        jobs = [remembered_job(f"latentsync-{name}") for name in ("lipsync", "frames", "results")]
        gr.Markdown(INTRODUCTION)
        model = gr.Markdown(model_line(service.settings), elem_id="model-line")
        with gr.Tabs() as tabs:
            with gr.Tab("Lip-sync", id=LIPSYNC, render_children=True) as first:
                lipsync = LipsyncTab(service, page, jobs[0])
            with gr.Tab("Frame interpolation", render_children=True) as second:
                FramesTab(service, page, jobs[1])
            with gr.Tab("Results", render_children=True) as results:
                pass
            with gr.Tab("Use via API", render_children=True) as last:
                ApiTab(page, served=serves_api, needs_key=needs_key)
            with results:
                ResultsTab(service, page, results, jobs[2], lipsync, tabs, (first, second, last))
        page.load(lambda: model_line(service.settings), None, model, show_progress="hidden", api_visibility="private")
    return page.queue(default_concurrency_limit=PARALLEL_EVENTS)


def serve_page(
    service: JobService,
    host: str,
    port: int,
    *,
    login: tuple[str, str] | None = None,
    share: bool = False,
    api_key: str | None = None,
) -> None:
    """Serve the page of a started service until it is interrupted, and the REST API below `/rest`.

    Args:
        port: 0 for a free one.
        login: user name and password that visitors need.
        share: also create a public link through Gradio's servers.
        api_key: of the REST API. With a login or a public link, the API is served only if there is a key.

    Raises:
        UserError: the address is not available.
    """
    check_port(port)
    serves_api = api_key is not None or (login is None and not share)
    page = build_page(service, serves_api=serves_api, needs_key=api_key is not None)
    middleware, hosts = [Middleware(NamedDownloads)], None
    if login is None and not share and is_loopback(host):
        # Without a login, a page of another site could reach this one through a name that leads here.
        hosts = (*LOOPBACK_NAMES, host)
        middleware.append(Middleware(BrowserGuard, hosts=hosts))
    try:
        app, url, _ = page.launch(
            server_name=host,
            server_port=port or _free_port(host),
            share=share,
            auth=login,
            theme=THEME,
            css=CSS,
            head=HEAD + PHONE,
            app_kwargs={"middleware": middleware},
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
    if serves_api:
        app.mount(MOUNT, create_app(service, api_key=api_key, allowed_hosts=None if api_key else hosts))
    print(f"listening on {url}", flush=True)
    wait_for_signal(page)


def wait_for_signal(page: gr.Blocks) -> None:
    """Serve until a signal handler raises. `page.block_thread` would wait up to five seconds for open connections."""
    threading.Event().wait()


def _free_port(host: str) -> int:
    with socket.create_server((host, 0)) as server:
        return server.getsockname()[1]
