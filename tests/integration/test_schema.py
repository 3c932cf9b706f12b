"""The schema pgvec: made, made twice, printed for others to run, too old, too new, and in unusual databases."""

from __future__ import annotations

import importlib.util
import re
import shutil
import threading
import tomllib
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import pytest

from pgvec_queue import quarantine, resources, schema
from pgvec_queue.database import Database, versions
from pgvec_queue.errors import DatabaseError, SchemaOutdatedError
from pgvec_queue.vectorizer import Vectorizer
from pgvec_queue.worker import Outcome
from tests.oracle import assert_right, expected, found
from tests.support import Bench, pgvec
from tests.waiting import wait_until

Connect = Callable[..., psycopg.Connection[tuple[Any, ...]]]

# What makes up the schema, apart from object ids.
CATALOG = {
    "relations": "SELECT relname, relkind, reloptions, obj_description(oid) FROM pg_class WHERE relnamespace = {pgvec}",
    "columns": (
        "SELECT attrelid::regclass::text, attname, format_type(atttypid, atttypmod), attnotnull, attidentity,"
        " attcollation, pg_get_expr(adbin, adrelid), col_description(attrelid, attnum)"
        " FROM pg_attribute JOIN pg_class c ON c.oid = attrelid"
        " LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum"
        " WHERE relnamespace = {pgvec} AND attnum > 0 AND relkind IN ('r', 'v')"
    ),
    "constraints": (
        "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)"
        " FROM pg_constraint WHERE connamespace = {pgvec}"
    ),
    "indexes": "SELECT indexdef FROM pg_indexes WHERE schemaname = 'pgvec'",
    "views": "SELECT viewname, definition FROM pg_views WHERE schemaname = 'pgvec'",
    "functions": ("SELECT pg_get_functiondef(oid), obj_description(oid) FROM pg_proc WHERE pronamespace = {pgvec}"),
    "revision": "SELECT version_num FROM pgvec.alembic_version",
}


def _made(connection: psycopg.Connection[tuple[Any, ...]]) -> dict[str, list[str]]:
    """Everything in the schema pgvec."""
    return {
        what: sorted(map(repr, connection.execute(query.replace("{pgvec}", "'pgvec'::regnamespace").encode())))
        for what, query in CATALOG.items()
    }


def test_the_schema_is_made_and_made_again_without_effect(database: str, connect: Connect) -> None:
    assert schema.initialize(Database(database)) == ""
    connection = connect()
    made = _made(connection)
    schema.require(connection)
    assert schema.initialize(Database(database)) == schema.HEAD
    assert _made(connection) == made
    tables = {"vectorizers", "jobs", "workers", "counters", "samples", "failures", "alembic_version"}
    tables |= {"events", "minutes", "pace", "api_tokens", "collections", "tasks", "task_texts"}
    tables |= {"indexes", "model_migrations"}
    views = {"progress", "worker_status", "throughput", "recent_minutes", "recent_events", "index_status"}
    named = connection.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'pgvec'::regnamespace AND relkind IN ('r', 'v')"
    )
    assert {name for (name,) in named} == tables | views


def test_views_that_were_lost_come_back(bench: Bench) -> None:
    made = _made(bench.connection)
    bench.sql("DROP VIEW pgvec.progress, pgvec.throughput")
    schema.initialize(bench.database)
    assert _made(bench.connection) == made


