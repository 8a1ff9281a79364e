"""The SyncNet trainer: tiny networks on numbered frames with a tone."""

import logging
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from latentsync.checkpoints.loading import load_checkpoint, load_into
from latentsync.config.syncnet import load_syncnet_config
from latentsync.data.audio import MelReader
from latentsync.data.sampler import collate
from latentsync.data.syncnet_dataset import MIN_SHIFT
from latentsync.models.stable_syncnet import StableSyncNet
from latentsync.models.syncnet_config import StableSyncNetConfig
from latentsync.models.syncnets import SYNCNET_SCHEMAS
from latentsync.training.export import means
from latentsync.training.loop import run_training
from latentsync.training.sync_losses import contrastive_loss
from latentsync.training.syncnet_setup import SyncNetData, ValidationPairs
from latentsync.training.syncnet_task import (
    GradientCache,
    PlateauWatch,
    SyncNetTask,
    explain_small_batch,
    pair_values,
    windows_per_item,
)
from latentsync.training.task import Share
from latentsync.utils.errors import UserError
from scripts import train_syncnet
from tests.data.conftest import audio, clips  # noqa: F401  (fixtures)
from tests.data.test_encoded_clips import MeanCodec
from tests.training.forked import run_forked
from tests.training.tiny_run import saved_weights

MODEL = {
    "audio_encoder": {
        "in_channels": 1,
        "block_out_channels": [32, 32, 64],
        "downsample_factors": [[4, 2], [4, 2], [5, 3]],
    },
    "visual_encoder": {
        "in_channels": 12,
        "block_out_channels": [32, 32, 64],
        "downsample_factors": [4, 4, [2, 4]],
    },
}


@pytest.fixture(scope="module", autouse=True)
def quick():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("latentsync.training.report._open_tensorboard", lambda folder, step: None)
        patch.setattr("latentsync.training.report.Report.draw_chart", lambda report: None)
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def write_config(tmp_path, clips):  # noqa: F811
    """Writes a config file; sections override or add to the tiny one's."""
    fileslist = tmp_path / "clips.txt"
    fileslist.write_text("".join(f"{clip.path}\t{clip.person}\n" for clip in clips))

    def write(output: str = "output", model: dict | None = None, data: dict | None = None, **run) -> Path:
        values = {
            "model": model or MODEL,
            "ckpt": {"save_ckpt_steps": 2},
            "data": {
                "train_output_dir": str(tmp_path / output),
                "train_fileslist": str(fileslist),
                "val_fileslist": str(fileslist),
                "num_val_samples": 6,
                "batch_size": 4,
                "num_workers": 0,
                "num_frames": 4,
                "resolution": 64,
                **(data or {}),
            },
            "optimizer": {"lr": 1e-3, "adam_epsilon": 0.1},  # steps follow the size of the gradient
            "run": {"max_train_steps": 2, "mixed_precision_training": False, **run},
        }
        path = tmp_path / f"{output}.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


def make_task(path: Path) -> SyncNetTask:
    config = load_syncnet_config(path, StableSyncNetConfig)
    return SyncNetTask(config, SyncNetData(config, None, None, None))


