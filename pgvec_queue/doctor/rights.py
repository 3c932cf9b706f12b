"""Looks at what the role may do: on our schema, on each source, and on each destination."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
from psycopg import sql

from pgvec_queue.database import one_line, statement
from pgvec_queue.doctor.finding import Finding, error, listed, note, ok, warning
from pgvec_queue.doctor.question import Examined
from pgvec_queue.template import Template
from pgvec_queue.vectorizer import Vectorizer


def on_our_schema(examined: Examined) -> Iterator[Finding]:
    """Whether a worker's statements on the queue are allowed, and `pgvec init` and `--sync` as well."""
    (role, *_) = examined.row("session")
    on_database, usage, create = examined.row("schema_rights")
    if usage is None:
        if on_database:
            yield ok("rights", f"{role} may make the schema pgvec")
        else:
            yield error(
                "rights",
                f"{role} may not make the schema pgvec",
                f"GRANT CREATE ON DATABASE … TO {role}, or have somebody run what `pgvec init --sql` prints",
            )
        return
    if not usage:
        yield error("rights", f"{role} may not use the schema pgvec", f"GRANT USAGE ON SCHEMA pgvec TO {role}")
        return
    lacking = examined.rows("rights_on_ours")
    ours = examined.rows("our_roles")
    mine = [name for name, is_member in ours if is_member]
    if lacking and "pgvec_worker" in mine:
        said = listed([f"{', '.join(rights)} on pgvec.{name}" for name, rights in lacking], most=3)
        yield error(
            "rights", f"{role} is a member of pgvec_worker, which lacks {said}", "run as the schema's owner: pgvec init"
        )
        return
    if lacking and mine:
        yield ok("rights", f"{role} is a member of {listed(mine)}, which is no worker's role: docs/roles.md")
        return
    if lacking and ours:
        yield error(
            "rights", f"{role} is a member of none of our roles", f"GRANT pgvec_worker TO {role}: docs/roles.md"
        )
        return
    if lacking:
        name, rights = lacking[0]
        said = listed([f"{', '.join(rights)} on pgvec.{name}" for name, rights in lacking], most=3)
        yield error("rights", f"{role} lacks {said}", f"GRANT {', '.join(rights)} ON pgvec.{name} TO {role}, and so on")
        return
    yield ok("rights", f"{role} may do on the schema pgvec what a worker does")
    if not create and not ours:
        yield note(
            "rights",
            f"{role} may create nothing in the schema pgvec, as `pgvec init` and `pgvec enqueue --sync` do",
            f"run those as its owner, or GRANT CREATE ON SCHEMA pgvec TO {role}",
        )


def on_tables(examined: Examined) -> Iterator[Finding]:
    """Whether sources can be read and destinations written."""
    (role, *_) = examined.row("session")
    for one in examined.vectorizers:
        found = [*_on_source(examined, one, role), *_on_destination(examined, one, role)]
        if any(finding.level == "error" for finding in found):
            yield from found
        else:
            yield ok("tables", f"{one.source} can be read, {one.destination} written", vectorizer=one.name)
            yield from found


def _on_source(examined: Examined, one: Vectorizer, role: str) -> Iterator[Finding]:
    written = [one.destination_roles.embedding] if one.into_column else []
    if one.into_column and one.destination_roles.source_hash:
        written.append(one.destination_roles.source_hash)
    (only_works,) = examined.row("only_works")
    rights = examined.rows(
        "rights_on_table",
        schema=one.source_schema,
        table=one.source_table,
        # A worker tells by it whether a row is another than it has read.
        read=sorted(
            {
                *one.key_columns,
                *one.text_columns,
                *(Template.parse(one.template).columns if one.template else ()),
                *([] if one.source_is_view else ["xmin"]),
            }
        ),
        written=written,
        # A login that is a worker and no more is not meant to have it.
        wanted=["TRIGGER"] if one.sync and not only_works else [],
    )
    yield from _judge(examined, one, one.source, role, rights)
    if rights and rights[0][0] and rights[0][4]:
        yield warning(
            "tables",
            f"{role} may make no trigger on {one.source}: `pgvec enqueue` cannot renew those that follow its changes",
            f"run it as the owner, or GRANT TRIGGER ON {one.source} TO {role}",
            vectorizer=one.name,
        )
    # A plan may call functions of the filter: only who runs it anyway does that, no administrator.
    if rights and one.filter is not None and only_works:
        try:
            with examined.connection.transaction(force_rollback=True):
                examined.connection.execute(
                    statement("doctor", "filter_runs").format(
                        source=sql.Identifier(one.source_schema, one.source_table),
                        selected=sql.SQL("({}\n)").format(sql.SQL(one.filter)),
                    )
                )
        except psycopg.Error as problem:
            yield error(
                "tables",
                f"{role} may not run the filter of {one.name}: {one_line(problem)}",
                "grant what it reads, or drop the vectorizer and enqueue anew",
                vectorizer=one.name,
            )
    if rights and rights[0][5]:
        yield error(
            "tables",
            f"row-level security hides rows of {one.source} from {role}; a worker of that role blocks {one.name}",
            f"make a policy on it for {role} with USING (true), or ALTER ROLE {role} BYPASSRLS: docs/roles.md",
            vectorizer=one.name,
        )


