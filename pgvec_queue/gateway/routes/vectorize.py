"""``POST /vectorize``: texts in, a task out."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from typing import Annotated, Any

import psycopg
from fastapi import APIRouter, Body, Depends, Header, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from pgvec_queue import collections, tasks
from pgvec_queue.async_database import AsyncConnection, async_transaction
from pgvec_queue.collections import Collection, CollectionExistsError, NewCollection
from pgvec_queue.database import kind_of, one_line
from pgvec_queue.errors import DefinitionError, EmbedderError, Kind
from pgvec_queue.gateway import checks
from pgvec_queue.gateway.auth import identity_of, requires
from pgvec_queue.gateway.checks import wrong
from pgvec_queue.gateway.context import Context, context_of
from pgvec_queue.gateway.problems import Problem
from pgvec_queue.gateway.routes.tasks import TaskStatus, follow_to_end, status_of
from pgvec_queue.log import get_logger
from pgvec_queue.tasks import KeyReusedError

log = get_logger("pgvec.gateway")

router = APIRouter(tags=["texts"])
In = Annotated[Context, Depends(context_of)]

MOST_WAIT = 25.0
_WAKE_SECONDS = 0.05
"""Between two hints to idle workers."""
_TRIES = 3

_EXAMPLE: dict[str, Any] = {
    "texts": ["Hello world", "Machine learning is awesome"],
    "model_name": "sentence-transformers/all-MiniLM-L6-v2",
    "batch_size": 32,
}


class VectorizeRequest(BaseModel):
    """Texts to be embedded."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), json_schema_extra={"examples": [_EXAMPLE]})

    texts: list[str] = Field(min_length=1, description="Texts; blank ones are accepted, and skipped.")
    model_name: str | None = Field(
        None, max_length=512, description="One of the models that the gateway allows; by default its first."
    )
    batch_size: int | None = Field(
        None, ge=1, le=100_000, strict=True, description="Most chunks of these texts in one batch of the device."
    )
    ids: list[str] | None = Field(
        None, description="An id for each text; one that is there already has its text updated. By default new ones."
    )
    metadata: dict[str, Any] | list[dict[str, Any] | None] | None = Field(
        None, description="A JSON object for all texts, or one for each. Left out, metadata that is there stays."
    )
    collection: str | None = Field(None, max_length=63, description="By default the default collection of the model.")


class _Waker:
    """Tells idle workers that something is queued, not more often than they could make use of."""

    def __init__(self) -> None:
        self._at = 0.0

    async def wake(self, connection: AsyncConnection) -> None:
        now = time.monotonic()
        if now - self._at >= _WAKE_SECONDS:
            self._at = now
            await tasks.wake_workers(connection)


_waker = _Waker()


@router.post(
    "/vectorize",
    status_code=202,
    dependencies=[Depends(requires("write"))],
    responses={
        200: {"model": TaskStatus, "description": "With `wait`: the task has ended."},
        404: {"description": "There is no such collection."},
        409: {
            "description": "The Idempotency-Key has come with another request, or something is in the way of the "
            "default collection."
        },
        422: {"description": "The request is not right."},
        429: {"description": "Too many texts are waiting; see Retry-After."},
    },
)
async def vectorize(
    request: Request,
    response: Response,
    gateway: In,
    body: Annotated[VectorizeRequest, Body()],
    wait: Annotated[
        float, Query(ge=0, le=MOST_WAIT, description="Seconds to wait for the end; then the answer is 200.")
    ] = 0,
    idempotency_key: Annotated[
        str | None, Header(min_length=1, max_length=255, description="The same key with the same body makes one task.")
    ] = None,
) -> TaskStatus:
    """Accepts texts and queues them: what was answered with 202 is embedded, whatever happens to this server."""
    if idempotency_key is not None and not idempotency_key.isprintable():
        raise wrong("Idempotency-Key has characters that cannot be shown; take letters and digits")
    asked = tasks.Request(
        ids=[] if body.ids is None else checks.ids(body.ids, len(body.texts)),
        texts=checks.texts(body.texts, most=gateway.limits.texts, most_bytes=gateway.limits.text_bytes),
        metadata=checks.metadata(body.metadata, len(body.texts)),
        batch_size=body.batch_size,
        digest=hashlib.sha256(json.dumps(body.model_dump(), sort_keys=True).encode()).digest(),
        token=identity_of(request).token_id or 0,
        key=idempotency_key,
    )
    async with gateway.connection() as connection:
        known = None
        if asked.key is not None:
            try:
                known = await tasks.by_key(connection, asked.token, asked.key, asked.digest)
            except KeyReusedError as error:
                raise Problem(409, str(error)) from None
        if known is None:
            collection = await _collection(gateway, connection, body)
            await gateway.pressure.check(connection, collection, len(asked.texts))
            id_, new = await _submit(connection, collection, asked)
            if new:
                gateway.pressure.accepted(collection, len(asked.texts))
                await _waker.wake(connection)
        else:
            id_, new = known, False
        if not new:
            response.headers["Idempotent-Replay"] = "true"
        status = await status_of(connection, id_)
    if wait and status.finished_at is None:
        status = await follow_to_end(gateway, id_, min(wait, max(gateway.limits.request_seconds - 2, 0))) or status
    if wait and status.finished_at is not None:
        response.status_code = 200
    response.headers["Location"] = status.links["status"]
    return status


