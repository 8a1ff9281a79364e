"""Hatch build hook: build a published wheel again, with the metadata of the pyproject.toml that names this hook.

pip resolves the dependencies that a package declares, and cannot be told to ignore one. Where a declaration is wrong
for this project, the wheel is fetched as published, and its files are packed unchanged under corrected metadata. The
public part of the version (before "+") says which release is fetched.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class RepackageHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="latentsync-repackage-")
        wheel = self.fetch(Path(self.folder.name))
        content = Path(self.folder.name) / "content"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(content)
        build_data["tag"] = "-".join(wheel.stem.split("-")[-3:])
        for path in content.iterdir():
            if path.suffix != ".dist-info":
                build_data["force_include"][str(path)] = path.name
        for path in content.glob("*.dist-info/**/*"):
            if path.is_file() and path.name.upper().startswith(("LICEN", "NOTICE", "COPYING")):
                build_data["extra_metadata"][str(path)] = f"licenses/{path.name}"

    def fetch(self, folder: Path) -> Path:
        """The published wheel, built from its source distribution where there is no other."""
        release = self.metadata.version.partition("+")[0]
        words = ["wheel", "--no-deps", "--quiet", "--wheel-dir", str(folder), f"{self.metadata.core.name}=={release}"]
        subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *words], check=True)
        (wheel,) = folder.glob("*.whl")
        return wheel

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        self.folder.cleanup()
