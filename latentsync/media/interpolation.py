"""Frame interpolation of files, by RIFE if its weights are present and by optical flow otherwise."""

import importlib.util
import logging
import os
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F

from latentsync.checkpoints import registry
from latentsync.checkpoints.formats import Checkpoint
from latentsync.checkpoints.loading import load_checkpoint, load_into
from latentsync.media.audio_stream import has_audio, select_audio
from latentsync.media.frame_rate import FrameRateConverter, Interpolator
from latentsync.media.optical_flow import FlowInterpolator
from latentsync.media.paths import check_output_path
from latentsync.media.probe import probe_video
from latentsync.media.timeline import available_frames, open_timeline
from latentsync.media.writer import DEFAULT_CRF, VideoWriter
from latentsync.utils.errors import UserError
from latentsync.utils.paths import CHECKPOINTS_DIR, PROJECT_ROOT
from latentsync.utils.progress import OnProgress, SteadyPace
from latentsync.utils.rates import exact_rate

__all__ = ["FrameRateConverter", "Interpolator", "change_frame_rate", "open_interpolator"]
logger = logging.getLogger(__name__)

INTERPOLATORS = ("auto", "rife", "dis-flow")
RIFE_SOURCE = PROJECT_ROOT / "ECCV2022-RIFE" / "model" / "ifnet.py"  # the folder cannot be imported by name
RIFE_WEIGHTS = CHECKPOINTS_DIR / registry.RIFE.path
MULTIPLE = 32  # of sides: the coarsest block works at a quarter of the size with strides of 8
TILE, OVERLAP = 1024, 128  # pixels; larger frames are processed in tiles
FINEST_T = 1 / 16  # RIFE interpolates halfway; other times are approximated by repeated halving
MAX_FPS = 1000
STAGE = "interpolation"


