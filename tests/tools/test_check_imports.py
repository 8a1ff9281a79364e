"""The import check: on made-up packages, and on the project itself."""

from pathlib import Path

import pytest

from tools.check_imports import PROJECT_ROOT, check, import_graph


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / "latentsync" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_project_itself() -> None:
    assert check(PROJECT_ROOT) == []


def test_names_are_resolved(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "__init__.py": "from .loading import load_pipeline",
            "loading.py": "import os\nfrom latentsync.utils import errors, missing",
            "utils/__init__.py": "",
            "utils/errors.py": "from . import config",
            "utils/config.py": "import latentsync.media.audio\nfrom ..media import audio",
            "media/audio.py": "def late():\n    from latentsync.utils.errors import UserError",
        },
    )
    graph = import_graph(tmp_path)
    assert graph["latentsync"] == {"latentsync.loading"}
    assert graph["latentsync.loading"] == {"latentsync.utils.errors", "latentsync.utils"}
    assert graph["latentsync.utils.errors"] == {"latentsync.utils.config"}
    assert graph["latentsync.utils.config"] == {"latentsync.media.audio"}
    assert graph["latentsync.media.audio"] == {"latentsync.utils.errors"}


def test_cycle_is_reported(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "utils/a.py": "from latentsync.utils.b import x",
            "utils/b.py": "from latentsync.utils.c import x",
            "utils/c.py": "def late():\n    import latentsync.utils.a",
        },
    )
    (problem,) = check(tmp_path)
    assert (
        problem == "import cycle: latentsync.utils.a -> latentsync.utils.b -> latentsync.utils.c -> latentsync.utils.a"
    )


def test_imports_for_type_checkers_are_free(tmp_path: Path) -> None:
    typing = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from latentsync.utils.a import A\n"
    write(tmp_path, {"utils/a.py": "import latentsync.utils.b", "utils/b.py": typing})
    assert check(tmp_path) == []


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("utils/x.py", "models.unet"),
        ("models/x.py", "faces.align"),
        ("faces/x.py", "media.probe"),
        ("pipelines/x.py", "loading"),
        ("unknown/x.py", "media.probe"),
    ],
)
def test_forbidden_edges(tmp_path: Path, source: str, target: str) -> None:
    write(tmp_path, {source: f"import latentsync.{target}", f"{target.replace('.', '/')}.py": ""})
    (problem,) = check(tmp_path)
    assert f"must not import latentsync.{target}" in problem


def test_public_name_of_another_part(tmp_path: Path) -> None:
    write(tmp_path, {"utils/affine_transform.py": "import latentsync.faces.align", "faces/align.py": ""})
    assert check(tmp_path) == []
