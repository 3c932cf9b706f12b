"""``pgvec index``: build the index on a vectorizer's vectors now, leave it to the workers, drop it, or measure it."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from pgvec_queue import queue, route, vector_index, vectorizer
from pgvec_queue.cli.common import Session, command, confirm, yes_option
from pgvec_queue.cli.rowbar import RowBar
from pgvec_queue.cli.said import refuse_together, said_options
from pgvec_queue.cli.texts import duration, plain, size
from pgvec_queue.cli.types import Number, Size, Text, Whole, setting
from pgvec_queue.database import Connection, Database, statement, transaction, versions
from pgvec_queue.errors import PgvecError
from pgvec_queue.vector_index import Existing, IndexRefusedError, Wish
from pgvec_queue.vectorizer import Vectorizer

if TYPE_CHECKING:
    from pgvec_queue.index_room import Room
    from pgvec_queue.index_statements import Step

_DEFINITION = ("m", "ef_construction", "store")
_BUILD = (*_DEFINITION, "memory", "workers", "anyway")
_LOOK = 0.5


@click.command()
@click.argument("name", type=Text())
@click.option("--m", type=Whole(2, 100), metavar="N", help="Neighbours of each vector.  [default: as it is, or 16]")
@click.option(
    "--ef-construction",
    type=Whole(4, 1_000),
    metavar="N",
    help="Candidates that are looked at for each vector, twice M at least.  [default: as it is, or 64]",
)
@click.option(
    "--store",
    type=click.Choice(["vector", "halfvec"]),
    help="What is indexed; halfvec is half as large.  [default: as it is, or vector up to 2,000 dimensions]",
)
@click.option(
    "--memory", type=Size(), metavar="SIZE", help="What the build may take.  [default: what suits the server]"
)
@click.option(
    "--workers",
    type=Whole(0, 1_024),
    metavar="N",
    help="Processes beside the first one.  [default: what suits the server]",
)
@click.option("--anyway", is_flag=True, help="Build though it does not fit into memory, many times slower.")
@click.option("--queue", "to_workers", is_flag=True, help="Leave it to the workers, when no range is unfinished.")
@click.option(
    "--recall", "only_recall", is_flag=True, help="Build nothing: measure what the index that is there finds."
)
@click.option("--seconds", type=Number(1, 86_400), metavar="N", help="For measuring recall, at most.  [default: 60]")
@click.option("--drop", "to_drop", is_flag=True, help="Drop the index that pgvec has built, and want none.")
@setting("--direct-dsn", key="direct_dsn", metavar="DSN", help="The same database past a pooler.")
@yes_option
@command
def index(
    session: Session,
    *,
    name: str,
    to_workers: bool,
    only_recall: bool,
    seconds: float | None,
    to_drop: bool,
    direct_dsn: str | None,
    yes: bool,
    **given: Any,
) -> None:
    """Build the HNSW index on the vectors of NAME, concurrently: everybody reads and writes meanwhile.

    One with another definition takes the place of the one that is there, which is dropped when the new one is valid.
    An index that somebody else has made, and that searches can go through, is left as it is.
    """
    _refuse_contradictions(click.get_current_context())
    checked, _ = session.connect_checked("index")
    one = vectorizer.get(checked, name)
    if to_workers:
        _queue(checked, one, _wish(checked, one, given), given)
        return
    if only_recall:
        _measure(checked, one, seconds)
        return
    direct = _direct(session, direct_dsn)
    if to_drop:
        _drop(checked, direct, one, yes=yes)
    else:
        _build(checked, direct, one, given, seconds)


def _refuse_contradictions(context: click.Context) -> None:
    refuse_together(
        said_options(context),
        (
            ("to_drop", (*_BUILD, "to_workers", "only_recall", "seconds")),
            ("only_recall", (*_BUILD, "to_workers")),
            ("to_workers", ("seconds", "direct_dsn")),
        ),
    )


def _direct(session: Session, direct_dsn: str | None) -> Connection:
    """A connection to the server itself: the build's settings and its lock are of the session."""
    database = Database(direct_dsn) if direct_dsn else session.database
    connection = click.get_current_context().with_resource(database.connect("index"))
    if route.finds_pooler(connection):
        raise PgvecError(
            "a pooler stands between, and CREATE INDEX CONCURRENTLY needs the server itself: "
            "give --direct-dsn (PGVEC_DIRECT_DSN)"
        )
    return connection


def _wish(connection: Connection, one: Vectorizer, given: dict[str, Any]) -> Wish:
    """What is wanted: as it is known, but for what was given. Raises ``IndexRefusedError`` for what cannot be."""
    known = vector_index.wish_of(connection, one) or vector_index.default_wish(one)
    changes = {field: given[field] for field in _DEFINITION if given[field] is not None}
    wish = replace(known, **changes, memory=given["memory"], workers=given["workers"], anyway=given["anyway"])
    if given["ef_construction"] is None and wish.ef_construction < 2 * wish.m:
        wish = replace(wish, ef_construction=2 * wish.m)
    vector_index.check(one, wish)
    return wish


def _there(connection: Connection, one: Vectorizer, wish: Wish, given: dict[str, Any]) -> Existing | None:
    """The index that makes a build needless. Raises ``IndexRefusedError`` where one would have to go first."""
    there = vector_index.serving(vector_index.existing(connection, vector_index.target(connection, one)), wish)
    if there is not None and not there.is_ours and any(given[field] is not None for field in _DEFINITION):
        raise IndexRefusedError(
            f"{there.label} ({there.method}) is there, which pgvec has not made; to have another one, first run: "
            f"DROP INDEX CONCURRENTLY {there.label}"
        )
    return there


