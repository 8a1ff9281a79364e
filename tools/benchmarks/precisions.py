"""Cost and gain of half precision: the embedded model, whose real weights make its faces comparable."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
import torch

from latentsync.loading import load_pipeline
from latentsync.media.audio import load_audio
from latentsync.options import GenerationOptions
from latentsync.pipelines.face_generator import NUM_FRAMES
from latentsync.pipelines.lipsync_pipeline import LipsyncPipeline
from latentsync.utils.errors import UserError, one_line
from tools.benchmarks.full_size import random_pipeline, tiny
from tools.benchmarks.inputs import PORTRAIT, SAMPLE_RATE, SPEECH
from tools.benchmarks.report import Figure

MODEL = "embedded"
TF32 = "float32 with TF32"
QUANTIZED = "linear layers in 8 bits"


def measure(is_tiny: bool = False) -> list[Figure]:
    """PSNR against float32 without TF32, and speed, in each precision. `is_tiny`: a few frames of a random model."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options = GenerationOptions(inference_steps=1, guidance_scale=1.0) if is_tiny else GenerationOptions()
    frames = 2 if is_tiny else 4 * NUM_FRAMES
    figures, expected = [], None
    for name in ["float32", *([TF32] if device.type == "cuda" else []), "float16", "bfloat16", QUANTIZED]:
        dtype = getattr(torch, name, torch.float16 if name == QUANTIZED and device.type == "cuda" else torch.float32)
        with tf32(name == TF32):
            pipeline = random_pipeline(tiny(), device, dtype) if is_tiny else load_pipeline(MODEL, str(device), dtype)
            try:
                if name == QUANTIZED:
                    pipeline.quantize()
            except UserError as error:
                figures.append(Figure("precisions", name, None, "", None, one_line(error)))
                continue
            faces, speed = _speak(pipeline, frames, options)
        expected = faces if expected is None else expected
        error = float(np.mean((faces - expected) ** 2))
        note = f"{'tiny' if is_tiny else MODEL} model on {device.type}, {frames} frames of the demo"
        if error > 0:
            decibel = 10 * float(np.log10(255**2 / error))
            figures.append(Figure("precisions", f"{name}, PSNR against float32", decibel, "dB", None, note))
        figures.append(Figure("precisions", f"{name}, speed", speed, "frames/s", None, note))
    return figures


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether float32 products may be computed in TF32 inside the block."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def _speak(pipeline: LipsyncPipeline, frames: int, options: GenerationOptions) -> tuple[np.ndarray, float]:
    """Faces (F, R, R, 3) in [0, 255] of the demo, and frames per second of a second run."""
    image = cv2.cvtColor(cv2.imread(str(PORTRAIT), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    side = pipeline.resolution
    face = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    given = np.repeat(face[None], frames, axis=0), load_audio(SPEECH, SAMPLE_RATE)
    pipeline.speak(*given, options=options)  # the first run includes the choice of kernels
    start = time.perf_counter()
    faces = pipeline.speak(*given, options=options)
    return faces.numpy(), frames / (time.perf_counter() - start)
