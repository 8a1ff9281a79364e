"""A task that takes milliseconds, and ways to kill its run. `python -m tests.training.tiny_run OUTPUT` runs it, too."""

import os
import signal
import sys
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.tensor import DTensor

from latentsync.checkpoints.loading import load_state_dict, save_checkpoint
from latentsync.config.sections import CkptSection, DataSection, OptimizerSection, RunSection, TrainingConfig
from latentsync.data.sampler import SampleId, item_rng, sample_generators
from latentsync.training import checkpoints
from latentsync.training.loop import run_training
from latentsync.training.task import Share
from latentsync.utils.errors import UserError
from tests.waiting import eventually


class TinyDataset(torch.utils.data.Dataset):
    """x (4,) and y (1,) drawn from the key; items of `bad` cannot be read."""

    def __init__(self, bad: set[int], nan: set[int]):
        self.bad, self.nan = bad, nan

    def __len__(self) -> int:
        return 12

    def __getitem__(self, draw: SampleId) -> dict:
        if draw.key in self.bad:
            return {"error": f"clip of key {draw.key} is corrupt"}
        x = torch.from_numpy(item_rng(0, draw.key).standard_normal(4)).float() + draw.index
        y = torch.tensor([float("nan") if draw.key in self.nan else x.sum().item()])
        return {"x": x, "y": y, "key": draw.key, "failed_paths": []}


class Blocks(nn.Module):
    """A network with blocks in a list, as FSDP gathers them, one of them frozen."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.last = nn.Linear(4, 1)
        self.blocks[1].requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return self.last(x)


class TinyTask:
    name = "tiny"

    def __init__(self, bad=(), nan=(), dropout: float = 0.0, with_discriminator: bool = False):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1))
        self.discriminators = {"critic": nn.Linear(1, 1)} if with_discriminator else {}
        self.bad, self.nan = set(bad), set(nan)
        self.hook = lambda step: None
        self.validate_export = None
        self.seen: list[int] = []
        self.validated: list[int] = []

    def dataset(self) -> TinyDataset:
        return TinyDataset(self.bad, self.nan)

    def sample_weights(self) -> Tensor | None:
        return None

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        pass

    def step(self, model: nn.Module, batch: dict, step: int) -> dict[str, Tensor]:
        self.hook(step)
        self.seen += batch["key"].tolist()
        noise = torch.stack([torch.randn(4, generator=g) for g in sample_generators(1, batch["key"])])
        prediction = model(batch["x"] + 0.1 * noise.to(batch["x"]))
        losses = {"loss": (prediction - batch["y"]).square().mean(), "bias": prediction.mean()}
        if self.discriminators:
            critic = self.discriminators["critic"]
            losses["loss"] = losses["loss"] + 0.01 * critic(prediction).mean()
            losses["critic_loss"] = (critic(prediction.detach()) - batch["y"]).square().mean()
        return losses

    def validate(self, model: nn.Module, step: int, folder: Path, share: Share) -> dict[str, list[float]]:
        assert not model.training and not torch.is_grad_enabled()
        self.validated.append(step)
        weights = next(model.parameters())
        weights = weights.full_tensor() if isinstance(weights, DTensor) else weights
        return {"weight": share.of(weights.abs().flatten().tolist()), "index": [float(share.index)]}

    def export(self, state_dict: dict[str, Tensor], step: int, path: Path) -> None:
        save_checkpoint(path, state_dict, step)

    def advise(self, step: int, means: dict[str, float]) -> str | None:
        return None


def validate_when_signalled(flag: Path, export: Path, step: int, folder: Path) -> dict[str, float]:
    """Waits until the file `flag` exists; the sum of the export's weights as a metric that chooses the best one."""
    assert eventually(flag.is_file)
    (folder / "made.txt").touch()
    state = load_state_dict(export)
    return {"sync_confidence": sum(tensor.abs().sum().item() for tensor in state.values())}


def fail_to_validate(export: Path, step: int, folder: Path) -> dict[str, float]:
    """An error at step 2, a process that dies at step 4, and no metrics at the end."""
    if step == 2:
        raise UserError("the validation video is gone")
    if step == 4:
        kill()
    return {}


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(task: TinyTask, moment: str) -> None:
    """Make the process die in the middle of a step, while a checkpoint is written, or just before it gets its name."""
    what, _, when = moment.partition(":")
    if what == "step":
        task.hook = lambda step: kill() if step == int(when) else None
        return
    if what == "term":
        task.hook = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == int(when) else None
        return
    calls = {"count": 0}
    target = {"save": "_commit", "rename": "_checksum", "prune": "step_of"}[what]
    original = getattr(checkpoints, target)

    def wrapped(*arguments):
        calls["count"] += 1
        if calls["count"] == int(when):
            kill()
        return original(*arguments)

    setattr(checkpoints, target, wrapped)


def saved_state(output: Path, step: int = 6) -> dict[str, dict]:
    """What a checkpoint holds: "model", "ema" (tensors by name) and "optimizer"."""
    with TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.pt"
        dcp_to_torch_save(output / f"checkpoints/step_{step:08d}/state", whole)
        return torch.load(whole, weights_only=True)


def saved_weights(output: Path, step: int = 6) -> dict[str, Tensor]:
    return saved_state(output, step)["model"]


def run_config(output: Path, **changes) -> TrainingConfig:
    """A config of a few steps; `changes` go to the section that has the key."""
    values = {
        "train_output_dir": str(output),
        "batch_size": 2,
        "num_workers": 0,
        "max_train_steps": 6,
        "save_ckpt_steps": 2,
        "keep_last": 2,
        "log_steps": 1,
        "lr": 1e-2,
        "adam_epsilon": 0.1,  # steps follow the size of the gradient, so that rounding stays rounding
        "ema_decay": 0.9,
        "mixed_precision_training": changes.get("mixed_precision", "no") != "no",
        **{name: value for name, value in changes.items() if value != "no"},
    }
    sections = {"data": DataSection, "ckpt": CkptSection, "run": RunSection, "optimizer": OptimizerSection}
    keys = {name: {field.name for field in fields(schema)} for name, schema in sections.items()}
    assert set(values) <= set().union(*keys.values())
    return TrainingConfig(
        **{name: schema(**{key: values[key] for key in keys[name] & set(values)}) for name, schema in sections.items()}
    )


if __name__ == "__main__":
    run_training(TinyTask(), run_config(Path(sys.argv[1])))
