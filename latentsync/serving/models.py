"""The models that jobs may use, and the cache of loaded ones."""

import gc
import logging
import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch

from latentsync.checkpoints.fingerprint import files_of, fingerprint
from latentsync.checkpoints.registry import GB, REGISTRY, default_name, model_names, resolve
from latentsync.config.unet import load_unet_config
from latentsync.loading import ModelPaths, load_pipeline, pick_device
from latentsync.models.unet_config import UNetConfig
from latentsync.options import AUTO, GenerationOptions, Weights
from latentsync.pipelines.lipsync_pipeline import LipsyncPipeline
from latentsync.pipelines.presets import preset_adapter
from latentsync.utils.errors import UserError, did_you_mean
from latentsync.utils.paths import PROJECT_ROOT

logger = logging.getLogger(__name__)

# Assumed for a user's own checkpoint: as much as the largest registered one.
OWN_MODEL_GB = max(item.model.memory_gb for item in REGISTRY.values() if item.model)
TRAINED_FOLDERS = ("checkpoints", "output")  # searched for users' own checkpoints
RUN_CONFIG = "config.yaml"


@dataclass(frozen=True)
class ModelChoice:
    """A model that jobs may use. resolution: side of its faces in pixels. paths: None for a registered model."""

    name: str
    summary: str
    resolution: int
    paths: ModelPaths | None = None


@dataclass(frozen=True)
class LoraChoice:
    """A LoRA adapter that jobs may use."""

    name: str
    path: Path


def list_models(root: Path = PROJECT_ROOT) -> list[ModelChoice]:
    """Registered models whose files are present, then checkpoints of training runs: files `unet-*.pt` in a folder
    `checkpoints`, with the run's config in its parent folder."""
    registered = [
        ModelChoice(name, entry.summary, entry.model.resolution)
        for name in model_names()
        if (entry := REGISTRY[name]).model is not None and not entry.missing()
    ]
    return registered + [choice for path in _trained(root, "unet-*.pt") if (choice := _own_model(path, root))]


def list_loras(root: Path = PROJECT_ROOT) -> list[LoraChoice]:
    """LoRA adapters of training runs: files `unet-*.safetensors` in a `checkpoints` folder."""
    return [LoraChoice(_name(path, root), path) for path in _trained(root, "unet-*.safetensors")]


def find_model(name: str, default: str = AUTO) -> ModelChoice | None:
    """Look up a model by name; None stands for the best one present.

    Raises:
        UserError: there is none of this name.
    """
    name = default if name == AUTO else name
    if name == AUTO:
        return None
    found = {choice.name: choice for choice in list_models()}
    if name not in found:
        near = did_you_mean(name, found) or f"; choose one of auto, {', '.join(found)}"
        raise UserError(f"model {name!r} is not present{near}")
    return found[name]


def find_lora(name: str) -> Path:
    """Look up a LoRA adapter by name. Raises UserError if there is none."""
    found = {choice.name: choice.path for choice in list_loras()}
    if name not in found:
        near = did_you_mean(name, found) or f"; choose one of: {', '.join(found) or 'none'}"
        raise UserError(f"LoRA adapter {name!r} is not present{near}")
    return found[name]


def weights_of(options: GenerationOptions, device: str = AUTO, default: str = AUTO) -> str:
    """Identifies the weights that these options stand for on a device; changes when they are replaced.

    Raises:
        UserError: the model or the adapter is not present, or the device is unknown.
    """
    choice = find_model(options.model, default)
    own = None if choice is None else choice.paths
    if own is None:
        files = files_of(resolve(default_name(pick_device(device))[0] if choice is None else choice.name))
    else:
        files = [Path(path) for path in (own.unet, own.unet_config) if path is not None]
    return fingerprint(files if options.lora is None else [*files, find_lora(options.lora)])


