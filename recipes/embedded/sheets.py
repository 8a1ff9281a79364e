"""Contact sheets: results for unseen people next to the source. Legend: F frames."""

import logging
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from latentsync.faces.mask import blend_weight
from recipes.embedded.denoiser import OneStep
from recipes.embedded.figures import compare, to_images
from recipes.embedded.pack import Pack
from recipes.embedded.teacher import FRAMES, Voices

logger = logging.getLogger("train")

SHOWN = (2, 6, 10, 14)  # frames of a run
INSET = 0.07


@torch.inference_mode()
def speak(model: OneStep, faces: Tensor, tokens: Tensor) -> Tensor:
    """Faces (F, 3, R, R) in [-1, 1] and tokens (F, S, D) -> the same faces speaking, pasted softly, same shape."""
    latents, _ = model(faces[None], faces[None], tokens[None])
    result = model.autoencoder.decode(latents[0].transpose(0, 1)).sample
    weight = torch.from_numpy(blend_weight(model.mask, INSET))
    return torch.lerp(faces, result, weight).clamp(-1, 1)


def image(faces: Tensor) -> np.ndarray:
    """(F, 3, R, R) in [-1, 1] -> (R, F * R, 3) uint8 BGR."""
    return np.concatenate(list(to_images(faces)), axis=1)[..., ::-1]


@torch.inference_mode()
def draw(model: OneStep, pack: Pack, voices: Voices, folder: Path) -> dict[str, dict[str, float]]:
    """A PNG for each clip of the pack: source, decoded source and result; returns the autoencoder's figures."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {}
    for index, clip in enumerate(clip for clip in pack.clips if clip.length >= FRAMES):
        start = (clip.length - FRAMES) // 2
        faces = pack.faces(range(clip.first + start, clip.first + start + FRAMES)).float() / 127.5 - 1
        name = voices.recordings[index % len(voices.recordings)]
        result = speak(model, faces, voices.tokens(name, 8))
        decoded = model.autoencoder.decode(model.autoencoder.encode(faces).latent_dist.mean).sample.clamp(-1, 1)
        figures[clip.name] = compare(decoded, faces)
        kept = compare(result, faces)["detail"]
        logger.info("%s: autoencoder %s; result keeps %.3f of the detail", clip.name, figures[clip.name], kept)
        rows = [image(x[list(SHOWN)]) for x in (faces, decoded, result)]
        cv2.imwrite(str(folder / f"{clip.name}.png"), np.concatenate(rows))
    return figures
