"""The web page: `python gradio_app.py`, then http://127.0.0.1:7860.

Jobs and results are kept in the workspace and outlive the page. Other machines need a password, read from the
environment variables LATENTSYNC_PAGE_USER and LATENTSYNC_PAGE_PASSWORD, unless --no_auth is given. Exit codes: 0
stopped, 1 invalid input or settings (with a one-line message), 2 wrong usage.
"""

import argparse
import logging
import os
from collections.abc import Sequence

from latentsync.serving.settings import add_server_arguments, server_settings
from latentsync.utils.commands import command, exit_now
from latentsync.utils.errors import UserError
from latentsync.utils.logs import configure_server_logging

USER_VARIABLE, PASSWORD_VARIABLE = "LATENTSYNC_PAGE_USER", "LATENTSYNC_PAGE_PASSWORD"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="latentsync app", description="The web UI of LatentSync.", allow_abbrev=False)
    add = parser.add_argument_group("network").add_argument
    add("--host", default="127.0.0.1", help="address to listen on; anything but a loopback address needs a password")
    port = os.environ.get("GRADIO_SERVER_PORT", "7860")  # text, so that an invalid value is a usage error
    add("--port", type=int, default=port, help="0 for a free one (default: %(default)s)")
    add("--no_auth", action="store_true", help="allow other machines without a password")
    add(
        "--share",
        action="store_true",
        help="create a public link through Gradio's servers; anyone who has the link can use the page",
    )
    add_server_arguments(parser)
    return parser


def read_login() -> tuple[str, str] | None:
    """User name and password from the environment. Raises UserError if only one of them is set."""
    user, password = (os.environ.get(name, "") for name in (USER_VARIABLE, PASSWORD_VARIABLE))
    if bool(user) != bool(password):
        raise UserError(f"set both {USER_VARIABLE} and {PASSWORD_VARIABLE}, or neither")
    return (user, password) if user else None


def check_exposure(options: argparse.Namespace, login: tuple[str, str] | None) -> None:
    """Raises UserError if others could use the page without a password."""
    from latentsync.serving.api.access import is_loopback

    open_to_others = options.share or not is_loopback(options.host)
    if open_to_others and login is None and not options.no_auth:
        what = "--share" if options.share else f"--host {options.host}"
        raise UserError(
            f"with {what} others can reach the page: set {USER_VARIABLE} and {PASSWORD_VARIABLE}, or give --no_auth"
        )


def run(options: argparse.Namespace) -> None:
    """Serve the page until a signal arrives; running jobs then return to the queue."""
    logging.getLogger("httpx").setLevel(logging.WARNING)
    from latentsync.serving.api.keys import read_key

    login, api_key = read_login(), read_key()
    check_exposure(options, login)

    from latentsync.serving.database import repair
    from latentsync.serving.service import JobService

    settings = server_settings(options)
    if options.repair:
        repair(settings.workspace)
    service = JobService(settings)
    # Gradio reads these when it is imported: uploads expire with the workspace's, and no usage data is sent.
    os.environ["GRADIO_TEMP_DIR"] = str(service.upload_folder())
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from latentsync.serving.page.app import serve_page

    with service:
        serve_page(service, options.host, options.port, login=login, share=options.share, api_key=api_key)


@command(interrupted=None, interrupted_code=0)
def main(argv: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    configure_server_logging(options.log_format)
    run(options)
    return 0


if __name__ == "__main__":
    exit_now(main())
