"""``pgvec migrate-model``: a second vectorizer with another model, filled beside the first, then switched to."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from pgvec_queue import model_migration, model_migration_begin, model_migration_end, model_report, vectorizer
from pgvec_queue.cli import estimates
from pgvec_queue.cli.common import Session, command, confirm, yes_option
from pgvec_queue.cli.enqueue import tell_proposal
from pgvec_queue.cli.rowbar import RowBar
from pgvec_queue.cli.said import WHOLE_DOCUMENTS, refuse_together, said_options
from pgvec_queue.cli.texts import duration, plain, size
from pgvec_queue.cli.types import SETTINGS, Text, Whole, setting
from pgvec_queue.database import Connection, Versions
from pgvec_queue.definition_options import MIGRATED, MOST_PARTITIONS
from pgvec_queue.embedders import DeviceOptions
from pgvec_queue.errors import PgvecError
from pgvec_queue.fragments import Fragments
from pgvec_queue.model_migration_end import Removed
from pgvec_queue.model_report import Report, Side
from pgvec_queue.planner import Planner, PlanTakenOverError, estimated_rows

ACTIONS = ("switch", "rollback", "finish", "abandon")
_MOST_QUERIES = 1_000


@click.command(name="migrate-model")
@click.argument("name", type=Text())
@click.option("--model", type=Text(), metavar="MODEL", help="The new model.")
@click.option("--revision", type=Text(), metavar="REVISION", help="Its revision on its hub.")
@click.option("--embedder", type=SETTINGS["embedder"], help="What runs it.  [default: by the model]")
@click.option("--endpoint", type=Text(), metavar="URL", help="Base URL of an OpenAI-compatible endpoint.")
@click.option("--tokenizer", type=Text(), metavar="NAME", help="For an endpoint: by which lengths are counted.")
@click.option("--query-prompt", help="Text before each query.  [default: the model's]")
@click.option("--document-prompt", help="Text before each chunk.  [default: the model's]")
@click.option("--dimensions", type=Whole(1), metavar="N", help="Dimensions of the vectors.  [default: the model's]")
@click.option(
    "--trust-remote-code", is_flag=True, help="Run code that comes with the model; for authors that you trust."
)
@click.option("--template", type=Text(), metavar="TEMPLATE", help="What is embedded per chunk.  [default: as before]")
@click.option("--chunk-size", type=SETTINGS["chunk_size"], metavar="N", help="Tokens per chunk.  [default: as before]")
@click.option(
    "--chunk-overlap", type=SETTINGS["chunk_overlap"], metavar="N", help="Shared by neighbours.  [default: as before]"
)
@click.option("--no-chunking", is_flag=True, help="Embed each document whole.")
@click.option(
    "--too-long",
    type=click.Choice(["quarantine", "truncate"]),
    help="For a whole document that is too long.  [default: as before]",
)
@click.option("--store", type=click.Choice(["vector", "halfvec"]), help="Type of the vectors.  [default: as before]")
@click.option("--into", type=Text(), metavar="TABLE", help="Table for the new chunks.  [default: named by the model]")
@click.option(
    "--partitions",
    type=Whole(1, MOST_PARTITIONS),
    metavar="N",
    help="Of the new table; 1: none.  [default: as before]",
)
@click.option("--into-column", type=Text(), metavar="COLUMN", help="Column of the source for the new vectors.")
@click.option("--dry-run", is_flag=True, help="Check everything and estimate what it would mean; write nothing.")
@click.option("--switch", is_flag=True, help="Search with the new model from now on.")
@click.option("--anyway", is_flag=True, help="With --switch: whatever speaks against it.")
@click.option("--rollback", is_flag=True, help="Search with the old model again.")
@click.option("--finish", is_flag=True, help="After the switch: drop the old vectorizer and its vectors.")
@click.option("--abandon", is_flag=True, help="Before the switch: drop the new vectorizer and its vectors.")
@click.option("--keep-destination", is_flag=True, help="With --finish or --abandon: leave the vectors where they are.")
@click.option(
    "--query", "queries", type=Text(), multiple=True, metavar="TEXT", help="Report: ask this; may be repeated."
)
@click.option(
    "--queries",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Report: ask the lines of a file.",
)
@click.option(
    "--sample",
    type=Whole(0, _MOST_QUERIES),
    metavar="N",
    help="Report: ask with so many stored texts; 0: ask nothing.  [default: 30]",
)
@setting("--device", key="device", help="Report: where the models run.  [default: auto]")
@click.option("--json", "as_json", is_flag=True, help="Report and --dry-run: one JSON object.")
@yes_option
@command
def migrate_model(
    session: Session,
    *,
    name: str,
    dry_run: bool,
    anyway: bool,
    keep_destination: bool,
    queries: Sequence[str],
    file: Path | None,
    sample: int | None,
    device: str | None,
    as_json: bool,
    yes: bool,
    **given: Any,
) -> None:
    """Move the vectorizer NAME to another model while it is searched and kept in sync.

    With --model (or another part of the definition) a second vectorizer is made over the same rows; run again, it
    goes on. Then --switch makes NAME mean the new one, --rollback takes that back, and --finish drops the old one.
    With nothing but NAME: how far it is, and how the two compare.
    """
    action = _action(click.get_current_context())
    wanted = {key: given[key] for key in MIGRATED if given[key] not in (None, False)}
    connection, versions = session.connect_checked("migrate-model")
    if wanted:
        if dry_run:
            _estimate(connection, versions, name, wanted, as_json=as_json)
        else:
            _begin(connection, versions, name, wanted)
    elif action is None:
        asked = [*queries, *_lines(file)]
        _report(connection, name, asked, sample, DeviceOptions(device or "auto", runtime="torch"), as_json=as_json)
    elif action == "switch":
        _switch(connection, name, anyway=anyway, yes=yes)
    elif action == "rollback":
        _roll_back(connection, name, yes=yes)
    else:
        _remove(connection, name, action, keep_destination=keep_destination, yes=yes)


def _action(context: click.Context) -> str | None:
    """Returns the one thing that is to be done; raises ``click.UsageError`` for what does not go together."""
    said = said_options(context)
    actions = [one for one in ACTIONS if one in said]
    made = [one for one in MIGRATED if one in said]
    alone = (*actions, *made, "dry_run", "queries", "file", "sample", "as_json")
    refuse_together(said, ((one, alone) for one in actions))
    for one, owners in (
        ("anyway", ("switch",)),
        ("keep_destination", ("finish", "abandon")),
        ("dry_run", tuple(MIGRATED)),
    ):
        if one in said and not any(owner in said for owner in owners):
            belongs = "--model" if one == "dry_run" else " or ".join(f"--{owner}" for owner in owners)
            raise click.UsageError(f"{said[one]} belongs to {belongs}")
    for one in ("queries", "file", "sample"):
        for other in made:
            if one in said:
                raise click.UsageError(f"{said[one]} is for the report, and {said[other]} begins a migration")
    if "as_json" in said and made and "dry_run" not in said:
        raise click.UsageError("--json belongs to the report or to --dry-run")
    refuse_together(said, WHOLE_DOCUMENTS)
    return actions[0] if actions else None


def _begin(connection: Connection, versions: Versions, name: str, wanted: dict[str, Any]) -> None:
    begun = model_migration_begin.begin(connection, name, wanted, versions)
    new = begun.defined.vectorizer
    for remark in begun.defined.remarks:
        click.echo(f"pgvec: {plain(remark)}", err=True)
    planned_jobs = planned_rows = 0
    if begun.limit != 0:
        with RowBar("planning", new.name, begun.limit or estimated_rows(connection, new)) as bar:
            planner = Planner(connection, Fragments(new, versions.vector_schema), lambda _, rows: bar(rows))
            try:
                planned = planner.plan(begun.limit)
            except PlanTakenOverError as error:
                click.echo(f"pgvec: {plain(str(error))}", err=True)
                return
        planned_jobs, planned_rows = planned.jobs, planned.rows
    click.echo(
        f"{plain(new.name)}: {planned_rows:,} rows in {planned_jobs:,} jobs, {plain(new.source)} -> "
        f"{plain(new.destination_label)}, {plain(new.model)}, {new.dimensions} dimensions"
    )
    old = plain(begun.migration.old.name)
    click.echo(
        f"pgvec: {old} is searched as before; `pgvec migrate-model {old}` tells how far {plain(new.name)} is, "
        f"`pgvec migrate-model {old} --switch` takes it",
        err=True,
    )
    if not new.sync:
        click.echo(
            f"pgvec: neither follows live changes; bring both up to date before the switch: "
            f"`pgvec enqueue {plain(new.source)} --name NAME` with {old} and with {plain(new.name)}",
            err=True,
        )


def _estimate(connection: Connection, versions: Versions, name: str, wanted: dict[str, Any], *, as_json: bool) -> None:
    # Its numbers are wanted by nobody else here.
    from pgvec_queue.estimate import estimator

    connection.read_only = True
    proposed = model_migration_begin.propose(connection, name, wanted, versions)
    old = vectorizer.get(connection, name)
    found = estimator.estimate(connection, proposed, versions, estimator.Wish(estimator.DEFAULT_SAMPLE, None, None))
    if as_json:
        click.echo(json.dumps(found.as_json()))
    else:
        tell_proposal(connection, proposed, sync=old.sync)
        estimates.show(found)


def _switch(connection: Connection, name: str, *, anyway: bool, yes: bool) -> None:
    migration = model_migration.get(connection, name)
    if migration.switched_at is None and not anyway:
        against = model_report.state(connection, migration).obstacles
        if against:
            raise PgvecError(
                f"{migration.new.name} is not ready to take the place of {migration.old.name}: {'; '.join(against)} "
                "(--anyway switches nevertheless)"
            )
    if migration.switched_at is None:
        confirm(f"Search {plain(name)} with {plain(migration.new.model)} from now on?", yes=yes)
    model_migration.switch(connection, migration)
    now = model_migration.get(connection, migration.old.name)
    reads, waits = now.reads, now.waits
    click.echo(
        f"{plain(reads.name)} is searched with {plain(reads.model)} in {plain(reads.destination_label)} now; "
        f"`--rollback` takes that back, `--finish` drops {plain(waits.name)}, which has {plain(waits.model)}."
    )


def _roll_back(connection: Connection, name: str, *, yes: bool) -> None:
    migration = model_migration.get(connection, name)
    if migration.switched_at is None:
        raise PgvecError(
            f"nothing was switched: {migration.old.name} has {migration.old.model}; to give {migration.new.name} up: "
            f"pgvec migrate-model {migration.old.name} --abandon"
        )
    confirm(f"Search {plain(migration.new.name)} with {plain(migration.old.model)} again?", yes=yes)
    model_migration.roll_back(connection, migration)
    now = model_migration.get(connection, migration.new.name)
    click.echo(f"{plain(now.reads.name)} is searched with {plain(now.reads.model)} again.")
    behind = model_report.state(connection, now).old
    if behind.changes_waiting or behind.jobs_left or behind.state != "complete":
        reason = f": {behind.reason}" if behind.reason else ""
        click.echo(
            f"pgvec: {plain(now.reads.name)} is {behind.state}{plain(reason)}; {behind.changes_waiting:,} changes and "
            f"{behind.jobs_left:,} other jobs wait for it",
            err=True,
        )


def _remove(connection: Connection, name: str, action: str, *, keep_destination: bool, yes: bool) -> None:
    migration = model_migration.get(connection, name)
    finishing = action == "finish"
    if finishing and migration.switched_at is None:
        raise PgvecError(
            f"nothing was switched yet: {migration.old.name} is searched with {migration.old.model}; first "
            f"`pgvec migrate-model {migration.old.name} --switch`, or give the new one up with --abandon"
        )
    if not finishing and migration.switched_at is not None:
        raise PgvecError(
            f"{migration.new.name} has been switched to {migration.new.model}; take that back with --rollback first"
        )
    goes = migration.old if finishing else migration.new
    kept = keep_destination or not goes.destination_created
    what = plain(goes.destination_label)
    confirm(
        f"Drop {plain(goes.name)} ({plain(goes.model)})"
        f"{f'; {what} stays as it is' if kept else f' and its vectors, {what}'}?",
        yes=yes,
    )
    done = (model_migration_end.finish if finishing else model_migration_end.abandon)(
        connection, migration, keep_destination=keep_destination
    )
    _tell_removed(done)


def _tell_removed(done: Removed) -> None:
    if done.why is None:
        click.echo(f"{plain(done.name)} is dropped, and {plain(done.destination)} with it.")
        return
    click.echo(
        f"{plain(done.name)} is dropped; {plain(done.destination)} stays ({plain(done.why)})"
        f"{f', until somebody runs: {plain(done.statement)}' if done.statement else ''}"
    )


def _lines(file: Path | None) -> list[str]:
    if file is None:
        return []
    try:
        lines = [line.strip() for line in file.read_text("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise click.UsageError(f"{file} is no text in UTF-8") from None
    if not lines or len(lines) > _MOST_QUERIES:
        raise click.UsageError(f"{file} has {len(lines):,} lines with text; give 1 to {_MOST_QUERIES:,}")
    return lines


def _report(
    connection: Connection,
    name: str,
    queries: list[str],
    sample: int | None,
    device: DeviceOptions,
    *,
    as_json: bool,
) -> None:
    migration = model_migration.get(connection, name)
    found = model_report.report(
        connection,
        migration,
        queries=queries or None,
        sample=model_report.QUERIES if sample is None else sample,
        device=device,
    )
    if as_json:
        click.echo(json.dumps(found.as_json()))
    else:
        _tell(found)


def _tell(found: Report) -> None:
    """Prints both side by side, a line per measure."""
    rows: list[tuple[str, str, str]] = [("", "old", "new")]
    for label, shown in (
        ("name", lambda side: plain(side.name)),
        ("model", lambda side: f"{plain(side.model)}, {side.dimensions}"),
        ("vectors in", lambda side: plain(side.destination)),
        ("state", lambda side: side.state),
        ("rows", lambda side: f"{side.rows_done:,} of {side.rows_total:,} ({_share(side.coverage)})"),
        ("in quarantine", lambda side: f"{side.rows_failed:,}"),
        ("jobs left", lambda side: f"{side.jobs_left:,}"),
        ("time left", lambda side: (duration(side.eta_seconds) or "not known") if side.jobs_left else "-"),
        ("changes waiting", lambda side: f"{side.changes_waiting:,}"),
        ("vectors", lambda side: size(side.table_bytes)),
        ("indexes", lambda side: size(side.index_bytes)),
        ("recall of index", _recall),
    ):
        rows.append((label, shown(found.old), shown(found.new)))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for label, old, new in rows:
        click.echo(f"{label:{widths[0]}}  {old:{widths[1]}}  {new}".rstrip())
    if found.agreement is not None:
        whence = (
            "given queries"
            if found.queries_from == "given"
            else "first sentences of stored texts, which find their own text with any model: give --query or --queries"
        )
        click.echo(f"agreement: {_share(found.agreement)} of the ten nearest are the same ({found.queries} {whence})")
    if found.switched_at is not None:
        click.echo(f"switched at {found.switched_at}: --rollback takes it back, --finish drops the old one")
    elif found.obstacles:
        for obstacle in found.obstacles:
            click.echo(f"not ready: {plain(obstacle)}")
    else:
        click.echo(f"ready: pgvec migrate-model {shlex.quote(plain(found.old.name))} --switch")


def _recall(side: Side) -> str:
    if not side.indexed:
        return "no index"
    if side.recall is None:
        return "not measured"
    return f"{_share(side.recall)} ({side.recall_queries} queries)"


def _share(share: float) -> str:
    """A share of 99.96 % is not yet 100."""
    return "100 %" if share >= 1 else f"{min(100 * share, 99.9):.1f} %"
