"""Looks at what holds things up: the schema's version, vectorizers that stand still, dead workers, triggers that are
missing, and whatever keeps vacuum from its work.
"""

from __future__ import annotations

from collections.abc import Iterator

from pgvec_queue import access, progress, schema, sync
from pgvec_queue.doctor.finding import Finding, error, note, ok, size, warning
from pgvec_queue.doctor.question import Examined
from pgvec_queue.errors import SchemaOutdatedError

LONG_SECONDS = 600.0
"""That a transaction may be open before it is told of."""
_KEPT_LOG = 1 << 30
"""Bytes of the log that a slot in use may keep before it is told of."""


def our_schema(examined: Examined) -> Iterator[Finding]:
    """Whether the schema is the one that this program works with."""
    try:
        found = schema.require(examined.connection)
    except SchemaOutdatedError as problem:
        what, _, remedy = str(problem).rpartition("; ")
        yield error("schema", what, remedy)
    else:
        newer = "" if found == schema.HEAD else f"; newer than this program's {schema.HEAD}, which works with it"
        yield ok("schema", f"pgvec at revision {found}{newer}")


def vectorizers(examined: Examined) -> Iterator[Finding]:
    """What somebody has to mend before it goes on."""
    for one in progress.read(examined.connection):
        if one.state == "blocked":
            remedy = f"{access.remedy(one.name, one.reason)}, then run: pgvec resume {one.name}"
            yield warning("blocked", str(one.reason), remedy, vectorizer=one.name)
        elif one.state == "active" and not one.plan_complete and one.reason and "plan was stopped" in one.reason:
            remedy = f"run the `pgvec enqueue` of {one.name} again"
            yield warning("plan", "it was stopped half-way", remedy, vectorizer=one.name)


def triggers(examined: Examined) -> Iterator[Finding]:
    """Whether live changes are followed everywhere."""
    synced = {one.name: one for one in examined.vectorizers if one.sync}
    for name, one in synced.items():
        missing = sync.uncovered(examined.connection, one)
        powerless = examined.rows("follower", function=sync.function_name(one.id))
        if powerless:
            (owner,) = powerless[0]
            yield error(
                "sync",
                f"every change of {one.source} is refused: its trigger acts for {owner}, who may not queue it",
                f"GRANT pgvec_enqueuer TO {owner}: docs/roles.md",
                vectorizer=name,
            )
        elif missing:
            yield error(
                "sync",
                f"{name} does not follow what is written straight into {', '.join(missing)}",
                f"run: pgvec enqueue {one.source} --name {name}",
                vectorizer=name,
            )
        else:
            yield ok("sync", f"{name} follows the changes of {one.source}", vectorizer=name)


def workers(examined: Examined) -> Iterator[Finding]:
    """Whether anybody works, and whether anybody died and nobody noticed."""
    alive = 0
    for worker, host, pid, silent, lives, jobs in examined.rows("workers"):
        alive += bool(lives)
        if not lives:
            yield warning(
                "workers",
                f"worker {worker} ({host}, pid {pid}) has not been heard of for {silent:,.0f} s and holds {jobs} jobs",
                "start a worker: it takes them over",
            )
    if alive:
        yield ok("workers", f"{alive} at work")
    else:
        yield note("workers", "none is running", "start one with `pgvec work`")


def transactions(examined: Examined) -> Iterator[Finding]:
    """Transactions that have been open for long: what died since cannot be cleared away."""
    found = examined.rows("long_transactions", seconds=LONG_SECONDS)
    for who, seconds, remedy in found:
        yield warning(
            "transactions",
            f"{who} has had one open for {seconds / 60:,.0f} min, which keeps vacuum from clearing dead rows away",
            f"end it: {remedy}",
        )
    (hidden,) = examined.row("hidden_sessions")
    (role, *_) = examined.row("session")
    if hidden:
        yield note(
            "transactions",
            f"{hidden} sessions of other roles may not be looked at",
            f"to have them looked at too: GRANT pg_read_all_stats TO {role}",
        )
    elif not found:
        yield ok("transactions", f"none has been open for more than {LONG_SECONDS / 60:.0f} min")


def slots(examined: Examined) -> Iterator[Finding]:
    """Replication slots that nobody reads from: they keep the log, and a logical one dead rows as well."""
    found = False
    for name, active, kept, dead in examined.rows("slots"):
        held = f"{size(kept or 0)} of the log{f', and dead rows of {dead:,} transactions' if dead else ''}"
        if not active:
            found = True
            remedy = f"let its reader come back, or SELECT pg_drop_replication_slot('{name}')"
            yield warning("replication slots", f"nobody reads from {name}, which keeps {held}", remedy)
        elif (kept or 0) > _KEPT_LOG:
            found = True
            yield warning(
                "replication slots", f"the reader of {name} is behind: it keeps {held}", "see what holds it up"
            )
    if not found:
        yield ok("replication slots", "none that is left behind")
