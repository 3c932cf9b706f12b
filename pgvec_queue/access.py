"""What the roles need of a vectorizer's own tables, granted where the schema has roles (``pgvec init --roles``).

A worker gets the columns of the source that it reads, and the destination; readers get a destination that was made for
the vectorizer, unless row-level security protects the source: its texts would be read there by whom it hides them from.
What the session may not grant is said, as the statement that is left for the table's owner.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from pgvec_queue import roles
from pgvec_queue.database import Connection, statement, transaction
from pgvec_queue.locks import patiently
from pgvec_queue.template import Template
from pgvec_queue.vectorizer import Vectorizer


@dataclass(frozen=True, slots=True)
class Need:
    """One right of a role on a table, or on some of its columns."""

    role: str
    schema: str
    table: str
    right: str
    columns: tuple[str, ...] | None = None


def share(connection: Connection, vectorizer: Vectorizer) -> list[str]:
    """Grants what is missing; returns a line for what is left to others, none where there are no roles."""
    there = roles.present(connection)
    if roles.WORKER not in there:
        return []
    left: list[str] = []
    withheld: list[str] = []
    maker = ""
    protected = _is_protected(connection, vectorizer)
    reads = _filter_reads(connection, vectorizer)
    needs = [*_of_worker(vectorizer, reads)]
    if roles.READER in there and vectorizer.destination_created and not vectorizer.into_column and not protected:
        needs.append(Need(roles.READER, vectorizer.destination_schema, vectorizer.destination_table, "SELECT"))
    for need in needs:
        lacks = connection.execute(statement("roles", "maker_lacks"), _named(need) | {"id": vectorizer.id}).fetchone()
        if lacks is None:
            left.extend(_grant(connection, need))
        else:
            # Else whoever runs this would give away, by another's definition, what that one may not have.
            maker = lacks[0]
            withheld.extend(query.as_string(connection) for query in _lacking(connection, need))
    remarks = []
    if withheld:
        remarks.append(
            f"{maker}, who made {vectorizer.name}, may not do so either, so it was not granted; if it is meant to be: "
            f"{'; '.join(withheld)}"
        )
    if left:
        remarks.append(f"you may not grant what the roles need; whoever owns it has to run: {'; '.join(left)}")
    if reads is None:
        remarks.append(
            "what the filter reads cannot be told without the right to make temporary views, so it was not granted; "
            f"whoever owns it has to run: GRANT SELECT (…) ON {vectorizer.source} TO {roles.WORKER}, with its columns"
        )
    if protected and not vectorizer.into_column:
        remarks.append(
            f"{vectorizer.source} has row-level security, {vectorizer.destination} has not: readers were not given it; "
            "make policies on it before you grant it (docs/roles.md)"
        )
    return remarks


def lacking(connection: Connection, vectorizer: Vectorizer) -> bool:
    """Whether workers by their role alone, ``pgvec_worker``, lack a right on the vectorizer's own tables."""
    needs = _of_worker(vectorizer, _filter_reads(connection, vectorizer))
    return any(_lacking(connection, need) for need in needs)


def remedy(name: str, reason: str | None) -> str:
    """What to do first about a vectorizer that is blocked for this reason."""
    if reason and "permission denied for" in reason:
        return f"grant it (with roles, `pgvec enqueue {name}` as the owner of its tables does)"
    return "mend that"


def granted(connection: Connection, vectorizer_id: int | None) -> list[str]:
    """Returns the statements that take back what roles may on tables of a vectorizer alone, or of all (None)."""
    found = connection.execute(statement("roles", "granted"), {"id": vectorizer_id, "roles": list(roles.ROLES)})
    return [query for (query,) in found.fetchall()]


