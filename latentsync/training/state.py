"""The state of a run in a checkpoint: weights, optimizers, averages, position, and the settings it was made with.

Weights, optimizer state and averages are written by `torch.distributed.checkpoint`: every process writes a part, and a
run may resume with another number of processes, split over them or not. Names are those of the bare model.
"""

import io
import json
import pickle
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from latentsync.config.sections import TrainingConfig
from latentsync.training.checkpoints import Progress
from latentsync.training.discriminators import Discriminators
from latentsync.training.export import AveragedWeights
from latentsync.utils.errors import UserError

TENSORS, DISCRIMINATORS, PROGRESS, SETTINGS = "state", "discriminators.pt", "progress.json", "config.json"
# Raised by torch, accelerate and safetensors for a checkpoint that cannot be read or is of another model.
LOAD_ERRORS = (
    *(RuntimeError, ValueError, KeyError, OSError, EOFError, AttributeError),
    *(pickle.UnpicklingError, SafetensorError, CheckpointException),
)
warnings.filterwarnings("ignore", "torch.distributed is disabled", module="torch.distributed.checkpoint")
COPIED = StagingOptions(
    use_pinned_memory=False, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=False
)


class RunState:
    """Everything of a run that a checkpoint holds.

    Args:
        model, optimizer: as accelerate prepared them.
        ema: averaged weights; None for none.
        settings: see `describe_settings`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: AcceleratedOptimizer,
        ema: AveragedWeights | None,
        discriminators: Discriminators | None,
        settings: dict[str, str],
    ) -> None:
        self.accelerator, self.model, self.optimizer = accelerator, model, optimizer
        self.ema, self.discriminators, self.settings = ema, discriminators, settings
        self.is_deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED

    def snapshot(self, progress: Progress, *, copied: bool) -> "Snapshot":
        """The state as it is now. `copied`: in host memory, so that training may go on while it is written."""
        files: dict[str, bytes] = {}
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            position = progress.to_json() | ({"scaler": scaler.state_dict()} if scaler is not None else {})
            files[PROGRESS] = json.dumps(position).encode()
            files[SETTINGS] = json.dumps(self.settings, indent=1).encode()
            if self.discriminators is not None:
                buffer = io.BytesIO()
                torch.save(self.discriminators.state_dict(), buffer)
                files[DISCRIMINATORS] = buffer.getvalue()
        tensors = None if self.is_deepspeed else self._tensors()
        if copied and tensors is not None:
            tensors = DefaultStager(COPIED).stage(tensors)
        return Snapshot(self.accelerator, tensors, files)

    def load(self, folder: Path) -> Progress:
        """Restore everything from a checkpoint.

        Raises:
            UserError: it cannot be read, or is of another model or other options.
        """
        try:
            self._load_tensors(folder)
            values = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
            if self.accelerator.scaler is not None and "scaler" in values:
                self.accelerator.scaler.load_state_dict(values["scaler"])
            if self.discriminators is not None:
                path = folder / DISCRIMINATORS
                path = path if path.is_file() else folder / "companions.pt"  # its name in older checkpoints
                state = torch.load(path, map_location=self.accelerator.device, weights_only=True)
                self.discriminators.load_state_dict(state)
            return Progress.from_json(values)
        except LOAD_ERRORS as error:
            reason = str(error).strip().splitlines()[-1][-300:] if str(error).strip() else type(error).__name__
            raise UserError(
                f"{folder}: cannot be loaded, or is of another model or other options ({reason});"
                " restore the config it was made with, or choose another output folder"
            ) from error

    def changes_since(self, folder: Path) -> list[str]:
        """Settings that differ from those of a checkpoint, for example "optimizer.lr 1e-05 -> 2e-05"."""
        if not (folder / SETTINGS).is_file():  # of an earlier version
            return []
        before = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        names = [name for name in self.settings if before.get(name) != self.settings[name]]
        return [f"{name} {before.get(name, 'absent')} -> {self.settings[name]}" for name in names]

    def _tensors(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer.optimizer)
        return {"model": model, "optimizer": optimizer} | ({"ema": self.ema.average} if self.ema is not None else {})

    def _load_tensors(self, folder: Path) -> None:
        if not (folder / TENSORS).is_dir():  # of DeepSpeed, or of an earlier version
            self.accelerator.load_state(str(folder))
            if self.ema is not None:
                self.ema.load_state_dict(load_file(folder / "ema.safetensors"))
            return
        if self.is_deepspeed:
            raise UserError(f"{folder}: was made without DeepSpeed, and DeepSpeed cannot read it; train without it")
        tensors = self._tensors()
        dcp.load(tensors, checkpoint_id=folder / TENSORS, no_dist=not dist.is_initialized())
        set_state_dict(
            self.model,
            self.optimizer.optimizer,
            model_state_dict=tensors["model"],
            optim_state_dict=tensors["optimizer"],
        )


class Snapshot:
    """The state at one moment. tensors: None for DeepSpeed, which writes its own."""

    def __init__(self, accelerator: Accelerator, tensors: dict[str, Any] | None, files: dict[str, bytes]) -> None:
        self.accelerator, self.tensors, self.files = accelerator, tensors, files

    def write(self, folder: Path, group: dist.ProcessGroup | None) -> None:
        """Write it; all processes must call this. Raises OSError and RuntimeError."""
        if self.tensors is None:
            self.accelerator.save_state(str(folder))
        else:
            writer = dcp.FileSystemWriter(folder / TENSORS)
            dcp.save(self.tensors, storage_writer=writer, process_group=group, no_dist=group is None)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)


def describe_settings(config: TrainingConfig, clips: int, processes: int) -> dict[str, str]:
    """Every key of a config, `section.key`, the number of clips and of processes, as text."""
    values: dict[str, str] = {}
    for section, keys in asdict(config).items():  # type: ignore[call-overload]  # a dataclass, by `section`
        if isinstance(keys, dict):
            values |= {f"{section}.{key}": str(value) for key, value in keys.items()}
        elif keys is not None:
            values[section] = str(keys)
    return values | {"clips": str(clips), "processes": str(processes)}
