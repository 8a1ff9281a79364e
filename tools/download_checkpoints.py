"""Fetch public checkpoints: `python -m tools.download_checkpoints --model latentsync-1.6`.

Downloads resume where they stopped, are checked against the table's size and SHA-256, and appear under their final
name only when they are whole. `HF_ENDPOINT` names another hub (a mirror).
"""

import argparse
import hashlib
import http.client
import os
import shutil
import sys
import threading
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

from filelock import FileLock, Timeout
from huggingface_hub import constants, hf_hub_url

from latentsync.utils.errors import UserError
from latentsync.utils.registry import CHECKPOINTS_DIR, GB, REGISTRY, RELEASED_MODELS, CheckpointFile, Entry, entry
from tools.resumable import download

CONNECT_SECONDS = 5  # for an answer of the hub
GIVE_UP_SECONDS = 10  # name look-up included, which has no timeout of its own
STAGING = ".download"
MAX_REASON = 200


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 all files are there, 1 a user's problem (one line on stderr)."""
    options = parse_arguments(arguments)
    try:
        if options.list:
            print(table(options.checkpoints_dir))
            return 0
        names = hub_names() if options.all else options.model or [RELEASED_MODELS[0]]
        for name in names:
            fetch_entry(name, options.checkpoints_dir)
    except UserError as error:
        print(f"download_checkpoints: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("download_checkpoints: stopped; the same command resumes", file=sys.stderr)
        return 130
    return 0


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.download_checkpoints", description=__doc__.split("\n")[0])
    parser.add_argument("--list", action="store_true", help="show every name, its size, licence and what is present")
    parser.add_argument(
        "--all",
        action="store_true",
        help="fetch everything on the model hub, training and evaluation networks included",
    )
    parser.add_argument(
        "--model",
        action="append",
        metavar="NAME",
        help=f"fetch this one; may be repeated (default: {RELEASED_MODELS[0]}); one of {', '.join(REGISTRY)}",
    )
    parser.add_argument(
        "--checkpoints-dir", type=Path, default=CHECKPOINTS_DIR, metavar="DIR", help="where to (default: %(default)s)"
    )
    return parser.parse_args(arguments)


def hub_endpoint() -> str:
    """Address of the model hub, or of the mirror the user names."""
    return os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")


def hub_names() -> list[str]:
    """Names whose files are all on the hub; what is under a narrower licence elsewhere must be asked for by name."""
    return [name for name, item in REGISTRY.items() if all(file.repo for file in item.files)]


def table(checkpoints: Path) -> str:
    """One line a name: present or not, size, licence, summary."""
    rows = []
    for name, item in REGISTRY.items():
        missing = item.missing(checkpoints)
        state = "present" if not missing else "absent" if len(missing) == len(item.files) else "partly"
        size = f"{item.size / GB:.2f} GB" if item.size else "-"
        rows.append(f"{name:<16}{state:<9}{size:>8}  {item.summary} ({item.licence})")
    return "\n".join(rows)


def fetch_entry(name: str, checkpoints: Path) -> None:
    """Make every file of an entry present; says what it does, one line a file.

    Raises:
        UserError: unknown name, no network, no such file on the hub, no space, or content that is not as published.
    """
    item = entry(name)
    missing = item.missing(checkpoints)
    if not missing:
        print(f"{name}: present")
        return
    if name == "buffalo_l":
        fetch_insightface_pack(name, item, checkpoints)
        return
    if any(file.repo is None for file in missing):
        paths = ", ".join(file.path for file in missing)
        raise UserError(f"{name}: {paths} not in {checkpoints}: {item.note}")
    print(f"{name}: {item.summary}; licence {item.licence}")
    check_reachable(hub_endpoint())
    for file in missing:
        path = fetch(file, checkpoints)
        print(f"{name}: {path} ({path.stat().st_size / GB:.2f} GB, checked)")


def check_reachable(endpoint: str) -> None:
    """Ask a server for anything; every answer will do.

    Raises:
        UserError: none came within a few seconds.
    """
    failures: list[str] = ["no answer"]

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=CONNECT_SECONDS):
                failures.clear()
        except urllib.error.HTTPError:
            failures.clear()
        except (OSError, ValueError, http.client.HTTPException) as error:
            failures[0] = str(getattr(error, "reason", error))

    # A thread, because a dead name server blocks the look-up for longer than any socket timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(GIVE_UP_SECONDS)
    if failures:
        raise UserError(f"{endpoint} is not reachable ({failures[0]}); go online, or name a mirror in HF_ENDPOINT")


def fetch(file: CheckpointFile, checkpoints: Path) -> Path:
    """Download one file of the hub; returns its final path.

    Raises:
        UserError: the download failed, or the content is not as published.
    """
    url = hf_hub_url(file.repo, file.repo_path, revision=file.revision, endpoint=hub_endpoint())
    part = checkpoints / STAGING / f"{file.sha256}.part"  # named by content: what is there is always worth continuing
    lock = part.with_suffix(".lock")
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            download(url, part, file.size, Path(file.path).name)
            publish(part, file, checkpoints / file.path)
    except Timeout as error:
        raise UserError(f"{file.path}: another download of this file is running") from error
    except OSError as error:
        raise UserError(f"{file.repo}/{file.repo_path}: download failed, the same command resumes: {error}") from error
    lock.unlink(missing_ok=True)
    remove_if_empty(part.parent)
    return checkpoints / file.path


def publish(staged: Path, file: CheckpointFile, target: Path) -> None:
    """Check a whole download and give it its final name; a bad one is removed.

    Raises:
        UserError: size or checksum differ from the table.
    """
    size = staged.stat().st_size
    if file.size not in (None, size):
        problem = f"{size} bytes instead of {file.size}"
    elif file.sha256 and sha256(staged) != file.sha256:
        problem = "its SHA-256 is not the published one"
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(staged, target)
        return
    staged.unlink()
    raise UserError(f"{file.path}: the download is damaged or was replaced ({problem}); it was removed, try again")


def remove_if_empty(directory: Path) -> None:
    """Other downloads may be under way, or wait to be continued, in the same directory."""
    if not any(directory.iterdir()):
        directory.rmdir()


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fetch_insightface_pack(name: str, item: Entry, checkpoints: Path) -> None:
    """The two networks used of an InsightFace pack, by that library's own download."""
    from insightface.utils import storage  # imports onnxruntime: only where needed

    print(f"{name}: {item.summary}; licence {item.licence}")
    check_reachable(storage.model_zoo_download_url(f"{name}.zip"))
    staging = checkpoints / STAGING / name
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        folder = Path(storage.download("models", name, root=str(staging)))
        for file in item.files:
            publish(folder / Path(file.path).name, file, checkpoints / file.path)
            print(f"{name}: {checkpoints / file.path} (checked)")
    except (OSError, RuntimeError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:MAX_REASON]
        raise UserError(f"{name}: InsightFace's download failed: {reason}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        remove_if_empty(staging.parent)


if __name__ == "__main__":
    sys.exit(main())