def _of_worker(vectorizer: Vectorizer, reads: dict[tuple[str, str], set[str] | None] | None) -> Iterator[Need]:
    template = Template.parse(vectorizer.template).columns if vectorizer.template else ()
    own = (vectorizer.source_schema, vectorizer.source_table)
    read: dict[tuple[str, str], set[str] | None] = {own: {*vectorizer.key_columns, *vectorizer.text_columns, *template}}
    for label, columns in (reads or {}).items():
        known = read.get(label, set())
        read[label] = None if columns is None or known is None else known | columns
    roles_ = vectorizer.destination_roles
    written = tuple(name for name in (roles_.embedding, roles_.source_hash) if name) if vectorizer.into_column else ()
    of_source = read[own]
    if of_source is not None:
        of_source |= set(written)
        if not vectorizer.source_is_view:
            of_source.add("xmin")
    for (schema, table), wanted in read.items():
        yield Need(roles.WORKER, schema, table, "SELECT", None if wanted is None else tuple(sorted(wanted)))
    if vectorizer.into_column:
        yield Need(roles.WORKER, *own, "UPDATE", written)
        return
    for right in ("SELECT", "INSERT", "DELETE"):
        yield Need(roles.WORKER, vectorizer.destination_schema, vectorizer.destination_table, right)


def _filter_reads(connection: Connection, vectorizer: Vectorizer) -> dict[tuple[str, str], set[str] | None] | None:
    """Which columns of which tables the filter reads, None: a row as a whole; or None: nobody can tell."""
    if vectorizer.filter is None:
        return {}
    found: dict[tuple[str, str], set[str] | None] = {}
    try:
        with transaction(connection), connection.transaction(force_rollback=True):
            connection.execute(
                statement("roles", "filter_view").format(
                    source=sql.Identifier(vectorizer.source_schema, vectorizer.source_table),
                    selected=sql.SQL("({}\n)").format(sql.SQL(vectorizer.filter)),
                )
            )
            for schema, table, column in connection.execute(statement("roles", "filter_reads")).fetchall():
                known = found.setdefault((schema, table), set())
                if column is None:
                    found[schema, table] = None
                elif known is not None:
                    known.add(column)
    except psycopg.Error:
        # Temporary views are forbidden here, say: only a right on all of the source would do for sure.
        return None
    return found


def _is_protected(connection: Connection, vectorizer: Vectorizer) -> bool:
    row = connection.execute(
        statement("roles", "lacking"),
        {
            "role": roles.WORKER,
            "right": "SELECT",
            "columns": None,
            "schema": vectorizer.source_schema,
            "table": vectorizer.source_table,
        },
    ).fetchone()
    return bool(row and row[2])


def _grant(connection: Connection, need: Need) -> list[str]:
    """Grants what is lacking of it; returns the statements that this session may not run."""
    for query in _lacking(connection, need):
        try:
            # Others grant on the same schema at this moment.
            for attempt in patiently(10, 0.05, 0.3):
                with attempt, transaction(connection, lock_timeout=5):
                    connection.execute(query)
        except psycopg.errors.InsufficientPrivilege:
            pass
    # Who has the right, but not that of granting it, is only warned.
    return [query.as_string(connection) for query in _lacking(connection, need)]


def _lacking(connection: Connection, need: Need) -> Iterable[sql.Composed]:
    """The statements that would give the role what it lacks."""
    role = sql.Identifier(need.role)
    queries: list[sql.Composed] = []
    of_schema = connection.execute(
        statement("roles", "lacks_schema"), {"role": need.role, "schema": need.schema}
    ).fetchone()
    if of_schema and of_schema[0]:
        queries.append(statement("roles", "grant_schema").format(schema=sql.Identifier(need.schema), role=role))
    row = connection.execute(statement("roles", "lacking"), _named(need) | {"role": need.role}).fetchone()
    if row is None:
        return queries
    whole, columns, _ = row
    table = sql.Identifier(need.schema, need.table)
    if whole:
        queries.append(statement("roles", "grant_table").format(right=sql.SQL(need.right), table=table, role=role))
    elif columns:
        queries.append(
            statement("roles", "grant_columns").format(
                right=sql.SQL(need.right), columns=_names(columns), table=table, role=role
            )
        )
    return queries


def _named(need: Need) -> dict[str, object]:
    columns = None if need.columns is None else list(need.columns)
    return {"right": need.right, "columns": columns, "schema": need.schema, "table": need.table}


def _names(columns: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, columns))
