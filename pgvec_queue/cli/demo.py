"""``pgvec demo``: the whole way from a table to answers, on a local server, with the real model."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
from click.core import ParameterSource

from pgvec_queue import definition, embedders, schema, vectorizer
from pgvec_queue import demo as corpus
from pgvec_queue import search as searching
from pgvec_queue.cli.common import Session, command
from pgvec_queue.cli.live import Live
from pgvec_queue.cli.search import print_hits
from pgvec_queue.cli.types import Whole
from pgvec_queue.cli.work import EXIT_CODES, begin_afresh, obey_signals, tell
from pgvec_queue.database import Connection, statement, versions
from pgvec_queue.embedders import DeviceOptions
from pgvec_queue.fragments import Fragments
from pgvec_queue.planner import Planner
from pgvec_queue.worker import Outcome, Worker, WorkerOptions

_OPTIONS = definition.Options(
    source=corpus.TABLE, text=("docstring",), template="$name: $chunk", rows_per_job=100, index_new=True
)


@click.command()
@click.option(
    "--documents",
    type=Whole(1),
    metavar="N",
    default=corpus.DEFAULT_DOCUMENTS,
    show_default=True,
    help="How many docstrings, spread over the whole library.",
)
@click.option("--all", "take_all", is_flag=True, help="Take all of them, some 8,600.")
@command
def demo(session: Session, *, documents: int, take_all: bool) -> int:
    """Embed docstrings of Python's standard library with all-MiniLM-L6-v2, and search them.

    Where no database is named it runs on the embedded server, and stops it at the end. Run again, it goes on where it
    was.
    """
    documents_said = click.get_current_context().get_parameter_source("documents")
    if take_all and documents_said is ParameterSource.COMMANDLINE:
        raise click.UsageError("--documents and --all exclude each other")
    started = time.monotonic()
    _say("Reading the docstrings of Python's standard library ...")
    schema.initialize(session.database)
    connection = session.connect("demo")
    found = versions(connection)
    held = corpus.load(connection, None if take_all else documents)
    _say(f"The table {corpus.TABLE} holds {held:,} docstrings of Python's standard library.")
    defined = definition.define(connection, _OPTIONS, found).vectorizer
    planned = Planner(connection, Fragments(defined, found.vector_schema)).plan()
    _say(f"enqueue: {planned.jobs} jobs of up to {defined.rows_per_job} rows each; loading {defined.model} ...")
    worker = Worker(session.database, WorkerOptions(names=[defined.name], drain=True))
    obey_signals(worker)
    with Live(session.database, [defined.name]):
        outcome = worker.run()
    if outcome is Outcome.RECYCLED:
        begin_afresh(worker)
    if outcome in (Outcome.STOPPED, Outcome.RECYCLED):
        _say("Stopped; what is embedded is kept. Run the demo again and it goes on from there.")
        return 130
    tell(session, outcome, [defined.name])
    if outcome is Outcome.BLOCKED:
        return 1
    _search(connection, defined)
    _say(f"That took {time.monotonic() - started:.0f} s. Now try, on the same table:")
    for line in _next_steps(session, defined.name):
        _say(f"  {line}")
    _say("and on your own database, as README.md says.")
    return EXIT_CODES[outcome]


def _next_steps(session: Session, name: str) -> Iterator[str]:
    source = session.source
    # A DSN of --dsn is not repeated: it may hold a password.
    dsn = " --dsn ..." if source.origin == "--dsn" else ""
    program = _program()
    yield f'{program} search{dsn} {name} "your own question"'
    yield f"{program} status{dsn}"
    if source.directory is not None:
        yield f"{program} db start{dsn}        # keeps the server running; stop it with: {program} db stop{dsn}"


def _program() -> str:
    """How to call this program again: by its name where the shell finds it, else by its path from here."""
    called = Path(sys.argv[0])
    found = shutil.which("pgvec")
    if called.name != "pgvec" or (found is not None and Path(found).resolve() == called.resolve()):
        return "pgvec"
    return os.path.relpath(called)


def _search(connection: Connection, defined: vectorizer.Vectorizer) -> None:
    embedder = embedders.load(defined.spec, DeviceOptions(runtime="torch"))
    try:
        for query in corpus.QUERIES:
            click.echo(f"\n? {query}")
            answer = searching.search(connection, defined, embedder, searching.Search(query, limit=3))
            print_hits(_named(connection, answer))
    finally:
        embedder.close()
    click.echo()


def _named(connection: Connection, answer: searching.Answer) -> searching.Answer:
    """Puts the docstring's dotted name in the place of its key, which says nothing to a reader."""
    ids = [hit.key[0] for hit in answer.hits]
    names: dict[str, str] = dict(connection.execute(statement("demo", "names"), {"ids": ids}).fetchall())
    hits = [replace(hit, key=[names.get(hit.key[0], hit.key[0])]) for hit in answer.hits]
    return searching.Answer(hits, answer.best_score)


def _say(text: str) -> None:
    click.echo(text, err=True)
