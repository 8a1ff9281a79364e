"""The options of a generation, each declared once.

Every surface is generated from `GenerationOptions`: the command lines, the HTTP API, the web page, stored jobs, lists
of jobs, the evaluation's settings, and the tables in README and docs. To add an option, declare it here and use its
value.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json

from latentsync.constants import DEFAULT_SEED
from latentsync.option_info import MAX_NAME, MAX_SEED, Group, Option, Show, shorten
from latentsync.utils.errors import UserError, did_you_mean
from latentsync.utils.rates import exact_rate

AUTO: Final = "auto"
DEFAULT_CRF = 18
DEFAULT_OVERLAP = 2
MAX_FPS = 240
MAX_SECONDS = 86400
MAX_TEXT = 20_000  # characters to speak
MAX_REPORTED = 5  # problems in one message
NUMBER = r"\d{1,5}(\.\d{1,6})?"
FACE_PATTERN = rf"^(largest|left|right|speaker|\d{{1,3}}|person\d{{1,3}}|{NUMBER},{NUMBER}(@{NUMBER})?)$"
FACE_VALUES = (
    "largest, left, right, speaker, person1, person2, ..., an index from the left (0, 1, ...), x,y, or x,y@seconds"
)
FACE_SUGGESTIONS = ("largest", "left", "right", "speaker")
TRACK_PATTERN = r"^(\d{1,3}|[A-Za-z]{2,8})$"
TEXT_VALUES = f"a text of 1 to {MAX_TEXT} characters"
TRACK_VALUES = "the number of a track (0, 1, ...) or a language such as eng"
# Of a process, not of a generation:
DTYPES = ("float32", "float16", "bfloat16")
Weights = Literal["full", "fp8", "host"]
WEIGHTS: tuple[Weights, ...] = get_args(Weights)
WEIGHTS_HELP = (
    "weights of the model: fp8 stores them in 8 bits, host in the memory of the host, for GPUs with little memory "
    "(default: %(default)s)"
)
QUANTIZE_HELP = "compute linear layers in 8 bits (fp8 or int8); needs torchao"
COMPILE_HELP = "compile the model: the first chunk takes minutes, later ones are faster; for long videos and servers"

Preset = Literal["best", "balanced", "fast", "realtime"]
Solver = Literal["ddim", "dpm++"]
Detector = Literal["auto", "mediapipe", "insightface"]
Codec = Literal["h264", "hevc", "prores", "ffv1"]
PixelFormat = Literal["yuv420p", "yuv420p10le"]
HDR = Literal["sdr", "keep"]
Enhancer = Literal["realesrgan", "gfpgan"]
LengthMode = Literal["bounce", "loop", "freeze", "cut", "remap", "silence", "keep_tail", "error"]
Silence = Literal["rest", "original", "model"]
PasteMask = Literal["contour", "box"]
DETECTORS: tuple[str, ...] = get_args(Detector)
ENHANCERS: tuple[str, ...] = get_args(Enhancer)
# Former names, still accepted everywhere.
RENAMED = {"match_colour": "match_color", "preview_seconds": "max_seconds", "on_short_video": "length_mode"}
RENAMED_VALUES = {("on_short_video", "loop"): "bounce"}
STORED_VALUES = {("chunk_batch_size", 0): AUTO}  # accepted in stored jobs only


def _rate(value: Any) -> Any:
    """A rate given as a fraction, such as 30000/1001, as a number."""
    return float(exact_rate(value)) if isinstance(value, str) and "/" in value else value


def up_to_date(name: str, value: Any) -> tuple[str, Any]:
    """An option's present name and value from those that were given, perhaps former ones."""
    is_text = isinstance(value, str)
    return RENAMED.get(name, name), RENAMED_VALUES.get((name, value), value) if is_text else value


RATE = BeforeValidator(_rate)
ChunkCount = Annotated[int, Field(ge=1, le=64)] | Literal["auto"]


