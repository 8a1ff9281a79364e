"""Download checkpoints: `latentsync download --model latentsync-1.6`.

Files of the model hub go to the cache of huggingface_hub, which resumes interrupted downloads, and are linked into
`checkpoints/`. HF_HOME moves that cache, HF_ENDPOINT names a mirror, HF_TOKEN logs in.
"""

import argparse
import os
import shutil
import sys
import tempfile
import urllib.error
import zipfile
from collections.abc import Sequence
from pathlib import Path

from latentsync.checkpoints.registry import GB, REGISTRY, RELEASED_MODELS, CheckpointFile, Entry, entry
from latentsync.utils.commands import command
from latentsync.utils.errors import UserError
from latentsync.utils.files import file_sha256
from latentsync.utils.paths import CHECKPOINTS_DIR

MAX_REASON = 200


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="latentsync download", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add(
        "--list", action="store_true", help="list all checkpoints: purpose, size, license, and whether they are present"
    )
    add("--all", action="store_true", help="download all checkpoints except those that forbid commercial use")
    add(
        "--model",
        action="append",
        metavar="NAME",
        help=f"checkpoint to download, repeatable (default: {RELEASED_MODELS[0]}): {', '.join(REGISTRY)}",
    )
    add("--checkpoints-dir", type=Path, default=CHECKPOINTS_DIR, metavar="DIR", help="target (default: %(default)s)")
    return parser


@command(interrupted="interrupted; run the same command again to resume")
def main(argv: Sequence[str] | None = None) -> None:
    options = build_parser().parse_args(argv)
    if options.list:
        print(table(options.checkpoints_dir))
        return
    names = downloadable_names() if options.all else options.model or [RELEASED_MODELS[0]]
    for name in names:
        fetch_entry(name, options.checkpoints_dir)


def downloadable_names() -> list[str]:
    """Names that `--all` downloads, which excludes checkpoints with a restrictive license."""
    return [name for name, item in REGISTRY.items() if all(file.is_downloadable for file in item.files)]


def table(checkpoints: Path) -> str:
    """One line per name: whether it is present, size, purpose, license."""
    rows = []
    for name, item in REGISTRY.items():
        missing = item.missing(None if checkpoints == CHECKPOINTS_DIR else checkpoints)
        state = "present" if not missing else "absent" if len(missing) == len(item.files) else "partial"
        size = f"{item.size / GB:.2f} GB" if item.size else "-"
        rows.append(f"{name:<18}{state:<9}{size:>8}  {item.summary} ({item.license})")
    return "\n".join(rows)


def fetch_entry(name: str, checkpoints: Path) -> None:
    """Download the missing files of an entry and print a line for each.

    Raises:
        UserError: unknown name, no network, no such file, disk full, or content that differs from the published file.
    """
    item = entry(name)
    missing = item.missing(checkpoints)
    if not missing:
        print(f"{name}: present")
        return
    print(f"{name}: {item.summary}; license: {item.license}")
    if item.insightface_pack:
        fetch_insightface_pack(name, item, checkpoints)
        return
    for file in missing:
        if not file.is_downloadable:
            raise UserError(f"{name}: {file.path} is not in {checkpoints}; {item.note}")
        fetch(file, checkpoints / file.path)
        print(f"{name}: {checkpoints / file.path} (verified)")


def fetch(file: CheckpointFile, target: Path) -> None:
    """Download one file and put it, or a link to it, at `target`.

    Raises:
        UserError: the download failed, or the content differs from the published one.
    """
    if file.url is None:
        cached = fetch_from_hub(file)
        verify(cached, file)
        link(cached, target)
        return
    import torch  # takes a second

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=target.parent) as folder:
        staged = Path(folder) / target.name
        try:
            torch.hub.download_url_to_file(file.url, str(staged))
        except (OSError, urllib.error.URLError) as error:
            raise UserError(f"{file.url}: download failed: {first_line(error)}") from error
        verify(staged, file)
        os.replace(staged, target)


def fetch_from_hub(file: CheckpointFile) -> Path:
    """Path of the file in the cache of huggingface_hub, downloaded if it is not there."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    assert file.repo is not None and file.repo_path is not None
    endpoint = os.environ.get("HF_ENDPOINT")  # else the hub's own
    try:
        return Path(hf_hub_download(file.repo, file.repo_path, revision=file.revision, endpoint=endpoint))
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{file.repo}/{file.repo_path}: the model hub is not reachable; check the network connection, "
            "or name a mirror in HF_ENDPOINT"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise UserError(f"{file.repo}/{file.repo_path}: download failed: {first_line(error)}") from error


def verify(path: Path, file: CheckpointFile) -> None:
    """Compare a download with the recorded size and SHA-256; remove it if it differs.

    Raises:
        UserError: size or SHA-256 differ.
    """
    size = path.stat().st_size
    if file.size not in (None, size):
        problem = f"{size} bytes instead of {file.size}"
    elif file.sha256 and not file_sha256(path).startswith(file.sha256):
        problem = "its SHA-256 is not the published one"
    else:
        return
    path.resolve().unlink()  # the blob in the cache
    path.unlink(missing_ok=True)
    raise UserError(f"{file.path}: the download is damaged or was replaced ({problem}); it was removed, try again")


def link(cached: Path, target: Path) -> None:
    """Link a cached file to `target`; copy it where links are not possible."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        target.symlink_to(cached.resolve())
    except OSError:
        shutil.copyfile(cached, target)


def fetch_insightface_pack(name: str, item: Entry, checkpoints: Path) -> None:
    """Download a model pack with InsightFace, and keep the networks that are used."""
    from insightface.utils import storage  # imports onnxruntime

    checkpoints.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=checkpoints) as staging:
        try:
            folder = Path(storage.download("models", item.insightface_pack, root=staging))
        except (OSError, RuntimeError, zipfile.BadZipFile) as error:
            raise UserError(f"{name}: InsightFace's download failed: {first_line(error)}") from error
        for file in item.files:
            staged, target = folder / Path(file.path).name, checkpoints / file.path
            verify(staged, file)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged, target)
            print(f"{name}: {target} (verified)")


def first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:MAX_REASON]


if __name__ == "__main__":
    sys.exit(main())
