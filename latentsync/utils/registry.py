"""The one table of checkpoints: where each file lies, where it comes from, and which settings a model runs with.

Everything that needs a checkpoint (pipeline, download tool, training, evaluation, apps) asks here. Paths in the table
are relative to `checkpoints/`; sources are public model-hub repositories, pinned to a revision.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from latentsync.constants import CHECKPOINTS_DIR, CONFIGS_DIR, PROJECT_ROOT
from latentsync.utils.errors import UserError

SCHEDULER_CONFIG = CONFIGS_DIR / "scheduler_config.json"
DOWNLOAD_COMMAND = "python -m tools.download_checkpoints --model"
GB = 1e9

REVISIONS = {
    "ByteDance/LatentSync-1.5": "32a20d29aead0498e3e885e90dbbe8027da1b61b",
    "ByteDance/LatentSync-1.6": "c42c7e6c8e9c213626389fa7d9a3c444b8536353",
    "stabilityai/sd-vae-ft-mse": "31f26fdeee1355a5c34592e401dd41e45d25a493",
}
OPENRAIL = "OpenRAIL++"
MIT = "MIT"
INSIGHTFACE = "InsightFace, non-commercial use only"


@dataclass(frozen=True)
class CheckpointFile:
    """One file under `checkpoints/`.

    `repo` and `repo_path` are its place on the public hub (None: it has none, see `Entry.note`); `size` in bytes and
    `sha256` are None when not known. Any of `other_names` holds the same content under another name.
    """

    path: str
    repo: str | None = None
    repo_path: str | None = None
    size: int | None = None
    sha256: str | None = None
    other_names: tuple[str, ...] = ()

    @property
    def revision(self) -> str | None:
        return REVISIONS[self.repo] if self.repo else None

    def find(self, checkpoints: Path | None = None) -> Path | None:
        """The file under its own or another accepted name; a file of another size is another file."""
        root = checkpoints or CHECKPOINTS_DIR
        for name in (self.path, *self.other_names):
            path = root / name
            if path.is_file() and self.size in (None, path.stat().st_size):
                return path
        return None


@dataclass(frozen=True)
class ModelSettings:
    """How a lip-sync model is assembled and run. Paths of the parts lie under `checkpoints/`, configs under the root.

    `vae` is a diffusers folder; `scheduler` is None where the released models' scheduler is meant; `resolution` is the
    side of the aligned face in pixels; `memory_gb` the device memory that inference needs at the default settings;
    `blend_inset` see `latentsync.faces.mask.blend_weight`, `match_colour` see `latentsync.faces.colour`.
    """

    unet: CheckpointFile
    whisper: CheckpointFile
    vae: str
    unet_config: str
    resolution: int
    memory_gb: float = 0
    inference_steps: int = 20
    guidance_scale: float = 1.5
    blend_inset: float = 0.0
    match_colour: bool = False
    scheduler: CheckpointFile | None = None


@dataclass(frozen=True)
class Entry:
    """One name of the table: its files, its licence, and for a runnable model its settings."""

    summary: str
    licence: str
    files: tuple[CheckpointFile, ...]
    model: ModelSettings | None = None
    note: str = ""

    @property
    def size(self) -> int:
        """Bytes of all files whose size is known."""
        return sum(file.size or 0 for file in self.files)

    def missing(self, checkpoints: Path | None = None) -> list[CheckpointFile]:
        """Files that are not there, or are there with another size."""
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
    inference_steps: int
    guidance_scale: float
    licence: str
    blend_inset: float = 0.0
    match_colour: bool = False


def _hub(
    repo: str, repo_path: str, size: int | None, sha256: str, path: str | None = None, other_names: tuple[str, ...] = ()
) -> CheckpointFile:
    return CheckpointFile(path or repo_path, repo, repo_path, size, sha256, other_names)


V15, V16, SD_VAE = REVISIONS

# fmt: off
UNET_15 = _hub(V15, "latentsync_unet.pt", 5072348184,
               "6440b49a7ccceff56cdc001f5f17605216337f5bbd66fa360139768926e23f51",
               path="default_unet_v1.5.pt", other_names=("latentsync_unet.pt",))
UNET_16 = _hub(V16, "latentsync_unet.pt", 5072222488,
               "0a478e89eb660f82da4c35dbdde8a5adfb27f99d1b4e50edd03729e1e98316d3",
               other_names=("default_unet_v1.6.pt",))
WHISPER_TINY = _hub(V16, "whisper/tiny.pt", 75572083,
                    "65147644a518d12f04e32d6f3b26facc3f8dd46e5390956a9424a650c0ce22b9")
VAE = (
    _hub(SD_VAE, "config.json", None,
         "92d3dfb746fca211a2c9e019e285f8597412211728dce3c5bcf4eda0f2d62e7e", path="vae/config.json"),
    _hub(SD_VAE, "diffusion_pytorch_model.safetensors", 334643276,
         "a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815",
         path="vae/diffusion_pytorch_model.safetensors"),
)
SYNCNET = _hub(V16, "stable_syncnet.pt", 1605328746,
               "77678d13861a02d6e83d0b169962175b6266be773f1f6f85fda2b0182e225118")
AUXILIARY = (
    _hub(V15, "auxiliary/syncnet_v2.model", 54573114,
         "961e8696f888fce4f3f3a6c3d5b3267cf5b343100b238e79b2659bff2c605442"),
    _hub(V15, "auxiliary/sfd_face.pth", 89844381,
         "d54a87c2b7543b64729c9a25eafd188da15fd3f6e02f0ecec76ae1b30d86c491"),
    _hub(V15, "auxiliary/koniq_pretrained.pkl", 109768650,
         "ff9277bcc68ecc10e77d88b6d0a32825ec3c85562095542734ec6212eaaf6d81"),
    _hub(V15, "auxiliary/i3d_torchscript.pt", 51235320,
         "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2"),
    _hub(V15, "auxiliary/vit_g_hybrid_pt_1200e_ssv2_ft.pth", 2023804201,
         "5a210a92f035dff30c53b46157b612e7a1a5d3c99700e1b2d71da5c399ca7e70"),
)
BUFFALO_L = (
    CheckpointFile("auxiliary/models/buffalo_l/det_10g.onnx", size=16923827,
                   sha256="5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91"),
    CheckpointFile("auxiliary/models/buffalo_l/2d106det.onnx", size=5030888,
                   sha256="f001b856447c413801ef5c42091ed0cd516fcd21f2d6b79635b1e733a7109dbf"),
)
# fmt: on
EMBEDDED_UNET = CheckpointFile("embedded/unet.safetensors")
EMBEDDED_WHISPER = CheckpointFile("embedded/whisper_tiny_en_encoder.safetensors")
EMBEDDED_SYNCNET = CheckpointFile("embedded/syncnet.safetensors")
EMBEDDED_SCHEDULER = CheckpointFile("embedded/scheduler_config.json")
EMBEDDED_VAE = (
    CheckpointFile("embedded/vae/config.json"),
    CheckpointFile("embedded/vae/diffusion_pytorch_model.safetensors"),
)

REGISTRY: dict[str, Entry] = {
    "latentsync-1.6": Entry(
        "released model, 512 px faces",
        OPENRAIL,
        (UNET_16, WHISPER_TINY, *VAE),
        ModelSettings(UNET_16, WHISPER_TINY, "vae", "configs/unet/stage2_512.yaml", resolution=512, memory_gb=18),
    ),
    "latentsync-1.5": Entry(
        "released model, 256 px faces",
        OPENRAIL,
        (UNET_15, WHISPER_TINY, *VAE),
        ModelSettings(UNET_15, WHISPER_TINY, "vae", "configs/unet/stage2.yaml", resolution=256, memory_gb=8),
    ),
    "embedded": Entry(
        "small model that ships with the project, 128 px faces",
        "Apache-2.0, see checkpoints/embedded/MODEL_CARD.md",
        (EMBEDDED_UNET, EMBEDDED_WHISPER, EMBEDDED_SCHEDULER, *EMBEDDED_VAE),
        ModelSettings(
            EMBEDDED_UNET,
            EMBEDDED_WHISPER,
            "embedded/vae",
            "configs/unet/embedded.yaml",
            resolution=128,
            inference_steps=4,
            guidance_scale=1.5,
            blend_inset=0.07,
            match_colour=True,
            scheduler=EMBEDDED_SCHEDULER,
        ),
        note="part of the repository; check it out again",
    ),
    "embedded-syncnet": Entry(
        "SyncNet of the embedded model: judges it, and fine-tunes it",
        "Apache-2.0, see checkpoints/embedded/MODEL_CARD.md",
        (EMBEDDED_SYNCNET,),
        note="part of the repository; check it out again",
    ),
    "whisper": Entry("Whisper tiny, the audio encoder of the released models", MIT, (WHISPER_TINY,)),
    "vae": Entry("sd-vae-ft-mse, the autoencoder of the released models", MIT, VAE),
    "syncnet": Entry("StableSyncNet, supervises training in pixel space", OPENRAIL, (SYNCNET,)),
    "auxiliary": Entry("evaluation, data processing and TREPA networks", OPENRAIL, AUXILIARY),
    "buffalo_l": Entry(
        "InsightFace detector and landmarks", INSIGHTFACE, BUFFALO_L, note="fetched by insightface's own download"
    ),
}
DEFAULT_MODEL = "embedded"
RELEASED_MODELS = ("latentsync-1.6", "latentsync-1.5")  # the better one first


def project_path(path: str | Path) -> Path:
    """Where a path of a config leads: from the working directory if it is there, else from the project's root."""
    path = Path(path)
    return path if path.is_absolute() or path.exists() else PROJECT_ROOT / path