class GenerationOptions(BaseModel):
    """Options of one generation. All have defaults; unknown names and values out of range are refused.

    The constructor raises pydantic's ValidationError; `parse_options` raises a UserError instead.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, str_strip_whitespace=True)

    model: Annotated[str, Show(Group.MODEL)] = Field(
        AUTO,
        min_length=1,
        max_length=MAX_NAME,
        description="Model to use: a name from the list of models, or auto for the best one present.",
    )
    lora: Annotated[str | None, Show(Group.MODEL, unset="none")] = Field(
        None, min_length=1, max_length=MAX_NAME, description="LoRA adapter for one person, trained with fine_tuning.sh."
    )
    lora_scale: Annotated[float, Show(Group.MODEL, advanced=True)] = Field(
        1.0, ge=0, le=2, description="Strength of the LoRA adapter."
    )

    preset: Annotated[Preset, Show(Group.QUALITY)] = Field(
        "best",
        description="Trade-off of quality and speed: sets steps, guidance, solver and DeepCache unless they are "
        "given; no effect on models with few steps.",
    )
    inference_steps: Annotated[int | None, Show(Group.QUALITY, unset="the model's own")] = Field(
        None, ge=1, le=100, description="Number of denoising steps."
    )
    guidance_scale: Annotated[float | None, Show(Group.QUALITY, unset="the model's own")] = Field(
        None, ge=1, le=3, description="Classifier-free guidance: higher follows the audio more closely, 1 turns it off."
    )
    seed: Annotated[int, Show(Group.QUALITY)] = Field(
        DEFAULT_SEED, ge=-1, le=MAX_SEED, description="Random seed; equal seeds give equal videos, -1 picks a new one."
    )
    solver: Annotated[Solver | None, Show(Group.QUALITY, unset="that of the preset")] = Field(
        None, description="Diffusion solver; dpm++ needs fewer steps for the same quality."
    )
    enable_deepcache: Annotated[bool, Show(Group.QUALITY, advanced=True)] = Field(
        False, description="Reuse deep UNet features between steps: faster, slightly softer."
    )
    chunk_batch_size: Annotated[
        ChunkCount, Show(Group.QUALITY, advanced=True, metavar="N|auto", suggestions=(AUTO, "1", "2", "4", "8"))
    ] = Field(
        1,
        description="Number of 16-frame chunks denoised together; more are faster on a large GPU, auto takes as many "
        "as fit into its memory.",
    )
    chunk_overlap: Annotated[int, Show(Group.QUALITY, advanced=True)] = Field(
        DEFAULT_OVERLAP,
        ge=0,
        le=8,
        description="Number of frames that consecutive chunks share and cross-fade, so that the mouth does not jump; 0 "
        "processes chunks independently, as published.",
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
        None, description="Enhancer used by enable_upscale; its weights must be present."
    )
    sharpness_factor: Annotated[float, Show(Group.QUALITY)] = Field(
        1.0, ge=0, le=10, description="Sharpness of the generated face; 1 leaves it unchanged."
    )

    face: Annotated[str, Show(Group.FACES, expects=FACE_VALUES, suggestions=FACE_SUGGESTIONS)] = Field(
        "largest",
        pattern=FACE_PATTERN,
        description=f"Which face to edit: {FACE_VALUES}; x,y are pixels in the first frame, or in the frame at that "
        "time.",
    )
    min_face: Annotated[
        float | None, Show(Group.FACES, advanced=True, unset="80, less in small videos", metavar="PIXELS")
    ] = Field(None, ge=8, le=2000, description="Minimum height of a face in pixels; smaller ones are copied unchanged.")
    detector: Annotated[Detector, Show(Group.FACES, advanced=True)] = Field(
        AUTO, description="Face detector; auto picks insightface if its models are present, else mediapipe."
    )
    mask_image_path: Annotated[Path | None, Show(Group.FACES, advanced=True, unset="built in")] = Field(
        None,
        description="Custom mask image; white keeps the original pixels, black is regenerated.",
        json_schema_extra={"description": "Not for jobs: upload the image as the file mask, or give mask_url."},
    )

    paste_mask: Annotated[PasteMask, Show(Group.FACES, advanced=True)] = Field(
        "contour",
        description="Region of the generated face to paste: contour follows the face, box also covers hair, collar and "
        "background inside the mask.",
    )

    silence: Annotated[Silence, Show(Group.DUBBING)] = Field(
        "rest",
        description="Mouth during pauses: rest closes it, original keeps the frames of the video, model leaves it to "
        "the model.",
    )
    mix_original: Annotated[float, Show(Group.DUBBING)] = Field(
        0.0, ge=0, le=1, description="Level of the video's own audio under the new voice; 1 is as loud as the voice."
    )
    text: Annotated[
        str | None, Show(Group.DUBBING, unset="none", metavar="TEXT", expects=TEXT_VALUES, is_long=True)
    ] = Field(None, min_length=1, max_length=MAX_TEXT, description="Text to speak, instead of audio.")
    voice: Annotated[
        str | None, Show(Group.DUBBING, unset="en_US-joe-medium if installed, else en-us", metavar="NAME")
    ] = Field(
        None,
        min_length=1,
        max_length=MAX_NAME,
        description="Voice for text: a language, or the name or file of a Piper voice.",
    )
    script: Annotated[Path | None, Show(Group.DUBBING, unset="none", file_types=(".csv", ".json"))] = Field(
        None,
        description="Script of cues for several voices (CSV or JSON with start, end, face, audio), instead of audio.",
        json_schema_extra={"description": "Not for jobs: upload it as the file script."},
    )

    video_fps: Annotated[float, RATE, Show(Group.TIMING, advanced=True)] = Field(
        25.0, ge=1, le=120, description="Frame rate of the output, such as 25, 29.97 or 30000/1001."
    )
    keep_fps: Annotated[bool, Show(Group.TIMING)] = Field(
        False, description="Keep the frame rate of the source instead of video_fps."
    )
    interpolate: Annotated[
        Annotated[float, Field(ge=1, le=MAX_FPS), RATE] | None, Show(Group.TIMING, unset="off", metavar="FPS")
    ] = Field(None, description="Interpolate the output to this frame rate.")
    audio_track: Annotated[
        str | None,
        Show(Group.TIMING, advanced=True, unset="the default track", metavar="N|LANGUAGE", expects=TRACK_VALUES),
    ] = Field(
        None,
        pattern=TRACK_PATTERN,
        description="Audio track to use: a number (0, 1, ...) or a language (eng, deu, ...).",
    )
    length_mode: Annotated[LengthMode, Show(Group.TIMING)] = Field(
        "bounce",
        description="If the audio is longer: play the video back and forth (bounce), again (loop), hold the last frame "
        "(freeze), cut the audio (cut), slow down the video (remap), or refuse (error). If the video is longer: keep "
        "its rest (silence, keep_tail) or cut it (all others).",
    )
    start: Annotated[float | None, Show(Group.TIMING, advanced=True, unset="its beginning", metavar="SECONDS")] = Field(
        None, ge=0, le=MAX_SECONDS, description="Start of the part of the video to use."
    )
    end: Annotated[float | None, Show(Group.TIMING, advanced=True, unset="its end", metavar="SECONDS")] = Field(
        None, ge=0.1, le=MAX_SECONDS, description="End of the part of the video to use."
    )
    max_seconds: Annotated[float | None, Show(Group.TIMING, unset="all", metavar="SECONDS")] = Field(
        None, ge=0.1, le=MAX_SECONDS, description="Process only this many seconds from the start of the audio."
    )

    codec: Annotated[Codec, Show(Group.OUTPUT, advanced=True)] = Field(
        "h264", description="Video codec; prores needs a .mov or .mkv file, ffv1 (lossless) a .mkv file."
    )
    crf: Annotated[int, Show(Group.OUTPUT)] = Field(
        DEFAULT_CRF, ge=0, le=51, description="Quality of h264 and hevc from 0 (lossless) to 51 (smallest file)."
    )
    pix_fmt: Annotated[
        PixelFormat | None, Show(Group.OUTPUT, advanced=True, unset="10 bits for prores and HDR, else 8")
    ] = Field(None, description="Pixel format of the output; yuv420p10le keeps 10 bits of the source.")
    hdr: Annotated[HDR, Show(Group.OUTPUT, advanced=True)] = Field(
        "sdr", description="HDR sources: sdr tone-maps them, keep writes 10-bit HDR (hevc, prores or ffv1)."
    )

    @model_validator(mode="before")
    @classmethod
    def _rename(cls, values: Any) -> Any:
        """Accept former names; make true and false texts, since pydantic takes them for the numbers 1 and 0."""
        if not isinstance(values, Mapping):
            return values
        texts = {name: str(value) if isinstance(value, bool) else value for name, value in values.items()}
        return dict(up_to_date(name, value) for name, value in texts.items())

    @model_validator(mode="after")
    def _check_together(self) -> "GenerationOptions":
        """Refuse options that have no effect without another one."""
        if self.lora_scale != 1 and self.lora is None:
            raise ValueError("lora_scale has no effect without lora; give the adapter as well")
        if self.enhancer is not None and not self.enable_upscale:
            raise ValueError("enhancer has no effect without enable_upscale; turn that on as well")
        if self.codec in ("prores", "ffv1") and self.crf != DEFAULT_CRF:
            raise ValueError(f"crf has no effect on {self.codec}; leave it out, or choose codec h264 or hevc")
        if self.pix_fmt == "yuv420p" and (self.codec == "prores" or self.hdr == "keep"):
            raise ValueError("pix_fmt yuv420p has 8 bits, but prores and hdr keep need 10; leave it out")
        if self.hdr == "keep" and self.codec == "h264":
            raise ValueError("hdr has no effect without codec hevc, prores or ffv1; choose one of them")
        if self.voice is not None and self.text is None and self.script is None:
            raise ValueError("voice has no effect without text; give the text as well")
        if self.text is not None and self.script is not None:
            raise ValueError("text and script exclude each other; put the text into the script")
        if self.end is not None and self.end <= (self.start or 0):
            raise ValueError("end must be later than start")
        return self

    @property
    def is_ten_bit(self) -> bool:
        """Whether 10 bits of the source are kept."""
        return self.pix_fmt == "yuv420p10le" or self.codec == "prores" or self.hdr == "keep"

    @property
    def suffix(self) -> str:
        """Of the most common container for the codec."""
        return {"prores": ".mov", "ffv1": ".mkv"}.get(self.codec, ".mp4")


OPTIONS = {name: Option.of(name, field) for name, field in GenerationOptions.model_fields.items()}


class OptionError(UserError):
    """Wrong options. `names`: those whose values are wrong by themselves."""

    def __init__(self, message: str, names: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.names = tuple(names)


def parse_options(values: Mapping[str, Any]) -> GenerationOptions:
    """Options from texts or values by name; those left out have their defaults.

    Raises:
        OptionError: a name is unknown, or a value or a combination is not valid.
    """
    try:
        return GenerationOptions.model_validate(dict(values))
    except ValidationError as error:
        problems = error.errors()
        names = dict.fromkeys(str(problem["loc"][0]) for problem in problems if problem["loc"])
        raise OptionError(describe_problems(problems), tuple(names)) from error


def describe_problems(problems: Sequence[Mapping[str, Any]]) -> str:
    """One line from pydantic's errors on `GenerationOptions`; the first few of them."""
    lines = dict.fromkeys(map(_describe, problems))  # a union has a problem for each of its types
    return "; ".join(list(lines)[:MAX_REPORTED])


def _describe(problem: Mapping[str, Any]) -> str:
    name = str(problem["loc"][0]) if problem["loc"] else ""
    if name in OPTIONS:
        return OPTIONS[name].refusal(problem["input"])
    if problem["type"] == "extra_forbidden":
        return f"unknown option {shorten(name)}{did_you_mean(name, OPTIONS)}"
    return str(problem["msg"]).removeprefix("Value error, ")


def read_stored(text: str | bytes) -> GenerationOptions:
    """Options of a job that this or an earlier version stored as JSON.

    Earlier versions had wider ranges (guidance_scale up to 10): such values count as the nearest valid one.

    Raises:
        ValueError: an option is unknown (a later version stored it) or has no valid value.
        TypeError, AttributeError: the text is not a JSON object, or a value has the wrong type.
    """
    values = {}
    for stored, value in from_json(text).items():
        name, value = up_to_date(stored, value)
        option = OPTIONS.get(name)
        if option is None:
            raise ValueError(f"unknown option {shorten(stored)}")
        value = STORED_VALUES.get((name, value), value)
        if isinstance(value, int | float) and option.low is not None and option.high is not None:
            value = min(max(value, option.low), option.high)
        values[option.name] = value
    return GenerationOptions(**values)
