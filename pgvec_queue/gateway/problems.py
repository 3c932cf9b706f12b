"""Errors of a request, as they are told to its client."""

from __future__ import annotations

from collections.abc import Mapping


class Problem(Exception):  # noqa: N818 - the name of what it becomes, RFC 9457
    """Ends a request with a status, a title and a sentence about what is wrong."""

    def __init__(
        self, status: int, title: str, detail: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail or title)
        self.status = status
        self.title = title
        self.detail = detail
        self.headers = headers
