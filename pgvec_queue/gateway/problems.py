"""What goes wrong, as ``application/problem+json`` (RFC 9457): a line for a person, a status, nothing of the inside.

What an error of the database or of the program says never reaches a client, nor does what the client has sent; the log
has the rest, under the same ``request_id``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from http import HTTPStatus
from typing import Any

import psycopg
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from pgvec_queue.database import kind_of, one_line
from pgvec_queue.errors import DatabaseError, EmbedderError, Kind, MissingExtraError, PgvecError, SettingsError
from pgvec_queue.log import get_logger
from pgvec_queue.masking import without_secrets

log = get_logger("pgvec.gateway")

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = 2
"""What ``Retry-After`` says where nothing better is known."""
_FOR_A_PERSON = 60.0
"""What it says where somebody has to do something first."""
_MOST_ERRORS = 20
_LONGEST_PLACE = 200
_PHRASES = {413: "Content Too Large", 422: "Unprocessable Content"}
"""As RFC 9110 has them; Python's before 3.13 are those of its predecessors."""
_MISSING = ("3F000", "42P01", "42703", "42883")
"""SQLSTATEs of a schema, table, column or function that is not there."""
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Of the request that is being answered."""


class Place(BaseModel):
    """What is wrong in one place of a request."""

    place: str = Field(description="Where it stands: body, query, path or header, and the way from there.")
    message: str = Field(description="What is wrong with it.")


class ProblemDocument(BaseModel):
    """Why a request was not done."""

    model_config = ConfigDict(
        title="Problem",
        json_schema_extra={
            "example": {
                "type": "about:blank",
                "title": "Not Found",
                "status": 404,
                "detail": "there is no collection named 'letters'",
                "request_id": "5c0e3e7a2f6b4f0f9d3a4d1f8f1c2b3a",
            }
        },
    )

    type: str = Field(default="about:blank", description="Always about:blank: the status says what kind it is.")
    title: str
    status: int
    detail: str | None = Field(default=None, description="What is wrong and what to do, in a line.")
    request_id: str = Field(description="As in the header X-Request-ID, and in the gateway's log.")
    errors: list[Place] | None = Field(default=None, description="Of a request that is not as it has to be.")


class Problem(Exception):  # noqa: N818 - its name is that of the RFC
    """Ends a request with a status and a line."""

    def __init__(
        self,
        status: int,
        detail: str | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        errors: Sequence[Place] = (),
    ) -> None:
        super().__init__(f"{status} {_phrase(status)}: {detail}")
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})
        self.errors = list(errors)

    @property
    def title(self) -> str:
        """The status in words, as the RFC has it for problems without a type of their own."""
        return _phrase(self.status)


def _phrase(status: int) -> str:
    return _PHRASES.get(status) or HTTPStatus(status).phrase


def busy(detail: str, *, status: int = 503, seconds: float = RETRY_SECONDS) -> Problem:
    """What a client may try again after some seconds."""
    return Problem(status, detail, {"Retry-After": str(max(1, round(seconds + 0.5)))})


def response(problem: Problem) -> Response:
    """Returns the answer that tells of it."""
    document: dict[str, Any] = {"type": "about:blank", "title": problem.title, "status": problem.status}
    if problem.detail is not None:
        document["detail"] = shown(problem.detail)
    document["request_id"] = request_id.get()
    if problem.errors:
        document["errors"] = [error.model_dump() for error in problem.errors]
    # In ASCII, so that no text can be one that has no UTF-8.
    content = json.dumps(document, separators=(",", ":")).encode("ascii")
    return Response(content, problem.status, problem.headers, MEDIA_TYPE)


def shown(line: str) -> str:
    """Returns a line without secrets and without control characters."""
    return _CONTROL.sub("�", without_secrets(" ".join(line.split())))


def of(error: Exception) -> Problem | None:
    """Returns what a client is told of an error; None where it is a fault of the program."""
    match error:
        case Problem():
            return error
        case HTTPException():
            detail = error.detail if error.detail != HTTPStatus(error.status_code).phrase else None
            return Problem(error.status_code, detail, error.headers)
        case RequestValidationError():
            return _invalid(error)
        case EmbedderError():
            return _of_embedder(error)
        case DatabaseError():
            return busy("the database cannot be used at the moment")
        case MissingExtraError() | SettingsError():
            return busy(str(error), seconds=_FOR_A_PERSON)
        case PgvecError():
            return Problem(422, str(error))
        case psycopg.Error():
            return _of_database(error)
    return None


def install(app: FastAPI) -> None:
    """Has every error that is known answered as a problem; what is not known goes on to who logs it."""

    async def answer(request: Request, error: Exception) -> Response:  # noqa: ARG001
        found = of(error)
        if found is None:
            raise error
        if found.status == 503 and isinstance(error, EmbedderError | MissingExtraError | SettingsError):
            log.warning("model cannot be used", error=one_line(error))
        return response(found)

    for kind in (Problem, HTTPException, RequestValidationError, PgvecError, psycopg.Error):
        app.add_exception_handler(kind, answer)


def _invalid(error: RequestValidationError) -> Problem:
    errors = [
        Place(
            place=shown(".".join(map(str, one.get("loc", ()))))[:_LONGEST_PLACE],
            message=shown(str(one.get("msg", "it is not as it has to be"))),
        )
        for one in error.errors()[:_MOST_ERRORS]
    ]
    first = f"{errors[0].place}: {errors[0].message}" if errors else None
    return Problem(422, first, errors=errors)


def _of_embedder(error: EmbedderError) -> Problem:
    if error.kind is Kind.ROW:
        return Problem(422, "the model refuses this text")
    if error.kind is Kind.PASSING:
        return busy("the model cannot be used at the moment", seconds=error.retry_after or RETRY_SECONDS)
    return busy("the model cannot be used; the gateway's log says why", seconds=_FOR_A_PERSON)


def _of_database(error: psycopg.Error) -> Problem | None:
    if error.sqlstate == "57014":
        return busy("the database took too long", status=504)
    if error.sqlstate in _MISSING and "pgvec" in (error.diag.message_primary or ""):
        return busy("the schema pgvec is missing, or not the one that this gateway needs; run: pgvec init")
    kind = kind_of(error)
    if kind is Kind.PASSING:
        return busy("the database cannot be used at the moment")
    if (error.sqlstate or "")[:2] == "23":
        return Problem(409, "something else has that name or key, or still depends on it")
    if isinstance(error, psycopg.DataError):
        # Such as the character NUL, which no text of PostgreSQL holds.
        return Problem(422, "the database takes no such value")
    return None
