"""Trying again where a lock could not be had shortly: whoever waits long for one has everybody else queue up behind."""

from __future__ import annotations

import psycopg
import tenacity

NOT_HAD = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)
"""What PostgreSQL says of a lock that could not be had; the last of it is raised."""


def is_not_had(error: BaseException) -> bool:
    """Whether a lock could not be had, or two granted rights on one thing at once, for which there is none."""
    return isinstance(error, NOT_HAD) or (
        isinstance(error, psycopg.errors.InternalError_) and "tuple concurrently" in str(error)
    )


def patiently(tries: int, shortest: float, longest: float) -> tenacity.Retrying:
    """Returns the attempts, between which passes a random time between ``shortest`` and ``longest``, in seconds."""
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_not_had),
        stop=tenacity.stop_after_attempt(tries),
        wait=tenacity.wait_random(shortest, longest),
        reraise=True,
    )
