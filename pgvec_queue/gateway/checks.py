"""What no type says of a request's values: lengths in bytes, characters that PostgreSQL cannot hold, cursors.

Whatever is wrong is answered with 422 and a line that names the place.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from pgvec_queue.gateway.problems import Problem

ID_BYTES = 512
METADATA_BYTES = 65_536
_METADATA_DEPTH = 64


def wrong(detail: str) -> Problem:
    """The problem of a request that can be read and is not right."""
    return Problem(422, detail)


def storable(value: str, place: str) -> str:
    """Returns a string that PostgreSQL can hold."""
    if "\x00" in value:
        raise wrong(f"{place} has a NUL character, which PostgreSQL cannot store; take it out")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise wrong(f"{place} has half of a surrogate pair, which is no character; take it out") from None
    return value


def ids(values: Sequence[str], count: int) -> list[str]:
    """Checks the ids of so many texts."""
    if len(values) != count:
        raise wrong(f"ids has {len(values)} entries for {count} texts; give one for each")
    seen: dict[str, int] = {}
    for place, value in enumerate(values):
        storable(value, f"ids[{place}]")
        if not value:
            raise wrong(f"ids[{place}] is empty")
        if len(value.encode()) > ID_BYTES:
            raise wrong(f"ids[{place}] is longer than {ID_BYTES} bytes")
        if seen.setdefault(value, place) != place:
            raise wrong(f"ids[{place}] is the same as ids[{seen[value]}]; give each text an id of its own")
    return list(values)


def texts(values: Sequence[str], *, most: int, most_bytes: int) -> list[str]:
    """Checks texts: how many, how long."""
    if len(values) > most:
        raise wrong(f"{len(values):,} texts are more than the {most:,} that one request may have")
    for place, value in enumerate(values):
        storable(value, f"texts[{place}]")
        if len(value.encode()) > most_bytes:
            raise wrong(f"texts[{place}] is longer than {most_bytes:,} bytes")
    return list(values)


def metadata(given: dict[str, Any] | Sequence[dict[str, Any] | None] | None, count: int) -> list[str | None] | None:
    """Checks metadata, one object for all texts or one for each; returns JSON for each."""
    if given is None:
        return None
    if isinstance(given, dict):
        return [_object(given, "metadata")] * count
    if len(given) != count:
        raise wrong(f"metadata has {len(given)} entries for {count} texts; give one object for all, or one for each")
    return [None if value is None else _object(value, f"metadata[{place}]") for place, value in enumerate(given)]


def _object(value: dict[str, Any], place: str) -> str:
    for part, depth in _parts(value):
        if depth > _METADATA_DEPTH:
            raise wrong(f"{place} is nested deeper than {_METADATA_DEPTH} levels")
        if isinstance(part, str):
            storable(part, place)
        elif isinstance(part, float) and not math.isfinite(part):
            raise wrong(f"{place} has a number that JSON has not: NaN or Infinity")
    try:
        written = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise wrong(f"{place} has a number with too many digits") from None
    if len(written.encode()) > METADATA_BYTES:
        raise wrong(f"{place} is longer than {METADATA_BYTES:,} bytes")
    return written


def _parts(value: Any) -> Iterator[tuple[Any, int]]:
    """Everything in a JSON value, names included, with its depth; without recursion."""
    rest: list[tuple[Any, int]] = [(value, 0)]
    while rest:
        part, depth = rest.pop()
        yield part, depth
        if depth > _METADATA_DEPTH:
            continue
        if isinstance(part, dict):
            rest.extend((inner, depth + 1) for pair in part.items() for inner in pair)
        elif isinstance(part, list):
            rest.extend((inner, depth + 1) for inner in part)


def cursor(*parts: str | int) -> str:
    """Returns where a page ended, for the client to hand back."""
    return base64.urlsafe_b64encode(json.dumps(parts, ensure_ascii=False).encode()).decode().rstrip("=")


def read_cursor(value: str, *types: type) -> list[Any]:
    """Reads what ``cursor`` has written of values of these types."""
    try:
        parts = json.loads(base64.b64decode(value + "=" * (-len(value) % 4), altchars=b"-_", validate=True).decode())
    except (ValueError, RecursionError):
        parts = None
    if (
        not isinstance(parts, list)
        or len(parts) != len(types)
        or not all(type(part) is type_ for part, type_ in zip(parts, types, strict=True))
        or not all(-(2**31) <= part < 2**31 for part in parts if isinstance(part, int))
    ):
        raise wrong("cursor is none that this endpoint has given; leave it out to begin anew")
    for part in parts:
        if isinstance(part, str):
            storable(part, "cursor")
    return parts