class RifeInterpolator:
    """RIFE from its published weights.

    Args:
        path: flownet.pkl.
        device: where it runs.
        scale: resolution at which motion is estimated; 0.5 for 4K.

    Raises:
        UserError: the file is missing or contains other weights, or the scale is not valid.
    """

    name = "rife"

    def __init__(self, path: str | Path = RIFE_WEIGHTS, device: str = "cpu", scale: float = 1.0):
        if scale not in (0.25, 0.5, 1.0, 2.0, 4.0):
            raise UserError(f"scale must be 0.25, 0.5, 1, 2 or 4, not {scale:g}; 0.5 is for 4K")
        self.scale, self.device = scale, torch.device(device)
        self.net = load_rife(path).to(self.device)

    def between(
        self,
        first: np.ndarray,
        second: np.ndarray,
        t: float,
        before: np.ndarray | None = None,
        after: np.ndarray | None = None,
    ) -> np.ndarray:
        """See `Interpolator.between`. Accurate to 1/32 in `t`; `before` and `after` are not used."""
        pair = torch.stack([torch.from_numpy(frame) for frame in (first, second)]).to(self.device)
        early, late = pair.permute(0, 3, 1, 2).float().div(255).split(1)
        low, high = 0.0, 1.0
        while True:
            middle, made = (low + high) / 2, self._halfway(early, late)
            if abs(middle - t) <= FINEST_T / 2:
                return made[0].permute(1, 2, 0).mul(255).round().clamp(0, 255).byte().cpu().numpy()
            if t < middle:
                high, late = middle, made
            else:
                low, early = middle, made

    def _halfway(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """(1, 3, H, W) each; large frames in overlapping tiles."""
        height, width = first.shape[-2:]
        rows, columns = _tiles(height), _tiles(width)
        if len(rows) == len(columns) == 1:
            return self._tile(first, second)
        total, weights = torch.zeros_like(first), torch.zeros_like(first[:, :1])
        for top in rows:
            for left in columns:
                part = (..., slice(top, top + TILE), slice(left, left + TILE))
                made = self._tile(first[part], second[part])
                weight = _ramp(made.shape[-2])[:, None] * _ramp(made.shape[-1])
                total[part] += made * weight.to(made)
                weights[part] += weight.to(made)
        return total / weights

    def _tile(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        height, width = first.shape[-2:]
        multiple = max(MULTIPLE, round(MULTIPLE / self.scale))
        padding = (0, -width % multiple, 0, -height % multiple)
        padded = [F.pad(frame, padding, mode="replicate") for frame in (first, second)]
        return self.net(*padded, self.scale)[..., :height, :width]


def load_rife(path: str | Path) -> torch.nn.Module:
    """IFNet with the weights of a file, loaded strictly. Names may begin with `module.`; the teacher may be missing."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no RIFE weights found; put flownet.pkl (RIFE HDv3) there, or use dis-flow")
    found = load_checkpoint(path)
    state = {name.removeprefix("module."): tensor for name, tensor in found.state_dict.items()}
    width = state["block0.conv0.1.0.weight"].shape[0] if "block0.conv0.1.0.weight" in state else 90
    teacher = any(name.startswith("block_tea.") for name in state)
    if not teacher:
        logger.info("%s: has no teacher block (block_tea), which is used in training only", path)
    ifnet = _rife_module().IFNet
    return load_into(lambda: ifnet(width, teacher), Checkpoint(found.path, state), exact=True).eval()


def _exact(rate: float | str | Fraction) -> Fraction:
    try:
        return exact_rate(rate)
    except ValueError as error:
        raise UserError(f"the frame rate must be a number, or a fraction such as 30000/1001, not {rate}") from error


def _rife_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rife_ifnet", RIFE_SOURCE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _tiles(length: int) -> list[int]:
    """Starts of tiles of TILE pixels that overlap by at least OVERLAP; one if all fits."""
    if length <= TILE:
        return [0]
    count = -(-(length - OVERLAP) // (TILE - OVERLAP))
    return [round(index * (length - TILE) / (count - 1)) for index in range(count)]


def _ramp(length: int) -> torch.Tensor:
    """Weights along a tile, decreasing toward its ends."""
    position = torch.arange(length) + 0.5
    return torch.minimum(position, length - position).clamp(max=OVERLAP) / OVERLAP


def open_interpolator(
    name: str = "auto", device: str = "cpu", scale: float = 1.0, rife_path: str | Path | None = None
) -> Interpolator:
    """Open the interpolator of that name and log which it is; "auto" is RIFE if its weights are present.

    Raises:
        UserError: unknown name, or RIFE without weights.
    """
    if name not in INTERPOLATORS:
        raise UserError(f"interpolator {name!r} is unknown: choose one of {', '.join(INTERPOLATORS)}")
    weights = Path(rife_path or RIFE_WEIGHTS)
    if name == "rife" or (name == "auto" and (rife_path is not None or weights.is_file())):
        logger.info("frame interpolation: RIFE (%s) on %s", weights, device)
        return RifeInterpolator(weights, device, scale)
    logger.info("frame interpolation: optical flow (DIS); there are no RIFE weights at %s", weights)
    return FlowInterpolator()


def change_frame_rate(
    video_path: str | os.PathLike,
    out_path: str | os.PathLike,
    target_fps: float | str | Fraction | None = None,
    *,
    factor: int | None = None,
    interpolator: str = "auto",
    scale: float = 1.0,
    device: str = "cpu",
    rife_path: str | Path | None = None,
    crf: int = DEFAULT_CRF,
    on_progress: OnProgress | None = None,
) -> Path:
    """Write a video at another frame rate, with its audio, in constant memory. Returns `out_path`.

    Args:
        video_path: the source.
        out_path: .mp4, .mov or .mkv.
        target_fps: frame rate of the result, such as 50, 59.94 or "60000/1001"; or
        factor: multiple of the source's frame rate.
        interpolator, scale, device, rife_path: see `open_interpolator` and `RifeInterpolator`.
        crf: see `VideoWriter`.
        on_progress: called with the progress before each source frame. An exception raised in it stops the run and
            leaves nothing behind.

    Raises:
        UserError: anything the user can fix; nothing is written.
    """
    check_output_path(out_path, [video_path])
    info = probe_video(video_path)
    if info.is_still:
        raise UserError(f"{video_path}: is a still image; give a video")
    target = info.fps * (factor or 1) if target_fps is None else _exact(target_fps)
    if not 1 <= target <= MAX_FPS:
        raise UserError(f"the frame rate must be between 1 and {MAX_FPS}, not {float(target):g}")
    total = available_frames(info, info.fps)
    converter = FrameRateConverter(open_interpolator(interpolator, device, scale, rife_path), info.fps, target)
    pace = SteadyPace(STAGE, total)
    audio = select_audio(video_path, video=video_path) if has_audio(video_path) else None
    with (
        closing(open_timeline(info, total / info.fps, info.fps)) as frames,
        VideoWriter(
            out_path,
            info.width,
            info.height,
            target,
            color=info.color,
            sample_aspect_ratio=info.sample_aspect_ratio,
            crf=crf,
            audio=audio,
        ) as writer,
    ):
        for index, frame in enumerate(frames):
            if on_progress is not None:
                on_progress(pace.at(index))
            for shown in converter.push(frame):
                writer.write(shown)
        for shown in converter.flush():
            writer.write(shown)
    return Path(out_path)
