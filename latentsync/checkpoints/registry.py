"""The table of checkpoints: purpose and license of the files in `files`, and the settings of each model."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from latentsync.checkpoints.files import (
    AUXILIARY,
    BUFFALO_L,
    EMBEDDED_SCHEDULER,
    EMBEDDED_SYNCNET,
    EMBEDDED_UNET,
    EMBEDDED_VAE,
    EMBEDDED_WHISPER,
    FACE_RECOGNITION,
    GFPGAN,
    HYPERIQA,
    I3D,
    INCEPTION,
    LIP_READER,
    REALESRGAN,
    RIFE,
    S3FD,
    SYNCNET,
    SYNCNET_V2,
    UNET_15,
    UNET_16,
    VAE,
    VGG16,
    VIDEOMAE,
    WHISPER_TINY,
    CheckpointFile,
    search_roots,
)
from latentsync.utils.errors import UserError, did_you_mean
from latentsync.utils.files import file_sha256
from latentsync.utils.paths import CHECKPOINTS_DIR, PROJECT_ROOT

SCHEDULER_CONFIG = PROJECT_ROOT / "configs" / "scheduler_config.json"
DOWNLOAD_COMMAND = "latentsync download --model"
GB = 1e9

OPENRAIL = "OpenRAIL++"
MIT = "MIT"
APACHE = "Apache-2.0"
BSD = "BSD-3-Clause"
INSIGHTFACE = "InsightFace, non-commercial use only"
SHIPPED = "it is part of the project: check it out again, or install the package again"


@dataclass(frozen=True)
class ModelSettings:
    """Parts and settings of a lip-sync model. Paths of parts are relative to `checkpoints/`, configs to the project.

    vae: a diffusers folder. scheduler: None for that of the released models. resolution: side of the aligned face in
    pixels. memory_gb: device memory in 10^9 bytes that inference needs with default settings, as computed by
    tools/inference_memory.py, and two gigabytes for CUDA, workspaces of cuDNN and fragments; not measured. blend_inset:
    see `latentsync.faces.mask.blend_weight`. match_color, match_detail: see `PipelineBase`.
    """

    unet: CheckpointFile
    whisper: CheckpointFile
    vae: str
    unet_config: str
    resolution: int
    memory_gb: float = 0
    blend_inset: float = 0.0
    match_color: bool = False
    match_detail: bool = False
    scheduler: CheckpointFile | None = None

    def find_vae(self, checkpoints: Path | None = None) -> Path:
        """Folder of the autoencoder, which may be missing."""
        folders = [root / self.vae for root in search_roots(checkpoints)]
        return next((folder for folder in folders if folder.is_dir()), folders[0])


@dataclass(frozen=True)
class Entry:
    """One name of the table.

    summary: description, and the options that need it.
    model: settings of a lip-sync model; None for other networks.
    note: how to get files that cannot be downloaded.
    insightface_pack: InsightFace's model pack with the files.
    """

    summary: str
    license: str
    files: tuple[CheckpointFile, ...]
    model: ModelSettings | None = None
    note: str = ""
    insightface_pack: str | None = None

    @property
    def size(self) -> int:
        """Bytes of all files whose size is known."""
        return sum(file.size or 0 for file in self.files)

    def missing(self, checkpoints: Path | None = None) -> list[CheckpointFile]:
        """Files that are missing or have another size."""
        return [file for file in self.files if file.find(checkpoints) is None]


@dataclass(frozen=True)
class ResolvedModel:
    """A model whose files are all present, every path absolute."""

    name: str
    unet: Path
    vae: Path
    whisper: Path
    unet_config: Path
    scheduler_config: Path
    resolution: int
    license: str
    blend_inset: float = 0.0
    match_color: bool = False
    match_detail: bool = False


REGISTRY: dict[str, Entry] = {
    "latentsync-1.6": Entry(
        "released model, 512 px faces",
        OPENRAIL,
        (UNET_16, WHISPER_TINY, *VAE),
        ModelSettings(UNET_16, WHISPER_TINY, "vae", "configs/unet/stage2_512.yaml", resolution=512, memory_gb=9),
    ),
    "latentsync-1.5": Entry(
        "released model, 256 px faces",
        OPENRAIL,
        (UNET_15, WHISPER_TINY, *VAE),
        ModelSettings(UNET_15, WHISPER_TINY, "vae", "configs/unet/stage2.yaml", resolution=256, memory_gb=8),
    ),
    "embedded": Entry(
        "small model that is part of the project, 256 px faces",
        "Apache-2.0, see checkpoints/embedded/MODEL_CARD.md",
        (EMBEDDED_UNET, EMBEDDED_WHISPER, EMBEDDED_SCHEDULER, *EMBEDDED_VAE),
        ModelSettings(
            EMBEDDED_UNET,
            EMBEDDED_WHISPER,
            "embedded/vae",
            "configs/unet/embedded.yaml",
            resolution=256,
            blend_inset=0.07,
            match_color=True,
            match_detail=True,
            scheduler=EMBEDDED_SCHEDULER,
        ),
        note=SHIPPED,
    ),
    "embedded-syncnet": Entry(
        "SyncNet of the embedded model, for evaluation and fine-tuning",
        "Apache-2.0, see checkpoints/embedded/MODEL_CARD.md",
        (EMBEDDED_SYNCNET,),
        note=SHIPPED,
    ),
    "whisper": Entry("Whisper tiny, the audio encoder of the released models", MIT, (WHISPER_TINY,)),
    "vae": Entry("sd-vae-ft-mse, the autoencoder of the released models", MIT, VAE),
    "syncnet": Entry("StableSyncNet, for the sync loss in pixel space", OPENRAIL, (SYNCNET,)),
    "auxiliary": Entry("the next five entries", OPENRAIL, AUXILIARY),
    "syncnet_v2": Entry(
        "SyncNet of Chung and Zisserman, for sync confidence and preprocessing", OPENRAIL, (SYNCNET_V2,)
    ),
    "s3fd": Entry("face detector of the published sync confidence", OPENRAIL, (S3FD,)),
    "hyperiqa": Entry("image quality, for preprocessing", OPENRAIL, (HYPERIQA,)),
    "i3d": Entry("video features of FVD, for evaluation", OPENRAIL, (I3D,)),
    "videomae": Entry("VideoMAEv2, for the TREPA loss of stage 2", OPENRAIL, (VIDEOMAE,)),
    "realesrgan": Entry("RealESRGAN x4plus, for --enable_upscale", BSD, (REALESRGAN,)),
    "gfpgan": Entry("GFPGAN 1.4, for --enhancer gfpgan", APACHE, (GFPGAN,)),
    "rife": Entry(
        "RIFE HDv3, for --interpolate",
        MIT,
        (RIFE,),
        note="put flownet.pkl of the RIFE HDv3 release there; optical flow is used without it",
    ),
    "vgg16": Entry("VGG16 of torchvision, for LPIPS in training and evaluation", BSD, (VGG16,)),
    "inception": Entry("Inception of FID, for evaluation", APACHE, (INCEPTION,)),
    "lip_reader": Entry(
        "Auto-AVSR's visual speech recognizer, for LipScore in evaluation",
        "for comparison and benchmarks only, see the license of Auto-AVSR",
        (LIP_READER,),
        note="put the English visual-only model of Auto-AVSR's model zoo there (LRS2+LRS3+VOX2+AVSP)",
    ),
    "buffalo_l": Entry(
        "InsightFace detector and landmarks, for --detector insightface",
        INSIGHTFACE,
        BUFFALO_L,
        insightface_pack="buffalo_l",
    ),
    "face_recognition": Entry(
        "InsightFace ArcFace, for identity similarity in evaluation",
        INSIGHTFACE,
        (FACE_RECOGNITION,),
        insightface_pack="buffalo_l",
    ),
}
DEFAULT_MODEL = "embedded"
RELEASED_MODELS = ("latentsync-1.6", "latentsync-1.5")  # in order of preference


def entry(name: str) -> Entry:
    """The entry of a name.

    Raises:
        UserError: the name is unknown.
    """
    if name not in REGISTRY:
        near = did_you_mean(name, REGISTRY) or f"; choose one of {', '.join(REGISTRY)}"
        raise UserError(f"unknown model or checkpoint {name!r}{near}")
    return REGISTRY[name]


def require_file(path: str | Path, name: str, otherwise: str = "") -> None:
    """Raise UserError unless a file of the entry `name` exists; `otherwise` names the alternative."""
    if not Path(path).is_file():
        alternative = f", or {otherwise}" if otherwise else ""
        raise UserError(f"{path}: missing weights: {entry(name).summary}; run `{DOWNLOAD_COMMAND} {name}`{alternative}")


def known_digests() -> set[str]:
    """All known SHA-256 digests of the table."""
    return {file.sha256 for item in REGISTRY.values() for file in item.files if file.sha256}


def identify(path: Path) -> str | None:
    """Name of the lip-sync model whose published UNet this file is, by its SHA-256; None for any other file.

    The file is read only if its size is that of a published one.
    """
    for name, model in _models().items():
        unet = model.unet
        if unet.sha256 and path.is_file() and unet.may_be(path) and file_sha256(path) == unet.sha256:
            return name
    return None


def model_names() -> list[str]:
    """Names that `resolve` accepts."""
    return list(_models())


def resolve(name: str, checkpoints: Path | None = None, own: Mapping[str, Path] | None = None) -> ResolvedModel:
    """Paths and settings of a model, by default under the project's own `checkpoints/`.

    `own` maps fields of `ResolvedModel` (unet, vae, whisper, unet_config, scheduler_config) to files to use instead;
    the model's own files of those parts are not needed.

    Raises:
        UserError: the name is unknown or not a model, or a file is missing or has the wrong size.
    """
    item, own = entry(name), own or {}
    if item.model is None:
        raise UserError(f"{name} is not a lip-sync model; choose one of {', '.join(model_names())}")
    missing = [file for file in item.missing(checkpoints) if part_of(file, item.model) not in own]
    if missing:
        root, remedy = checkpoints or CHECKPOINTS_DIR, item.note or f"run `{DOWNLOAD_COMMAND} {name}`"
        raise UserError(f"{name}: {describe_missing(missing, root)} in {root}; {remedy}")
    model = item.model
    found = ResolvedModel(
        name=name,
        unet=model.unet.location(checkpoints),
        vae=model.find_vae(checkpoints),
        whisper=model.whisper.location(checkpoints),
        unet_config=PROJECT_ROOT / model.unet_config,
        scheduler_config=model.scheduler.location(checkpoints) if model.scheduler else SCHEDULER_CONFIG,
        resolution=model.resolution,
        license=item.license,
        blend_inset=model.blend_inset,
        match_color=model.match_color,
        match_detail=model.match_detail,
    )
    return replace(found, **dict[str, Any](own))


def few_step_adapter(name: str, checkpoints: Path | None = None) -> Path | None:
    """The LoRA adapter that makes a registered model sample in a few steps, `few_step/NAME.safetensors` among the
    checkpoints; None if there is none. Made by recipes/distill."""
    places = [root / "few_step" / f"{name}.safetensors" for root in search_roots(checkpoints)]
    return next((path for path in places if path.is_file()), None) if name in REGISTRY else None


def part_of(file: CheckpointFile, model: ModelSettings) -> str:
    """The field of `ResolvedModel` that a file of the model belongs to."""
    parts = {model.unet: "unet", model.whisper: "whisper", model.scheduler: "scheduler_config"}
    return parts.get(file, "vae")


def default_name(device: str | torch.device, checkpoints: Path | None = None) -> tuple[str, str]:
    """The default model, and the reason for it in one line.

    The best released model whose files are all present and that fits the device's memory (the smallest present one if
    none fits); the embedded model on a CPU or if none is present.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return DEFAULT_MODEL, "no GPU: the released full-size models take over a minute a frame there"
    present = [name for name in RELEASED_MODELS if not REGISTRY[name].missing(checkpoints)]
    if not present:
        return DEFAULT_MODEL, _why_none_present(checkpoints or CHECKPOINTS_DIR)
    memory = device_memory_gb(device)
    fitting = [name for name in present if _models()[name].memory_gb <= memory]
    if fitting:
        return fitting[0], f"released checkpoint found, {device.type} has {memory:.0f} GB"
    return present[-1], f"released checkpoint found, but {device.type} has only {memory:.0f} GB: try --vram_efficient"


