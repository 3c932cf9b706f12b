"""``pgvec import-pgai``: make ours of a vectorizer of pgai, and take its vectors over."""

from __future__ import annotations

import dataclasses
from typing import Any

import click
from rich.table import Table

from pgvec_queue import definition, pgai
from pgvec_queue.adoption_check import Checked, NothingThereError
from pgvec_queue.cli import adopting
from pgvec_queue.cli.common import Session, command
from pgvec_queue.cli.enqueue import plan
from pgvec_queue.cli.texts import console, plain
from pgvec_queue.cli.types import NewName, Text, Whole, setting
from pgvec_queue.database import Connection, Versions
from pgvec_queue.embedders import KINDS
from pgvec_queue.errors import PgvecError
from pgvec_queue.fragments import Fragments


@click.command()
@click.argument("theirs", metavar="NAME", type=Text())
@click.option("--name", type=NewName(), metavar="NAME", help="What ours is called.  [default: as pgai's]")
@click.option("--model", type=Text(), metavar="MODEL", help="A model that gives the same vectors.  [default: pgai's]")
@click.option("--embedder", type=click.Choice(KINDS), help="What runs the model.  [default: by the model]")
@click.option(
    "--endpoint", type=Text(), metavar="URL", help="Base URL of its OpenAI-compatible API.  [default: pgai's]"
)
@setting(
    "--tokenizer", key="tokenizer", metavar="NAME", help="For an endpoint: the tokenizer by which lengths are counted."
)
@click.option("--query-prompt", help="Text before each query.  [default: the model's]")
@click.option("--document-prompt", help="Text before each chunk.  [default: the model's]")
@click.option(
    "--chunk-size",
    type=Whole(4, 1_000_000),
    metavar="N",
    help="Tokens per chunk, of rows that change.  [default: a quarter of pgai's characters]",
)
@click.option(
    "--chunk-overlap", type=Whole(0, 500_000), metavar="N", help="Tokens shared by neighbours.  [default: likewise]"
)
@click.option("--sync/--no-sync", default=True, help="Follow live changes by triggers.  [default: sync]")
@click.option("--anew", is_flag=True, help="Take nothing over: all rows are embedded anew.")
@click.option("--dry-run", is_flag=True, help="Say what it would be, compare the vectors, and change nothing.")
@command
def import_pgai(session: Session, *, theirs: str, anew: bool, dry_run: bool, **given: Any) -> None:
    """Make a vectorizer of what pgai's vectorizer NAME (or its id) is, and take its vectors over.

    pgai's definition, its table and its view stay as they are, but for a column for the hash of each text. What differs
    is told, and at the end the statement that takes pgai's triggers away, which is yours to run.
    """
    connection, versions = session.connect_checked("import-pgai")
    found = pgai.read(connection, theirs)
    ours = pgai.convert(connection, found, pgai.Wishes(**given))
    _show(ours)
    _tell_queue(connection, found)
    _refuse_busy(connection, found)
    checked = None if anew else _check(connection, ours, versions)
    if not dry_run:
        defined = definition.define(connection, ours.options, versions)
        for remark in defined.remarks:
            click.echo(f"pgvec: {plain(remark)}", err=True)
        if checked is not None:
            fragments = Fragments(defined.vectorizer, versions.vector_schema)
            adopting.adopt(connection, fragments, checked, excepted=ours.excepted)
        plan(connection, defined.vectorizer, versions)
    click.echo("pgvec: as long as a worker of pgai runs too, both write the same rows; to keep it from that:", err=True)
    click.echo(f"pgvec:   {plain(found.suspension)}", err=True)
    click.echo(
        "pgvec: this takes pgai's triggers and its queue away, and leaves its table, its view and ours:", err=True
    )
    click.echo(found.removal)


def _show(ours: pgai.Ours) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("setting", "pgai", "pgvec", ""):
        table.add_column(title, overflow="fold")
    table.add_row("name", "", plain(str(ours.options.name)), "")
    for difference in ours.differences:
        table.add_row(*map(plain, dataclasses.astuple(difference)))
    console(err=True).print(table)


def _tell_queue(connection: Connection, found: pgai.Theirs) -> None:
    waiting = pgai.pending(connection, found)
    if waiting:
        many = (
            "more than 10,000 rows wait"
            if waiting > 10_000
            else f"{waiting:,} row{'s wait' if waiting > 1 else ' waits'}"
        )
        click.echo(
            f"pgvec: {many} in pgai's queue; whose vectors are not of their present text is embedded by pgvec", err=True
        )
    if found.disabled:
        click.echo("pgvec: it is disabled, so its worker leaves it alone", err=True)


def _refuse_busy(connection: Connection, found: pgai.Theirs) -> None:
    pids = pgai.busy(connection, found)
    if pids and not found.disabled:
        raise PgvecError(
            f"a worker of pgai is at work on it (server process {', '.join(map(str, pids))}); stop it, or run "
            f"{found.suspension.rstrip(';')}, then run the same command again"
        )


def _check(connection: Connection, ours: pgai.Ours, versions: Versions) -> Checked | None:
    try:
        return adopting.check(
            connection,
            ours.options,
            versions,
            excepted=ours.excepted,
            dropped=ours.dropped,
            otherwise="give --anew to embed all rows anew",
        )
    except NothingThereError as error:
        click.echo(f"pgvec: {plain(error.what)}; all rows are embedded", err=True)
        return None
