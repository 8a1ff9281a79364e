"""The teacher's results: made once, kept as files, read by the training.

A sample combines the frames of one clip with the audio of another. As in inference, the reference is the frame itself,
and all frames share their noise.

Legend: F frames, C latent channels, h latent cells of a side, S audio tokens, D width.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from latentsync.checkpoints.loading import save_checkpoint
from latentsync.config.unet import UNetFileConfig
from latentsync.data.clip_dataset import ClipDataset
from latentsync.data.sampler import SampleId, StepBatchSampler, collate, sample_generators
from latentsync.pipelines.denoise import denoise_latents
from latentsync.utils.errors import UserError
from latentsync.utils.files import replaced
from recipes.distill.task import DistillTask

logger = logging.getLogger("distill")

SETTINGS = "settings.json"
AUDIO_KEYS = ("audio", "mel", "whisper_mel", "whisper_rows", "has_speech")  # keys of an item that depend on its audio
NOISE_STREAM = 7  # keeps the noise apart from other random numbers of a key


class TeacherSamples(torch.utils.data.Dataset):
    """The samples of a folder, for `latentsync.training.loop`.

    Items: latents, the teacher's result, masked_latents, ref_latents (F, C, h, h), noise (C, 1, h, h), audio (F, S, D),
    float32; has_speech (0 or 1); key; mel (1, 80, columns) where the clips have it.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, sample: SampleId) -> dict[str, Any]:
        path = self.paths[sample.index]
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            return {"error": f"{path}: cannot be read ({error}); delete it and make it again"}
        speech = {"has_speech": int(tensors.pop("has_speech"))}
        return {**{name: tensor.float() for name, tensor in tensors.items()}, **speech, "key": sample.key}


def sample_paths(config: UNetFileConfig) -> list[Path]:
    """Files of all samples of a config, present or not."""
    recipe = config.recipe
    return [Path(recipe.samples_dir) / f"{number:06d}.safetensors" for number in range(recipe.samples)]


def require_samples(config: UNetFileConfig) -> list[Path]:
    """`sample_paths`. Raises UserError if some are missing or were made with other settings."""
    paths = sample_paths(config)
    missing = sum(not path.is_file() for path in paths)
    if missing:
        raise UserError(
            f"{config.recipe.samples_dir}: {missing} of {len(paths)} samples are missing; make them with "
            "`python -m recipes.distill.teacher` and the same config"
        )
    _check_settings(config)
    return paths


def settings_of(config: UNetFileConfig) -> dict[str, Any]:
    """Everything but the clips that the samples depend on."""
    recipe, data = config.recipe, config.data
    return {
        "teacher": config.ckpt.resume_ckpt_path,
        "teacher_steps": recipe.teacher_steps,
        "teacher_guidance_scale": recipe.teacher_guidance_scale,
        "resolution": data.resolution,
        "num_frames": data.num_frames,
        "seed": config.run.seed,
    }


def make_samples(task: DistillTask, clips: ClipDataset, device: torch.device, rank: int = 0, world: int = 1) -> int:
    """Make the missing samples of the task's config, every `world`-th from `rank` on; returns their number.

    Raises:
        UserError: the folder has samples of other settings, or cannot be written.
    """
    config = task.config
    _write_settings(config)
    paths = dict(enumerate(sample_paths(config)))
    pending = [number for number in list(paths)[rank::world] if not paths[number].is_file()]
    batches = list(_split(pending, config.data.batch_size))
    for numbers in tqdm(batches, desc="teacher", disable=rank > 0):
        for number, tensors in zip(numbers, teach(task, clips, numbers, device), strict=True):
            save_checkpoint(paths[number], tensors)
    return len(pending)


@torch.no_grad()
def teach(
    task: DistillTask, clips: ClipDataset, numbers: Sequence[int], device: torch.device
) -> Iterator[dict[str, Tensor]]:
    """The tensors of samples by their numbers, as `TeacherSamples` reads them."""
    config, recipe = task.config, task.config.recipe
    items = [_draw_item(clips, number, config.run.seed) for number in numbers]
    batch = collate([{**item, "key": number} for number, item in zip(numbers, items, strict=True)])
    if "error" in batch:
        raise UserError(batch["error"])
    batch = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    clean, masked, tokens = task.inputs_of_inference(batch)
    generators = sample_generators(config.run.seed, torch.tensor(list(numbers)), NOISE_STREAM)
    shape = (1, clean.shape[1], 1, *clean.shape[3:])
    noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators]).half().to(clean)
    with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
        results = denoise_latents(
            task.model.eval(),
            task.teacher_schedule,
            noise,
            task.mask,
            masked,
            clean,
            tokens,
            recipe.teacher_steps,
            recipe.teacher_guidance_scale,
        )
    speech = batch.get("has_speech", torch.ones(len(clean)))
    for row in range(len(clean)):
        maps = {"latents": results[row], "masked_latents": masked[row], "ref_latents": clean[row]}
        tensors = {name: value.transpose(0, 1).half() for name, value in maps.items()}
        tensors |= {"noise": noise[row].half(), "audio": tokens[row].half(), "has_speech": speech[row].long()}
        yield tensors | ({"mel": batch["mel"][row]} if "mel" in batch else {})


def _draw_item(clips: ClipDataset, number: int, seed: int) -> dict[str, Any]:
    """The frames of one clip with the audio of another."""
    drawn = StepBatchSampler(len(clips), 1, seed)
    frames, audio = (clips[SampleId(drawn.index_of(key), key)] for key in (2 * number, 2 * number + 1))
    return {**frames, **{name: audio[name] for name in AUDIO_KEYS if name in audio}}


def _split(numbers: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]


def _write_settings(config: UNetFileConfig) -> None:
    path = Path(config.recipe.samples_dir) / SETTINGS
    if path.is_file():
        _check_settings(config)
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as temporary:
            temporary.write_text(json.dumps(settings_of(config), indent=1), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another recipe.samples_dir") from error


def _check_settings(config: UNetFileConfig) -> None:
    path = Path(config.recipe.samples_dir) / SETTINGS
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); make the samples again") from error
    changed = [f"{name} {found.get(name)}" for name, value in settings_of(config).items() if found.get(name) != value]
    if changed:
        raise UserError(
            f"{path.parent}: was made with {', '.join(changed)}; choose another recipe.samples_dir, or these settings"
        )