async def _submit(connection: AsyncConnection, collection: Collection, asked: tasks.Request) -> tuple[Any, bool]:
    for left in reversed(range(_TRIES)):
        try:
            return await tasks.submit(connection, collection, asked)
        except KeyReusedError as error:
            raise Problem(409, str(error)) from None
        except psycopg.errors.UndefinedTable:
            raise Problem(404, str(collections.unknown(collection.name))) from None
        except (psycopg.errors.DeadlockDetected, psycopg.errors.LockNotAvailable) as error:
            if not left:
                raise Problem(503, f"{one_line(error)}; try again", {"Retry-After": "1"}) from None
            await asyncio.sleep(0.05)
        except psycopg.Error as error:
            # A CHECK or a trigger that somebody has put on the table, or a character that its encoding lacks.
            if kind_of(error) is not Kind.ROW:
                raise
            raise wrong(f"the database refuses a text: {one_line(error)}") from None
    raise AssertionError("the last try raises")


async def _collection(gateway: Context, connection: AsyncConnection, body: VectorizeRequest) -> Collection:
    """Finds where the texts go; makes the default collection of their model where there is none yet."""
    model = body.model_name
    if body.collection is not None:
        checks.storable(body.collection, "collection")
        found = await _find(connection, name=body.collection)
        if found is None:
            raise Problem(404, str(collections.unknown(body.collection)))
        if model is not None and model != found.model:
            raise wrong(f"the collection {found.name!r} is embedded with {found.model}, not with {model!a}")
        return found
    said, model = model is not None, model or gateway.limits.models[0]
    if model not in gateway.limits.models:
        raise wrong(f"model_name {model!a} is not one of those allowed here: {', '.join(gateway.limits.models)}")
    found = await _default(connection, model, said=said)
    if found is None:
        wanted = NewCollection(name=None, model=model)
        try:
            await gateway.in_thread("gateway", lambda plain: collections.create(plain, wanted))
        except (DefinitionError, EmbedderError) as error:
            log.warning("default collection cannot be made", model=model, error=one_line(error))
            # Trying again helps nobody while a table of that name is there.
            status = 409 if isinstance(error, CollectionExistsError) else 503
            raise Problem(status, f"the default collection of {model} cannot be made: {error}") from None
        found = await _default(connection, model, said=said)
    if found is None:
        raise Problem(503, "it was deleted at this moment; try again", {"Retry-After": "1"})
    return found


async def _find(connection: AsyncConnection, *, name: str) -> Collection | None:
    async with async_transaction(connection, read_only=True):
        found = await collections.find(connection, name=name)
    return found[0] if found else None


async def _default(connection: AsyncConnection, model: str, *, said: bool) -> Collection | None:
    """Finds the default collection of a model; ``said``: the client has named the model, and gets no other.

    Who names none goes on with the collection that was made for the gateway's first, whatever model it has been
    switched to.
    """
    async with async_transaction(connection, read_only=True):
        found = await collections.find(connection, default_of=model)
    of = next((one for one in found if one.default_of == model), None)
    with_ = next((one for one in found if one.model == model), None)
    if not said:
        return of or with_
    if with_ is None and of is not None:
        raise wrong(
            f"the default collection of {model} is embedded with {of.model} by now; name a collection, or leave "
            "model_name out"
        )
    return with_
