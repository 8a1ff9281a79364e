"""The options of a generation, each declared once.

Every surface is generated from `GenerationOptions`: the command line, the batch command, the HTTP API, the page, stored
jobs, the evaluation's settings, and the tables in README and docs. To add an option, declare it here and use its value.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

AUTO = "auto"
DEFAULT_SEED = 1247
MAX_FPS = 240
MAX_NAME = 300
FACE_PATTERN = r"^(largest|left|right|\d{1,3}|\d{1,5}(\.\d+)?,\d{1,5}(\.\d+)?)$"

Solver = Literal["ddim", "dpm++"]
Detector = Literal["auto", "mediapipe", "insightface"]
Enhancer = Literal["realesrgan", "gfpgan"]
OnShortVideo = Literal["loop", "freeze", "error"]
SOLVERS: tuple[str, ...] = get_args(Solver)
DETECTORS: tuple[str, ...] = get_args(Detector)
ENHANCERS: tuple[str, ...] = get_args(Enhancer)


class Group(StrEnum):
    """Headings under which options are listed, in this order."""

    MODEL = "model"
    QUALITY = "quality and speed"
    FACES = "face selection"
    TIMING = "timing and frame rate"
    OUTPUT = "output"


@dataclass(frozen=True)
class Show:
    """How the surfaces present an option.

    Args:
        group: its heading.
        advanced: folded away on the page.
        unset: what None stands for, in words, e.g. "the model's own".
        metavar: placeholder of its value in `--help`.
    """

    group: Group
    advanced: bool = False
    unset: str | None = None
    metavar: str | None = None


class GenerationOptions(BaseModel):
    """Options of one generation. All have defaults; unknown names and values out of range are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: Annotated[str, Show(Group.MODEL)] = Field(
        AUTO,
        min_length=1,
        max_length=MAX_NAME,
        description="Model to use: a name from the list of models, or auto for the best one present.",
    )
    lora: Annotated[str | None, Show(Group.MODEL, unset="none")] = Field(
        None, min_length=1, max_length=MAX_NAME, description="LoRA adapter of one person, trained with fine_tuning.sh."
    )
    lora_scale: Annotated[float, Show(Group.MODEL, advanced=True)] = Field(
        1.0, ge=0, le=2, description="Strength of the LoRA adapter."
    )

    inference_steps: Annotated[int | None, Show(Group.QUALITY, unset="the model's own")] = Field(
        None, ge=1, le=100, description="Number of denoising steps."
    )
    guidance_scale: Annotated[float | None, Show(Group.QUALITY, unset="the model's own")] = Field(
        None, ge=1, le=3, description="Classifier-free guidance: higher follows the audio more closely, 1 turns it off."
    )
    seed: Annotated[int, Show(Group.QUALITY)] = Field(
        DEFAULT_SEED, ge=-1, lt=2**63, description="Random seed; equal seeds give equal videos, -1 picks a new one."
    )
    solver: Annotated[Solver, Show(Group.QUALITY)] = Field(
        "ddim", description="Diffusion solver; dpm++ needs fewer steps for the same quality."
    )
    enable_deepcache: Annotated[bool, Show(Group.QUALITY, advanced=True)] = Field(
        False, description="Reuse deep UNet features between steps: faster, slightly softer."
    )
    chunk_batch_size: Annotated[int, Show(Group.QUALITY, advanced=True)] = Field(
        1, ge=1, le=64, description="Number of 16-frame chunks denoised together; higher is faster on a large GPU."
    )
    vram_efficient: Annotated[bool, Show(Group.QUALITY, advanced=True)] = Field(
        False, description="Use less GPU memory at some cost in speed."
    )
    match_color: Annotated[bool, Show(Group.QUALITY)] = Field(
        False, description="Match the skin color of the generated face to the frame; always on for the embedded model."
    )
    enable_upscale: Annotated[bool, Show(Group.QUALITY)] = Field(
        False, description="Upscale the generated face; without the enhancer's weights it is only sharpened."
    )
    enhancer: Annotated[Enhancer | None, Show(Group.QUALITY, advanced=True, unset="realesrgan if present")] = Field(
        None, description="Enhancer used by --enable_upscale; its weights must be present."
    )
    sharpness_factor: Annotated[float, Show(Group.QUALITY)] = Field(
        1.0, ge=0, le=10, description="Sharpness of the generated face; 1 leaves it unchanged."
    )

    face: Annotated[str, Show(Group.FACES)] = Field(
        "largest",
        pattern=FACE_PATTERN,
        description="Which face to edit: largest, left, right, an index from the left (0, 1, ...), or x,y in pixels of "
        "the first frame.",
    )
    detector: Annotated[Detector, Show(Group.FACES, advanced=True)] = Field(
        AUTO, description="Face detector; auto picks insightface if its models are present, else mediapipe."
    )
    mask_image_path: Annotated[Path | None, Show(Group.FACES, advanced=True, unset="built in")] = Field(
        None, description="Custom mask image; white keeps the original pixels, black is regenerated."
    )

    video_fps: Annotated[float, Show(Group.TIMING, advanced=True)] = Field(
        25.0, ge=1, le=120, description="Frame rate of the output."
    )
    keep_fps: Annotated[bool, Show(Group.TIMING)] = Field(
        False, description="Keep the frame rate of the source instead of --video_fps."
    )
    interpolate: Annotated[float | None, Show(Group.TIMING, unset="off", metavar="FPS")] = Field(
        None, ge=1, le=MAX_FPS, description="Interpolate the output to this frame rate."
    )
    on_short_video: Annotated[OnShortVideo, Show(Group.TIMING)] = Field(
        "loop", description="What to do when the audio is longer than the video."
    )
    max_seconds: Annotated[float | None, Show(Group.TIMING, unset="all", metavar="SECONDS")] = Field(
        None, ge=0.1, le=86400, description="Process only the first SECONDS of the audio."
    )

    crf: Annotated[int, Show(Group.OUTPUT)] = Field(
        18, ge=0, le=51, description="H.264 quality from 0 (lossless) to 51 (smallest file)."
    )
