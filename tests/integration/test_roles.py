"""Roles: each command under each of them, what they cannot do past the commands, and databases without any."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgvec_queue import access, embedded, resources, roles, schema, uninstall, vectorizer, verify
from pgvec_queue.dashboard import snapshot
from pgvec_queue.database import Database
from pgvec_queue.errors import DefinitionError, PgvecError
from pgvec_queue.gateway.auth import Access
from pgvec_queue.metrics import QueueCollector
from tests import roles as table
from tests.commandline import CommandLine
from tests.gateway import serving as gateways
from tests.gateway.server import API, accepted, ended, serving, vectors
from tests.oracle import assert_right
from tests.support import Bench
from tests.waiting import wait_until

pytestmark = pytest.mark.xdist_group("roles")

DOCS = (
    "CREATE TABLE app.docs (id int PRIMARY KEY, body text, title text, secret text, shown boolean DEFAULT true);"
    "INSERT INTO app.docs SELECT i, 'text ' || i, 'title', 'secret' FROM generate_series(1, 20) i;"
    "CREATE TABLE app.others (id int PRIMARY KEY, body text); INSERT INTO app.others VALUES (1, 'other');"
)
ENQUEUE = ("enqueue", "app.docs", "--name", "docs", "--text", "body", "--where", "shown", "--sync", "--no-chunking")


@pytest.fixture(scope="module")
def cluster(reachable: Path) -> Iterator[embedded.Server]:
    """A server of its own, since roles are the whole server's."""
    server = embedded.Server(reachable / "roles", settings={"fsync": "off"})
    with server.used():
        yield server


@pytest.fixture(scope="module")
def template(cluster: embedded.Server) -> str:
    """A database with roles, one login of each, a source that the enqueuer owns, and its vectors."""
    dsn = cluster.uri(user="postgres", database="pgvec")
    with psycopg.connect(dsn, autocommit=True) as connection:
        schema.initialize(Database(dsn))
        done = roles.set_up(Database(dsn))
        assert (tuple(done.made), done.missing, done.left) == (roles.ROLES, [], [])
        for login in table.LOGINS:
            connection.execute(f"CREATE ROLE {login} LOGIN; GRANT pgvec_{login} TO {login}".encode())
        connection.execute(b"CREATE SCHEMA app AUTHORIZATION enqueuer; SET SESSION AUTHORIZATION enqueuer")
        connection.execute(DOCS.encode())
        connection.execute(b"RESET SESSION AUTHORIZATION")
    bench = Bench(cluster.uri(user="enqueuer", database="pgvec"))
    bench.enqueue("app.docs", "body", name="docs", where="shown", sync=True)
    bench.close()
    worker = Bench(cluster.uri(user="worker", database="pgvec"))
    worker.drain(listen=False)
    worker.close()
    return "pgvec"


