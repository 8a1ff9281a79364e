"""Serve lip-sync jobs over HTTP: `python -m scripts.serve`, then http://127.0.0.1:8000/docs.

The API key is read from the environment variable LATENTSYNC_API_KEY, further ones from --keys_file; the secret that
webhooks are signed with from LATENTSYNC_WEBHOOK_SECRET. Exit codes: 0
stopped by a signal, 1 invalid input or settings (with a one-line message), 2 wrong usage.
"""

import argparse
import socket
from collections.abc import Sequence
from pathlib import Path

from latentsync.serving.settings import GIB, ServingSettings, add_server_arguments, server_settings
from latentsync.utils.commands import command, exit_now, size
from latentsync.utils.errors import UserError
from latentsync.utils.logs import configure_server_logging


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="latentsync serve",
        usage="%(prog)s [--option value ...], all optional; --help lists them",
        description="REST API for lip-sync jobs. Its key is read from LATENTSYNC_API_KEY.",
        allow_abbrev=False,
    )
    add = parser.add_argument_group("network").add_argument
    add("--host", default="127.0.0.1", help="address to listen on; anything but a loopback address needs a key")
    add("--port", type=int, default=8000, help="0 for a free one (default: %(default)s)")
    add("--keys_file", type=Path, help="file with one `name: key` per line; each key sees only its own jobs")
    add("--no_auth", action="store_true", help="serve other machines without a key")
    add("--allowed_hosts", nargs="+", metavar="NAME", help="accepted Host names (default: any with a key)")
    add("--allow_urls", action="store_true", help="also accept public URLs as inputs")

    add = add_server_arguments(parser).add_argument
    add("--max_models", type=int, default=2, help="number of models a worker keeps loaded (default: %(default)s)")
    add("--max_queue", type=int, default=1000, help="maximum number of queued jobs (default: %(default)s)")
    add("--max_video_seconds", type=float, default=14400, help="maximum duration of a video (default: %(default)s)")
    add("--max_audio_seconds", type=float, default=3600, help="maximum duration of audio (default: %(default)s)")
    add("--job_timeout_seconds", type=float, default=21600, help="time limit of a job (default: %(default)s)")
    add(
        "--keep_results_hours",
        type=float,
        default=168,
        help="delete files of finished jobs after this time (default: %(default)s)",
    )
    add(
        "--quota_gb",
        type=size,
        default=50,
        help="maximum size of the workspace in GiB; the oldest results are deleted first (default: %(default)s)",
    )
    return parser


def check_exposure(host: str, has_key: bool, no_auth: bool) -> bool:
    """Whether `host` is a loopback address. Raises UserError if others could use the server without a key."""
    from latentsync.serving.api.access import is_loopback
    from latentsync.serving.api.keys import KEY_VARIABLE

    local = is_loopback(host)
    if not local and not has_key and not no_auth:
        raise UserError(
            f"--host {host} can be reached from other machines: set {KEY_VARIABLE}, give --keys_file, or allow anyone "
            "with --no_auth"
        )
    return local


def build_settings(options: argparse.Namespace) -> ServingSettings:
    return server_settings(
        options,
        max_models=options.max_models,
        max_queue=options.max_queue,
        max_video_seconds=options.max_video_seconds,
        max_audio_seconds=options.max_audio_seconds,
        job_timeout_seconds=options.job_timeout_seconds,
        keep_results_hours=options.keep_results_hours,
        quota_bytes=int(options.quota_gb * GIB),
    )


def listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises UserError if the address is not available."""
    from latentsync.serving.api.access import check_port

    check_port(port)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        return socket.create_server(address[:2], family=family)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot listen on {host} port {port} ({reason}); choose another --host or --port") from error


def allowed_hosts(options: argparse.Namespace, has_key: bool, local: bool) -> Sequence[str] | None:
    """Accepted names in the Host header; None for any. With a key, a browser cannot be tricked into a request."""
    from latentsync.serving.api.access import LOOPBACK_NAMES

    if options.allowed_hosts:
        return options.allowed_hosts
    return (*LOOPBACK_NAMES, options.host) if local and not has_key else None


def run(options: argparse.Namespace) -> None:
    """Serve until a signal arrives; running jobs then return to the queue."""
    from latentsync.serving.api.keys import read_key, read_keys_file

    key = read_key()
    if options.no_auth and (key or options.keys_file):
        raise UserError("--no_auth is given together with a key; drop one of them")

    named = read_keys_file(options.keys_file) if options.keys_file else {}
    has_key = bool(key or named)
    local = check_exposure(options.host, has_key, options.no_auth)

    from latentsync.serving.api import ApiServer, create_app
    from latentsync.serving.api.fetch import Fetcher
    from latentsync.serving.api.webhooks import WebhookSender, read_secret
    from latentsync.serving.database import repair
    from latentsync.serving.service import JobService

    settings = build_settings(options)
    if options.repair:
        repair(settings.workspace)
    with listen(options.host, options.port) as sock, JobService(settings) as service:
        fetcher = Fetcher(settings.max_upload_bytes)
        secret = read_secret()
        webhooks = None if secret is None else WebhookSender(service, secret, fetcher)
        app = create_app(
            service,
            api_key=key,
            named_keys=named,
            allowed_hosts=allowed_hosts(options, has_key, local),
            fetcher=fetcher if options.allow_urls else None,
            webhooks=webhooks,
        )
        if webhooks is not None:
            webhooks.start()
        try:
            ApiServer(app, on_ready=lambda url: print(f"listening on {url}", flush=True)).run([sock])
        except KeyboardInterrupt:  # the signal that stopped the server, raised once more at its end
            return
        finally:
            if webhooks is not None:
                webhooks.stop()


@command(interrupted=None, interrupted_code=0)
def main(argv: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    configure_server_logging(options.log_format)
    run(options)
    return 0


if __name__ == "__main__":
    exit_now(main())
