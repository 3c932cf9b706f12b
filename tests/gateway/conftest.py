"""What the gateway's tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from pgvec_queue.gateway.app import Gateway
from pgvec_queue.gateway.auth import Access
from pgvec_queue.gateway.limits import Limits
from tests.gateway.serving import Served, serving
from tests.support import Bench

Serve = Callable[..., Served]


@pytest.fixture
def serve(bench: Bench) -> Iterator[Serve]:
    """Starts a gateway over the test's database; it ends with the test."""
    with ExitStack() as stack:

        def begin(limits: Limits | None = None, access: Access | None = None, *, app: Gateway | None = None) -> Served:
            return stack.enter_context(serving(bench.dsn, limits, access, app=app))

        yield begin


@pytest.fixture
def gateway(serve: Serve) -> Served:
    """A gateway with its defaults."""
    return serve()