def test_views_of_an_earlier_version_are_replaced_with_their_rights(bench: Bench) -> None:
    """Columns that were others cannot be changed in place."""
    made = _made(bench.connection)
    bench.sql("DROP VIEW pgvec.progress, pgvec.worker_status, pgvec.throughput")
    for created in _statements(Path(__file__).parent / "views_0_3_0.sql"):
        bench.sql(created)
    role = f"reader_{uuid.uuid4().hex}"
    bench.sql(
        f"CREATE ROLE {role}; GRANT SELECT ON pgvec.progress TO {role} WITH GRANT OPTION;"
        " GRANT SELECT ON pgvec.throughput TO PUBLIC"
    )
    try:
        schema.initialize(bench.database)
        assert _made(bench.connection) == made
        rights = (
            "SELECT has_table_privilege(%(role)s, 'pgvec.' || v, 'SELECT'),"
            " has_table_privilege(%(role)s, 'pgvec.' || v, 'SELECT WITH GRANT OPTION')"
            " FROM unnest(ARRAY['progress', 'throughput', 'worker_status']) v"
        )
        found = bench.connection.execute(rights.encode(), {"role": role}).fetchall()
        assert found == [(True, True), (True, False), (False, False)]
    finally:
        bench.sql(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_a_view_of_somebody_s_that_stands_in_the_way_is_named(bench: Bench) -> None:
    bench.sql("DROP VIEW pgvec.recent_events")
    bench.sql("CREATE VIEW pgvec.recent_events AS SELECT 1 AS one_more")
    bench.sql("CREATE VIEW mine AS SELECT one_more FROM pgvec.recent_events")
    with pytest.raises(DatabaseError, match=r"\(view mine depends on view pgvec.recent_events\); drop that"):
        schema.initialize(bench.database)
    assert bench.value("SELECT one_more FROM mine") == 1
    bench.sql("DROP VIEW mine")
    schema.initialize(bench.database)


def _statements(path: Path) -> list[str]:
    return [part for part in re.split(r"(?m)^-- name: .*$", path.read_text())[1:] if part.strip()]


def test_two_programs_that_make_it_at_once_take_turns(database: str, connect: Connect) -> None:
    connection = connect()
    connection.execute("SELECT pg_advisory_lock(2312187183)")
    programs = [pgvec("init", dsn=database) for _ in range(2)]
    waiting = "SELECT FROM pg_stat_activity WHERE wait_event = 'advisory' AND datname = current_database()"
    wait_until(lambda: len(connection.execute(waiting).fetchall()) == 2, 60, what="both programs waiting")
    connection.execute("SELECT pg_advisory_unlock_all()")
    for program in programs:
        _, told = program.communicate(timeout=60)
        assert program.returncode == 0, told
    assert connection.execute("SELECT count(*) FROM pgvec.alembic_version").fetchone() == (1,)
    schema.require(connection)


def test_several_threads_that_make_it_at_once_make_it_once(database: str, connect: Connect) -> None:
    connection = connect()
    connection.execute("DROP EXTENSION vector")
    start = threading.Barrier(4)
    ended: list[object] = []

    def initialize() -> None:
        start.wait()
        try:
            ended.append(schema.initialize(Database(database)))
        except Exception as error:  # noqa: BLE001 - the test looks at it
            ended.append(error)

    threads = [threading.Thread(target=initialize) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(ended) <= {"", schema.HEAD}, ended
    assert connection.execute("SELECT count(*) FROM pgvec.alembic_version").fetchone() == (1,)
    schema.require(connection)


def test_the_printed_statements_make_the_same(bench: Bench, database: str, connect: Connect) -> None:
    connection = connect()
    connection.execute("DROP EXTENSION vector")
    script = schema.ddl()
    connection.execute(script.encode())
    assert _made(connection) == _made(bench.connection)
    schema.require(connection)
    assert versions(connection).pgvector == versions(bench.connection).pgvector
    assert schema.initialize(Database(database)) == schema.HEAD


def test_the_printed_statements_are_all_or_nothing(connect: Connect) -> None:
    connection = connect()
    connection.execute("CREATE SCHEMA pgvec; CREATE TABLE pgvec.failures ()")
    with pytest.raises(psycopg.errors.DuplicateTable):
        connection.execute(schema.ddl().encode())
    connection.execute("ROLLBACK")
    assert [row for row in _made_tables(connection) if row != ("failures",)] == []


def _made_tables(connection: psycopg.Connection[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return connection.execute("SELECT relname FROM pg_class WHERE relnamespace = 'pgvec'::regnamespace").fetchall()


# Its version


def test_the_program_works_with_the_newest_migration() -> None:
    folder = resources.directory("alembic") / "versions"
    chain = {}
    for path in folder.glob("*.py"):
        text = path.read_text("utf-8")
        revision, before = (
            re.search(rf"^{name} = (.*)$", text, re.MULTILINE) for name in ("revision", "down_revision")
        )
        assert revision is not None
        assert before is not None
        chain[before[1].strip('"')] = revision[1].strip('"')
        assert path.name.startswith(f"{revision[1].strip(chr(34))}_")
        for file in re.findall(r'run_migration\("(.*)"\)', text):
            assert (folder / file).is_file()
    at = "None"
    while at in chain:
        at = chain.pop(at)
    assert at == schema.HEAD
    assert chain == {}


def _migrations() -> list[Path]:
    return sorted((resources.directory("alembic") / "versions").glob("*.sql"))


@pytest.mark.parametrize("count", range(1, len(_migrations())))
def test_every_earlier_schema_becomes_the_same_and_keeps_what_is_in_it(
    bench: Bench, database: str, connect: Connect, count: int
) -> None:
    connection = connect()
    connection.execute(resources.statements("schema")["prepare"].encode())
    for path in _migrations()[:count]:
        connection.execute(path.read_bytes())
    connection.execute(
        "CREATE TABLE pgvec.alembic_version"
        " (version_num varchar(32) NOT NULL, CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
    )
    found = _migrations()[count - 1].name[:4]
    connection.execute("INSERT INTO pgvec.alembic_version VALUES (%s)", [found])
    connection.execute("INSERT INTO pgvec.workers (host, pid, version, lease) VALUES ('a', 1, '0', '30 s')")
    connection.execute(
        "INSERT INTO pgvec.jobs (vectorizer_id, kind, upper_key, rows, checkpoint, state, worker_id)"
        " VALUES (1, 'range', '{9}', 9, '{3}', 'running', 1)"
    )
    connection.execute("INSERT INTO pgvec.counters (vectorizer_id, worker_id, rows_embedded) VALUES (1, 1, 3)")
    assert schema.initialize(Database(database)) == found
    assert _made(connection) == _made(bench.connection)
    assert connection.execute(
        "SELECT j.checkpoint, j.read_to, w.loads, c.rows_embedded, c.chunks_reused"
        " FROM pgvec.jobs j JOIN pgvec.workers w ON w.id = j.worker_id JOIN pgvec.counters c ON c.worker_id = w.id"
    ).fetchall() == [(["3"], None, 0, 3, 0)]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (None, "there is no pgvec schema; run: pgvec init"),
        ("", "there is no pgvec schema; run: pgvec init"),
        ("0000", f"the pgvec schema is at revision 0000, this program needs {schema.HEAD}; run: pgvec init"),
        ("9999", f"at revision 9999, newer than this program's {schema.HEAD}; upgrade pgvec-queue"),
    ],
)
def test_another_version_of_the_schema_is_refused(bench: Bench, found: str | None, words: str) -> None:
    if found is None:
        bench.sql("DROP SCHEMA pgvec CASCADE")
    elif found == "":
        bench.sql("DELETE FROM pgvec.alembic_version")
    else:
        bench.upgrade_to(found)
    assert schema.revision(bench.connection) == (found or "")
    with pytest.raises(SchemaOutdatedError) as refused:
        schema.require(bench.connection)
    assert words in str(refused.value)


def test_a_newer_schema_that_says_so_is_worked_with(bench: Bench) -> None:
    for oldest in ("0008", schema.HEAD, "0001"):
        bench.upgrade_to("9999", oldest)
        assert schema.require(bench.connection) == "9999"
        with pytest.raises(SchemaOutdatedError, match="newer than this program's"):
            schema.require(bench.connection, exactly=True)
    bench.upgrade_to("9999", "9998")
    with pytest.raises(SchemaOutdatedError, match="newer than this program's"):
        schema.require(bench.connection)
    bench.sql("DROP FUNCTION pgvec.oldest_program CASCADE")
    with pytest.raises(SchemaOutdatedError, match="newer than this program's"):
        schema.require(bench.connection)


@pytest.mark.parametrize("oldest", [schema.HEAD, "9999"])
def test_a_newer_schema_is_left_as_it_is(bench: Bench, oldest: str) -> None:
    bench.upgrade_to("9999", oldest)
    bench.sql("DROP VIEW pgvec.progress")
    made = _made(bench.connection)
    with pytest.raises(SchemaOutdatedError, match="newer than this program's"):
        schema.initialize(bench.database)
    assert _made(bench.connection) == made


# Who may not


def _as_plain_role(bench: Bench) -> Database:
    """The database, seen by a role that may connect and nothing else."""
    bench.sql("DO $$ BEGIN CREATE ROLE plain; EXCEPTION WHEN duplicate_object OR unique_violation THEN END $$")
    return Database(f"{bench.dsn}&options=-c%20role%3Dplain")


def _refused(database: Database) -> str:
    with pytest.raises(DatabaseError) as refused:
        schema.initialize(database)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_who_may_not_add_the_extension_is_told_what_to_ask_for(bench: Bench) -> None:
    bench.sql("DROP SCHEMA pgvec CASCADE; DROP EXTENSION vector")
    message = _refused(_as_plain_role(bench))
    assert "pgvector is not in this database and you may not add it" in message
    assert "CREATE EXTENSION vector" in message


def test_who_may_not_make_the_schema_is_told_why(bench: Bench) -> None:
    bench.sql("DROP SCHEMA pgvec CASCADE")
    name = bench.value("SELECT current_database()")
    message = _refused(_as_plain_role(bench))
    assert message == f"the schema cannot be created or upgraded: permission denied for database {name}"


def test_who_may_not_use_a_schema_that_is_somebody_else_s_is_told_why(bench: Bench) -> None:
    """Here it is Alembic's own statement that fails, in SQLAlchemy's wrapping."""
    plain = _as_plain_role(bench)
    name = bench.value("SELECT current_database()")
    bench.sql(f"DROP SCHEMA pgvec CASCADE; CREATE SCHEMA pgvec; GRANT CREATE ON DATABASE {name} TO plain")
    assert _refused(plain) == "the schema cannot be created or upgraded: permission denied for schema pgvec"


def test_a_database_that_is_not_there_is_named(bench: Bench) -> None:
    nowhere = Database(re.sub(r"test_\w+", "nowhere", bench.dsn))
    assert 'database "nowhere" does not exist' in _refused(nowhere)


# Unusual databases


def _end_to_end(bench: Bench) -> None:
    """All kinds of destination, made and then brought up to date, whatever is on the search path."""
    bench.sql("CREATE TYPE public.mood AS ENUM ('sad', 'ok')")
    bench.sql("CREATE TABLE public.docs (id public.mood, n int, body text, PRIMARY KEY (id, n))")
    bench.sql(
        "INSERT INTO public.docs SELECT m, i, m || ' ' || i"
        " FROM unnest(enum_range(NULL::public.mood)) m, generate_series(1, 5) i"
    )
    vector_schema = versions(bench.connection).vector_schema
    bench.sql(f"CREATE TABLE public.others (a text, n bigint, embedding {vector_schema}.halfvec(8))")

    def enqueue() -> list[Vectorizer]:
        columns = {"key": ["a", "n"]}
        others = bench.enqueue(
            "public.docs", "body", name="others", into="public.others", columns=columns, store="halfvec"
        )
        table = bench.enqueue("public.docs", "body", rows_per_job=4)
        column = bench.enqueue("public.docs", "body", name="column", into_column="v", rows_per_job=4)
        assert bench.drain(listen=False) is Outcome.COMPLETE
        return [table, column, others]

    vectorizers = enqueue()
    assert_right(bench, *vectorizers)
    bench.sql("DELETE FROM public.docs WHERE n = 2")
    bench.sql("UPDATE public.docs SET body = 'changed' WHERE n = 3")
    table, column, others = enqueue()
    assert_right(bench, table, column)
    assert [row[:2] for row in found(bench, others)] == [row[:2] for row in expected(bench, others)]


def _set_search_path(bench: Bench, path: str) -> None:
    bench.sql(f"ALTER DATABASE {bench.value('SELECT current_database()')} SET search_path TO {path}")
    bench.connection.close()
    bench.connection = bench.database.connect("test")


def test_everything_works_with_the_extension_in_a_schema_of_its_own(bench: Bench) -> None:
    bench.sql('DROP SCHEMA pgvec CASCADE; DROP EXTENSION vector; CREATE SCHEMA "Ext 100%"')
    bench.sql('CREATE EXTENSION vector SCHEMA "Ext 100%"')
    assert schema.initialize(bench.database) == ""
    found = versions(bench.connection)
    assert found.vector_schema == "Ext 100%"
    bench.sql("CREATE SCHEMA ext; ALTER EXTENSION vector SET SCHEMA ext")
    _end_to_end(bench)


def test_everything_works_where_the_search_path_is_empty(bench: Bench) -> None:
    bench.sql("DROP SCHEMA pgvec CASCADE; DROP EXTENSION vector")
    _set_search_path(bench, "''")
    assert schema.initialize(bench.database) == ""
    assert versions(bench.connection).vector_schema == "public"
    _end_to_end(bench)


def test_the_quarantine_can_be_read_whatever_the_server_s_date_style(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    vectorizer = bench.enqueue("docs", "body")
    bench.sql(
        "INSERT INTO pgvec.failures (vectorizer_id, key, source_hash, error_class, message, model, first_at, last_at)"
        " VALUES (%s, '{7}', '', 'Test', 'no', '', now(), now())",
        vectorizer.id,
    )
    bench.sql("SET DateStyle TO 'SQL, DMY'")
    [failure] = quarantine.failures(bench.connection, vectorizer.id)
    assert (failure["key"], failure["first_at"]) == (["7"], failure["last_at"])


def test_a_name_on_the_search_path_hides_nothing_of_ours(bench: Bench) -> None:
    """A schema before all others, with tables and functions named as ours and PostgreSQL's."""
    bench.sql("CREATE SCHEMA trap")
    for name in ("jobs", "vectorizers", "workers", "counters", "failures"):
        bench.sql(f"CREATE TABLE trap.{name} ()")
    bench.sql("CREATE FUNCTION trap.is_blank(text) RETURNS boolean LANGUAGE sql AS 'SELECT true'")
    bench.sql("CREATE DOMAIN trap.vector AS int")
    _set_search_path(bench, "trap, public")
    _end_to_end(bench)


# What ships with the package


def _wheel(folder: Path) -> ModuleType:
    """Lays the package out as the wheel does, and loads its ``resources`` from there."""
    top = resources.directory("sql").parent
    included = tomllib.loads((top / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]["targets"]["wheel"]
    for source, target in included["force-include"].items():
        shutil.copytree(top / source, folder / target)
    (folder / "alembic").mkdir()
    (folder / "alembic" / "__init__.py").write_text("# the library of that name\n")
    shutil.copy(top / "pgvec_queue" / "resources.py", folder / "pgvec_queue")
    spec = importlib.util.spec_from_file_location("resources_of_the_wheel", folder / "pgvec_queue" / "resources.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_wheel_holds_what_a_checkout_does_below_the_package(tmp_path: Path) -> None:
    wheel = _wheel(tmp_path)
    for name in ("sql", "alembic"):
        there, here = wheel.directory(name), resources.directory(name)
        assert there == tmp_path / "pgvec_queue" / name
        assert _files(there) == _files(here) != []
    assert wheel.statements("queue") == resources.statements("queue")


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix in (".sql", ".py"))


def test_a_file_that_is_missing_says_that_the_installation_is_broken(tmp_path: Path) -> None:
    wheel = _wheel(tmp_path)
    shutil.rmtree(tmp_path / "pgvec_queue" / "sql")
    with pytest.raises(FileNotFoundError, match=r"sql/ is missing from the installation at .*; reinstall pgvec-queue"):
        wheel.directory("sql")


def test_every_statement_that_is_asked_for_exists_and_every_one_is_asked_for() -> None:
    package = Path(schema.__file__).parent
    text = "\n".join(path.read_text("utf-8") for path in package.rglob("*.py"))
    asked = set(re.findall(r'(?:statement|compose)\(\s*"(\w+)",\s*"(\w+)"', text))
    there = {
        (path.stem, name)
        for path in resources.directory("sql").glob("*.sql")
        for name in resources.statements(path.stem)
    }
    assert asked <= there
    unasked = {(file, name) for file, name in there - asked if not re.search(rf'"{name}"', text)}
    assert {(file, name) for file, name in unasked if file not in ("views", "control", "search_function")} == set()


@pytest.mark.parametrize("path", sorted(resources.directory("sql").glob("*.sql")), ids=lambda path: path.stem)
def test_each_statement_has_a_name_of_its_own_and_no_end(path: Path) -> None:
    names: Sequence[str] = re.findall(r"^-- name: *(\w+)", path.read_text("utf-8"), re.MULTILINE)
    found = resources.statements(path.stem)
    assert list(found) == list(names)
    assert all(text and not text.endswith(";") for text in found.values())
