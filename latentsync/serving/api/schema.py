"""Models of requests and responses: jobs, models, the server's state."""

from typing import Any

from fastapi import Request
from pydantic import BaseModel, Field

from latentsync.options import GenerationOptions
from latentsync.serving.jobs import ROLES, Job, JobKind, JobState


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
    """One job. Times are seconds since 1970."""

    id: str = Field(examples=["0123456789abcdef0123456789abcdef"])
    kind: JobKind
    state: JobState
    position: int | None = Field(description="Position in the queue, 0 is next; null unless the job is queued.")
    progress: Progress
    options: GenerationOptions
    inputs: dict[str, str] = Field(description="Original name of each file.", examples=[{"video": "me.mp4"}])
    created: float
    started: float | None
    finished: float | None
    attempts: int = Field(description="Number of times a worker has started it.")
    error: str | None = Field(description="Why it failed, in one line.")
    expired: bool = Field(description="Whether its files were deleted because of their age or to free space.")
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
    jobs: list[JobView] = Field(description="Newest first.")


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
    status: str = Field(examples=["ok"])
    version: str


class Readiness(BaseModel):
    ready: bool
    problems: list[str] = Field(description="Why not; empty if ready.")


class UrlJob(BaseModel, extra="forbid"):
    """A job whose files the server downloads; only if it was started with --allow_urls."""

    kind: JobKind = JobKind.LIPSYNC
    video_url: str = Field(max_length=2000, examples=["https://example.org/person.mp4"])
    audio_url: str | None = Field(None, max_length=2000, examples=["https://example.org/speech.wav"])
    mask_url: str | None = Field(None, max_length=2000, description="Custom mask image.")
    options: GenerationOptions = Field(default_factory=GenerationOptions)

    def urls(self) -> dict[str, str]:
        """The given URLs by role."""
        given = {role: getattr(self, f"{role}_url") for role in ROLES}
        return {role: url for role, url in given.items() if url}
