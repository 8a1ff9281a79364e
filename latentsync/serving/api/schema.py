"""Models of requests and responses: jobs, models, the server's state."""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Request
from pydantic import BaseModel, Field, StringConstraints, field_validator

from latentsync.options import GenerationOptions
from latentsync.serving.api.errors import ErrorBody
from latentsync.serving.jobs import AUDIO_ROLES, Job, JobKind, JobState

MAX_URL, MAX_NAME = 2000, 200
TAGS = "Up to 10 words to find the job by."
WEBHOOK = "Public URL that is called when the job has ended; only if the server has a secret for webhooks."
SCRIPT = "Lines of several speakers: CSV or JSON, see docs/dubbing.md."
Tag = Annotated[str, StringConstraints(min_length=1, max_length=50, pattern=r"^[^,\x00-\x1f]+$")]
Tags = Annotated[list[Tag], Field(max_length=10, description=TAGS)]


class Progress(BaseModel):
    stage: str = Field(description="Current stage; empty while the job is queued.", examples=["lip-sync"])
    done: int = Field(description="Number of finished frames.")
    total: int = Field(description="Total number of frames; 0 if unknown.")
    fraction: float = Field(description="Fraction of the work that is done, 0 to 1.", examples=[0.42])
    eta_seconds: float | None = Field(
        description="Estimated seconds until the job is done, also for queued jobs; null if unknown.", examples=[35.5]
    )


class Links(BaseModel):
    """Paths on this server. `result` is null until the job is done."""

    self: str
    events: str
    result: str | None
    thumbnail: str


class JobView(BaseModel):
    """One job. Times are in ISO 8601, UTC."""

    id: str = Field(examples=["0123456789abcdef0123456789abcdef"])
    kind: JobKind
    state: JobState
    position: int | None = Field(description="Position in the queue, 0 is next; null unless the job is queued.")
    progress: Progress
    options: GenerationOptions
    inputs: dict[str, str] = Field(description="Original name of each file.", examples=[{"video": "me.mp4"}])
    tags: list[str] = Field(examples=[["campaign-7", "draft"]])
    created: datetime = Field(examples=["2026-01-31T12:00:00.250000Z"])
    started: datetime | None = Field(description="When the running or last attempt began.")
    finished: datetime | None
    attempts: int = Field(description="Number of times a worker has started it.")
    error: str | None = Field(description="Why it failed, in one line.")
    expired: bool = Field(description="Whether its files were deleted because of their age or to free space.")
    links: Links

    @classmethod
    def of(cls, job: Job, request: Request) -> "JobView":
        base = f"{request.scope.get('root_path', '')}/v1/jobs/{job.id}"
        has_result = job.state is JobState.DONE and job.result is not None
        values: dict[str, Any] = {name: getattr(job, name) for name in cls.model_fields if hasattr(job, name)}
        values |= {name: moment(values[name]) for name in ("created", "started", "finished")}
        return cls(
            **values,
            progress=Progress(
                stage=job.stage,
                done=job.done,
                total=job.total,
                fraction=job.fraction,
                eta_seconds=None if job.eta_seconds is None else round(job.eta_seconds, 1),
            ),
            links=Links(
                self=base,
                events=f"{base}/events",
                result=f"{base}/result" if has_result else None,
                thumbnail=f"{base}/thumbnail",
            ),
        )


class JobList(BaseModel):
    jobs: list[JobView] = Field(description="Newest first.")


class PersonView(BaseModel):
    name: str = Field(description="Value of the option `face`.")
    seconds: list[tuple[float, float]] = Field(description="When the person is seen: start and end in seconds.")
    first_box: tuple[int, int, int, int] = Field(
        description="Where the face is seen first, in pixels: left, top, right, bottom."
    )
    portrait: str = Field(description="A JPEG as a data URL, 160 x 160 pixels.")


class PeopleView(BaseModel):
    people: list[PersonView] = Field(description="In order of appearance; empty if no face was found.")