def _grant(examined: Examined, one: Vectorizer, role: str, what: str) -> str:
    """What to do about a right that is lacking: a role of ours is given it by `enqueue`, and no more than it needs."""
    if any(is_member for _, is_member in examined.rows("our_roles")):
        return f"run as the tables' owner: pgvec enqueue {one.name}"
    return f"GRANT {what} TO {role}"


def _on_destination(examined: Examined, one: Vectorizer, role: str) -> Iterator[Finding]:
    if one.into_column:
        return
    roles = one.destination_roles
    columns = [roles.embedding, *roles.key, *filter(None, (roles.chunk_index, roles.chunk, roles.source_hash))]
    wanted = ["SELECT", "INSERT", "DELETE"]
    rights = examined.rows(
        "rights_on_table",
        schema=one.destination_schema,
        table=one.destination_table,
        read=columns,
        written=[],
        wanted=wanted,
    )
    yield from _judge(examined, one, one.destination, role, rights)
    if rights and rights[0][6]:
        yield error(
            "tables",
            f"row-level security of {one.destination} applies to {role}, which has to write all of it",
            f"ALTER ROLE {role} BYPASSRLS, or make it a member of the owner: docs/roles.md",
            vectorizer=one.name,
        )
    if rights and rights[0][0] and rights[0][4]:
        yield error(
            "tables",
            f"{role} lacks {', '.join(rights[0][4])} on {one.destination}",
            _grant(examined, one, role, f"{', '.join(wanted)} ON {one.destination}"),
            vectorizer=one.name,
        )


def _judge(
    examined: Examined, one: Vectorizer, table: str, role: str, rights: list[tuple[object, ...]]
) -> Iterator[Finding]:
    """What is wrong with a table and the columns that are read or updated in it."""
    if not rights:
        yield error("tables", f"there is no {table} any more", f"pgvec drop {one.name}", vectorizer=one.name)
        return
    usage, missing, unreadable, unwritable, *_ = rights[0]
    assert isinstance(missing, list)
    assert isinstance(unreadable, list)
    assert isinstance(unwritable, list)
    schema = table.rpartition(".")[0]
    if not usage:
        remedy = _grant(examined, one, role, f"USAGE ON SCHEMA {schema}")
        yield error("tables", f"{role} may not use the schema {schema}", remedy, vectorizer=one.name)
    if missing:
        remedy = "name them so again, or drop the vectorizer and enqueue anew"
        yield error("tables", f"{table} has no column {listed(missing)} any more", remedy, vectorizer=one.name)
    for columns, right, verb in ((unreadable, "SELECT", "read"), (unwritable, "UPDATE", "update")):
        if columns:
            yield error(
                "tables",
                f"{role} may not {verb} {listed(columns)} of {table}",
                _grant(examined, one, role, f"{right} ON {table}"),
                vectorizer=one.name,
            )


def on_statistics(examined: Examined) -> Iterator[Finding]:
    """Whether limits on the lag of standbys can hold."""
    limited = [name for (name,) in examined.rows("limited_by_standbys")]
    if not limited:
        return
    (may,) = examined.row("may_see_statistics")
    (role, *_) = examined.row("session")
    if may:
        yield ok("standbys", "their positions may be seen")
    else:
        yield warning(
            "standbys",
            f"{role} may not see where they are, so the limit on their lag of {listed(limited)} does not hold",
            f"GRANT pg_monitor TO {role}",
        )
