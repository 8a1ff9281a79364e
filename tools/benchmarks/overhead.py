"""Speed of the pipeline without its networks, relative to decoding and encoding alone."""

import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from latentsync.checkpoints.registry import SCHEDULER_CONFIG
from latentsync.config.unet import load_unet_config
from latentsync.loading import load_scheduler
from latentsync.media.audio import load_audio
from latentsync.media.probe import probe_video
from latentsync.media.timeline import open_timeline
from latentsync.media.writer import VideoWriter
from latentsync.models.unet import UNet3DConditionModel
from latentsync.models.unet_config import UNetConfig
from latentsync.pipelines.crossfade import Joint
from latentsync.pipelines.face_generator import PendingFaces
from latentsync.pipelines.lipsync_pipeline import LipsyncPipeline
from latentsync.pipelines.run import Run
from latentsync.pipelines.transfer import Download
from latentsync.utils.paths import PROJECT_ROOT
from latentsync.whisper.windows import count_frames
from tools.benchmarks import CROP_WIDTHS, SIZES
from tools.benchmarks.inputs import FPS, SAMPLE_RATE, make_clip, make_speech
from tools.benchmarks.report import Figure

RATIO_LIMIT = 1.5
AUDIO_WIDTH = 384
AUDIO_TOKENS = 50


class _SilentFeatures:
    """Replaces the Whisper encoder: returns zeros."""

    width = AUDIO_WIDTH

    def stream(self, wave: np.ndarray, fps: Fraction, num_frames: int | None = None) -> "_SilentStream":
        return _SilentStream(count_frames(len(wave), fps) if num_frames is None else num_frames)


class _SilentStream:
    def __init__(self, num_frames: int):
        self._num_frames = num_frames

    def __len__(self) -> int:
        return self._num_frames

    def chunks(self, start: int, stop: int) -> Tensor:
        return torch.zeros(stop - start, AUDIO_TOKENS, AUDIO_WIDTH)


class PipelineWithoutNetworks(LipsyncPipeline):
    """The pipeline with networks that are never run: generated faces are the input faces."""

    def __init__(self, resolution: int):
        model = load_unet_config(PROJECT_ROOT / "configs" / "unet" / "debug.yaml", UNetConfig).model
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8,) * 4,
            latent_channels=model.out_channels,
            norm_num_groups=8,
        )
        unet = UNet3DConditionModel(model)
        audio: Any = _SilentFeatures()
        super().__init__(vae, audio, unet, load_scheduler(SCHEDULER_CONFIG), resolution)

    def begin(
        self, faces: Tensor, tokens: Tensor, reference: Tensor | None, run: Run, joint: Joint | None = None
    ) -> PendingFaces:
        """Convert to [-1, 1] and back, without the networks in between."""
        faces = faces[:, : faces.shape[1] - joint.left] if joint else faces
        pixels = faces.permute(0, 1, 4, 2, 3).float() / 127.5 - 1
        values = ((pixels.clamp(-1, 1) + 1) * 127.5).permute(0, 1, 3, 4, 2)
        return PendingFaces(Download(values, torch.tensor(True)), self.dtype)


def measure(folder: Path, video: Path | None, seconds: float, repeats: int, resolution: int = 256) -> list[Figure]:
    """Ratios of wall-clock and CPU time, medians over `repeats` alternating pairs of runs."""
    if video is None:
        source = make_clip(folder / "source.mp4", SIZES["1080p"], CROP_WIDTHS["1080p"], seconds)
    else:
        source = video
    voice = make_speech(folder / "voice.wav", seconds)
    pipeline = PipelineWithoutNetworks(resolution)
    pairs = []
    _run_pipeline(pipeline, source, make_speech(folder / "warm_up.wav", 0.5), folder / "warm_up.mp4")
    for _ in range(repeats):
        alone = _timed(lambda: _decode_and_encode(source, voice, folder / "alone.mp4"))
        whole = _timed(lambda: _run_pipeline(pipeline, source, voice, folder / "whole.mp4"))
        pairs.append((alone, whole))
    times = np.array(pairs)  # (repeats, [alone, whole], [wall, CPU]), seconds
    ratios = np.median(times[:, 1] / times[:, 0], axis=0)
    frames = count_frames(round(seconds * SAMPLE_RATE), FPS)
    (alone_wall, alone_cpu), (whole_wall, whole_cpu) = 1000 * np.median(times, axis=0) / frames
    info = probe_video(source)
    note = f"{info.width}x{info.height}, {frames} frames, faces {resolution} px, median of {repeats} pairs"
    return [
        Figure("overhead", "without networks / decode + encode, wall-clock time", ratios[0], "x", RATIO_LIMIT, note),
        Figure("overhead", "the same, CPU time of all threads", ratios[1], "x", RATIO_LIMIT, note),
        Figure("overhead", "decode + encode", alone_wall, "ms/frame", None, f"CPU {alone_cpu:.1f} ms"),
        Figure("overhead", "without networks", whole_wall, "ms/frame", None, f"CPU {whole_cpu:.1f} ms"),
    ]


def _decode_and_encode(source: Path, voice: Path, target: Path) -> None:
    """Decode the video and encode it again with other audio: the minimum of any such program."""
    info = probe_video(source)
    duration = Fraction(len(load_audio(voice, SAMPLE_RATE)), SAMPLE_RATE)
    with (
        open_timeline(info, duration, FPS) as timeline,
        VideoWriter(target, info.width, info.height, FPS, color=info.color, audio=voice) as writer,
    ):
        for frame in timeline:
            writer.write(frame)


def _run_pipeline(pipeline: LipsyncPipeline, source: Path, voice: Path, target: Path) -> None:
    result = pipeline(source, voice, target, video_fps=FPS)
    if result.faces != result.num_frames:
        raise RuntimeError(f"{source}: only {result.faces} of {result.num_frames} frames show a face")


def _timed(call: Callable[[], None]) -> tuple[float, float]:
    """Wall-clock and CPU seconds of all threads of this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu
