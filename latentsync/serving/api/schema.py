"""What the API sends: jobs, models, the server's state."""

from typing import Any

from fastapi import Request
from pydantic import BaseModel, Field

from latentsync.options import GenerationOptions
from latentsync.serving.jobs import ROLES, Job, JobKind, JobState


class Progress(BaseModel):
    stage: str = Field(description="what is being done, empty while the job waits", examples=["faces"])
    done: int = Field(description="units of this stage that are done")
    total: int = Field(description="units of this stage, 0 where not known")
    eta_seconds: float | None = Field(description="estimate of the time until the job is done")


class Links(BaseModel):
    """Paths on this server. `result` and `thumbnail` are null until there is something to fetch."""

    self: str
    events: str
    result: str | None
    thumbnail: str


class JobView(BaseModel):
    """One job. Times are seconds since 1970."""

    id: str = Field(examples=["0123456789abcdef0123456789abcdef"])
    kind: JobKind
    state: JobState
    position: int | None = Field(description="place in the queue, 0 is the next; null unless it waits")
    progress: Progress
    options: GenerationOptions
    inputs: dict[str, str] = Field(description="name of each file as it was uploaded", examples=[{"video": "me.mp4"}])
    created: float
    started: float | None
    finished: float | None
    attempts: int = Field(description="how often a worker has begun it")
    error: str | None = Field(description="why it failed, one line")
    expired: bool = Field(description="whether its files were deleted because of their age, or to make room")
    links: Links

    @classmethod
    def of(cls, job: Job, request: Request) -> "JobView":
        base = f"{request.scope.get('root_path', '')}/v1/jobs/{job.id}"
        has_result = job.state is JobState.DONE and job.result is not None
        values: dict[str, Any] = {name: getattr(job, name) for name in cls.model_fields if hasattr(job, name)}
        return cls(
            **values,
            progress=Progress(stage=job.stage, done=job.done, total=job.total, eta_seconds=job.eta_seconds),
            links=Links(
                self=base,
                events=f"{base}/events",
                result=f"{base}/result" if has_result else None,
                thumbnail=f"{base}/thumbnail",
            ),
        )


class JobList(BaseModel):
    jobs: list[JobView] = Field(description="newest first")


class ModelView(BaseModel):
    name: str = Field(description="what the option `model` takes", examples=["embedded"])
    summary: str
    resolution: int = Field(description="side of the face it works on, in pixels")
    present: bool = Field(description="whether all of its files are there; jobs that name another are refused")
    missing: list[str] = Field(description="files that are not, below checkpoints/")


class ModelList(BaseModel):
    models: list[ModelView]
    loras: list[str] = Field(description="adapters: what the option `lora` takes")
    can_upscale: bool = Field(
        description="whether RealESRGAN's weights are there; if not, `enable_upscale` only sharpens the new face"
    )
    default: str = Field(
        description="what jobs with model=auto get; 'auto' is the best that the worker's device can run"
    )


class Health(BaseModel):
    status: str = Field(examples=["ok"])
    version: str


class Readiness(BaseModel):
    ready: bool
    problems: list[str] = Field(description="why not, empty when ready")


class UrlJob(BaseModel, extra="forbid"):
    """A job whose files the server fetches; only where it was started with --allow_urls."""

    kind: JobKind = JobKind.LIPSYNC
    video_url: str = Field(max_length=2000, examples=["https://example.org/person.mp4"])
    audio_url: str | None = Field(None, max_length=2000, examples=["https://example.org/voice.wav"])
    mask_url: str | None = Field(None, max_length=2000, description="custom mask image")
    options: GenerationOptions = Field(default_factory=GenerationOptions)

    def urls(self) -> dict[str, str]:
        """The addresses that were given, by role."""
        given = {role: getattr(self, f"{role}_url") for role in ROLES}
        return {role: url for role, url in given.items() if url}
