"""Errors as clients see them."""

from __future__ import annotations

from collections.abc import Mapping


class Problem(Exception):  # noqa: N818 - as RFC 9457 calls it
    """Ends a request; answered as ``application/problem+json``."""

    def __init__(
        self, status: int, title: str, detail: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail or title)
        self.status = status
        self.title = title
        self.detail = detail
        self.headers = dict(headers or {})