def test_command_trains_and_exports(write_config, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert train_syncnet.main(["--config_path", str(write_config(ema_decay=0.9))]) == 0
    exported = load_checkpoint(tmp_path / "output/checkpoints/syncnet-2.pt")
    assert exported.global_step == 2
    load_into(lambda: StableSyncNet(MODEL), exported, exact=True)
    header, row = (tmp_path / "output/validation.csv").read_text().splitlines()
    assert header.startswith("step,accuracy,preference,loss") and row.startswith("2,")
    assert "step,loss,accuracy,grad_norm" in (tmp_path / "output/train.csv").read_text()
    assert "a batch of 4 pairs is small" in caplog.text


def test_dry_run_leaves_nothing_but_the_index(write_config, tmp_path):
    assert train_syncnet.main(["--config_path", str(write_config(contrastive=True)), "--dry_run"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips.txt", "output", "output.yaml"]
    assert [path.name for path in (tmp_path / "output").iterdir()] == ["index"]  # of the clips, for the run itself


def test_problems_are_one_line(write_config, tmp_path, capsys):
    path = write_config(data={"train_fileslist": str(tmp_path / "no.txt")})
    assert train_syncnet.main(["--config_path", str(path)]) == 1
    assert "no.txt: no such file list" in capsys.readouterr().err
    path = write_config(data={"train_fileslist": ""})
    assert train_syncnet.main(["--config_path", str(path)]) == 1
    assert "data.train_fileslist is empty" in capsys.readouterr().err


def test_validation_list_may_be_absent(write_config, caplog):
    task = make_task(write_config(data={"val_fileslist": ""}))
    assert "val_fileslist is empty" in caplog.text
    assert task.validate(task.model, 1, Path(), Share()) == {}


def test_latents_are_made_in_the_step_or_before(write_config, audio, tmp_path, monkeypatch):  # noqa: F811
    model = {**MODEL, "visual_encoder": {**MODEL["visual_encoder"], "downsample_factors": [2, 2, 2]}}
    codec = MeanCodec()
    codec.to = lambda device: codec
    channels = codec.encode(torch.zeros(1, 3, 64, 64)).shape[1]
    model["visual_encoder"]["in_channels"] = 4 * channels
    frames = torch.rand(2, 4, 3, 64, 64)
    options = {"latent_space": True, "lower_half": False}
    config = load_syncnet_config(write_config(model=model, data=options), StableSyncNetConfig)
    task = SyncNetTask(config, SyncNetData(config, None, None, None), codec)
    images = task._images(frames)
    assert images.shape == (2, 4 * channels, 8, 8)
    assert torch.allclose(images[1, :channels], codec.encode(frames[1])[0], atol=1e-6)
    assert task.dataset()[0]["frames"].shape == (4, 3, 64, 64)

    options["cache_latents"] = True
    config = load_syncnet_config(write_config("cached", model=model, data=options), StableSyncNetConfig)
    monkeypatch.setattr(SyncNetData, "_load_audio_encoder", lambda data: audio)
    monkeypatch.setattr("latentsync.training.syncnet_setup.cache_key", lambda *_: "key")
    task = SyncNetTask(config, SyncNetData(config, codec, Path(), Path()), codec)
    assert task.dataset()[0]["frames"].shape == (4, channels, 8, 8)
    run_training(task, config)
    assert list((tmp_path / "cached/encoded").iterdir())


@pytest.mark.parametrize("chunk", [1, 3, 4])
def test_gradient_cache_equals_the_whole_batch(chunk):
    torch.manual_seed(0)
    network = StableSyncNet(MODEL).double()
    images, mel = torch.randn(6, 12, 32, 64).double(), torch.randn(6, 1, 80, 13).double()
    gradients = []
    for size in (0, chunk):
        network.zero_grad()
        vision, embeds = GradientCache(network, size)(images, mel)
        F.cross_entropy(vision @ embeds.T / 0.1, torch.arange(6)).backward()
        gradients.append([parameter.grad.clone() for parameter in network.parameters()])
    assert max(gradient.abs().max() for gradient in gradients[0]) > 1e-3
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(*gradients, strict=True))


def test_gradient_cache_keeps_one_piece_in_memory():
    """The network never sees more than a piece, and sees each one twice: without and with a graph."""
    sizes = []

    class Recording(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, image, audio):
            sizes.append(len(image))
            return self.layer(image), self.layer(audio)

    vision, audio = GradientCache(Recording(), 2)(torch.randn(5, 3), torch.randn(5, 3))  # noqa: F811
    assert sizes == [2, 2, 1]
    contrastive_loss(vision, audio, 0.1).backward()
    assert sorted(sizes) == [1, 1, 2, 2, 2, 2]


def test_gradient_cache_refuses_batch_norm():
    with pytest.raises(UserError, match="batch norm"):
        GradientCache(nn.Sequential(nn.BatchNorm2d(3)), 2)


def test_contrastive_over_two_processes_equals_one(write_config, tmp_path):
    two = write_config("two", contrastive=True, gradient_cache_chunk=2)
    one = write_config("one", contrastive=True, data={"batch_size": 8})

    def work(rank: int) -> None:
        task = make_task(two)
        run_training(task, task.config)

    assert run_forked(work, 2) == [0, 0]
    task = make_task(one)
    run_training(task, task.config)
    a, b = (saved_weights(tmp_path / n, 2) for n in ("one", "two"))
    assert all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)
    start = {name.removeprefix("network."): tensor for name, tensor in make_task(one).model.state_dict().items()}
    assert any(not torch.allclose(a[f"network.{name}"], start[name], atol=1e-5) for name in start)
    first, second = ((tmp_path / name / "train.csv").read_text().splitlines() for name in ("one", "two"))
    for row, other in zip(first[1:], second[1:], strict=True):
        assert float(row.split(",")[1]) == pytest.approx(float(other.split(",")[1]), rel=1e-4)


def test_windows_of_the_same_moment_are_no_negatives(write_config):
    task = make_task(write_config(contrastive=True))
    batch = {"video_path": ["a", "a", "a", "b"], "start_idx": torch.tensor([0, 5, 6, 0]), "pace": torch.ones(4)}
    assert task._same_moment(batch).int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    batch["pace"] = torch.tensor([1.0, 1.25, 0.8, 1.0])  # copies at other paces: moments 0, 6.25, 4.8
    assert task._same_moment(batch).int().tolist() == [[1, 0, 1, 0], [0, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1]]


def framewise(audio) -> dict:  # noqa: F811
    return {
        "architecture": "framewise_syncnet",
        "window_stride": 4,
        "frame_channels": 3,
        "frame_size": [4, 8],
        "audio_channels": audio.num_layers * audio.width,
        "frame_widths": [8, 8, 8],
        "feature_width": 8,
        "window_widths": [8, 8],
        "embedding_width": 16,
        "dropout": 0.0,
    }


RUNS = {
    "num_frames": 16,
    "run_frames": 24,
    "latent_space": True,
    "cache_latents": True,
    "audio_features": "whisper",
    "batch_size": 2,
    "balance_people": True,
}


def test_all_windows_of_a_run_are_compared(write_config, audio, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(SyncNetData, "_load_audio_encoder", lambda data: audio)
    monkeypatch.setattr("latentsync.training.syncnet_setup.cache_key", lambda *_: "key")
    path = write_config(model=framewise(audio), data=RUNS, contrastive=True, gradient_cache_chunk=1)
    config = load_syncnet_config(path, *SYNCNET_SCHEMAS)
    task = SyncNetTask(config, SyncNetData(config, MeanCodec(), Path(), Path()))
    assert windows_per_item(config) == 3
    # windows from 0, 4, 8 and from 8, 12, 16 on
    batch = {"video_path": ["a", "a"], "start_idx": torch.tensor([0, 8]), "pace": torch.ones(2)}
    near = task._same_moment(batch).int().tolist()
    assert near[0] == [1, 1, 0, 0, 0, 0] and near[2] == [0, 1, 1, 1, 1, 0] and near[5] == [0, 0, 0, 0, 1, 1]

    batch = collate([task.dataset()[0], task.dataset()[2]])
    assert batch["frames"].shape == (2, 24, 3, 4, 8) and batch["audio_samples"].shape[:2] == (2, 48)
    cuts = [(run, start) for run in range(2) for start in (0, 4, 8)]
    frames = torch.stack([batch["frames"][run, start : start + 16] for run, start in cuts])
    audio = torch.stack([batch["audio_samples"][run, 2 * start : 2 * (start + 16)] for run, start in cuts])
    embeds = task.model.network(task._images(frames), task._audio(audio))
    expected = contrastive_loss(*embeds, config.run.temperature, task._same_moment(batch))
    assert task.step(task.model, batch, 0)["loss"].item() == pytest.approx(expected.item(), rel=1e-4)

    run_training(task, config)
    assert (tmp_path / "output/checkpoints/syncnet-2.pt").is_file()


@pytest.mark.parametrize(
    ("data", "run", "message"),
    [
        ({"run_frames": 8}, {"contrastive": True}, "run_frames must be 0 or at least num_frames"),
        ({}, {"contrastive": False}, "run_frames is for contrastive training of a framewise_syncnet"),
    ],
)
def test_runs_that_make_no_sense_are_refused(write_config, audio, data, run, message):  # noqa: F811
    path = write_config(model=framewise(audio), data={**RUNS, **data}, **run)
    with pytest.raises(UserError, match=message):
        load_syncnet_config(path, *SYNCNET_SCHEMAS)


def test_negative_pairs_are_far_enough_apart(clips):  # noqa: F811
    pairs = ValidationPairs(clips, MelReader(), 4, 0, resolution=64)
    item = pairs[1]
    mel = MelReader().open(clips[1])
    starts = [start for start in range(27) if torch.equal(mel.window(start, 4), item["other_samples"])]
    assert torch.equal(mel.window(item["start_idx"], 4), item["audio_samples"])
    assert any(abs(start - item["start_idx"]) >= MIN_SHIFT for start in starts)
    assert pairs[1]["start_idx"] == item["start_idx"]


def test_means_of_pair_values():
    values = means([pair_values(torch.tensor([0.9, 0.6, 0.4, 0.2]), torch.tensor([0.1, 0.7, 0.3, 0.6]))])
    assert values["accuracy"] == 0.5 and values["preference"] == 0.5
    halves = pair_values(torch.full((3,), 0.5), torch.full((3,), 0.5))
    assert means([halves, {}, halves])["loss"] == pytest.approx(math.log(2))


def test_plateau_is_explained_once_in_a_while():
    watch = PlateauWatch(from_step=100)
    said = [step for step in range(10, 1000, 10) if watch.update(step, 0.692)]
    assert said == [200, 400, 800]
    watch = PlateauWatch(from_step=100)
    text = next(filter(None, (watch.update(step, 0.694) for step in range(10, 300, 10))))
    assert "ln 2" in text and "offset" in text and "1024" in text
    assert not any(PlateauWatch(from_step=0).update(step, 0.6) for step in range(1000))
    watch = PlateauWatch(math.log(64), from_step=0)
    assert any("ln B = 4.16" in (watch.update(step, 4.16) or "") for step in range(50))


def test_small_batches_are_warned_of():
    assert explain_small_batch(256) is None and "128 pairs" in explain_small_batch(128)
