"""API keys: one that may see all jobs, and named ones that see only the jobs submitted with them."""

import hmac
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import Request

from latentsync.serving.api.errors import ApiError
from latentsync.utils.errors import UserError

KEY_VARIABLE = "LATENTSYNC_API_KEY"
MIN_KEY = 16  # characters
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
MAKE_ONE = "create one with `python -c 'import secrets; print(secrets.token_urlsafe(32))'`"


@dataclass(frozen=True)
class ApiKeys:
    """The keys of a server. Without any, requests need none and see all jobs.

    main: sees all jobs. named: name -> key; each sees the jobs of its name only.
    """

    main: str | None = None
    named: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.main is not None or bool(self.named)

    def submitter(self, key: str) -> str | None:
        """Name of the submitter that a key stands for; None for the main key.

        Raises:
            ApiError: 401, the key is unknown.
        """
        given, found = key.encode("latin-1", "replace"), []
        for name, known in ((None, self.main), *self.named.items()):
            # All are compared, so that the time reveals nothing.
            if known is not None and hmac.compare_digest(given, known.encode()):
                found.append(name)
        if not found:
            message = "an API key is needed: send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`"
            raise ApiError(401, "unauthorized", message, {"WWW-Authenticate": 'Bearer realm="latentsync"'})
        return found[0]


def check_key(text: str, where: str) -> str:
    """The key itself. Raises UserError for one that is too short or cannot be sent in a header."""
    if len(text) < MIN_KEY or not text.isascii() or not text.isprintable() or " " in text:
        raise UserError(f"{where} must have {MIN_KEY} or more ASCII characters without spaces; {MAKE_ONE}")
    return text


def read_key() -> str | None:
    """The API key of the environment; None if it is not set. Raises UserError for one that is not valid."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    return check_key(key, KEY_VARIABLE) if key else None


def read_keys_file(path: Path) -> dict[str, str]:
    """Name -> key from a file with one `name: key` per line; empty lines and lines that start with # are skipped.

    Raises:
        UserError: the file cannot be read, or a line is not valid; the message does not contain the key.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a text file ({error}); write one `name: key` per line") from error
    keys: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        where = f"{path}: line {number}"
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, key = (part.strip() for part in line.partition(":"))
        if not colon or not _NAME.fullmatch(name):
            raise UserError(f"{where}: write `name: key`; a name has up to 64 letters, digits, dots, dashes or _")
        if name in keys:
            raise UserError(f"{where}: the name {name} is used twice; use different names")
        if check_key(key, f"{where}: the key") in keys.values():
            raise UserError(f"{where}: the key of {name} is used twice; {MAKE_ONE}")
        keys[name] = key
    if not keys:
        raise UserError(f"{path}: contains no keys; write one `name: key` per line")
    return keys


def key_check(keys: ApiKeys) -> Callable[[Request], None]:
    """A dependency that rejects requests without a valid key, and stores whose jobs the request may see."""

    def check(request: Request) -> None:
        request.state.submitter = None
        if keys:
            scheme, _, token = request.headers.get("authorization", "").partition(" ")
            given = token.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
            request.state.submitter = keys.submitter(given)

    return check
