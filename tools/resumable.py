"""One file over HTTP(S), continued where an earlier attempt or an earlier run stopped."""

import http.client
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

READ_TIMEOUT = 10  # seconds without a byte
FRUITLESS_ATTEMPTS = 4  # in a row, before giving up
PAUSE_SECONDS = 1  # between attempts
BLOCK = 1 << 20


def download(url: str, part: Path, size: int | None, label: str) -> None:
    """Make `part` the whole content of `url`, appending to what it already holds.

    The caller must know that `part` stems from the same content, and check the result. Proxies are taken from the
    environment.

    Args:
        size: bytes of the whole content; None when not known, `part` is then fetched anew.
        label: shown by the progress bar.

    Raises:
        OSError: no connection, an HTTP error, no space, or a transfer that keeps breaking off.
    """
    part.parent.mkdir(parents=True, exist_ok=True)
    if size is None or (part.exists() and part.stat().st_size > size):
        part.unlink(missing_ok=True)
    part.touch()
    failures = 0
    with tqdm(total=size, initial=part.stat().st_size, unit="B", unit_scale=True, desc=label, leave=False) as bar:
        while size is None or part.stat().st_size < size:
            before = part.stat().st_size
            try:
                total = _append(url, part, bar)
                if part.stat().st_size >= total:
                    return
                error: Exception = ConnectionError(f"broke off after {part.stat().st_size} of {total} bytes")
            except urllib.error.HTTPError as refusal:
                if refusal.code < 500:  # asking again will not change the answer
                    raise
                error = refusal
            except (ConnectionError, TimeoutError, urllib.error.URLError, http.client.HTTPException) as broken:
                error = broken
            failures = 1 if part.stat().st_size > before else failures + 1
            if failures == FRUITLESS_ATTEMPTS:
                raise ConnectionError(f"{error}") from error
            time.sleep(PAUSE_SECONDS)


def _append(url: str, part: Path, bar: tqdm) -> int:
    """One request for the rest of the content, written as it comes; returns the size of the whole content."""
    start = part.stat().st_size
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    with urllib.request.urlopen(request, timeout=READ_TIMEOUT) as response, part.open("ab") as file:
        if start and response.status != http.client.PARTIAL_CONTENT:  # the server sends everything again
            file.truncate(0)
            bar.update(-start)
            start = 0
        total = start + int(response.headers["Content-Length"])
        while block := response.read(BLOCK):
            file.write(block)
            bar.update(len(block))
    return total
