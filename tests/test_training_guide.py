"""docs/training.md: every command, config key, file and link in it exists."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from latentsync.config.syncnet import load_syncnet_config
from latentsync.config.unet import load_unet_config
from latentsync.models.stable_syncnet import StableSyncNetConfig
from latentsync.models.unet_config import UNetConfig
from scripts.inference import build_parser

PROJECT_ROOT = Path(__file__).resolve().parents[1]
GUIDE = (PROJECT_ROOT / "docs" / "training.md").read_text(encoding="utf-8")
SHELL = [
    line.partition("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", GUIDE, re.S)
    for line in block.splitlines()
]
OWN = [line for line in SHELL if re.search(r"-m (scripts|tools)\.|^\./|^source", line)]
FOREIGN_OPTIONS = {"--multi_gpu", "--num_processes", "--config_file", "--nnodes", "--nproc", "--rdzv"}  # launchers'


def source_of(command: str) -> str:
    """Text of the program that a command runs."""
    module = re.search(r"-m ((?:scripts|tools)\.\w+)", command)
    name = f"{module[1].replace('.', '/')}.py" if module else re.search(r"[\w./]*\.sh", command)[0]
    return (PROJECT_ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("command", OWN)
def test_commands(command: str) -> None:
    known = source_of(command)
    if command.startswith("./inference.sh"):
        known += build_parser().format_help()
    unknown = [option for option in re.findall(r"--\w+", command) if option not in known]
    assert [option for option in unknown if option not in FOREIGN_OPTIONS] == []
    for path in re.findall(r"configs/[\w/.]+", command):
        assert (PROJECT_ROOT / path).is_file()


def test_config_keys() -> None:
    configs = (
        load_unet_config(PROJECT_ROOT / "configs" / "unet" / "stage2.yaml", UNetConfig),
        load_syncnet_config(PROJECT_ROOT / "configs" / "syncnet" / "syncnet_16_pixel.yaml", StableSyncNetConfig),
    )
    known = {
        f"{section.name}.{field.name}"
        for config in configs
        for section in fields(config)
        if section.name != "recipe"
        for field in fields(getattr(config, section.name))
    }
    named = set(re.findall(r"`((?:data|run|ckpt|optimizer)\.\w+)", GUIDE))
    assert named and named <= known


def test_configs_and_links() -> None:
    for pattern in re.findall(r"`((?:configs|latentsync|recipes)/[\w/.*]+)`", GUIDE):
        assert list(PROJECT_ROOT.glob(pattern)), pattern
    headings = {
        re.sub(r"[^\w -]", "", text).lower().replace(" ", "-") for text in re.findall(r"^## (.+)$", GUIDE, re.M)
    }
    assert set(re.findall(r"\]\(#([\w-]+)\)", GUIDE)) == headings
