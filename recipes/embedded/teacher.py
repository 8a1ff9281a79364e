"""Results of the first generation, for the second to learn from.

The 128 px model speaks foreign audio in four guided steps; its latents are the first channels of the new ones. The
reference is the frame itself, as in inference. Legend: F frames of a chunk, C latent channels, h cells of a side.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentsync.constants import FPS
from latentsync.data.audio import frame_tokens
from latentsync.faces.mask import load_mask, resize_mask_to_latents
from latentsync.loading import ModelPaths, load_pipeline
from latentsync.pipelines.denoise import denoise_latents, encode_frames, shared_noise
from recipes.embedded.pack import Pack, from_int16

logger = logging.getLogger("train")

CONFIG = Path(__file__).parent / "first_generation" / "configs" / "unet.yaml"
FRAMES = 16
AUDIO_FRAMES = (2, 2)
CHUNKS_PER_FILE = 8


@dataclass(frozen=True)
class TeacherChunk:
    """The first generation's result for frames `first`... of the pack with the audio `voice` from frame `start` on.

    latents: (F, C, h, h) float16.
    """

    first: int
    voice: str
    start: int
    latents: Tensor


class Voices:
    """Whisper states of all audio that may drive a face: recordings, and the clips' own."""

    def __init__(self, pack: Pack, recordings: Path) -> None:
        waves = load_file(recordings)
        self.states = {name: pack.whisper.wave2feat(from_int16(wave.numpy())).half() for name, wave in waves.items()}
        self.recordings = [name for name, states in self.states.items() if len(states) >= 2 * FRAMES]
        self.states |= {clip.name: pack.states(clip) for clip in pack.clips if clip.has_audio}
        self.clips = [clip.name for clip in pack.clips if clip.has_audio and clip.length >= FRAMES]

    def tokens(self, name: str, start: int, frames: int = FRAMES) -> Tensor:
        """(F, S, D) float32: the audio of the frames from `start` on, from a recording."""
        return self.window(self.states[name], start, frames)

    @staticmethod
    def window(states: Tensor, start: int, frames: int = FRAMES) -> Tensor:
        """The same of states (T, L, D)."""
        run = range(start, start + frames)
        return frame_tokens(lambda rows: states[rows.start : rows.stop], len(states), run, FPS, AUDIO_FRAMES).float()

    def draw(self, rng: np.random.Generator, other_than: str = "") -> tuple[str, int]:
        """A voice and the first frame of a run of it: a recording or a clip."""
        names = self.recordings if rng.random() < 0.5 else [name for name in self.clips if name != other_than]
        name = names[rng.integers(len(names))]
        return name, int(rng.integers(len(self.states[name]) // 2 - FRAMES + 1))


@torch.no_grad()
def make_chunks(
    pack: Pack, voices: Voices, first: Path, folder: Path, count: int, device: torch.device, seed: int = 5
) -> None:
    """Write `count` chunks of the model in the folder `first`, a few to a file; files that are there are left alone."""
    pipeline = load_pipeline(
        ModelPaths(first / "unet.safetensors", CONFIG, first / "vae", base="embedded"), str(device)
    )
    people = [[c for c in clips if c.length >= FRAMES] for _, clips in pack.by_person()]
    people = [clips for clips in people if clips]
    mask = load_mask(pipeline.resolution).to(device)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(-(-count // CHUNKS_PER_FILE)):
        path = folder / f"chunks-{number:03d}.safetensors"
        if path.is_file():
            continue
        rng = np.random.default_rng([seed, number])
        tensors = {}
        for index in range(min(CHUNKS_PER_FILE, count - number * CHUNKS_PER_FILE)):
            clips = people[(number * CHUNKS_PER_FILE + index) % len(people)]
            clip = clips[rng.integers(len(clips))]
            first = clip.first + int(rng.integers(clip.length - FRAMES + 1))
            voice, start = voices.draw(rng, clip.name)
            faces = pack.faces(range(first, first + FRAMES)).float() / 127.5 - 1
            pixels = F.avg_pool2d(faces, faces.shape[-1] // pipeline.resolution)[None].to(device)
            reference = encode_frames(pipeline.codec, pixels)
            latents = denoise_latents(
                pipeline.unet,
                pipeline.scheduler,
                shared_noise(pipeline.codec, pipeline.resolution, torch.Generator().manual_seed(seed)),
                resize_mask_to_latents(mask, reference.shape[-2:]).unsqueeze(2),
                encode_frames(pipeline.codec, pixels * mask),
                reference,
                voices.tokens(voice, start)[None].to(device),
                pipeline.num_inference_steps,
                pipeline.guidance_scale,
            )
            tensors[f"{first}|{start}|{voice}"] = latents[0].transpose(0, 1).half().cpu().contiguous()
        save_file(tensors, path)
        logger.info("teacher: %s", path.name)


def read_chunks(folder: Path) -> list[TeacherChunk]:
    """All chunks there are so far."""
    chunks = []
    for path in sorted(folder.glob("chunks-*.safetensors")):
        for name, latents in load_file(path).items():
            first, start, voice = name.split("|", 2)
            chunks.append(TeacherChunk(int(first), voice, int(start), latents))
    return chunks
