"""Malformed bodies, as of ``benchmarks.fuzz_gateway``, against every endpoint that takes one."""

from __future__ import annotations

import random
from typing import Any

from benchmarks.fuzz_gateway import _fuzz, damaged, fault
from pgvec_queue.database import Database
from pgvec_queue.gateway.app import create_app
from pgvec_queue.gateway.limits import Limits
from tests.gateway import endpoints
from tests.gateway.conftest import Serve
from tests.support import Bench

BODIES = 250


def test_no_malformed_body_is_a_fault_of_the_program(bench: Bench, serve: Serve) -> None:
    limits = Limits(per_minute=10_000_000)
    app = create_app(Database(bench.dsn), limits)
    # Endpoints that store what they are given, without a check of their own.
    app.include_router(endpoints.bodies)
    assert _fuzz(serve(limits, app=app).url, None, BODIES, seed=6) == 0


def test_the_fuzz_sees_a_fault_when_there_is_one(bench: Bench, serve: Serve) -> None:
    app = create_app(Database(bench.dsn))
    app.include_router(endpoints.router)
    gateway = serve(app=app)
    operation: dict[str, Any] = {"responses": {"200": {}, "500": {}, "503": {}}}
    assert fault(operation, gateway.get("/api/v1/test/fail/program")) == "a fault of the program"
    assert fault(operation, gateway.get("/api/v1/test/fail/problem")) == "not documented"
    assert fault(operation, gateway.get("/api/v1/test/fail/database")) is None
    assert fault(operation, gateway.get("/health")) is None


def test_the_same_seed_damages_the_same_way() -> None:
    good = {"texts": ["a", "b"], "model_name": "m", "metadata": [{"a": 1}]}
    first, second = random.Random(3), random.Random(3)
    bodies = [damaged(first, good) for _ in range(300)]
    assert bodies == [damaged(second, good) for _ in range(300)]
    assert len(set(bodies)) > 200
