"""Errors as answers: what is raised in an endpoint and told as ``application/problem+json``."""

from __future__ import annotations

from collections.abc import Mapping


class Problem(Exception):  # noqa: N818
    """An answer that is an error: its status, a title that is the same for all of its kind, and what happened."""

    def __init__(
        self, status: int, title: str, detail: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail or title)
        self.status = status
        self.title = title
        self.detail = detail
        self.headers = headers
