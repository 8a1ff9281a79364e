"""The web page: `python gradio_app.py`, then http://127.0.0.1:7860.

Jobs and results lie in the workspace and outlive the page. Other machines are let in only with a password, taken from
the environment variables LATENTSYNC_PAGE_USER and LATENTSYNC_PAGE_PASSWORD, or with --no_auth. Exit codes: 0 stopped,
1 something is wrong with what was given (one line says what), 2 wrong usage.
"""

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from latentsync.options import AUTO
from latentsync.serving.settings import MIB, ServingSettings, add_service_arguments
from latentsync.utils.commands import command, configure_server_logging, exit_now, size
from latentsync.utils.errors import UserError

USER_VARIABLE, PASSWORD_VARIABLE = "LATENTSYNC_PAGE_USER", "LATENTSYNC_PAGE_PASSWORD"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python gradio_app.py", description="The web page of LatentSync.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on; anything but a loopback address needs a password")
    port = os.environ.get("GRADIO_SERVER_PORT", "7860")  # a text: what is no number is wrong usage, as of the option
    add("--port", type=int, default=port, help="0 for any free one (default: %(default)s)")
    add("--no_auth", action="store_true", help="allow other machines without a password")
    add(
        "--share",
        action="store_true",
        help="create a public link through Gradio's servers; anyone who has the link can use the page",
    )
    add("--workspace", type=Path, default=Path("workspace"), help="folder of jobs and results (default: %(default)s)")
    add("--model", default=AUTO, help="model of jobs that name none (default: the best present)")
    add("--max_upload_mb", type=size, default=2048, help="MiB of one uploaded file (default: %(default)s)")
    add("--ray_address", help="address of a Ray cluster that runs the jobs, see docs/serving.md")
    add_service_arguments(parser)
    return parser


def read_login() -> tuple[str, str] | None:
    """User and password of the environment. Raises UserError where one of them is missing."""
    user, password = (os.environ.get(name, "") for name in (USER_VARIABLE, PASSWORD_VARIABLE))
    if bool(user) != bool(password):
        raise UserError(f"set both {USER_VARIABLE} and {PASSWORD_VARIABLE}, or neither")
    return (user, password) if user else None


def check_exposure(options: argparse.Namespace, login: tuple[str, str] | None) -> None:
    """Raises UserError where strangers could use the page without a password."""
    from latentsync.serving.api.access import is_loopback

    open_to_others = options.share or not is_loopback(options.host)
    if open_to_others and login is None and not options.no_auth:
        what = "--share" if options.share else f"--host {options.host}"
        raise UserError(
            f"with {what} others can reach the page: set {USER_VARIABLE} and {PASSWORD_VARIABLE}, or give --no_auth"
        )


def run(options: argparse.Namespace) -> None:
    """Serve the page until a signal comes; running jobs then go back to the queue."""
    logging.getLogger("httpx").setLevel(logging.WARNING)
    login = read_login()
    check_exposure(options, login)

    from latentsync.serving.database import repair
    from latentsync.serving.models import find_model
    from latentsync.serving.service import JobService

    find_model(options.model)
    settings = ServingSettings(
        options.workspace,
        workers=options.workers,
        devices=tuple(options.devices),
        dtype=options.dtype,
        model=options.model,
        max_upload_bytes=int(options.max_upload_mb * MIB),
        ray_address=options.ray_address,
    )
    if options.repair:
        repair(settings.workspace)
    service = JobService(settings)
    # Read by Gradio when it is imported: uploads age out with the workspace's, and nothing is sent home.
    os.environ["GRADIO_TEMP_DIR"] = str(service.upload_folder())
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from latentsync.serving.page.app import serve_page

    with service:
        serve_page(service, options.host, options.port, login=login, share=options.share)


@command(interrupted=None, interrupted_code=0)
def main(argv: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    configure_server_logging()
    run(options)
    return 0


if __name__ == "__main__":
    exit_now(main())
