"""Measure a model on people it has never seen: `python -m recipes.embedded.evaluate --data DIR --model DIR`.

Of every held-out clip: the share of the frame's detail that generated faces keep, cross-driven, and the autoencoder;
SyncNet's confidence and offset of the result and of the real clip; the opening of the mouth in silence against that in
speech; the change between frames against the real one; some of these again with the detail of the frames restored, as
the pipeline does (`restored_`). Legend: T frames, R pixels of a side.
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from latentsync.checkpoints.files import EMBEDDED_WHISPER
from latentsync.constants import FPS, SAMPLE_RATE
from latentsync.faces.contour import MeshFinder
from latentsync.faces.mask import blend_weight, load_mask
from latentsync.faces.mediapipe_detector import FACE_OVAL
from latentsync.faces.mediapipe_graphs import MeshNet
from latentsync.faces.mouth import OpeningEstimator, aligned_mesh, closed_opening
from latentsync.faces.texture import DetailRestorer
from latentsync.faces.video import AlignedFace
from latentsync.loading import ModelPaths, load_pipeline
from latentsync.metrics.clip_sync import EmbeddedScorer
from latentsync.metrics.sync import SyncScore, offset_score
from latentsync.models.syncnet_input import audio_input
from latentsync.pipelines.denoise import regenerate_faces, shared_noise
from latentsync.pipelines.lipsync_pipeline import LipsyncPipeline
from latentsync.utils.commands import command
from latentsync.whisper.audio2feature import Audio2Feature
from recipes.embedded.figures import compare, mouth, to_images
from recipes.embedded.pack import Pack, PackedClip
from recipes.embedded.perceptual import PerceptualDistance
from recipes.embedded.sheets import INSET, image
from recipes.embedded.teacher import FRAMES, Voices

logger = logging.getLogger("evaluate")

CONFIG = "configs/unet/embedded.yaml"
MAX_FRAMES = 64
SHOWN = (5, 21, 37, 53)

Speaker = Callable[[Tensor, Tensor], Tensor]


@torch.inference_mode()
def autoencode(pipeline: LipsyncPipeline, faces: Tensor) -> Tensor:
    """Faces (T, 3, R, R) in [-1, 1] after encoding and decoding, reduced and enlarged for a model of smaller faces."""
    side = faces.shape[-1]
    seen = F.avg_pool2d(faces, side // pipeline.resolution)
    decoded = pipeline.codec.decode(pipeline.codec.encode(seen)).clamp(-1, 1)
    return F.interpolate(decoded, size=(side, side), mode="bicubic").clamp(-1, 1)


def load_speaker(pipeline: LipsyncPipeline) -> Speaker:
    """A function of faces (T, 3, R, R) in [-1, 1] and tokens (T, S, D): the faces speaking, pasted softly.

    A model for smaller faces speaks with reduced ones, and its result is enlarged.
    """

    @torch.inference_mode()
    def speak(faces: Tensor, tokens: Tensor) -> Tensor:
        mask, side = load_mask(pipeline.resolution), faces.shape[-1]
        seen = F.avg_pool2d(faces, side // pipeline.resolution)
        noise = shared_noise(pipeline.codec, pipeline.resolution, torch.Generator().manual_seed(1247))
        steps, guidance = pipeline.num_inference_steps, pipeline.guidance_scale
        parts = [
            regenerate_faces(
                pipeline.unet, pipeline.codec, pipeline.scheduler, x[None], y[None], mask, noise, steps, guidance
            )[0]
            for x, y in zip(seen.split(FRAMES), tokens.split(FRAMES), strict=True)
        ]
        weight = torch.from_numpy(blend_weight(load_mask(side), INSET))
        spoken = F.interpolate(torch.cat(parts), size=(side, side), mode="bicubic")  # the same where the sides are
        return torch.lerp(faces, spoken, weight).clamp(-1, 1)

    return speak


class HeldOutSyncNet:
    """The SyncNet that had no part in the training."""

    def __init__(self) -> None:
        self.scorer = EmbeddedScorer().scorer

    @torch.inference_mode()
    def score(self, faces: Tensor, states: Tensor) -> SyncScore:
        """Faces (T, 3, R, R) and Whisper states (2T, L, D)."""
        windows = states.unfold(0, 2 * FRAMES, 2).movedim(-1, 1)  # (W, 2F, L, D)
        audio = self.scorer.net.embed_audio(audio_input(windows.float(), "whisper"))
        return offset_score(self.scorer.embed_faces(faces), audio)


def jitter(faces: Tensor) -> float:
    """Mean absolute second difference over time of the mouth."""
    return float(mouth(faces).diff(n=2, dim=0).abs().mean())


def openings(estimator: OpeningEstimator, faces: Tensor) -> np.ndarray:
    return estimator.openings(to_images(faces))


class Restorer:
    """Restores the detail of the frames in the faces of a clip, as the pipeline does before it pastes them."""

    def __init__(self) -> None:
        self._points, self._mesh = MeshNet(), MeshFinder()

    def __call__(self, result: Tensor, faces: Tensor) -> Tensor:
        """Generated and original faces (T, 3, R, R) in [-1, 1] -> the same shape and range."""
        restore, restored = DetailRestorer(self._mesh), []
        for index, (made, original) in enumerate(zip(to_images(result), to_images(faces), strict=True)):
            contour = aligned_mesh(self._points, original, FACE_OVAL)
            face = AlignedFace(original, np.eye(2, 3), index == 0, contour)
            restored.append(restore(made.astype(np.float32), face)[0])
        return torch.from_numpy(np.stack(restored)).permute(0, 3, 1, 2) / 127.5 - 1


class Evaluation:
    """Measures clips one by one; `sheets` gets an image of each."""

    def __init__(self, pack: Pack, voices: Voices, pipeline: LipsyncPipeline, trunk: Path, sheets: Path) -> None:
        self.pack, self.voices, self.pipeline, self.sheets = pack, voices, pipeline, sheets
        self.speaker = load_speaker(pipeline)
        self.syncnet, self.estimator, self.perceptual = HeldOutSyncNet(), OpeningEstimator(), PerceptualDistance(trunk)
        self.silence, self.restorer = self._silence(), Restorer()
        sheets.mkdir(parents=True, exist_ok=True)

    def _silence(self) -> Tensor:
        """Tokens (T, S, D) of digital silence before speech, as Whisper encodes it there."""
        spoken = next(clip for clip in self.pack.clips if clip.has_audio)
        seconds = MAX_FRAMES / FPS + 1
        states = Audio2Feature(EMBEDDED_WHISPER.location()).wave2feat(
            np.pad(self.pack.wave(spoken), (round(seconds * SAMPLE_RATE), 0))
        )
        return self.voices.window(states, 0, MAX_FRAMES)

    def clip(self, clip: PackedClip, number: int) -> dict[str, float]:
        count = min(clip.length, MAX_FRAMES)
        faces = self.pack.faces(range(clip.first, clip.first + count)).float() / 127.5 - 1
        voice = self._voice(number, count)
        result = self.speaker(faces, self.voices.tokens(voice, 4, count))
        kept = compare(result, faces)
        values = {name: kept[name] for name in ("detail", "laplacian")} | {"jitter": jitter(result) / jitter(faces)}
        decoded = compare(autoencode(self.pipeline, faces), faces)
        values |= {f"autoencoder_{name}": value for name, value in decoded.items()}
        self._show(clip, faces, result)
        if count >= MAX_FRAMES // 2:
            score = self.syncnet.score(result, self.voices.states[voice][8 : 8 + 2 * count])
            values |= {"confidence": score.confidence, "offset": score.offset}
            restored = self.restorer(result, faces)
            score = self.syncnet.score(restored, self.voices.states[voice][8 : 8 + 2 * count])
            values |= {"restored_confidence": score.confidence, "restored_offset": score.offset}
            values |= {"restored_detail": compare(restored, faces)["detail"]}
            values |= {"restored_jitter": jitter(restored) / jitter(faces)}
        if clip.has_audio:
            own = self.pack.states(clip)[: 2 * count]
            values["real_confidence"] = self.syncnet.score(faces, own).confidence
            spoken = self.speaker(faces, self.voices.window(self.pack.states(clip), 0, count))
            values["perceptual"] = float(self.perceptual(mouth(spoken), mouth(faces)))
            values["psnr"] = compare(spoken, faces)["psnr"]
        return {name: round(value, 4) for name, value in values.items()}

    def silent(self, clip: PackedClip, number: int) -> dict[str, float]:
        """Opening in silence as a share of that in speech."""
        count = min(clip.length, MAX_FRAMES // 2)
        faces = self.pack.faces(range(clip.first, clip.first + count)).float() / 127.5 - 1
        spoken = openings(self.estimator, self.speaker(faces, self.voices.tokens(self._voice(number, count), 4, count)))
        quiet = openings(self.estimator, self.speaker(faces, self.silence[:count]))
        closed = closed_opening(self.pack.openings[clip.first : clip.first + clip.length])
        share = max(np.nanmean(quiet) - closed, 0) / max(np.nanmean(spoken) - closed, 1e-3)
        return {"silence": round(float(share), 4)}

    def _voice(self, number: int, count: int) -> str:
        long = [name for name in self.voices.recordings if len(self.voices.states[name]) >= 2 * (count + 8)]
        return long[number % len(long)]

    def _show(self, clip: PackedClip, faces: Tensor, result: Tensor) -> None:
        shown = [index for index in SHOWN if index < len(faces)]
        cv2.imwrite(str(self.sheets / f"{clip.name}.png"), np.concatenate([image(x[shown]) for x in (faces, result)]))


def load(model: Path | None, config: str | Path = CONFIG) -> LipsyncPipeline:
    """The model of a folder with unet.safetensors and vae/, and its config; or None for the shipped one."""
    if model is None:
        return load_pipeline("embedded", "cpu")
    paths = ModelPaths(model / "unet.safetensors", config, model / "vae", base="embedded")
    return load_pipeline(paths, "cpu")


def summary(rows: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean, least and most of every figure."""
    figures = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row[name] for row in rows if name in row and np.isfinite(row[name])]
        figures[name] = {"mean": round(float(np.mean(values)), 4), "min": min(values), "max": max(values)}
    return figures


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder written by recipes.embedded.prepare")
    parser.add_argument("--model", type=Path, help="folder of an exported model (default: the shipped one)")
    parser.add_argument("--config", default=CONFIG, help="its config (default: %(default)s)")
    parser.add_argument("--trunk", type=Path, required=True, help="weights of torchvision's mobilenet_v2 (.pth)")
    parser.add_argument("--output", type=Path, required=True, help="folder for figures.json and contact sheets")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    pack = Pack(args.data / "held_out.safetensors")
    voices = Voices(pack, args.data / "voices.safetensors")
    evaluation = Evaluation(pack, voices, load(args.model, args.config), args.trunk, args.output)
    rows = {}
    for number, clip in enumerate(clip for clip in pack.clips if clip.length >= 2 * FRAMES):
        rows[clip.name] = evaluation.clip(clip, number) | evaluation.silent(clip, number)
        logger.info("%s %s", clip.name, rows[clip.name])
    figures = {"summary": summary(list(rows.values())), "clips": rows}
    (args.output / "figures.json").write_text(json.dumps(figures, indent=1))
    print(json.dumps(figures["summary"], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
