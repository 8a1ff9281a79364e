"""What may be chosen for a job. The page, the HTTP API and the batch command read names, ranges and help from here."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

FACE_PATTERN = r"^(largest|left|right|\d{1,3}|\d{1,5}(\.\d+)?,\d{1,5}(\.\d+)?)$"


class JobOptions(BaseModel):
    """Options of one job; every one has a default. Names and meanings are those of `scripts.inference`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[str, StringConstraints(max_length=300)] = Field(
        "auto", description="checkpoint: auto for the best one present, or a name that /v1/models lists"
    )
    lora: Annotated[str, StringConstraints(max_length=300)] | None = Field(
        None, description="adapter of one person: a name that /v1/models lists"
    )
    inference_steps: int | None = Field(None, ge=1, le=100, description="denoising steps; the model's own if left out")
    guidance_scale: float | None = Field(
        None, ge=1, le=10, allow_inf_nan=False, description="how strongly to follow the voice; 1 is off"
    )
    seed: int = Field(1247, ge=-1, lt=2**63, description="equal seeds give equal videos; -1 for a new one")
    solver: Literal["ddim", "dpm++"] = Field("ddim", description="dpm++ comes to the same face in fewer steps")
    face: Annotated[str, StringConstraints(pattern=FACE_PATTERN)] = Field(
        "largest", description="whom: largest, left, right, a number from the left, or x,y in pixels of the first frame"
    )
    detector: Literal["auto", "mediapipe", "insightface"] = Field("auto", description="face detector")
    keep_fps: bool = Field(False, description="the source's frame rate instead of 25")
    on_short_video: Literal["loop", "freeze", "error"] = Field(
        "loop", description="what to do when the voice outlasts the video"
    )
    match_colour: bool = Field(
        False, description="give the new face the frame's skin colour; the embedded model always does"
    )
    enable_upscale: bool = Field(
        False, description="enlarge the new face with RealESRGAN x4; sharpen it where its weights are not there"
    )
    sharpness_factor: float = Field(
        1.0, ge=0, le=10, allow_inf_nan=False, description="sharpness of the new face, 1 = untouched"
    )
    interpolate: float | None = Field(
        None, ge=1, le=240, allow_inf_nan=False, description="frame rate of the result, with frames made in between"
    )
    crf: int = Field(18, ge=0, le=51, description="H.264 quality, 0 (lossless) to 51")
    preview_seconds: float | None = Field(
        None, ge=0.2, le=60, allow_inf_nan=False, description="stop after so many seconds, for a preview"
    )
