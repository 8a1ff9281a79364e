"""The checkpoint registry: lookup, choice of the default, messages about missing files."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from latentsync.checkpoints import registry
from latentsync.checkpoints.registry import REGISTRY, default_name, device_memory_gb, entry, resolve
from latentsync.utils.errors import UserError
from latentsync.utils.paths import PROJECT_ROOT

SCALE = 10_000_000  # files of the tests are this much smaller than the real ones


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def shrink(file: registry.CheckpointFile) -> registry.CheckpointFile:
        return replace(file, size=file.size and file.size % SCALE % 10_000)

    for name, item in REGISTRY.items():
        model = item.model and replace(item.model, unet=shrink(item.model.unet), whisper=shrink(item.model.whisper))
        files = tuple(shrink(file) for file in item.files)
        monkeypatch.setitem(REGISTRY, name, replace(item, files=files, model=model))


def put(root: Path, name: str, unet_name: str | None = None) -> None:
    """Make all files of an entry present, the UNet under another name if one is given."""
    item = REGISTRY[name]
    for file in item.files:
        target = root / (unet_name if unet_name and file == item.model.unet else file.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(bytes(file.size or 1))


def test_the_registry_is_consistent() -> None:
    for name, item in REGISTRY.items():
        assert item.license and item.summary and item.files, name
        for file in item.files:
            assert not Path(file.path).is_absolute()
            assert bool(file.repo) == bool(file.repo_path)
            assert file.sha256 is None or len(file.sha256) in (8, 64)
            assert file.repo is None or file.sha256, "what is downloaded can be checked"
            assert file.revision is None or len(file.revision) == 40
    for name in registry.model_names():
        model = REGISTRY[name].model
        assert {model.unet, model.whisper} <= set(REGISTRY[name].files)
    assert REGISTRY["latentsync-1.5"].model.resolution == 256
    assert REGISTRY["latentsync-1.6"].model.resolution == 512


@pytest.mark.parametrize(
    ("name", "unet_name"),
    [
        ("latentsync-1.5", "default_unet_v1.5.pt"),
        ("latentsync-1.5", "latentsync_unet.pt"),
        ("latentsync-1.6", "default_unet_v1.6.pt"),
        ("latentsync-1.6", "latentsync_unet.pt"),
    ],
)
def test_released_models_under_both_names(tmp_path: Path, name: str, unet_name: str) -> None:
    put(tmp_path, name, unet_name)
    model = resolve(name, tmp_path)
    assert model.unet == tmp_path / unet_name
    assert model.vae == tmp_path / "vae"
    assert model.whisper == tmp_path / "whisper/tiny.pt"
    assert model.unet_config.is_relative_to(PROJECT_ROOT)
    assert model.scheduler_config == PROJECT_ROOT / "configs" / "scheduler_config.json"
    (other,) = set(registry.RELEASED_MODELS) - {name}
    with pytest.raises(UserError):  # the same name, but the other version's size
        resolve(other, tmp_path)


def test_embedded_model_brings_its_own_scheduler(tmp_path: Path) -> None:
    put(tmp_path, "embedded")
    model = resolve("embedded", tmp_path)
    assert model.scheduler_config == tmp_path / "embedded" / "scheduler_config.json"
    assert {model.unet.parent, model.vae.parent, model.whisper.parent} == {tmp_path / "embedded"}


def test_missing_files_are_named_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"whisper/tiny\.pt.*--model latentsync-1\.6"):
        resolve("latentsync-1.6", tmp_path)
    put(tmp_path, "latentsync-1.6")
    (tmp_path / "whisper/tiny.pt").write_bytes(b"cut")
    with pytest.raises(UserError, match="tiny.pt has 3 bytes instead of"):
        resolve("latentsync-1.6", tmp_path)
    with pytest.raises(UserError, match="check it out again"):
        resolve("embedded", tmp_path)


def test_unknown_names() -> None:
    with pytest.raises(UserError, match="did you mean latentsync-1.6"):
        entry("latentsync-9")
    with pytest.raises(UserError, match="not a lip-sync model"):
        resolve("syncnet")


def test_default_on_a_cpu_is_the_embedded_model(tmp_path: Path) -> None:
    put(tmp_path, "latentsync-1.6")
    name, reason = default_name("cpu", tmp_path)
    assert name == "embedded" and "no GPU" in reason


def test_default_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "device_memory_gb", lambda _device: 24.0)
    name, reason = default_name("cuda:0", tmp_path)
    assert name == "embedded" and "no released checkpoint" in reason
    put(tmp_path, "latentsync-1.5")
    assert default_name("cuda:0", tmp_path)[0] == "latentsync-1.5"
    put(tmp_path, "latentsync-1.6")
    assert default_name("cuda:0", tmp_path)[0] == "latentsync-1.6"


def test_default_fits_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "latentsync-1.6")
    put(tmp_path, "latentsync-1.5")
    monkeypatch.setattr(registry, "device_memory_gb", lambda _device: 8.5)
    assert default_name("cuda", tmp_path)[0] == "latentsync-1.5"
    monkeypatch.setattr(registry, "device_memory_gb", lambda _device: 4.0)
    name, reason = default_name("cuda", tmp_path)
    assert name == "latentsync-1.5" and "--vram_efficient" in reason


def test_default_says_why_a_checkpoint_was_passed_over(tmp_path: Path) -> None:
    (tmp_path / "latentsync_unet.pt").write_bytes(b"cut")
    assert "3 bytes" in default_name("cuda", tmp_path)[1]
    put(tmp_path, "latentsync-1.6")
    (tmp_path / "whisper/tiny.pt").unlink()
    name, reason = default_name("cuda", tmp_path)
    assert name == "embedded" and "whisper/tiny.pt" in reason


def test_memory_of_an_unknown_device_is_no_limit() -> None:
    import torch

    assert device_memory_gb(torch.device("xpu")) == float("inf")


def test_a_published_unet_is_identified_by_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "any name.pt"
    path.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    model = REGISTRY["latentsync-1.5"].model
    for sha256, name in ((digest, "latentsync-1.5"), ("0" * 64, None)):
        unet = replace(model.unet, size=len(b"weights"), sha256=sha256)
        entry_ = replace(REGISTRY["latentsync-1.5"], model=replace(model, unet=unet))
        monkeypatch.setitem(REGISTRY, "latentsync-1.5", entry_)
        assert registry.identify(path) == name