def _queue(connection: Connection, one: Vectorizer, wish: Wish, given: dict[str, Any]) -> None:
    there = _there(connection, one, wish, given)
    if there is not None:
        with transaction(connection):
            vector_index.note_met(connection, one, wish, there)
        click.echo(f"{one.name}: {there.label} is there already")
        return
    with transaction(connection):
        vector_index.want(connection, one, wish)
        vector_index.queue(connection, one)
    queue.notify(connection)
    click.echo(f"{one.name}: a worker builds the index when no range is unfinished; `pgvec status {one.name}` shows it")


def _build(
    connection: Connection, direct: Connection, one: Vectorizer, given: dict[str, Any], seconds: float | None
) -> None:
    from pgvec_queue import index_building

    wish = _wish(connection, one, given)
    _there(connection, one, wish, given)
    vector_index.want(connection, one, wish)
    with RowBar("indexing", one.name, round(vector_index.vectors(connection, one))) as bar:
        try:
            built = index_building.build(
                direct, one, wish, versions(connection).vector_schema, _Shown(connection, one, bar)
            )
        except IndexRefusedError as error:
            vector_index.note_refused(connection, one, str(error))
            raise
        except BaseException:
            vector_index.note_unfinished(connection, one, f"a build was cut short; run: pgvec index {one.name}")
            raise
    with transaction(connection):
        vector_index.note_found(connection, one, built.index, seconds=built.seconds, remark=built.remark)
        vector_index.unqueue(connection, one)
    if built.remark is not None:
        click.echo(f"pgvec: {plain(built.remark)}", err=True)
    took = "is there already" if built.seconds is None else f"built in {duration(built.seconds)}"
    click.echo(f"{one.name}: {_described(built.index)}, {took}")
    _measure(connection, one, seconds)


class _Shown:
    """Shows a build on the terminal; Ctrl-C ends it."""

    def __init__(self, connection: Connection, one: Vectorizer, bar: RowBar) -> None:
        self._connection = connection
        self._vectorizer = one
        self._bar = bar
        self._step: Step | None = None
        self._look_at = 0.0
        self._told: str | None = None

    def stopped(self) -> bool:
        return False

    def waits(self, what: str | None) -> None:
        who = None if what is None else what.partition(" for ")[0]
        if what is not None and who != self._told:
            click.echo(f"pgvec: waiting, since {plain(what)}; Ctrl-C leaves it", err=True)
        self._told = who

    def begins(self, index: str, given: Room, step: Step) -> None:
        if self._step is None:
            vector_index.note_begun(self._connection, self._vectorizer)
        self._step = step
        by = f"up to {given.workers + 1} processes" if given.workers else "one process"
        part = f" ({step.number} of {step.of} partitions)" if step.of > 1 else ""
        click.echo(f"pgvec: building {plain(index)}{part} with {size(given.memory)} of memory, by {by}", err=True)

    def built(self, step: Step) -> None:
        self._bar(round(step.before + step.vectors), None)

    def goes_on(self, backend: int) -> None:
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + _LOOK
        row = self._connection.execute(statement("index", "building"), {"pid": backend}).fetchone()
        if row is None:
            return
        phase, share, _, pid, who, seconds = row
        self.waits(None if pid is None else f"a transaction of {who} (pid {pid}) has been open for {seconds:.0f} s")
        step = self._step
        self._bar(round(step.before + (share or 0.0) * step.vectors) if step is not None else 0, phase)


def _described(there: Existing) -> str:
    parameters = f" (m {there.m}, ef_construction {there.ef_construction})" if there.method == "hnsw" else ""
    return plain(f"{there.label}, {there.method}{parameters} over {there.type}, {size(there.size_bytes)}")


def _drop(connection: Connection, direct: Connection, one: Vectorizer, *, yes: bool) -> None:
    from pgvec_queue import index_building

    target = vector_index.target(connection, one)
    other = connection.execute(statement("index", "others"), {"oid": target.oid}).fetchone()
    if other is not None:
        raise PgvecError(f"{plain(other[1])} (pid {other[0]}) is building an index on {target.label}; end that first")
    there = vector_index.existing(connection, target)
    ours = [index_building.Leftover(target, index.label) for index in there if index.is_ours]
    # Of partitions: what is not a part of the table's index yet.
    ours += [left for left in index_building.leftovers(connection, target) if left not in ours]
    if ours:
        confirm(f"Drop {', '.join(index.label for index in ours)}? Searches then read every vector.", yes=yes)
    with transaction(connection):
        vector_index.want(
            connection, one, vector_index.wish_of(connection, one) or vector_index.default_wish(one), state="unwanted"
        )
        vector_index.unqueue(connection, one)
    with RowBar("dropping", one.name, None) as bar:
        for index in ours:
            index_building.remove(direct, index.target, index.label, _Shown(connection, one, bar))
    click.echo(
        f"{one.name}: " + (", ".join(plain(index.label) for index in ours) or "no index of pgvec's") + " dropped"
    )
    for other_index in there:
        if not other_index.is_ours:
            click.echo(f"pgvec: {plain(other_index.label)} stays: pgvec has not made it", err=True)


def _measure(connection: Connection, one: Vectorizer, seconds: float | None) -> None:
    from pgvec_queue import recall

    there = vector_index.existing(connection, vector_index.target(connection, one))
    if not any(index.valid for index in there):
        raise PgvecError(f"{one.name} has no index; build one: pgvec index {one.name}")
    measured = recall.measure(connection, one, seconds=seconds or recall.SECONDS)
    recall.note(connection, one, measured)
    if measured.share is None:
        click.echo(f"pgvec: {plain(measured.reason or '')}; give it more time with --seconds", err=True)
        return
    click.echo(f"{one.name}: recall@{recall.K} {measured.share:.3f}, by {measured.queries} searches")