class ModelView(BaseModel):
    name: str = Field(description="Value of the option `model`.", examples=["embedded"])
    summary: str
    resolution: int = Field(description="Side of the generated face in pixels.")
    present: bool = Field(description="Whether all of its files are present; jobs with an absent model are rejected.")
    missing: list[str] = Field(description="Missing files, below checkpoints/.")


class ModelList(BaseModel):
    models: list[ModelView]
    loras: list[str] = Field(description="LoRA adapters: values of the option `lora`.")
    can_upscale: bool = Field(
        description="Whether the enhancer's weights are present; if not, `enable_upscale` only sharpens the face."
    )
    default: str = Field(
        description="Model of jobs with model=auto; 'auto' is the best that the worker's device can run."
    )


class Health(BaseModel):
    status: str
    version: str


class Readiness(BaseModel):
    ready: bool
    problems: list[str] = Field(description="Why not; empty if ready.")


def moment(seconds: float | None) -> datetime | None:
    """Seconds since 1970 as a time in UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


class JobRequest(BaseModel, extra="forbid"):
    """Fields common to all ways to submit a job."""

    kind: JobKind = JobKind.LIPSYNC
    tags: Tags = []
    webhook_url: str | None = Field(None, max_length=MAX_URL, description=WEBHOOK)
    options: GenerationOptions = Field(default_factory=GenerationOptions)


class FormJob(JobRequest):
    """The text fields of a form."""

    @field_validator("tags", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return [tag.strip() for tag in value.split(",") if tag.strip()] if isinstance(value, str) else value


class UrlJob(JobRequest):
    """A job whose files the server downloads; only if it was started with --allow_urls."""

    video_url: str = Field(max_length=MAX_URL, examples=["https://example.org/person.mp4"])
    audio_url: str | None = Field(None, max_length=MAX_URL, examples=["https://example.org/speech.wav"])
    mask_url: str | None = Field(None, max_length=MAX_URL, description="Custom mask image.")
    script_url: str | None = Field(None, max_length=MAX_URL, description=SCRIPT)
    more_audio_urls: list[Annotated[str, Field(max_length=MAX_URL)]] = Field(
        [], max_length=len(AUDIO_ROLES) - 1, description="audio2, audio3, ... of a script."
    )

    def urls(self) -> dict[str, str]:
        """The given URLs by role."""
        own = {role: getattr(self, f"{role}_url") for role in ("video", "audio", "mask", "script")}
        given = own | dict(zip(AUDIO_ROLES[1:], self.more_audio_urls, strict=False))
        return {role: url for role, url in given.items() if url}


class BatchJob(JobRequest):
    """A job of a batch: each file is the name of a part of the form. Several jobs may use the same file."""

    video: str = Field(max_length=MAX_NAME, examples=["anna.mp4"])
    audio: str | None = Field(None, max_length=MAX_NAME, examples=["line1.wav"])
    mask: str | None = Field(None, max_length=MAX_NAME)
    script: str | None = Field(None, max_length=MAX_NAME, description=SCRIPT)
    more_audio: list[Annotated[str, Field(max_length=MAX_NAME)]] = Field(
        [], max_length=len(AUDIO_ROLES) - 1, description="audio2, audio3, ... of a script."
    )

    def names(self) -> dict[str, str]:
        """The given names by role."""
        own = {role: getattr(self, role) for role in ("video", "audio", "mask", "script")}
        given = own | dict(zip(AUDIO_ROLES[1:], self.more_audio, strict=False))
        return {role: name for role, name in given.items() if name}


class Batch(BaseModel, extra="forbid"):
    jobs: list[BatchJob] = Field(min_length=1)


class UrlBatch(BaseModel, extra="forbid"):
    jobs: list[UrlJob] = Field(min_length=1)


class BatchOutcome(BaseModel):
    """Either the queued job or why it was refused."""

    job: JobView | None = None
    error: ErrorBody | None = None


class BatchView(BaseModel):
    jobs: list[BatchOutcome] = Field(description="In the order of the request.")
