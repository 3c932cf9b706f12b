"""The endpoints of vectorizers and workers: what they tell is what the views say, and steering is obeyed."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

import pytest

from pgvec_queue import vectorizer
from pgvec_queue.gateway.limits import Limits
from tests.gateway.serving import Served, serving
from tests.support import Bench
from tests.waiting import wait_until

API = "/api/v1"
LIMITS = Limits(models=("hashing-8", "hashing-16", "sentence-transformers/all-MiniLM-L6-v2"))


@pytest.fixture
def served(bench: Bench) -> Iterator[Served]:
    with serving(bench.dsn, LIMITS) as found:
        yield found


def fill(bench: Bench, rows: int, table: str = "docs") -> None:
    bench.sql(f'CREATE TABLE "{table}" (id bigint PRIMARY KEY, body text)')
    bench.sql(f"INSERT INTO \"{table}\" SELECT i, 'document number ' || i FROM generate_series(1, %s) i", rows)


def quarantine(bench: Bench, name: str, documents: int, error_class: str = "TooLongError") -> None:
    """Puts rows that are done into quarantine, as a worker does."""
    bench.sql(
        "INSERT INTO pgvec.failures (vectorizer_id, key, source_hash, error_class, message, model)"
        " SELECT v.id, ARRAY[lpad(i::text, 4, '0')], '\\x00', %s, 'document ' || i || ' is too long', v.model"
        " FROM pgvec.vectorizers v, generate_series(1, %s) i WHERE v.name = %s ON CONFLICT DO NOTHING",
        error_class,
        documents,
        name,
    )


def test_the_list_is_what_status_says(bench: Bench, served: Served) -> None:
    assert served.get(f"{API}/vectorizers").json() == {"vectorizers": []}
    fill(bench, 300)
    fill(bench, 20, "other")
    bench.enqueue("docs", "body", rows_per_job=100)
    bench.drain()
    bench.enqueue("other", "body")
    listed = served.get(f"{API}/vectorizers").json()["vectorizers"]
    assert [one["name"] for one in listed] == ["docs", "other"]
    said = bench.progress("docs").as_json()
    # What depends on the moment.
    assert {**listed[0], "rows_per_second_15m": 0} == {**said, "rows_per_second_15m": 0}
    assert (listed[0]["state"], listed[0]["rows_done"], listed[0]["jobs"]["done"]) == ("complete", 300, 4)
    assert served.get(f"{API}/vectorizers/docs").json()["chunks"] == said["chunks"] == 300
    assert listed[1]["reason"] == "no worker is running"


@pytest.mark.parametrize("name", ["none", "no%2Fsuch", "%00", "ab%00cd", "%F0%9F%92%A9", "%FF", "a" * 2000, "';--"])
def test_an_unknown_name_is_a_problem_404(served: Served, name: str) -> None:
    for answer in (
        served.get(f"{API}/vectorizers/{name}"),
        served.get(f"{API}/vectorizers/{name}/failures"),
        *(served.post(f"{API}/vectorizers/{name}/{action}") for action in ("pause", "resume", "retry")),
    ):
        assert answer.status_code == 404, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert "no vectorizer is called" in answer.json()["detail"]


@pytest.mark.parametrize("name", ["a/b c", "<img src=x onerror=alert(1)>", "100% \u202e?#&", "été 🦑"])
def test_any_name_can_be_steered(bench: Bench, served: Served, name: str) -> None:
    fill(bench, 10)
    bench.enqueue("docs", "body", name=name)
    place = f"{API}/vectorizers/{quote(name, safe='')}"
    assert served.get(place).json()["name"] == name
    assert served.post(f"{place}/pause").json()["state"] == "paused"
    assert served.post(f"{place}/pause").json()["state"] == "paused"
    assert bench.progress(name).state == "paused"
    assert served.post(f"{place}/resume").json()["state"] == "active"
    events = bench.sql("SELECT kind FROM pgvec.events ORDER BY id")
    assert [kind for (kind,) in events] == ["paused", "resumed"]


def test_documents_in_quarantine_are_told_page_by_page(bench: Bench, served: Served) -> None:
    fill(bench, 50)
    bench.enqueue("docs", "body")
    bench.drain()
    quarantine(bench, "docs", 25)
    quarantine(bench, "docs", 30, "UnicodeError")
    place = f"{API}/vectorizers/docs/failures"
    seen, cursor = [], None
    for expected in (12, 12, 6):
        page = served.get(place, params={"limit": 12, **({"cursor": cursor} if cursor else {})}).json()
        assert len(page["failures"]) == expected
        seen.extend(page["failures"])
        cursor = page["next_cursor"]
    assert cursor is None
    assert [one["key"] for one in seen] == [[f"{i:04}"] for i in range(1, 31)]
    assert seen[0]["error_class"] == "TooLongError"
    assert seen[0]["message"] == "document 1 is too long"
    assert abs(seen[0]["last_at"] - bench.value("SELECT extract(epoch FROM clock_timestamp())::float8")) < 60
    only = served.get(place, params={"error_class": "UnicodeError"}).json()
    assert (len(only["failures"]), only["next_cursor"]) == (5, None)
    assert served.get(place, params={"limit": 30}).json()["next_cursor"] is None


@pytest.mark.parametrize(
    "cursor", ["x", "!!!", "bnVsbA", "W10", "WyJcdTAwMDAiXQ", "WyJcdWQ4MDAiXQ", "W1siYSJdXQ", "W" * 9000]
)
def test_a_cursor_that_is_none_of_ours_is_refused(bench: Bench, served: Served, cursor: str) -> None:
    fill(bench, 5)
    bench.enqueue("docs", "body")
    answer = served.get(f"{API}/vectorizers/docs/failures", params={"cursor": cursor})
    assert answer.status_code == 422, answer.text


@pytest.mark.parametrize("limit", ["0", "501", "-1", "many"])
def test_a_page_has_a_bound(bench: Bench, served: Served, limit: str) -> None:
    fill(bench, 5)
    bench.enqueue("docs", "body")
    assert served.get(f"{API}/vectorizers/docs/failures", params={"limit": limit}).status_code == 422


def test_documents_are_tried_again_by_class_or_all(bench: Bench, served: Served) -> None:
    fill(bench, 50)
    bench.enqueue("docs", "body")
    bench.drain()
    quarantine(bench, "docs", 3)
    quarantine(bench, "docs", 10, "UnicodeError")
    place = f"{API}/vectorizers/docs/retry"
    assert served.post(place, {"error_class": "NoSuch"}).json() == {"documents": 0}
    assert served.post(place, {"error_class": "TooLongError"}).json() == {"documents": 3}
    assert bench.progress("docs").rows_failed == 7
    assert served.post(place).json() == {"documents": 7}
    assert bench.progress("docs").rows_failed == 0
    assert served.post(place, {"error_class": None}).json() == {"documents": 0}
    assert served.post(place, {"class": "x"}).status_code == 422
    assert served.post(place, {"error_class": "\0"}).status_code in (400, 422)


def test_a_row_that_somebody_has_locked_is_told(bench: Bench, served: Served) -> None:
    fill(bench, 5)
    bench.enqueue("docs", "body")
    with bench.connection.transaction():
        bench.sql("SELECT FROM pgvec.vectorizers FOR UPDATE")
        answer = served.post(f"{API}/vectorizers/docs/pause")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert bench.progress("docs").state == "active"


# Making one


def test_a_vectorizer_is_made_planned_and_worked_off(bench: Bench, served: Served) -> None:
    fill(bench, 500)
    answer = served.post(
        f"{API}/vectorizers", {"source": "docs", "text": ["body"], "model": "hashing-8", "rows_per_job": 50}
    )
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert (made["name"], made["new"], made["destination"]) == ("docs", True, "public.docs_vectors")
    assert made["dimensions"] == 8
    wait_until(lambda: bench.progress("docs").plan_complete, what="the plan")
    assert bench.progress("docs").rows_total == 500
    bench.drain()
    assert bench.wrong(vectorizer.get(bench.connection, "docs")) == {"missing": 0, "orphaned": 0, "stale": 0}
    assert served.get(f"{API}/vectorizers/docs").json()["state"] == "complete"


def test_asking_again_brings_it_up_to_date_and_another_definition_is_a_conflict(bench: Bench, served: Served) -> None:
    fill(bench, 50)
    wanted = {"source": "docs", "text": ["body"], "model": "hashing-8"}
    assert served.post(f"{API}/vectorizers", wanted).status_code == 201
    wait_until(lambda: bench.progress("docs").plan_complete, what="the plan")
    bench.drain()
    bench.sql("INSERT INTO docs VALUES (51, 'one more')")
    answer = served.post(f"{API}/vectorizers", wanted)
    assert (answer.status_code, answer.json()["new"]) == (200, False)
    wait_until(lambda: bench.progress("docs").plan_complete and bench.progress("docs").state == "active", what="a plan")
    bench.drain()
    assert bench.value("SELECT count(*) FROM docs_vectors") == 51
    answer = served.post(f"{API}/vectorizers", {**wanted, "model": "hashing-16"})
    assert answer.status_code == 409
    assert "--model was hashing-8" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"source": "none"}, "none"),
        ({"text": ["nobody"]}, "nobody"),
        ({"key": ["nobody"]}, "nobody"),
        ({"chunk_size": 2, "chunk_overlap": 2}, "overlap"),
        ({"no_chunking": True, "chunk_size": 5}, "exclude"),
        ({"too_long": "truncate"}, "no_chunking"),
        ({"model": "hashing-9"}, "hashing-9"),
        ({"model": "https://evil.example/model"}, "does not serve"),
        ({"source": "pgvec.api_tokens", "text": ["name"]}, "not for vectorizers"),
        ({"source": '"pgvec".api_tokens', "text": ["name"]}, "not for vectorizers"),
        ({"source": "PG_CATALOG.pg_class", "text": ["relname"]}, "not for vectorizers"),
        ({"into": "pgvec.jobs"}, "not for vectorizers"),
        ({"name": "two\nlines"}, None),
        ({"text": []}, None),
        ({"where": "pg_sleep(10) IS NULL"}, None),
        ({"endpoint": "http://169.254.169.254/"}, None),
        ({"trust_remote_code": True}, None),
        ({"rows_per_job": 0}, None),
        ({"priority": 10**9}, None),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_made(
    bench: Bench, served: Served, changed: dict[str, object], told: str | None
) -> None:
    fill(bench, 5)
    answer = served.post(f"{API}/vectorizers", {"source": "docs", "text": ["body"], "model": "hashing-8", **changed})
    assert answer.status_code == 422, answer.text
    if told is not None:
        assert told in answer.json()["detail"]
    assert bench.value("SELECT count(*) FROM pgvec.vectorizers") == 0


def test_what_takes_longer_than_a_request_is_accepted_and_goes_on(bench: Bench) -> None:
    fill(bench, 5)
    with serving(bench.dsn, Limits(models=("hashing-8",), request_seconds=1.0)) as served:
        wanted = {"source": "docs", "text": ["body"], "model": "hashing-8"}
        with bench.connection.transaction():
            bench.sql("LOCK TABLE pgvec.vectorizers IN SHARE ROW EXCLUSIVE MODE")
            answer = served.post(f"{API}/vectorizers", wanted)
            assert answer.status_code == 202, answer.text
            assert answer.json()["source"] == "docs"
        wait_until(lambda: served.get(f"{API}/vectorizers").json()["vectorizers"], what="the vectorizer")


def test_no_more_than_a_few_are_made_at_a_time(bench: Bench) -> None:
    for name in ("a", "b", "c"):
        fill(bench, 5, name)
    with serving(bench.dsn, Limits(models=("hashing-8",), request_seconds=0.5)) as served:
        with bench.connection.transaction():
            bench.sql("LOCK TABLE pgvec.vectorizers IN SHARE ROW EXCLUSIVE MODE")
            codes = [
                served.post(f"{API}/vectorizers", {"source": name, "text": ["body"], "model": "hashing-8"}).status_code
                for name in ("a", "b", "c")
            ]
        assert codes == [202, 202, 503]
        wait_until(lambda: len(served.get(f"{API}/vectorizers").json()["vectorizers"]) == 2, what="both vectorizers")


def test_a_plan_ends_with_its_gateway_and_goes_on_later(bench: Bench) -> None:
    fill(bench, 20_000)
    wanted = {"source": "docs", "text": ["body"], "model": "hashing-8", "rows_per_job": 1}
    with serving(bench.dsn, LIMITS) as served:
        assert served.post(f"{API}/vectorizers", wanted).status_code == 201
    planned = bench.value("SELECT count(*) FROM pgvec.jobs WHERE kind <> 'index'")
    assert planned < 20_000
    assert not bench.progress("docs").plan_complete
    with serving(bench.dsn, LIMITS) as served:
        assert served.post(f"{API}/vectorizers", wanted).status_code == 200
        wait_until(lambda: bench.progress("docs").plan_complete, 60, what="the plan")
    assert bench.value("SELECT count(*) FROM pgvec.jobs WHERE kind <> 'index'") == 20_001


# Workers


def test_workers_are_listed(bench: Bench, served: Served) -> None:
    assert served.get(f"{API}/workers").json() == {"workers": []}
    member = bench.register()
    bench.sql("UPDATE pgvec.workers SET busy = 0.5, device = 'cpu', models = '{hashing-8}'")
    (one,) = served.get(f"{API}/workers").json()["workers"]
    assert (one["worker_id"], one["state"], one["busy"], one["models"]) == (
        member.worker,
        "starting",
        0.5,
        ["hashing-8"],
    )
    assert 0 <= one["since_beat_seconds"] < 60
    assert abs(one["started_at"] - bench.value("SELECT extract(epoch FROM clock_timestamp())::float8")) < 60
