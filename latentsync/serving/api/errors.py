"""One format for all errors, {"error": {"code": ..., "message": ...}}, without tracebacks or server paths."""

import logging
import sqlite3
from collections.abc import Mapping, Sequence
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from latentsync.serving.jobs import InsufficientSpace, JobNotFound, QueueFull, WrongState
from latentsync.utils.errors import UserError

logger = logging.getLogger(__name__)

MAX_REPORTED = 5  # problems per message
MAX_MESSAGE = 1000  # characters
RETRY_AFTER = 5  # seconds, sent to clients when a limit is reached


class ErrorBody(BaseModel):
    code: str = Field(description="Fixed word for programs.", examples=["not_found"])
    message: str = Field(
        description="One line for people: what is wrong and what to do.", examples=["there is no such job"]
    )


class ErrorView(BaseModel):
    """Body of every response with a status of 400 or more."""

    error: ErrorBody


class ApiError(Exception):
    """A rejected request: `status`, a fixed `code` word and a one-line message."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, dict(headers or {})

    def response(self) -> JSONResponse:
        return error_response(self.status, self.code, self.message, self.headers)


def error_response(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    line = " ".join(message.split())[:MAX_MESSAGE].encode("utf-8", "replace").decode()
    return JSONResponse({"error": {"code": code, "message": line}}, status, dict(headers or {}))


def try_later(code: str, message: str) -> ApiError:
    """429: a limit is reached."""
    return ApiError(429, code, message, {"Retry-After": str(RETRY_AFTER)})


def refusal_of(error: ApiError | UserError) -> ApiError:
    """The response to a request that failed with `error`."""
    match error:
        case ApiError():
            return error
        case JobNotFound():
            return ApiError(404, "not_found", str(error))
        case QueueFull():
            return try_later("queue_full", str(error))
        case WrongState():
            return ApiError(409, "wrong_state", str(error))
        case InsufficientSpace():
            return ApiError(507, "insufficient_storage", str(error))
    return ApiError(422, "invalid_input", str(error))


def responses(*statuses: int) -> dict[int | str, dict]:
    """The error model for each of these statuses, for OpenAPI."""
    return {status: {"model": ErrorView, "description": HTTPStatus(status).phrase} for status in statuses}


def describe_problems(problems: Sequence[Mapping], where: str) -> str:
    """One line for a list of pydantic errors, without the given values. `where`: name of the object with the fields."""
    lines = []
    for problem in problems[:MAX_REPORTED]:
        name = ".".join(str(part) for part in problem["loc"]) or "(all)"
        # Patterns are for programs: people find the accepted values in the documentation.
        text = "has characters that are not accepted" if "pattern" in problem["type"] else problem["msg"]
        lines.append(f"{where} {name}: {text}")
    more = len(problems) - MAX_REPORTED
    return "; ".join(lines + ([f"and {more} more"] if more > 0 else []))


def install_handlers(app: FastAPI) -> None:
    """Return all errors in one format: the application's, FastAPI's and unexpected ones."""

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(UserError)
    async def user_error(request: Request, error: UserError) -> JSONResponse:
        return refusal_of(error).response()

    @app.exception_handler(sqlite3.DatabaseError)
    async def queue_unusable(request: Request, error: sqlite3.DatabaseError) -> JSONResponse:
        logger.warning("the queue cannot be used at the moment: %s", error)  # a full disk, a lock, or damage
        message = "the queue cannot be used at the moment; try again later"
        return error_response(503, "queue_unavailable", message, {"Retry-After": str(RETRY_AFTER)})

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        phrase = HTTPStatus(error.status_code).phrase
        code = phrase.lower().replace(" ", "_").replace("-", "_")
        documented = request.app.openapi()["paths"].get(getattr(request.scope.get("route"), "path", None))
        headers = dict(error.headers or {})
        if error.status_code == 405 and documented:  # the router lists the methods of only one of the path's routes
            headers["Allow"] = ", ".join(method.upper() for method in documented)
        return error_response(error.status_code, code, phrase.lower(), headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = error.errors()
        if any(problem["loc"][:1] == ("path",) for problem in problems):
            return error_response(404, "not_found", "there is no such job")
        return error_response(422, "invalid_request", describe_problems(problems, "parameter"))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        # The server logs the traceback: Starlette raises the exception again after this response.
        return error_response(500, "internal_error", "the server failed to handle this request; see its log")
