"""Blind comparison by people: `python -m eval.rate --pairs list.csv --methods A B --output_dir ratings`.

Serves a page that shows two results of a clip side by side, in random order and without names, and asks which is
better. Answers are appended to ratings/votes.csv; raters who come back continue where they stopped. `--summary` writes
and prints votes.md instead of serving. Exit codes: 0 done, 1 invalid input, 2 wrong usage.
"""

import argparse
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from fastapi import FastAPI, HTTPException, Query
from fastapi.responses import FileResponse, HTMLResponse
from pydantic import BaseModel, ConfigDict, Field

from eval.methods import parse_methods
from eval.pairs import read_pairs
from eval.ratings import QUESTIONS, Ballot, all_trials, preferences, read_votes, table
from latentsync.utils.commands import command
from latentsync.utils.errors import UserError
from latentsync.utils.files import write_text
from latentsync.utils.templates import render

PAGE = Path(__file__).parent / "templates" / "rate.html.j2"
VOTES = "votes.csv"
RATER = r"^[\w .@-]{1,40}$"


class Answers(BaseModel):
    """Body of POST /votes."""

    model_config = ConfigDict(extra="forbid")
    rater: str = Field(pattern=RATER)
    trial: str
    answers: dict[Literal["sync", "quality"], Literal["left", "right", "same"]] = Field(min_length=len(QUESTIONS))


def create_app(ballot: Ballot) -> FastAPI:
    """The page, the trials of a rater, the videos and the votes. The addresses of videos do not tell their method."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    files = {secrets.token_hex(8): path for trial in ballot.trials.values() for path in trial.videos}
    tokens = {path: token for token, path in files.items()}

    @app.get("/", response_class=HTMLResponse)
    def page() -> str:
        return render(PAGE, questions=QUESTIONS)

    @app.get("/trials")
    def trials(rater: Annotated[str, Query(pattern=RATER)]) -> list[dict[str, str]]:
        shown = []
        for trial in ballot.open_trials(rater):
            left, right = trial.videos[:: -1 if trial.is_swapped(rater) else 1]
            shown.append({"trial": trial.key, "left": f"video/{tokens[left]}", "right": f"video/{tokens[right]}"})
        return shown

    @app.get("/video/{token}")
    def video(token: str) -> FileResponse:
        if token not in files or not files[token].is_file():
            raise HTTPException(404, "no such video")
        return FileResponse(files[token], headers={"Content-Disposition": "inline", "Cache-Control": "no-store"})

    @app.post("/votes", status_code=204)
    async def vote(body: Answers) -> None:  # on the event loop: one answer is written at a time
        if body.trial not in ballot.trials:
            raise HTTPException(404, "no such trial")
        try:
            ballot.add(body.rater, body.trial, dict(body.answers))
        except UserError as error:
            raise HTTPException(507, str(error)) from error

    return app


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m eval.rate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output_dir", type=Path, required=True, help="folder of the votes")
    add("--pairs", type=Path, help="CSV with the columns video, audio, id, group")
    add("--methods", nargs="*", default=[], help="DIR or NAME=DIR with results <id>.mp4")
    add("--with_source", action="store_true", help="also compare with the videos themselves")
    add("--host", default="127.0.0.1", help="address to serve on (default: %(default)s, this computer only)")
    add("--port", type=int, default=8010, help="port to serve on (default: %(default)s)")
    add("--summary", action="store_true", help="summarize the votes instead of serving")
    return parser


def open_ballot(options: argparse.Namespace) -> Ballot:
    """The trials of the command line with the votes so far. Raises UserError."""
    methods = parse_methods(options.methods, options.output_dir / "results")
    chosen = [method for method in methods if not method.is_ground_truth or options.with_source]
    return Ballot(options.output_dir / VOTES, all_trials(chosen, read_pairs(options.pairs)))


def summarize(folder: Path) -> str:
    """Write votes.md and return its text. Raises UserError without votes."""
    text = table(preferences(read_votes(folder / VOTES)))
    write_text(folder / "votes.md", lambda file: file.write(text))
    return text


@command(interrupted=None, interrupted_code=0)
def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.summary:
        print(summarize(options.output_dir), end="")
        return 0
    if options.pairs is None:
        parser.error("--pairs is required, except with --summary")
    app = create_app(open_ballot(options))
    import uvicorn

    print(f"http://{options.host}:{options.port}", flush=True)
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning")
    return 0


if __name__ == "__main__":
    sys.exit(main())