@contextmanager
def _database(cluster: embedded.Server, template: str) -> Iterator[Callable[[str], str]]:
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(cluster.uri(user="postgres", database="postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}".encode())
        try:
            yield lambda user: cluster.uri(user=user, database=name)
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture
def dsn(cluster: embedded.Server, template: str) -> Iterator[Callable[[str], str]]:
    """The DSN of a fresh copy of the template, by the name of who logs in."""
    with _database(cluster, template) as found:
        yield found


@pytest.fixture
def empty(cluster: embedded.Server, template: str) -> Iterator[Callable[[str], str]]:
    """The same for a database that has the extension and nothing else."""
    with _database(cluster, "template0") as found:
        with psycopg.connect(found("postgres"), autocommit=True) as connection:
            connection.execute(b"CREATE EXTENSION vector")
        yield found


@pytest.fixture
def bench(dsn: Callable[[str], str]) -> Iterator[Callable[[str], Bench]]:
    """A bench for whoever logs in, closed with the test."""
    with ExitStack() as stack:

        def opened(user: str) -> Bench:
            return stack.enter_context(closing(Bench(dsn(user))))

        yield opened


# Every command


def _look(dsn: str) -> None:
    with closing(Bench(dsn)) as bench:
        assert "docs" in [one.name for one in snapshot.read(bench.connection, "docs").vectorizers]


def _scrape(dsn: str) -> None:
    with closing(QueueCollector(Database(dsn))) as collector:
        up = [metric for metric in collector.collect() if metric.name == "pgvec_up"]
    assert [sample.value for metric in up for sample in metric.samples] == [1]


def _serve(dsn: str) -> None:
    with gateways.serving(dsn, access=Access(allow_unauthenticated=True)) as served:
        assert served.get(f"{API}/collections").status_code == 200


_LASTING = {"dashboard": _look, "exporter": _scrape, "serve": _serve}


@pytest.mark.parametrize("login", table.LOGINS)
def test_each_command_does_under_each_role_what_the_table_says(
    login: str, dsn: Callable[[str], str], cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(dsn("postgres"), autocommit=True) as connection:
        connection.execute(
            b"INSERT INTO pgvec.api_tokens (name, role, digest) VALUES ('known', 'read', decode('00', 'hex'))"
        )
    wrong: list[tuple[object, ...]] = []
    for verb in table.VERBS:
        if verb.before:
            monkeypatch.setenv("PGVEC_DSN", dsn("enqueuer"))
            cli(*verb.before)
        monkeypatch.setenv("PGVEC_DSN", dsn(login))
        words = verb.refused.get(login)
        if verb.shown in _LASTING and words is None:
            _LASTING[verb.shown](dsn(login))
            continue
        ran = cli(*verb.arguments)
        if words is None and verb.code == -1:
            found = [json.loads(line) for line in ran.out.splitlines()]
            assert found
        elif words is None and ran.code != verb.code:
            wrong.append((verb.shown, "has to be allowed", ran.err))
        elif words is not None and (ran.code != 1 or words not in ran.err):
            wrong.append((verb.shown, "has to be refused", ran.code, ran.err))
        elif words is not None:
            assert ran.err.splitlines()[-1].startswith("pgvec: "), ran.err
            assert "Traceback" not in ran.err
    assert wrong == [], "\n".join(map(str, wrong))


def test_the_page_shows_the_table() -> None:
    text = table.PAGE.read_text("utf-8")
    shown = text.partition(table.BEGIN)[2].partition(table.END)[0]
    assert shown.strip() == table.table().strip(), (
        "run: python -m tests.roles, and put what it prints into docs/roles.md"
    )


def test_every_command_has_a_role_and_every_role_a_command() -> None:
    from pgvec_queue.cli import _COMMANDS

    # These need no schema.
    assert set(_COMMANDS) - set(roles.COMMANDS) == {"db", "bench", "demo", "service"}
    assert set(roles.COMMANDS.values()) == set(roles.ROLES)


# What stands behind the commands


def _may(bench: Bench, *statements: str) -> list[str]:
    """The statements that are not refused for want of a right."""
    allowed = []
    for statement in statements:
        try:
            with bench.connection.transaction(force_rollback=True):
                bench.sql(statement)
            allowed.append(statement)
        except psycopg.errors.InsufficientPrivilege:
            pass
    return allowed


def test_a_worker_changes_no_table_reads_no_other_and_steers_no_vectorizer(bench: Callable[[str], Bench]) -> None:
    worker = bench("worker")
    assert (
        _may(
            worker,
            "ALTER TABLE app.docs ADD COLUMN more int",
            "ALTER TABLE app.docs_vectors ADD COLUMN more int",
            "TRUNCATE app.docs_vectors",
            "UPDATE app.docs_vectors SET chunk = ''",
            "UPDATE app.docs SET body = ''",
            "DELETE FROM app.docs",
            "SELECT secret FROM app.docs",
            "SELECT title FROM app.docs",
            "SELECT * FROM app.others",
            "CREATE TABLE app.mine ()",
            "CREATE TABLE pgvec.mine ()",
            "CREATE FUNCTION pgvec.source_hash(varchar) RETURNS bytea LANGUAGE sql AS 'SELECT NULL::bytea'",
            "CREATE FUNCTION pgvec_sync.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "INSERT INTO pgvec.vectorizers OVERRIDING SYSTEM VALUE SELECT * FROM pgvec.vectorizers",
            "DELETE FROM pgvec.vectorizers",
            "UPDATE pgvec.vectorizers SET paused = true",
            "UPDATE pgvec.vectorizers SET filter = 'true'",
            "UPDATE pgvec.vectorizers SET endpoint = 'http://elsewhere'",
            "SELECT * FROM pgvec.api_tokens",
            "SELECT * FROM pgvec.task_texts",
            "SELECT pgvec.pause('docs')",
            "SELECT pgvec.drop_vectorizer('docs')",
            "SELECT pgvec.switch_model('docs')",
        )
        == []
    )
    assert len(_may(worker, "SELECT id, body, shown, xmin FROM app.docs", "DELETE FROM app.docs_vectors")) == 2


def test_a_reader_changes_nothing_and_reads_no_source(bench: Callable[[str], Bench]) -> None:
    reader = bench("reader")
    names = [name for kind, name in schema.names() if kind == "table"]
    changing = [f"{verb} pgvec.{name}" for name in names for verb in ("DELETE FROM", "TRUNCATE")]
    assert _may(reader, *changing) == []
    assert (
        _may(
            reader,
            "SELECT body FROM app.docs",
            "DELETE FROM app.docs_vectors",
            "SELECT digest FROM pgvec.api_tokens",
            "SELECT * FROM pgvec.tasks",
            "SELECT pgvec.stop_workers()",
            "SELECT pgvec.retry('docs')",
            "CREATE TABLE pgvec.mine ()",
        )
        == []
    )
    assert reader.value("SELECT count(*) FROM app.docs_vectors") == 20


def test_an_enqueuer_sees_no_tokens_and_makes_nothing_that_others_call(bench: Callable[[str], Bench]) -> None:
    assert (
        _may(
            bench("enqueuer"),
            "SELECT * FROM pgvec.api_tokens",
            "INSERT INTO pgvec.api_tokens (name, role, digest) VALUES ('mine', 'admin', '')",
            "SELECT * FROM pgvec.task_texts",
            "DELETE FROM pgvec.tasks",
            "INSERT INTO pgvec.workers (host, pid, version, lease) VALUES ('a', 1, '0', '30 s')",
            # An overload of what every worker calls.
            "CREATE FUNCTION pgvec.source_hash(varchar) RETURNS bytea LANGUAGE sql AS 'SELECT NULL::bytea'",
            "CREATE OR REPLACE VIEW pgvec.progress AS SELECT 1",
            "ALTER TABLE pgvec.jobs ADD COLUMN mine int",
        )
        == []
    )


def test_an_enqueuer_changes_no_definition_of_anothers(bench: Callable[[str], Bench]) -> None:
    """Its filter would run with the rights of whoever enqueues, verifies or works; steering is free."""
    other, owner = bench("gateway"), bench("enqueuer")
    copied = (
        "INSERT INTO pgvec.vectorizers SELECT (r).* FROM (SELECT jsonb_populate_record(v, jsonb_build_object("
        "'id', 99, 'name', 'copy', 'maker', 'enqueuer')) AS r FROM pgvec.vectorizers v) c"
    ).replace("INSERT INTO pgvec.vectorizers SELECT", "INSERT INTO pgvec.vectorizers OVERRIDING SYSTEM VALUE SELECT")
    assert (
        _may(
            other,
            "UPDATE pgvec.vectorizers SET filter = 'true'",
            "UPDATE pgvec.vectorizers SET text_columns = '{body,secret}'",
            "UPDATE pgvec.vectorizers SET destination_schema = 'theirs'",
            "UPDATE pgvec.vectorizers SET endpoint = 'http://elsewhere'",
            "UPDATE pgvec.vectorizers SET maker = 'gateway'",
        )
        == []
    )
    assert owner.value("SELECT maker FROM pgvec.vectorizers WHERE name = 'docs'") == "enqueuer"
    assert len(_may(other, "UPDATE pgvec.vectorizers SET paused = true", "SELECT pgvec.pause('docs')")) == 2
    assert len(_may(owner, "UPDATE pgvec.vectorizers SET filter = 'true'")) == 1
    other.sql(copied)
    assert owner.value("SELECT maker FROM pgvec.vectorizers WHERE name = 'copy'") == "gateway"
    # What its maker may not read, nobody gives to workers by enqueueing it.
    other.sql("UPDATE pgvec.vectorizers SET text_columns = '{body,secret}' WHERE name = 'copy'")
    [remark] = access.share(owner.connection, vectorizer.get(owner.connection, "copy"))
    assert remark.startswith("gateway, who made copy, may not do so either, so it was not granted")
    assert _may(bench("worker"), "SELECT secret FROM app.docs") == []


def test_users_of_a_source_need_no_rights_on_the_schema(bench: Callable[[str], Bench]) -> None:
    """Their changes are queued by the trigger's owner; nobody else may make a trigger of its function."""
    admin, owner = bench("postgres"), bench("enqueuer")
    admin.sql("CREATE ROLE app_user LOGIN")
    try:
        owner.sql("GRANT USAGE ON SCHEMA app TO app_user; GRANT SELECT, INSERT, UPDATE, DELETE ON app.docs TO app_user")
        user = bench("app_user")
        user.sql("INSERT INTO app.docs (id, body) VALUES (21, 'new')")
        assert owner.value("SELECT keys FROM pgvec.jobs WHERE kind = 'keys'") == [["21"]]
        assert _may(user, "SELECT * FROM pgvec.progress", "SELECT pgvec_sync.sync_1()") == []
        admin.sql("GRANT USAGE ON SCHEMA pgvec_sync TO app_user; CREATE SCHEMA mine AUTHORIZATION app_user")
        user.sql("CREATE TABLE mine.docs (id int, body text, shown boolean)")
        trap = (
            "CREATE TRIGGER trap AFTER INSERT ON mine.docs REFERENCING NEW TABLE AS pgvec_new"
            " FOR EACH STATEMENT EXECUTE FUNCTION pgvec_sync.sync_1()"
        )
        assert _may(user, trap) == []
    finally:
        admin.sql("DROP OWNED BY app_user CASCADE; DROP ROLE app_user")


def test_a_trigger_function_that_somebody_else_made_first_is_not_taken(bench: Callable[[str], Bench]) -> None:
    """Its owner could replace the body, which then runs as whoever writes the source."""
    admin, gateway = bench("postgres"), bench("gateway")
    following = 1 + admin.value("SELECT max(id) FROM pgvec.vectorizers")
    gateway.sql(
        f"CREATE FUNCTION pgvec_sync.sync_{following}() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
    )
    refusal = f"function pgvec_sync.sync_{following} is there already and belongs to gateway"
    with pytest.raises(DefinitionError, match=refusal):
        admin.define("app.others", "body", name="others", sync=True)
    assert admin.value("SELECT count(*) FROM pg_trigger WHERE tgrelid = 'app.others'::regclass") == 0


def test_nobody_is_public(bench: Callable[[str], Bench]) -> None:
    """Without a role nothing of ours can be seen, and no function that changes anything be called."""
    admin = bench("postgres")
    assert (
        admin.sql(
            "SELECT r FROM pg_namespace n, aclexplode(n.nspacl) a, LATERAL (SELECT a.grantee) g(r)"
            " WHERE n.nspname IN ('pgvec', 'pgvec_sync', 'pgvec_collections') AND a.grantee = 0"
        )
        == []
    )
    changing = admin.sql(
        "SELECT p.proname FROM pg_proc p WHERE p.pronamespace IN ('pgvec'::regnamespace, 'pgvec_sync'::regnamespace)"
        " AND has_function_privilege('public', p.oid, 'EXECUTE') AND (p.provolatile = 'v' OR p.prosecdef)"
    )
    assert changing == []


def test_every_table_of_ours_is_thought_of() -> None:
    granted = "\n".join(text for name, text in resources.statements("roles").items() if name in roles.ROLES)
    # Those that only the owner sees need no grant.
    assert {
        name for kind, name in schema.names() if kind in ("table", "view") and f"pgvec.{name}" not in granted
    } == set()


# What is new


def test_an_upgrade_grants_what_it_makes_anew(bench: Callable[[str], Bench], dsn: Callable[[str], str]) -> None:
    """By a member of the owner's role, who may not create in the database; whose it is stays."""
    admin = bench("postgres")
    admin.sql("DROP VIEW pgvec.progress; REVOKE ALL ON pgvec.indexes FROM pgvec_worker; DROP FUNCTION pgvec.pause")
    assert schema.initialize(Database(dsn("owner"))) == schema.HEAD
    assert bench("reader").value("SELECT name FROM pgvec.progress") == "docs"
    assert bench("worker").value("SELECT count(*) FROM pgvec.indexes") >= 0
    assert _may(bench("worker"), "SELECT pgvec.pause('docs')") == []
    owners = admin.sql(
        "SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relnamespace = 'pgvec'::regnamespace"
        " UNION SELECT proowner::regrole::text FROM pg_proc WHERE pronamespace = 'pgvec'::regnamespace"
    )
    assert owners == [("pgvec_owner",)]


def test_roles_work_where_functions_are_not_everybodys_by_default(empty: Callable[[str], str]) -> None:
    with closing(Bench(empty("postgres"))) as admin:
        admin.sql("ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC")
        schema.initialize(Database(empty("postgres")))
        roles.set_up(Database(empty("postgres")))
        admin.sql("CREATE SCHEMA app AUTHORIZATION enqueuer; SET SESSION AUTHORIZATION enqueuer")
        admin.sql(DOCS)
        with closing(Bench(empty("enqueuer"))) as owner, closing(Bench(empty("worker"))) as worker:
            made = owner.enqueue("app.docs", "body", name="docs", sync=True)
            owner.sql("UPDATE app.docs SET body = 'changed' WHERE id = 3")
            worker.drain(listen=False)
            assert_right(owner, made)
            assert _may(worker, "SELECT pgvec.pause('docs')", "SELECT pgvec.drop_vectorizer('docs')") == []


def test_grants_at_the_same_time_do_not_fail_each_other(
    bench: Callable[[str], Bench], dsn: Callable[[str], str]
) -> None:
    """PostgreSQL has no lock for them: it says that a tuple was concurrently updated."""
    admin, owner = bench("postgres"), bench("enqueuer")
    owner.sql("REVOKE USAGE ON SCHEMA app FROM pgvec_worker, pgvec_reader")
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with psycopg.connect(dsn("enqueuer")) as other, ThreadPoolExecutor(1) as pool:
        other.execute("GRANT USAGE ON SCHEMA app TO pgvec_gateway")
        granting = pool.submit(owner.enqueue, "app.docs", name="docs")
        wait_until(lambda: admin.value(waiting) > 0)
        other.commit()
        granting.result(30)
    assert admin.value("SELECT has_schema_privilege('pgvec_worker', 'app', 'USAGE')")


def test_another_database_of_the_server_gives_no_role_anything_unasked(empty: Callable[[str], str]) -> None:
    schema.initialize(Database(empty("postgres")))
    with psycopg.connect(empty("postgres"), autocommit=True) as connection:
        assert roles.present(connection) == []
        assert connection.execute("SELECT has_schema_privilege('pgvec_worker', 'pgvec', 'USAGE')").fetchone() == (
            False,
        )


def test_a_second_enqueue_grants_what_was_lost(bench: Callable[[str], Bench]) -> None:
    owner = bench("enqueuer")
    owner.sql(
        "REVOKE ALL ON app.docs_vectors FROM pgvec_worker, pgvec_reader; REVOKE SELECT ON app.docs FROM pgvec_worker"
    )
    owner.enqueue("app.docs", name="docs")
    owner.sql("UPDATE app.docs SET body = 'changed' WHERE id = 3")
    bench("worker").drain(listen=False)
    assert_right(owner, vectorizer.get(owner.connection, "docs"))
    assert bench("reader").value("SELECT count(*) FROM app.docs_vectors") == 20


def test_what_the_enqueuer_may_not_grant_is_left_to_the_owner_in_one_line(bench: Callable[[str], Bench]) -> None:
    admin = bench("postgres")
    admin.sql("CREATE SCHEMA theirs; CREATE TABLE theirs.texts (id int PRIMARY KEY, t text, k text)")
    admin.sql("INSERT INTO theirs.texts VALUES (1, 'one', 'a'); CREATE TABLE theirs.kinds (k text)")
    admin.sql("INSERT INTO theirs.kinds VALUES ('a')")
    admin.sql("GRANT USAGE ON SCHEMA theirs TO enqueuer; GRANT SELECT ON theirs.texts, theirs.kinds TO enqueuer")
    enqueuer, worker = bench("enqueuer"), bench("worker")
    where = "s.k IN (SELECT k FROM theirs.kinds)"
    defined = enqueuer.define("theirs.texts", "t", where=where, into="app.of_texts", name="theirs")
    [remark] = defined.remarks
    left = remark.partition("has to run: ")[2].split("; ")
    assert left == [
        'GRANT USAGE ON SCHEMA "theirs" TO "pgvec_worker"',
        'GRANT SELECT ("id", "k", "t", "xmin") ON "theirs"."texts" TO "pgvec_worker"',
        'GRANT USAGE ON SCHEMA "theirs" TO "pgvec_worker"',
        'GRANT SELECT ("k") ON "theirs"."kinds" TO "pgvec_worker"',
    ]
    enqueuer.plan(defined.vectorizer)
    worker.drain(listen=False)
    assert "permission denied for schema theirs" in (enqueuer.progress("theirs").reason or "")
    for statement in left:
        admin.sql(statement)
    enqueuer.sql("SELECT pgvec.resume('theirs')")
    worker.drain(listen=False)
    assert enqueuer.sql("SELECT id, chunk FROM app.of_texts") == [(1, "one")]
    assert access.share(enqueuer.connection, defined.vectorizer) == []


def test_where_nobody_can_tell_what_a_filter_reads_no_more_is_granted(bench: Callable[[str], Bench]) -> None:
    admin, owner = bench("postgres"), bench("enqueuer")
    owner.sql("CREATE TABLE app.more (id int PRIMARY KEY, body text, kind text, secret text)")
    admin.sql(f"REVOKE TEMPORARY ON DATABASE {admin.connection.info.dbname} FROM PUBLIC")
    [remark] = owner.define("app.more", "body", name="more", where="kind = 'a'").remarks
    assert remark.startswith("what the filter reads cannot be told")
    worker = bench("worker")
    assert _may(worker, "SELECT secret FROM app.more", "SELECT kind FROM app.more") == []
    assert len(_may(worker, "SELECT id, body, xmin FROM app.more")) == 1


# Row-level security


def _hidden(admin: Bench, policy: str) -> None:
    admin.sql("ALTER TABLE app.docs ENABLE ROW LEVEL SECURITY")
    admin.sql(policy)


def test_a_worker_that_does_not_see_all_rows_deletes_nothing(bench: Callable[[str], Bench]) -> None:
    """What a policy hides would look as if it were gone."""
    admin, owner, worker = bench("postgres"), bench("enqueuer"), bench("worker")
    _hidden(admin, "CREATE POLICY part ON app.docs USING (id > 10)")
    owner.enqueue("app.docs", name="docs")
    worker.drain(listen=False)
    told = owner.progress("docs")
    assert told.state == "blocked"
    assert "row-level security may hide rows of app.docs from the role worker" in (told.reason or "")
    assert owner.value("SELECT count(*) FROM app.docs_vectors") == 20
    # A restrictive policy hides as well, whatever the others show.
    admin.sql("ALTER POLICY part ON app.docs USING (true)")
    admin.sql("CREATE POLICY less ON app.docs AS RESTRICTIVE TO pgvec_worker USING (id < 10)")
    owner.sql("SELECT pgvec.resume('docs')")
    worker.drain(listen=False)
    assert owner.progress("docs").state == "blocked"
    assert owner.value("SELECT count(*) FROM app.docs_vectors") == 20


@pytest.mark.parametrize("protected", [False, True], ids=["plain", "protected source"])
def test_rows_hidden_in_a_table_that_the_filter_reads_cost_no_vector(
    protected: bool, bench: Callable[[str], Bench]
) -> None:
    owner, worker = bench("enqueuer"), bench("worker")
    if protected:
        owner.sql("ALTER TABLE app.docs ENABLE ROW LEVEL SECURITY")
        owner.sql("CREATE POLICY workers ON app.docs FOR SELECT TO pgvec_worker USING (true)")
    owner.sql("CREATE TABLE app.kinds AS SELECT id FROM app.docs")
    owner.enqueue("app.docs", "body", name="kinds", into="app.of_kinds", where="s.id IN (SELECT id FROM app.kinds)")
    worker.drain(listen=False)
    assert owner.value("SELECT count(*) FROM app.of_kinds") == 20
    owner.sql("ALTER TABLE app.kinds ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON app.kinds USING (id > 15)")
    owner.enqueue("app.docs", name="kinds")
    worker.drain(listen=False)
    told = owner.progress("kinds")
    assert 'affected by row-level security policy for table "kinds"' in (told.reason or "")
    assert owner.value("SELECT count(*) FROM app.of_kinds") == 20
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match='for table "kinds"'):
        verify.verify(worker.connection, worker.fragments(vectorizer.get(worker.connection, "kinds")))


@pytest.mark.parametrize(
    "way",
    [
        "CREATE POLICY workers ON app.docs FOR SELECT TO pgvec_worker USING (true)",
        "ALTER ROLE worker BYPASSRLS",
        "GRANT enqueuer TO worker",
    ],
)
def test_a_worker_that_sees_all_rows_works_under_row_level_security(way: str, bench: Callable[[str], Bench]) -> None:
    admin, owner, worker = bench("postgres"), bench("enqueuer"), bench("worker")
    _hidden(admin, "CREATE POLICY part ON app.docs USING (id > 10)")
    admin.sql(way)
    try:
        owner.sql("UPDATE app.docs SET body = 'changed' WHERE id < 5; DELETE FROM app.docs WHERE id = 7")
        owner.enqueue("app.docs", name="docs")
        worker.drain(listen=False)
        assert owner.progress("docs").state == "complete"
        assert_right(owner, vectorizer.get(owner.connection, "docs"))
    finally:
        admin.sql("ALTER ROLE worker NOBYPASSRLS; REVOKE enqueuer FROM worker")


def test_a_column_destination_needs_every_row_to_be_updatable(bench: Callable[[str], Bench]) -> None:
    admin, owner, worker = bench("postgres"), bench("enqueuer"), bench("worker")
    made = owner.enqueue("app.others", "body", name="column", into_column="v")
    _hidden(admin, "ALTER TABLE app.others ENABLE ROW LEVEL SECURITY")
    admin.sql("CREATE POLICY readers ON app.others FOR SELECT TO pgvec_worker USING (true)")
    worker.drain(listen=False)
    assert "may hide rows of app.others" in (owner.progress("column").reason or "")
    admin.sql("CREATE POLICY writers ON app.others FOR UPDATE TO pgvec_worker USING (true)")
    owner.sql("SELECT pgvec.resume('column')")
    worker.drain(listen=False)
    assert_right(owner, made)


def test_what_is_hidden_in_a_destination_no_search_finds_and_no_worker_writes(bench: Callable[[str], Bench]) -> None:
    admin, owner, worker, reader = bench("postgres"), bench("enqueuer"), bench("worker"), bench("reader")
    found = (
        "SELECT array_agg(key[1]::int ORDER BY key[1]::int) FROM"
        " pgvec.search(1, (SELECT array_agg(1::real) FROM generate_series(1, 8)), max_hits => 50{})"
    )
    assert reader.value(found.format("")) == list(range(1, 21))
    admin.sql("ALTER TABLE app.docs_vectors ENABLE ROW LEVEL SECURITY")
    admin.sql("CREATE POLICY part ON app.docs_vectors TO pgvec_reader USING (id <= 3)")
    assert reader.value(found.format("")) == [1, 2, 3]
    assert reader.value(found.format(", query_text => 'text', mode => 'hybrid'")) == [1, 2, 3]
    assert reader.value(found.format(", query_text => 'text', mode => 'text'")) == [1, 2, 3]
    owner.sql("DELETE FROM app.docs WHERE id = 1")
    worker.drain(listen=False)
    assert "row-level security of app.docs_vectors applies to the role worker" in (owner.progress("docs").reason or "")
    admin.sql("ALTER ROLE worker BYPASSRLS")
    try:
        owner.sql("SELECT pgvec.resume('docs')")
        worker.drain(listen=False)
        assert reader.value(found.format("")) == [2, 3]
    finally:
        admin.sql("ALTER ROLE worker NOBYPASSRLS")


def test_readers_are_not_given_the_texts_of_a_protected_source(bench: Callable[[str], Bench]) -> None:
    owner = bench("enqueuer")
    owner.sql("ALTER TABLE app.others ENABLE ROW LEVEL SECURITY")
    [remark] = owner.define("app.others", "body").remarks
    assert remark.startswith("app.others has row-level security, app.others_vectors has not: readers were not given it")
    assert _may(bench("reader"), "SELECT * FROM app.others_vectors") == []


def test_verify_and_doctor_tell_of_hidden_rows(
    bench: Callable[[str], Bench], dsn: Callable[[str], str], cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGVEC_DSN", dsn("worker"))
    ran = cli("doctor", "--json")
    found = [json.loads(line) for line in ran.out.splitlines()]
    assert [one for one in found if one["check"] in ("rights", "tables", "sync") and one["level"] != "ok"] == []
    admin = bench("postgres")
    admin.sql("REVOKE INSERT ON pgvec.jobs FROM pgvec_worker; REVOKE SELECT (shown) ON app.docs FROM pgvec_worker")
    admin.sql("REVOKE pgvec_enqueuer FROM enqueuer")
    try:
        said = [
            (one["check"], one["message"])
            for one in map(json.loads, cli("doctor", "--json").out.splitlines())
            if one["level"] == "error" and one["check"] in ("rights", "tables", "sync")
        ]
    finally:
        admin.sql("GRANT INSERT ON pgvec.jobs TO pgvec_worker; GRANT SELECT (shown) ON app.docs TO pgvec_worker")
        admin.sql("GRANT pgvec_enqueuer TO enqueuer")
    assert said == [
        ("rights", "worker is a member of pgvec_worker, which lacks INSERT on pgvec.jobs"),
        ("tables", "worker may not run the filter of docs: permission denied for table docs"),
        ("sync", "every change of app.docs is refused: its trigger acts for enqueuer, who may not queue it"),
    ]
    _hidden(bench("postgres"), "CREATE POLICY part ON app.docs USING (id > 10)")
    assert "row-level security may hide rows of app.docs" in cli.refused("verify", "docs")
    found = [json.loads(line) for line in cli("doctor", "--json").out.splitlines()]
    [told] = [one for one in found if one["level"] == "error" and one["check"] == "tables"]
    assert told["message"] == "row-level security hides rows of app.docs from worker; a worker of that role blocks docs"


# Databases of which one is not the master


@pytest.fixture
def without_roles(cluster: embedded.Server, template: str) -> Iterator[psycopg.Connection[Any]]:
    """A superuser's connection, while the server has none of the roles under their names."""
    with psycopg.connect(cluster.uri(user="postgres", database="postgres"), autocommit=True) as connection:
        for role in roles.ROLES:
            connection.execute(f"ALTER ROLE {role} RENAME TO was_{role}".encode())
        try:
            yield connection
        finally:
            for role in roles.ROLES:
                connection.execute(f"DROP ROLE IF EXISTS {role}".encode())
                connection.execute(f"ALTER ROLE was_{role} RENAME TO {role}".encode())


@pytest.fixture
def managed(without_roles: psycopg.Connection[Any], cluster: embedded.Server) -> Iterator[Callable[[str], str]]:
    """A database as providers give it: its owner is no superuser and makes no roles, pgvector lies elsewhere, nobody
    creates in public, and the search path is empty.
    """
    name = f"managed_{uuid.uuid4().hex}"
    without_roles.execute(b"CREATE ROLE managed LOGIN NOSUPERUSER NOCREATEROLE; CREATE ROLE app_worker LOGIN")
    without_roles.execute(f"CREATE DATABASE {name} OWNER managed TEMPLATE template0".encode())
    try:
        with psycopg.connect(cluster.uri(user="postgres", database=name), autocommit=True) as connection:
            connection.execute(b"CREATE SCHEMA extensions; CREATE EXTENSION vector SCHEMA extensions")
            connection.execute(b"GRANT USAGE ON SCHEMA extensions TO managed; REVOKE ALL ON SCHEMA public FROM PUBLIC")
            connection.execute(b"CREATE SCHEMA app AUTHORIZATION managed; ALTER ROLE managed SET search_path = ''")
            connection.execute(
                b"ALTER ROLE app_worker SET search_path = ''; ALTER ROLE managed SET datestyle = 'German'"
            )
            connection.execute(b"SET SESSION AUTHORIZATION managed")
            connection.execute(DOCS.encode())
        yield lambda user: cluster.uri(user=user, database=name)
    finally:
        without_roles.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
        without_roles.execute(b"DROP ROLE app_worker; DROP ROLE managed")


def test_without_the_right_to_make_roles_what_a_dba_has_to_run_is_printed(
    managed: Callable[[str], str],
    without_roles: psycopg.Connection[Any],
    cli: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PGVEC_DSN", managed("managed"))
    first = cli("init", "--roles")
    assert first.code == 1
    assert first.out.splitlines()[1:] == [f"CREATE ROLE {role} NOLOGIN;" for role in roles.ROLES]
    assert "could not be made: have a DBA run the statements above" in first.err
    # What is there gets its rights all the same.
    without_roles.execute(b"CREATE ROLE pgvec_worker NOLOGIN; GRANT pgvec_worker TO app_worker")
    second = cli("init", "--roles")
    assert second.code == 1
    assert "Granted pgvec_worker what" in second.out
    assert "CREATE ROLE pgvec_worker" not in second.out
    with psycopg.connect(managed("postgres"), autocommit=True) as connection:
        connection.execute(b"GRANT USAGE ON SCHEMA extensions TO app_worker")
    assert cli(*ENQUEUE, "--model", "hashing-8").code == 0
    monkeypatch.setenv("PGVEC_DSN", managed("app_worker"))
    assert cli("work", "--drain", "--no-listen").code == 0
    assert cli("verify", "docs").code == 0
    monkeypatch.setenv("PGVEC_DSN", managed("managed"))
    for role in roles.ROLES:
        if role != "pgvec_worker":
            without_roles.execute(f"CREATE ROLE {role} NOLOGIN".encode())
    third = cli("init", "--roles")
    assert third.code == 0
    left = [line for line in third.out.splitlines() if line.startswith("GRANT ")]
    assert left == ["GRANT pgvec_owner TO managed;", "GRANT pgvec_enqueuer TO pgvec_gateway;"]
    assert "the schema pgvec stays yours" in third.err
    for statement in left:
        without_roles.execute(statement.encode())
    last = cli("init", "--roles")
    assert (last.code, last.err) == (0, "")
    with psycopg.connect(managed("managed"), autocommit=True) as connection:
        owner = "SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'pgvec'"
        assert connection.execute(owner).fetchone() == ("pgvec_owner",)
    assert cli("verify", "docs").code == 0
    dropped = cli("drop", "docs", "--yes")
    assert dropped.code == 0
    assert "REVOKE ALL ON app.docs FROM pgvec_worker; REVOKE ALL ON app.docs_vectors FROM pgvec_worker" in dropped.err


def test_on_the_embedded_server_the_way_of_its_superuser_is_told(
    without_roles: psycopg.Connection[Any], cluster: embedded.Server, cli: CommandLine
) -> None:
    without_roles.execute(b"CREATE DATABASE plain OWNER pgvec")
    superuser = cluster.uri(user="postgres", database="plain")
    try:
        with psycopg.connect(superuser, autocommit=True) as connection:
            connection.execute(b"CREATE EXTENSION vector; CREATE SCHEMA app AUTHORIZATION pgvec")
            connection.execute(DOCS.encode())
            connection.execute(b"ALTER TABLE app.docs OWNER TO pgvec")
        dsn = cluster.uri(database="plain")
        refused = cli("init", "--roles", "--dsn", dsn)
        assert (refused.code, "CREATE ROLE" in refused.out) == (1, False)
        assert refused.err.splitlines()[-1].endswith(f"made, run: pgvec init --roles --dsn '{superuser}'")
        assert cli(*ENQUEUE, "--model", "hashing-8", "--dsn", dsn).code == 0
        ran = cli("init", "--roles", "--dsn", superuser)
        assert ran.code == 0
        lacking = "members of pgvec_worker lack rights on the tables of docs; as their owner run: pgvec enqueue docs"
        assert lacking in ran.err
        assert cli("enqueue", "app.docs", "--name", "docs", "--dsn", dsn).code == 0
        assert lacking not in cli("init", "--roles", "--dsn", superuser).err
        assert "stays: the server's roles pgvec_enqueuer, " in cli("uninstall", "--dry-run", "--dsn", superuser).err
    finally:
        without_roles.execute(b"DROP DATABASE plain WITH (FORCE)")
        for role in roles.ROLES:
            without_roles.execute(f"DROP ROLE IF EXISTS {role}".encode())


def test_the_printed_statements_make_the_same_rights(
    managed: Callable[[str], str], bench: Callable[[str], Bench], cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGVEC_DSN", managed("managed"))
    assert cli("init").code == 0
    script = cli("init", "--roles", "--sql").out
    with closing(Bench(managed("postgres"))) as admin:
        for _ in range(2):
            admin.sql(script)
        made = _rights(admin)
    assert made == [tuple(str(value).replace("was_", "") for value in row) for row in _rights(bench("postgres"))]


def _rights(bench: Bench) -> list[tuple[str, ...]]:
    """Who owns what of ours, and who may do what there."""
    return bench.sql(
        "SELECT c.relname::text, c.relowner::regrole::text, coalesce(a.grantee::regrole::text, ''),"
        " coalesce(a.privilege_type, '')"
        " FROM pg_class c LEFT JOIN LATERAL aclexplode(c.relacl) a ON true"
        " WHERE c.relnamespace = 'pgvec'::regnamespace AND c.relkind IN ('r', 'v')"
        " AND c.relowner::regrole::text ~ 'pgvec_'"
        " UNION ALL SELECT attrelid::regclass || '.' || attname, '', a.grantee::regrole::text, a.privilege_type"
        " FROM pg_attribute, aclexplode(attacl) a WHERE attrelid::regclass::text LIKE 'pgvec.%%'"
        " UNION ALL SELECT p.proname, p.proowner::regrole::text, a.grantee::regrole::text, a.privilege_type"
        " FROM pg_proc p, aclexplode(p.proacl) a WHERE p.pronamespace = 'pgvec'::regnamespace"
        " UNION ALL SELECT n.nspname, n.nspowner::regrole::text, a.grantee::regrole::text, a.privilege_type"
        " FROM pg_namespace n, aclexplode(n.nspacl) a WHERE n.nspname LIKE 'pgvec%%'"
        " ORDER BY 1, 2, 3, 4"
    )


def test_who_may_make_roles_and_is_no_superuser_sets_everything_up(
    without_roles: psycopg.Connection[Any], cluster: embedded.Server, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a provider's administrator is: CREATEROLE, and the owner of the database."""
    without_roles.execute(b"CREATE ROLE provider LOGIN CREATEROLE")
    without_roles.execute(b"CREATE DATABASE provided OWNER provider TEMPLATE template0")
    try:
        with psycopg.connect(cluster.uri(user="postgres", database="provided"), autocommit=True) as connection:
            connection.execute(b"CREATE EXTENSION vector")
        monkeypatch.setenv("PGVEC_DSN", cluster.uri(user="provider", database="provided"))
        for _ in range(2):
            ran = cli("init", "--roles")
            assert (ran.code, ran.err) == (0, ""), ran
        with psycopg.connect(cluster.uri(user="provider", database="provided"), autocommit=True) as connection:
            owner = "SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'pgvec'"
            assert connection.execute(owner).fetchone() == ("pgvec_owner",)
    finally:
        without_roles.execute(b"DROP DATABASE provided WITH (FORCE)")
        for role in roles.ROLES:
            without_roles.execute(f"DROP ROLE IF EXISTS {role}".encode())
        without_roles.execute(b"DROP ROLE provider")


def test_what_was_synced_before_there_were_roles_goes_on(empty: Callable[[str], str]) -> None:
    """Its trigger function stays where it was, shielded; it is renewed and dropped there."""
    database = Database(empty("postgres"))
    schema.initialize(database)
    with closing(Bench(empty("postgres"))) as bench:
        bench.sql("CREATE SCHEMA app")
        bench.sql(DOCS)
        made = bench.enqueue("app.docs", "body", name="docs", sync=True)
        bench.sql(f"GRANT EXECUTE ON FUNCTION pgvec.sync_{made.id} TO PUBLIC")
        schema.initialize(database)
        roles.set_up(database)
        where = (
            "SELECT pronamespace::regnamespace::text, has_function_privilege('pgvec_reader', oid, 'EXECUTE')"
            " FROM pg_proc WHERE proname = %s"
        )
        assert bench.sql(where, f"sync_{made.id}") == [("pgvec", False)]
        bench.sql("UPDATE app.docs SET body = 'changed' WHERE id = 3")
        bench.enqueue("app.docs", name="docs")
        with closing(Bench(empty("worker"))) as worker:
            worker.drain(listen=False)
        assert_right(bench, made)
        assert bench.sql(where, f"sync_{made.id}") == [("pgvec", False)]
        vectorizer.steer(bench.connection, "docs", "drop")
        assert bench.sql(where, f"sync_{made.id}") == []


def test_who_made_the_schema_keeps_what_runs_when_it_is_handed_over(
    cluster: embedded.Server, empty: Callable[[str], str], cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a superuser, from a maker who is none: changes of a synced source go on, and so do workers; part of the schema
    was somebody else's.
    """
    with psycopg.connect(empty("postgres"), autocommit=True) as connection:
        connection.execute(b"CREATE ROLE alice LOGIN; CREATE ROLE bob LOGIN")
        connection.execute(f"GRANT CREATE ON DATABASE {connection.info.dbname} TO alice".encode())
    try:
        schema.initialize(Database(empty("alice")))
        with closing(Bench(empty("alice"))) as alice, closing(Bench(empty("postgres"))) as admin:
            alice.sql("CREATE SCHEMA app; GRANT ALL ON SCHEMA app TO bob")
            alice.sql(DOCS)
            made = alice.enqueue("app.docs", "body", name="docs", sync=True)
            # For whom another's triggers act, without any right on ours but those that were given one by one.
            other = alice.enqueue("app.others", "body", name="others", sync=True)
            admin.sql(f"ALTER FUNCTION pgvec.sync_{other.id} OWNER TO bob")
            admin.sql("ALTER TABLE pgvec.api_tokens OWNER TO postgres")
            monkeypatch.setenv("PGVEC_DSN", empty("postgres"))
            ran = cli("init", "--roles")
            assert ran.code == 0
            assert "the schema pgvec was alice's, who is a member of pgvec_owner now" in ran.err
            alice.sql("UPDATE app.docs SET body = 'changed' WHERE id = 3; UPDATE app.others SET body = 'changed'")
            assert admin.value("SELECT pg_has_role('bob', 'pgvec_enqueuer', 'USAGE')")
            alice.drain(listen=False)
            assert_right(alice, made)
            assert cli("init").code == 0
    finally:
        with psycopg.connect(empty("postgres"), autocommit=True) as connection:
            connection.execute(b"DROP OWNED BY alice, bob CASCADE; DROP ROLE alice; DROP ROLE bob")


def test_uninstall_takes_the_functions_of_triggers_with_it(bench: Callable[[str], Bench]) -> None:
    admin = bench("postgres")
    uninstall.remove(admin.connection)
    assert admin.sql("SELECT FROM pg_namespace WHERE nspname IN ('pgvec', 'pgvec_sync')") == []
    assert admin.sql("SELECT FROM pg_trigger WHERE tgname LIKE 'pgvec%%'") == []
    admin.sql("UPDATE app.docs SET body = 'changed'")


def test_who_may_not_uninstall_takes_nothing_away(bench: Callable[[str], Bench]) -> None:
    enqueuer = bench("enqueuer")
    with pytest.raises(PgvecError, match="it belongs to pgvec_owner"):
        uninstall.remove(enqueuer.connection)
    with pytest.raises(DefinitionError, match=r"you may not drop the triggers of app.docs; its owner \(enqueuer\) may"):
        uninstall.remove(bench("owner").connection)
    assert enqueuer.value("SELECT sync FROM pgvec.vectorizers WHERE name = 'docs'")
    assert enqueuer.value("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'pgvec%%'") == 4


# The gateway, and what looks on


def test_a_gateway_takes_texts_and_answers_under_its_own_role(
    bench: Callable[[str], Bench], dsn: Callable[[str], str]
) -> None:
    """From a new collection to a search in it, and its end; every worker may embed it, and tokens stay the owner's."""
    with serving(dsn("gateway")) as client:
        made = client.post(f"{API}/collections", json={"name": "notes"})
        assert made.status_code == 201, made.text
        task = accepted(client, ["one", "two"], ids=["a", "b"], collection="notes")
        bench("worker").drain(listen=False)
        assert ended(client, task["task_id"])["state"] == "done"
        assert [one["id"] for one in vectors(client, task["task_id"])] == ["a", "b"]
        found = client.post(f"{API}/search", json={"collection": "notes", "query": "one", "limit": 1})
        assert found.status_code == 200, found.text
        assert bench("reader").value("SELECT count(*) FROM pgvec_collections.notes_vectors") == 2
        assert _may(bench("reader"), "SELECT * FROM pgvec_collections.notes") == []
        name = bench("reader").value(
            "SELECT vectorizer FROM (SELECT v.name AS vectorizer FROM pgvec.collections c"
            " JOIN pgvec.vectorizers v ON v.id = c.vectorizer_id) n"
        )
        assert client.post(f"{API}/vectorizers/{name}/pause").status_code in (200, 204)
        assert client.delete(f"{API}/collections/notes").status_code == 204
    assert (
        _may(
            bench("gateway"),
            "INSERT INTO pgvec.api_tokens (name, role, digest) VALUES ('mine', 'admin', '')",
            "UPDATE pgvec.api_tokens SET role = 'admin'",
            "SELECT * FROM app.docs",
            "CREATE TABLE pgvec.mine ()",
        )
        == []
    )