def entry(name: str) -> Entry:
    """The entry of that name.

    Raises:
        UserError: there is none.
    """
    if name not in REGISTRY:
        raise UserError(f"unknown checkpoint {name!r}; choose one of {', '.join(REGISTRY)}")
    return REGISTRY[name]


def model_names() -> list[str]:
    """Names that `resolve` takes."""
    return [name for name, item in REGISTRY.items() if item.model]


def resolve(name: str, checkpoints: Path | None = None, own: Mapping[str, Path] | None = None) -> ResolvedModel:
    """Paths and settings of a model, by default under the project's own `checkpoints/`.

    `own` maps fields of `ResolvedModel` (unet, vae, whisper, unet_config, scheduler_config) to files to use instead;
    the model's own files of those parts need not be there.

    Raises:
        UserError: the name is unknown or no model, or a file is absent or has the wrong size.
    """
    item, root, own = entry(name), checkpoints or CHECKPOINTS_DIR, own or {}
    if item.model is None:
        raise UserError(f"{name} is not a lip-sync model; choose one of {', '.join(model_names())}")
    missing = [file for file in item.missing(root) if part_of(file, item.model) not in own]
    if missing:
        remedy = item.note or f"run `{DOWNLOAD_COMMAND} {name}`"
        raise UserError(f"{name}: {describe_missing(missing, root)} in {root}; {remedy}")
    model = item.model
    found = ResolvedModel(
        name=name,
        unet=model.unet.find(root),
        vae=root / model.vae,
        whisper=model.whisper.find(root),
        unet_config=PROJECT_ROOT / model.unet_config,
        scheduler_config=model.scheduler.find(root) if model.scheduler else SCHEDULER_CONFIG,
        resolution=model.resolution,
        inference_steps=model.inference_steps,
        guidance_scale=model.guidance_scale,
        licence=item.licence,
        blend_inset=model.blend_inset,
        match_colour=model.match_colour,
    )
    return replace(found, **own)


