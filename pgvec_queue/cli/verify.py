"""``pgvec verify``: compare a vectorizer's source with its destination, and queue what differs."""

from __future__ import annotations

import json

import click

from pgvec_queue import vectorizer
from pgvec_queue import verify as verifying
from pgvec_queue.cli.common import Session, command
from pgvec_queue.cli.rowbar import RowBar
from pgvec_queue.cli.texts import plain
from pgvec_queue.cli.types import Text
from pgvec_queue.fragments import Fragments
from pgvec_queue.planner import estimated_rows
from pgvec_queue.vectorizer import Vectorizer
from pgvec_queue.verify import Verified


@click.command()
@click.argument("name", type=Text())
@click.option("--fix", is_flag=True, help="Queue what differs; `pgvec work` then makes it right.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
@command
def verify(session: Session, *, name: str, fix: bool, as_json: bool) -> int:
    """Compare the source of NAME with its vectors: what is missing, stale or orphaned.

    Reads only, in short transactions, while workers and users go on. Exit code 1 where differences remain.
    """
    connection, versions = session.connect_checked("verify")
    found = vectorizer.get(connection, name)
    fragments = Fragments(found, versions.vector_schema)
    with RowBar("comparing", name, estimated_rows(connection, found)) as bar:

        def show(rows: int, looked_up: int) -> None:
            bar(rows, f"{looked_up:,} chunks looked up" if looked_up else None)

        verified = verifying.verify(connection, fragments, fix=fix, progress=show)
    if as_json:
        click.echo(json.dumps(verified.as_json()))
    else:
        click.echo(_summary(found, verified))
    _tell_examples(verified)
    _tell_limits(found, verified)
    left = verified.differences - verified.fixed
    if left:
        click.echo(f"pgvec: {_differences(left)} in {name}; `pgvec verify {name} --fix` queues what is wrong", err=True)
        return 1
    if verified.fixed:
        click.echo(f"pgvec: {_differences(verified.fixed)} queued; `pgvec work` makes them right", err=True)
    return 0


def _summary(found: Vectorizer, verified: Verified) -> str:
    stale = "unknown" if verified.stale is None else f"{verified.stale:,}"
    return (
        f"{plain(verified.name)}: {verified.rows:,} rows compared in {verified.seconds:.1f} s: "
        f"{verified.missing:,} missing, {stale} stale, {_orphaned(found, verified)}, "
        f"{verified.quarantined:,} in quarantine"
    )


def _orphaned(found: Vectorizer, verified: Verified) -> str:
    """What is orphaned is counted by chunk, which its row may have many of."""
    unit = "vector" if found.into_column else "chunk"
    told = f"{verified.orphaned:,} orphaned {unit}{'' if verified.orphaned == 1 else 's'}"
    rows = verified.keys["orphaned"]
    if found.into_column or not rows:
        return told
    return f"{told} of {rows:,} row{'' if rows == 1 else 's'}"


def _tell_examples(verified: Verified) -> None:
    for kind, keys in verified.examples.items():
        if keys:
            shown = "; ".join(plain(", ".join(key)) for key in keys)
            more = "; …" if verified.keys[kind] > len(keys) else ""
            click.echo(f"pgvec: {kind}: {shown}{more}", err=True)


def _tell_limits(found: Vectorizer, verified: Verified) -> None:
    """Says what the numbers do not mean."""
    if verified.unfinished_jobs:
        jobs = "1 job is" if verified.unfinished_jobs == 1 else f"{verified.unfinished_jobs:,} jobs are"
        click.echo(f"pgvec: {jobs} unfinished: the figures include what is still queued", err=True)
    if verified.stale is None:
        click.echo(
            f"pgvec: {found.destination} has no column for the hash of a text: whether one has changed is unknown",
            err=True,
        )


def _differences(count: int) -> str:
    return "1 difference" if count == 1 else f"{count:,} differences"
