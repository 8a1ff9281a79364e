"""Limits on requests."""

from dataclasses import dataclass

from latentsync.options import MAX_TEXT

KIB, MIB = 2**10, 2**20


@dataclass(frozen=True)
class ApiLimits:
    """Limits on requests; those on the media (bytes, seconds, pixels) are settings of the service.

    Times are in seconds, sizes in bytes. A body is rejected if nothing arrives for `idle_seconds`, or if after
    `grace_seconds` fewer than `min_bytes_per_second` have arrived on average.
    """

    parallel_uploads: int = 16
    wait_for_upload_slot: float = 30.0
    parallel_probes: int = 4
    parallel_deletions: int = 4
    parallel_scans: int = 2  # for the people in a video
    event_streams: int = 200
    idle_seconds: float = 30.0
    grace_seconds: float = 60.0
    min_bytes_per_second: int = 8 * KIB
    send_seconds: float = 60.0  # for a client to receive one piece of a download
    max_parts: int = 64
    max_batch_parts: int = 256
    max_batch_jobs: int = 100
    max_field_bytes: int = 4 * MAX_TEXT  # the longest option, in UTF-8
    max_json_bytes: int = MIB
    poll_seconds: float = 0.5  # how often an event stream checks its job
    heartbeat_seconds: float = 15.0
