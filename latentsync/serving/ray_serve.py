"""Jobs on a Ray cluster: the queue stays on this machine, replicas of a Ray Serve deployment run the jobs.

An optional extra: `pip install '.[ray]'`. A worker process of the service then only forwards: it claims a job, sends
its files, receives the progress and writes the result, so order, limits, cancellation and restarts are those of local
jobs. Replicas run `run_job`, as local workers do; every machine of the cluster needs the project and its checkpoints
at the same path. Start the deployment with `python -m latentsync.serving.ray_serve --address auto`.
"""

import argparse
import logging
import queue
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from latentsync.options import AUTO, COMPILE_HELP, DTYPES, WEIGHTS, WEIGHTS_HELP, GenerationOptions
from latentsync.serving.handler import run_job
from latentsync.serving.jobs import JobKind
from latentsync.serving.models import ModelCache
from latentsync.serving.settings import ServingSettings
from latentsync.utils.commands import command
from latentsync.utils.errors import UserError
from latentsync.utils.progress import OnProgress, Progress

try:
    import ray
    from ray import serve
except ImportError as error:
    raise UserError("Ray Serve is not installed; run `pip install '.[ray]'` in the project's folder") from error

logger = logging.getLogger(__name__)

APPLICATION = "latentsync"
PIECE = 8 * 2**20  # bytes of a result per message
Message = tuple  # ("progress", *Progress), ("piece", bytes) or ("error", text)


class Stopped(Exception):
    """The client of the job has disconnected."""


@serve.deployment(name="lipsync", max_ongoing_requests=1)
class LipsyncReplica:
    """One process with its models on one machine; runs one job at a time.

    Args:
        max_seconds: maximum duration of a result. cache: arguments of `ModelCache`.
    """

    def __init__(self, max_seconds: float | None = None, **cache: Any):
        logging.basicConfig(level=logging.INFO)
        self.cache, self.max_seconds = ModelCache(**cache), max_seconds

    def run(self, kind: str, options: str, files: Mapping[str, tuple[str, bytes]]) -> Iterator[Message]:
        """Run a job; yields progress, then the result in pieces, or one error for the user.

        files: role -> (file name, content). options: JSON of `GenerationOptions`.
        """
        chosen = GenerationOptions.model_validate_json(options)
        with tempfile.TemporaryDirectory(prefix="latentsync-job-") as folder:
            paths = {}
            for role, (name, content) in files.items():
                paths[role] = Path(folder) / name
                paths[role].write_bytes(content)
            out = Path(folder) / f"result{chosen.suffix}"
            yield from self._follow(JobKind(kind), chosen, paths, out)

    def _follow(
        self, kind: JobKind, options: GenerationOptions, paths: Mapping[str, Path], out: Path
    ) -> Iterator[Message]:
        """Run the job in a thread and yield its reports. Ends the job when the client disconnects."""
        messages: queue.Queue[Message | None] = queue.Queue()
        gone = threading.Event()
        failure: list[BaseException] = []

        def report(progress: Progress) -> None:
            if gone.is_set():
                raise Stopped
            messages.put(("progress", *progress))

        def work() -> None:
            try:
                run_job(kind, options, paths, out, self.cache, report, max_seconds=self.max_seconds)
            except BaseException as error:  # handed to the caller below
                failure.append(error)
            messages.put(None)

        thread = threading.Thread(target=work, name="job")
        thread.start()
        try:
            while (message := messages.get()) is not None:
                yield message
        finally:
            gone.set()
            thread.join()
        if failure and isinstance(failure[0], UserError):
            yield ("error", str(failure[0]))
            return
        if failure:
            raise failure[0]
        with out.open("rb") as file:
            while piece := file.read(PIECE):
                yield ("piece", piece)


class RayRunner:
    """Forwards jobs to the deployment; a `latentsync.serving.handler.Runner`.

    Raises:
        UserError: the cluster cannot be reached, or the deployment is not running there.
    """

    def __init__(self, settings: ServingSettings) -> None:
        connect(settings.ray_address)
        try:
            self._handle = serve.get_app_handle(APPLICATION).options(stream=True, method_name="run")
        except Exception as error:  # Serve raises RayServeException, but also plain errors of its controller
            raise UserError(
                f"no deployment {APPLICATION} on the Ray cluster; start it with "
                f"`python -m latentsync.serving.ray_serve --address {settings.ray_address}`"
            ) from error

    def __call__(
        self, kind: JobKind, options: GenerationOptions, files: Mapping[str, Path], out: Path, on_progress: OnProgress
    ) -> None:
        contents = {role: (path.name, path.read_bytes()) for role, path in files.items()}
        stream = self._handle.remote(kind.value, options.model_dump_json(), contents)
        arriving = out.with_name(f".{out.name}.arriving")
        try:
            with arriving.open("wb") as file:
                for what, *values in stream:
                    if what == "error":
                        raise UserError(values[0])
                    if what == "progress":
                        on_progress(Progress(*values))
                    else:
                        file.write(values[0])
            arriving.replace(out)
        except BaseException:
            stream.cancel()
            raise
        finally:
            arriving.unlink(missing_ok=True)

    def models(self) -> tuple[str, ...]:
        """Models are loaded elsewhere."""
        return ()

    def unload(self) -> None:
        """Models are loaded elsewhere."""


def connect(address: str | None) -> None:
    """Connect to a cluster. Raises UserError if there is none."""
    if ray.is_initialized():
        return
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"no Ray cluster at {address}; start one with `ray start --head`") from error


def deploy(replicas: int = 1, num_gpus: float = 0, num_cpus: float = 1, **arguments: object) -> None:
    """Start or update the deployment on the connected cluster. arguments: of `LipsyncReplica`."""
    resources = {"num_gpus": num_gpus, "num_cpus": num_cpus}
    deployment = LipsyncReplica.options(  # type: ignore[attr-defined]  # serve.deployment made it a Deployment
        num_replicas=replicas, ray_actor_options=resources
    )
    serve.run(deployment.bind(**arguments), name=APPLICATION, route_prefix=None)


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m latentsync.serving.ray_serve", description="Start the deployment on a Ray cluster."
    )
    parser.add_argument("--address", default="auto", help="address of the cluster (default: the one on this machine)")
    parser.add_argument(
        "--replicas", type=int, default=1, help="number of processes that run jobs (default: %(default)s)"
    )
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each replica (default: %(default)s)")
    parser.add_argument("--cpus", type=float, default=1, help="CPUs of each replica (default: %(default)s)")
    parser.add_argument("--model", default=AUTO, help="default model (default: the best present)")
    parser.add_argument("--dtype", choices=DTYPES, help="precision of the models (default: by device and model)")
    parser.add_argument("--weights", choices=WEIGHTS, default="full", help=WEIGHTS_HELP)
    parser.add_argument("--compile", action="store_true", help=COMPILE_HELP)
    options = parser.parse_args(argv)
    connect(options.address)
    models = {name: getattr(options, name) for name in ("dtype", "weights", "compile")} | {"default": options.model}
    deploy(options.replicas, options.gpus, options.cpus, **models)
    print(f"deployment {APPLICATION} is running; services started with --ray_address use it")
    return 0


if __name__ == "__main__":
    # Replicas must find the class under this module's name, not under __main__.
    from latentsync.serving.ray_serve import main as named_main

    sys.exit(named_main(sys.argv[1:]))