def part_of(file: CheckpointFile, model: ModelSettings) -> str:
    """Field of `ResolvedModel` that a file of the model belongs to."""
    parts = {model.unet: "unet", model.whisper: "whisper", model.scheduler: "scheduler_config"}
    return parts.get(file, "vae")


def default_name(device: str | torch.device, checkpoints: Path | None = None) -> tuple[str, str]:
    """The model to use when none is asked for, and the reason in one line.

    The best released model whose files are all present and which fits the device's memory (the smallest present one
    when none fits); the embedded model on a CPU or when none is present.
    """
    device, root = torch.device(device), checkpoints or CHECKPOINTS_DIR
    if device.type == "cpu":
        return DEFAULT_MODEL, "no GPU: the released full-size models take over a minute a frame there"
    present = [name for name in RELEASED_MODELS if not REGISTRY[name].missing(root)]
    if not present:
        return DEFAULT_MODEL, _why_none_present(root)
    memory = device_memory_gb(device)
    fitting = [name for name in present if REGISTRY[name].model.memory_gb <= memory]
    if fitting:
        return fitting[0], f"released checkpoint found, {device.type} has {memory:.0f} GB"
    return present[-1], f"released checkpoint found, but {device.type} has only {memory:.0f} GB: try --vram_efficient"


def device_memory_gb(device: torch.device) -> float:
    """Memory of a CUDA or MPS device in units of 10^9 bytes; infinite where it cannot be asked."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / GB
    if device.type == "mps":
        return torch.mps.recommended_max_memory() / GB
    return float("inf")


def describe_missing(missing: list[CheckpointFile], checkpoints: Path) -> str:
    """Which files are missing, and which are there with a wrong size, in one phrase."""
    wrong = [file for file in missing if (checkpoints / file.path).is_file()]
    absent = [file.path for file in missing if file not in wrong]
    parts = [f"missing {', '.join(absent)}"] if absent else []
    for file in wrong:
        size = (checkpoints / file.path).stat().st_size
        parts.append(f"{file.path} has {size} bytes instead of {file.size}")
    return "; ".join(parts)


def _why_none_present(root: Path) -> str:
    for name in RELEASED_MODELS:
        item = REGISTRY[name]
        missing = item.missing(root)
        if item.model.unet not in missing:
            return f"{name} is incomplete ({describe_missing(missing, root)}); run `{DOWNLOAD_COMMAND} {name}`"
    stray = next((path for path in (root / name for name in _unet_names()) if path.is_file()), None)
    if stray:
        return f"{stray.name} has {stray.stat().st_size} bytes, which is no released checkpoint (truncated download?)"
    return f"no released checkpoint in {root}; `{DOWNLOAD_COMMAND} {RELEASED_MODELS[0]}` fetches one"


def _unet_names() -> set[str]:
    unets = [REGISTRY[name].model.unet for name in RELEASED_MODELS]
    return {name for unet in unets for name in (unet.path, *unet.other_names)}
