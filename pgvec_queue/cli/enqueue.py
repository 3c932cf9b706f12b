"""``pgvec enqueue``: define a vectorizer, or bring one up to date."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import click

from pgvec_queue import definition, destination
from pgvec_queue.catalog import find_relation, get_relation, quoted_name
from pgvec_queue.cli import adopting, estimates
from pgvec_queue.cli.common import Session, command
from pgvec_queue.cli.rowbar import RowBar
from pgvec_queue.cli.said import WHOLE_DOCUMENTS, refuse_together, said_options
from pgvec_queue.cli.texts import plain
from pgvec_queue.cli.types import NewName, Number, Text, Whole, setting
from pgvec_queue.database import Connection, Versions
from pgvec_queue.definition_options import MOST_PARTITIONS
from pgvec_queue.embedders import DEFAULT_MODEL
from pgvec_queue.errors import DefinitionError
from pgvec_queue.fragments import Fragments
from pgvec_queue.planner import Planner, PlanTakenOverError, estimated_rows
from pgvec_queue.vectorizer import ROLES, Vectorizer, find, halt


class _RoleColumn(click.ParamType):  # type: ignore[type-arg]
    """``ROLE=NAME``."""

    name = "role=name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        role, separator, column = value.partition("=")
        if not separator or not column or role not in ROLES:
            self.fail(f"{value!r} is not ROLE=NAME; roles are {', '.join(ROLES)}", param, ctx)
        return role, column


@click.command()
@click.argument("source", type=Text())
@click.option(
    "--text", multiple=True, type=Text(), metavar="COLUMN", help="Column to embed; several are joined by a blank line."
)
@click.option("--name", type=NewName(), metavar="NAME", help="The vectorizer's name.  [default: the source's]")
@click.option("--key", multiple=True, type=Text(), metavar="COLUMN", help="Unique key.  [default: the primary key]")
@click.option("--where", type=Text(), metavar="SQL", help="Only rows for which this is true.")
@click.option("--limit", type=Whole(1), metavar="N", help="Add at most this many more rows.")
@click.option("--into", type=Text(), metavar="TABLE", help="Table for the chunks.  [default: <source>_vectors]")
@click.option(
    "--into-column", type=Text(), metavar="COLUMN", help="A vector column of the source instead; documents stay whole."
)
@click.option(
    "--partitions",
    type=Whole(1, MOST_PARTITIONS),
    metavar="N",
    help="Partition a new table by hash of the key.  [default: one table]",
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    type=_RoleColumn(),
    metavar="ROLE=NAME",
    help="Name of the destination's column for a role; roles: " + ", ".join(ROLES) + ".",
)
@setting("--model", key="model", metavar="MODEL", help=f"The model.  [default: {DEFAULT_MODEL}]")
@click.option("--revision", type=Text(), metavar="REVISION", help="The model's revision on its hub.")
@setting("--embedder", key="embedder", help="What runs the model.  [default: by the model]")
@setting("--endpoint", key="endpoint", metavar="URL", help="Base URL of an OpenAI-compatible endpoint.")
@setting(
    "--tokenizer", key="tokenizer", metavar="NAME", help="For an endpoint: the tokenizer by which lengths are counted."
)
@click.option("--query-prompt", help="Text before each query.  [default: the model's]")
@click.option("--document-prompt", help="Text before each chunk.  [default: the model's]")
@click.option("--dimensions", type=Whole(1), metavar="N", help="Dimensions of the vectors.  [default: the model's]")
@click.option(
    "--trust-remote-code", is_flag=True, help="Run code that comes with the model; for authors that you trust."
)
@click.option(
    "--template", type=Text(), metavar="TEMPLATE", help="What is embedded per chunk, such as '$title: $chunk'."
)
@setting("--chunk-size", key="chunk_size", metavar="N", help="Tokens per chunk.  [default: 128]")
@setting("--chunk-overlap", key="chunk_overlap", metavar="N", help="Tokens shared by neighbours.  [default: 20]")
@click.option("--no-chunking", is_flag=True, help="Embed each document whole.")
@click.option(
    "--too-long",
    type=click.Choice(["quarantine", "truncate"]),
    help="For a whole document that is too long.  [default: quarantine]",
)
@click.option("--store", type=click.Choice(["vector", "halfvec"]), help="Type of the vectors.  [default: vector]")
@setting(
    "--rows-per-job",
    key="rows_per_job",
    metavar="N",
    help="Source rows per job.  [default: 1000]",
)
@click.option(
    "--priority", type=Whole(-1_000_000, 1_000_000), metavar="N", help="Higher ones are worked on first.  [default: 0]"
)
@click.option(
    "--sync/--no-sync",
    default=None,
    help="Follow live changes by triggers on SOURCE, or stop to.  [default: as it is; new ones do not]",
)
@click.option(
    "--adopt",
    is_flag=True,
    help="Take over the vectors that the destination has, instead of embedding their rows again; a sample is checked.",
)
@setting(
    "--index/--no-index",
    key="index",
    help="Have an HNSW index built when all is embedded.  [default: as it is; new ones get one]",
)
@click.option("--dry-run", is_flag=True, help="Check everything and estimate what it would mean; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="With --dry-run: one JSON object.")
@click.option(
    "--sample",
    type=Whole(100, 1_000_000),
    metavar="N",
    help="With --dry-run: documents to cut for the estimate.  [default: 2000]",
)
@click.option("--price", type=Number(0), metavar="PRICE", help="With --dry-run: of a million tokens.")
@command
def enqueue(
    session: Session,
    *,
    limit: int | None,
    columns: Sequence[tuple[str, str]],
    dry_run: bool,
    as_json: bool,
    sample: int | None,
    price: float | None,
    index: bool | None,
    **given: Any,
) -> None:
    """Plan the jobs that turn SOURCE (a table or schema.table) into vectors.

    Run again, it brings the destination up to date: what is new or changed is embedded, what is gone is deleted, and
    nothing is embedded twice. The vectorizer's name will do then for SOURCE, where no table is called so.

    With --adopt, rows whose vectors are there already are not embedded: a destination that some other program has
    filled is taken over.

    With --dry-run it says what that would mean, each number as an estimate with the interval that it lies in.
    """
    _refuse_contradictions(click.get_current_context())
    column_map: dict[str, list[str]] = {}
    for role, name in columns:
        column_map.setdefault(role, []).append(name)
    # A file's or the environment's is for new vectorizers: others stay as they are.
    said = "index" in said_options(click.get_current_context())
    options = definition.Options(
        columns=column_map, index=index if said else None, index_new=True if index is None else index, **given
    )
    connection, versions = session.connect_checked("enqueue")
    options = _by_name(connection, options)
    _refuse_limited_sync(connection, options, limit)
    checked = adopting.check(connection, options, versions) if options.adopt else None
    if dry_run and checked is not None:
        tell_proposal(connection, definition.propose(connection, options, versions), sync=options.sync)
        return
    if dry_run:
        connection.read_only = True
        proposed = definition.propose(connection, options, versions)
        # Its numbers are wanted by nobody else here.
        from pgvec_queue.estimate import estimator

        wish = estimator.Wish(sample or estimator.DEFAULT_SAMPLE, limit, price)
        found = estimator.estimate(connection, proposed, versions, wish)
        if as_json:
            click.echo(json.dumps(found.as_json()))
        else:
            tell_proposal(connection, proposed, sync=options.sync)
            estimates.show(found)
        return
    defined = definition.define(connection, options, versions)
    for remark in defined.remarks:
        click.echo(f"pgvec: {remark}", err=True)
    vectorizer = defined.vectorizer
    if checked is not None:
        adopting.adopt(connection, Fragments(vectorizer, versions.vector_schema), checked)
    plan(connection, vectorizer, versions, limit)


def plan(connection: Connection, vectorizer: Vectorizer, versions: Versions, limit: int | None = None) -> None:
    """Plans the jobs and says how many; somebody else who plans the same is left to it."""
    with RowBar("planning", vectorizer.name, limit or estimated_rows(connection, vectorizer)) as bar:
        planner = Planner(connection, Fragments(vectorizer, versions.vector_schema), lambda _, rows: bar(rows))
        try:
            planned = planner.plan(limit)
        except PlanTakenOverError as error:
            click.echo(f"pgvec: {error}", err=True)
            return
    click.echo(
        f"{vectorizer.name}: {planned.rows:,} rows in {planned.jobs:,} jobs, {vectorizer.source} "
        f"-> {_destination(vectorizer)}, {vectorizer.model}, {vectorizer.dimensions} dimensions"
    )
    click.echo(f"pgvec: {_next(vectorizer.name, halt(connection, vectorizer))}", err=True)


def _next(name: str, halted: str | None) -> str:
    """What is to be done for the jobs to be."""
    if halted is None:
        return "start `pgvec work` on each machine that shall embed; `pgvec status` shows how far it is"
    return f"{plain(name)} is {plain(halted)}; to have it go on, run: pgvec resume {plain(name)}"


def _refuse_contradictions(context: click.Context) -> None:
    """Raises ``click.UsageError`` for options of which one would silently have no effect.

    Only what stands on the command line counts: a file's ``chunk_size`` is for the vectorizers that have chunks.
    """
    said = said_options(context)
    refuse_together(said, WHOLE_DOCUMENTS)
    if "text" not in said:
        # A bare `enqueue SOURCE` means the definition as it stands, whatever the settings say.
        for other in ("model", "embedder", "endpoint", "tokenizer", "chunk_size", "chunk_overlap"):
            if other in said:
                raise click.UsageError(
                    f"{said[other]} is a part of the definition: give --text with it, or leave it out to bring "
                    "an existing vectorizer up to date"
                )
    elif "too_long" in said and not {"no_chunking", "into_column"} & said.keys():
        raise click.UsageError("--too-long is about documents that stay whole; add --no-chunking or --into-column")
    for other in ("endpoint", "tokenizer"):
        if other in said and context.params["embedder"] not in (None, "openai"):
            raise click.UsageError(f"{said[other]} is for the embedder openai, not {context.params['embedder']}")
    if {"adopt", "limit"} <= said.keys():
        raise click.UsageError("--limit and --adopt exclude each other: what is there is taken over as a whole")
    if "adopt" in said:
        for other in ("as_json", "sample", "price"):
            if other in said:
                raise click.UsageError(f"{said[other]} is for the estimate, which --adopt --dry-run does not make")
    for other in ("as_json", "sample", "price"):
        if other in said and "dry_run" not in said:
            raise click.UsageError(f"{said[other]} belongs to --dry-run")


def _by_name(connection: Connection, options: definition.Options) -> definition.Options:
    """Where the source is no table but the name of a vectorizer, takes that one's source and name."""
    known = None if options.name else find(connection, options.source)
    if known is None or _is_table(connection, options.source):
        return options
    return replace(options, source=quoted_name(known.source_schema, known.source_table), name=known.name)