class ModelCache:
    """Cache of the most recently used pipelines on one device. Not thread-safe.

    Args:
        device: auto, cpu, cuda, cuda:N, mps.
        most: maximum number of pipelines.
        default: the model that "auto" in a job's options stands for.
        dtype: float32, float16 or bfloat16; None for the device's default.
        weights: see `PipelineBase.store_weights`.
        compile: compile the models.
    """

    def __init__(
        self,
        device: str = AUTO,
        most: int = 2,
        default: str = AUTO,
        dtype: str | None = None,
        weights: Weights = "full",
        compile: bool = False,
    ) -> None:
        self.device, self.most, self.default = pick_device(device), most, default
        self.dtype, self.weights, self.compile = None if dtype is None else getattr(torch, dtype), weights, compile
        self._loaded: OrderedDict[tuple, LipsyncPipeline] = OrderedDict()

    @property
    def names(self) -> tuple[str, ...]:
        """Loaded models, the most recently used one last."""
        return tuple(key[0] for key in self._loaded)

    def get(self, options: GenerationOptions) -> LipsyncPipeline:
        """The pipeline for a job's options. Raises UserError if it cannot be loaded."""
        choice = find_model(options.model, self.default)
        name = default_name(self.device)[0] if choice is None else choice.name
        lora = None if options.lora is None else find_lora(options.lora)
        adapter = preset_adapter(options.preset, name)
        stamps = tuple(_stamp(path) for path in (_weights(name, choice), lora, adapter) if path is not None)
        key = (name, lora, options.lora_scale, adapter, stamps)
        if key in self._loaded:
            self._loaded.move_to_end(key)
            return self._loaded[key]
        for other in [other for other in self._loaded if other[:-1] == key[:-1]]:  # its file has been replaced
            self._unload(other)
        registered = REGISTRY.get(name)
        self._make_room(registered.model.memory_gb if registered and registered.model else OWN_MODEL_GB)
        model = name if choice is None else choice.paths or name
        pipeline = load_pipeline(
            model,
            str(self.device),
            self.dtype,
            lora=lora,
            lora_scale=options.lora_scale,
            preset=options.preset,
            weights=self.weights,
            compile=self.compile,
        )
        self._loaded[key] = pipeline
        return pipeline

    def _make_room(self, needed_gb: float) -> None:
        while self._loaded and (len(self._loaded) >= self.most or self._free_gb() < needed_gb):
            self._unload(next(iter(self._loaded)))

    def _unload(self, key: tuple) -> None:
        del self._loaded[key]
        logger.info("unloaded model %s", key[0])
        self._free_memory()

    def _free_gb(self) -> float:
        """Free memory of a CUDA device; infinite elsewhere, where only the number of models is limited."""
        return torch.cuda.mem_get_info(self.device)[0] / GB if self.device.type == "cuda" else float("inf")

    def clear(self) -> None:
        """Unload all pipelines, e.g. after running out of memory."""
        self._loaded.clear()
        self._free_memory()

    def _free_memory(self) -> None:
        gc.collect()  # pipelines refer to themselves
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _weights(name: str, choice: ModelChoice | None) -> Path | None:
    """The UNet file of a model; None if it is missing."""
    if choice is not None and choice.paths is not None:
        return None if choice.paths.unet is None else Path(choice.paths.unet)
    registered = REGISTRY.get(name)
    return registered.model.unet.find() if registered is not None and registered.model is not None else None


def _stamp(path: str | Path) -> tuple[int, int] | None:
    """Changes when a file is replaced."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _trained(root: Path, pattern: str) -> list[Path]:
    folders = [root / name for name in TRAINED_FOLDERS]
    found = [path for folder in folders for path in folder.rglob(f"checkpoints/{pattern}") if folder.is_dir()]
    return sorted((path for path in found if path.is_file()), key=lambda path: path.stat().st_mtime, reverse=True)


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _own_model(path: Path, root: Path) -> ModelChoice | None:
    """A checkpoint of a training run with the config in the run's folder; None if that is missing or not valid."""
    config = path.parent.parent / RUN_CONFIG
    try:
        resolution = load_unet_config(config, UNetConfig).data.resolution
    except UserError as error:
        logger.debug("%s: not offered, %s", path, error)
        return None
    return ModelChoice(_name(path, root), "checkpoint of a training run", resolution, ModelPaths(path, config))