def device_memory_gb(device: torch.device) -> float:
    """Memory of a CUDA or MPS device in 10^9 bytes; infinite for other devices."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / GB
    if device.type == "mps":
        return torch.mps.recommended_max_memory() / GB
    return float("inf")


def describe_missing(missing: list[CheckpointFile], checkpoints: Path) -> str:
    """The missing files and those of a wrong size, in one phrase."""
    wrong = [file for file in missing if (checkpoints / file.path).is_file()]
    absent = [file.path for file in missing if file not in wrong]
    parts = [f"missing {', '.join(absent)}"] if absent else []
    for file in wrong:
        size = (checkpoints / file.path).stat().st_size
        parts.append(f"{file.path} has {size} bytes instead of {file.size}")
    return "; ".join(parts)


def _models() -> dict[str, ModelSettings]:
    return {name: item.model for name, item in REGISTRY.items() if item.model}


def _why_none_present(root: Path) -> str:
    for name in RELEASED_MODELS:
        item = REGISTRY[name]
        missing = item.missing(root)
        if _models()[name].unet not in missing:
            return f"{name} is incomplete ({describe_missing(missing, root)}); run `{DOWNLOAD_COMMAND} {name}`"
    stray = next((path for path in (root / name for name in _unet_names()) if path.is_file()), None)
    if stray:
        return f"{stray.name} has {stray.stat().st_size} bytes, not a released checkpoint (incomplete download?)"
    return f"no released checkpoint in {root}; `{DOWNLOAD_COMMAND} {RELEASED_MODELS[0]}` fetches one"


def _unet_names() -> set[str]:
    unets = [_models()[name].unet for name in RELEASED_MODELS]
    return {name for unet in unets for name in (unet.path, *unet.other_names)}