def _is_table(connection: Connection, name: str) -> bool:
    try:
        return find_relation(connection, name) is not None
    except DefinitionError:
        # A vectorizer may be called what no table can be.
        return False


def _refuse_limited_sync(connection: Connection, options: definition.Options, limit: int | None) -> None:
    """Raises for a limit on what follows every change: the two contradict each other."""
    if limit is None or options.sync is False:
        return
    known = find(connection, options.name or get_relation(connection, options.source).name)
    if options.sync or (known is not None and known.sync):
        raise click.UsageError("--limit and --sync exclude each other: with --sync every row is followed")


def _destination(vectorizer: Vectorizer) -> str:
    if vectorizer.into_column:
        return f"{vectorizer.destination}.{vectorizer.destination_roles.embedding}"
    return vectorizer.destination


def _state(connection: Connection, vectorizer: Vectorizer) -> str:
    state = "exists"
    if vectorizer.destination_created and destination.find(connection, vectorizer) is None:
        state = "gone" if vectorizer.id else "new"
    if vectorizer.partitions is None:
        return state
    return f"{state}, {vectorizer.partitions} partitions by hash of {', '.join(vectorizer.destination_roles.key)}"


def tell_proposal(connection: Connection, vectorizer: Vectorizer, *, sync: bool | None) -> None:
    chunking = (
        f"{vectorizer.chunk_size} tokens, overlap {vectorizer.chunk_overlap}" if vectorizer.chunk_size else "none"
    )
    for label, value in (
        ("name", vectorizer.name),
        ("source", vectorizer.source),
        ("key", ", ".join(f"{c} {t}" for c, t in zip(vectorizer.key_columns, vectorizer.key_types, strict=True))),
        ("text", ", ".join(vectorizer.text_columns)),
        ("where", vectorizer.filter or "all rows"),
        ("destination", f"{_destination(vectorizer)} ({_state(connection, vectorizer)})"),
        (
            "model",
            f"{vectorizer.model} ({vectorizer.embedder}), {vectorizer.dimensions} dimensions as {vectorizer.store}",
        ),
        ("chunks", chunking),
        ("sync", "by triggers" if sync or (sync is None and vectorizer.sync) else "none: run enqueue again"),
    ):
        click.echo(f"{label + ':':13}{value}")
