"""The training command: a dry run on files, resuming, and errors for bad input."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from latentsync.checkpoints.loading import load_checkpoint, save_checkpoint
from latentsync.checkpoints.registry import resolve
from latentsync.config.unet import load_unet_config
from latentsync.media.probe import probe_video
from latentsync.models.unet_config import UNetConfig
from latentsync.pipelines.lipsync_pipeline import LipsyncPipeline
from latentsync.training.unet_setup import build_unet, load_frozen_components
from latentsync.utils.errors import UserError
from latentsync.utils.paths import PROJECT_ROOT
from scripts.train_unet import main, validate_export, validation_files
from tests.tiny_model import RESOLUTION, UNET, TinyFiles
from tests.training.tiny_unet import FRAMES, Watched, write_clips


def options(folder: Path, files: TinyFiles, **run) -> list[str]:
    """Words of the command line for a tiny stage 1 in `folder`."""
    sections = {
        "model": UNET,
        "data": {
            "train_output_dir": str(folder / "out"),
            "train_fileslist": str(folder / "train.txt"),
            "resolution": RESOLUTION,
            "num_frames": FRAMES,
            "num_workers": 0,
        },
        "run": {"mixed_precision_training": False, "enable_gradient_checkpointing": False, **run},
        "ckpt": {"save_ckpt_steps": 2},
    }
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(sections))
    return [
        f"--unet_config_path={config}",
        f"--vae_path={files.vae}",
        f"--whisper_path={files.whisper}",
        f"--scheduler_config_path={files.scheduler_config}",
    ]


def test_dry_run_then_run_then_go_on(tmp_path, tiny_files, capsys):
    write_clips(tmp_path)
    words = options(tmp_path, tiny_files, max_train_steps=2, cache_latents=True)
    assert main([*words, "--dry_run"]) == 0
    assert not (tmp_path / "out" / "checkpoints").exists()
    assert main(words) == 0
    saved = load_checkpoint(tmp_path / "out" / "checkpoints" / "unet-2.pt")
    assert saved.global_step == 2
    assert main(options(tmp_path, tiny_files, max_train_steps=3, cache_latents=True)) == 0
    later = load_checkpoint(tmp_path / "out" / "checkpoints" / "unet-3.pt")
    assert any(not torch.equal(tensor, later.state_dict[name]) for name, tensor in saved.state_dict.items())


@pytest.mark.parametrize(
    ("list_text", "run", "message"),
    [
        (None, {}, "train.txt: no such file list"),
        ("", {}, "train.txt: the file list is empty"),
        ("gone.mp4", {}, "gone.mp4"),
        ("clip0.mp4", {"use_syncnet": True}, "data.syncnet_config_path is empty"),
        ("clip0.mp4", {"trainable_modules": ["nothing."]}, "trainable_modules"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, tiny_files, capsys, list_text, run, message):
    write_clips(tmp_path, count=1)
    if list_text is None:
        (tmp_path / "train.txt").unlink()
    else:
        (tmp_path / "train.txt").write_text(list_text)
    assert main(options(tmp_path, tiny_files, **run)) == 1
    errors = capsys.readouterr().err
    line = next(line for line in errors.splitlines() if line.startswith("error: "))
    assert message in line and "Traceback" not in errors


def test_defaults_follow_the_model():
    def parts(name: str, **given: Path):
        path = PROJECT_ROOT / "configs" / "unet" / f"{name}.yaml"
        return resolve(load_unet_config(path, UNetConfig).ckpt.base_model, own={"unet": path, **given})

    small = parts("embedded")
    assert small.vae.parts[-2:] == ("embedded", "vae") and small.scheduler_config.parent.name == "embedded"
    full = parts("stage1", vae=Path("own/vae"), whisper=Path("own/tiny.pt"))
    assert full.vae == Path("own/vae") and full.scheduler_config == PROJECT_ROOT / "configs" / "scheduler_config.json"


def test_the_debug_config_fits_the_embedded_model_and_its_clips():
    path = PROJECT_ROOT / "configs" / "unet" / "debug.yaml"
    config = load_unet_config(path, UNetConfig)
    parts, _ = load_frozen_components(config, path, {})
    unet = build_unet(config)
    LipsyncPipeline(parts.codec, parts.audio, unet, parts.scheduler, config.data.resolution)  # checks
    clips = (PROJECT_ROOT / config.data.train_fileslist).parent.glob("*.mp4")
    sizes = {(info.width, info.height) for info in map(probe_video, clips)}
    assert sizes == {(config.data.resolution, config.data.resolution)}


def test_an_export_is_validated_by_itself(tmp_path, tiny_files, media, shared_detector, monkeypatch):
    """As the process of `run.validation_device` does."""
    words = options(tmp_path, tiny_files, validation_device="cpu", inference_steps=1, guidance_scale=1.0)
    config = load_unet_config(tmp_path / "config.yaml", UNetConfig)
    given = {"vae": tiny_files.vae, "whisper": tiny_files.whisper, "scheduler_config": tiny_files.scheduler_config}
    save_checkpoint(tmp_path / "unet-2.pt", build_unet(config).state_dict(), 2)
    videos = [Watched(media / "clip.mp4", media / "voice.wav", 20.0)]
    monkeypatch.setattr("scripts.train_unet.make_validations", lambda config, device: videos)
    found = validate_export(config, tmp_path / "config.yaml", given, tmp_path / "unet-2.pt", 2, tmp_path)
    assert found == {"made": 1.0, "psnr_mouth": 20.0} and (tmp_path / "step_2.mp4").is_file()
    write_clips(tmp_path)
    config_file = tmp_path / "config.yaml"
    config_file.write_text(config_file.read_text().replace("validation_device: cpu", "validation_device: cuda:99"))
    assert main(words) == 1  # at once, not at the first export


def test_validation_videos_of_a_config(tmp_path):
    def files(**data) -> list[tuple[Path, Path]]:
        config = load_unet_config(PROJECT_ROOT / "configs/unet/debug.yaml", UNetConfig)
        data = {"val_video_path": "", "val_audio_path": "", **data}
        return validation_files(replace(config, data=replace(config.data, **data)))

    one, voice = tmp_path / "one.mp4", tmp_path / "voice.wav"
    one.touch()
    listed = tmp_path / "list.csv"
    listed.write_text("video,audio\none.mp4,\none.mp4,voice.wav\n")
    given = {"val_video_path": str(one), "val_audio_path": str(voice)}
    with pytest.raises(UserError, match=r"val_audio_path: .*voice.wav does not exist"):
        files(**given)
    with pytest.raises(UserError, match=r"val_pairs: .*voice.wav does not exist"):
        files(val_pairs=str(listed))
    voice.touch()
    assert files(**given, val_pairs=str(listed)) == [(one, voice), (one, one), (one, voice)]
    assert files() == []
