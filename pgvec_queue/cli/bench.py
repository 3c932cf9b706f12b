"""``pgvec bench``: measures this machine and its database; ``pgvec_queue.bench`` says what each command measures."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click
from rich.table import Table

from pgvec_queue import embedded
from pgvec_queue.bench import DEFAULT_ROUNDS, claim, encode, load, memory, plan, scale, simulation
from pgvec_queue.bench.database import Place
from pgvec_queue.bench.report import Figure, Report
from pgvec_queue.cli.common import Session, command
from pgvec_queue.cli.cost import cost
from pgvec_queue.cli.texts import console
from pgvec_queue.cli.types import Device, Number, Size, Text, Whole
from pgvec_queue.embedders import DEFAULT_MODEL

F = TypeVar("F", bound=Callable[..., Any])

_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")


def _rounds(default: int = DEFAULT_ROUNDS) -> Callable[[F], F]:
    return click.option(
        "--rounds", type=Whole(1), metavar="N", default=default, show_default=True, help="How often each side is run."
    )


def _rows(default: int, what: str) -> Callable[[F], F]:
    return click.option("--rows", type=Whole(1), metavar="N", default=default, show_default=True, help=what)


class _Counts(click.ParamType):  # type: ignore[type-arg]
    """Numbers of workers, such as 1,2,4."""

    name = "counts"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        try:
            counts = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            counts = ()
        if not counts or not all(1 <= count <= 1_000 for count in counts):
            self.fail(f"{value!r} is no list of numbers of workers; write it like 1,2,4", param, ctx)
        return counts


@click.group("bench")
def bench() -> None:
    """Measure this machine and its database, in a database that is made for it and dropped.

    Needs the right to make databases, and nothing of yours is touched. docs/performance.md explains the figures.
    """


@bench.command("encode", short_help="A worker against SentenceTransformer.encode, and the bare model.")
@click.option("--model", type=Text(), default=DEFAULT_MODEL, show_default=True, help="The model.")
@click.option("--device", type=Device(), default="auto", show_default=True, help="cpu, mps, cuda or cuda:N.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "float16", "bfloat16"]),
    default="auto",
    show_default=True,
    help="Precision of the model.",
)
@click.option(
    "--runtime",
    type=click.Choice(["auto", "torch", "openvino"]),
    default="torch",
    show_default=True,
    help="What computes on a CPU, in the worker and in the forward pass.",
)
@click.option("--threads", type=Whole(1, 4096), metavar="N", help="CPU threads of all sides.  [default: torch's]")
@click.option("--batch-tokens", type=Whole(16), metavar="N", help="Tokens per batch.  [default: what is best]")
@click.option(
    "--seconds", type=Number(1, 86_400), metavar="SECONDS", default=60.0, show_default=True, help="Of each side in all."
)
@_rounds()
@click.option("--chunks", type=Whole(1), metavar="N", help="Per round, about; takes the place of --seconds.")
@_json
@command
def encode_(session: Session, *, as_json: bool, **arguments: Any) -> None:
    """Embed docstrings from the database to the database with one warm worker.

    In turns with it, the same chunks go through SentenceTransformer.encode at its best batch size, and through the bare
    model with tensors ready.
    """
    _show(encode.run(_place(session), encode.Options(**arguments), _say), as_json=as_json)


@bench.command("load", short_help="The write path against a bare COPY.")
@_rows(100_000, "Per round and side.")
@_rounds()
@_json
@command
def load_(session: Session, *, as_json: bool, rows: int, rounds: int) -> None:
    """Write vectors of 384 dimensions that cost nothing to make, with one worker.

    A bare binary COPY of the same rows is run in turns.
    """
    _show(load.run(_place(session), load.Options(rows, rounds), _say), as_json=as_json)


@bench.command("plan", short_help="Cutting a table into jobs.")
@_rows(5_000_000, "Of the table.")
@_rounds()
@_json
@command
def plan_(session: Session, *, as_json: bool, rows: int, rounds: int) -> None:
    """Plan a vacuumed table with a bigint key.

    Shows rows per second, jobs, bytes of queue per row, and the time to the first job; a bare scan of the same index is
    run in turns.
    """
    _show(plan.run(_place(session), plan.Options(rows, rounds), _say), as_json=as_json)


@bench.command("claim", short_help="Claiming and finishing, with an empty and with a full queue.")
@click.option(
    "--jobs", type=Whole(1), metavar="N", default=1_000_000, show_default=True, help="Queued, and done beside."
)
@click.option(
    "--samples", type=Whole(2), metavar="N", default=200, show_default=True, help="Claims per round and queue."
)
@_rounds()
@_json
@command
def claim_(session: Session, *, as_json: bool, jobs: int, samples: int, rounds: int) -> None:
    """Claim and finish jobs, one at a time, in three queues in turns.

    One is empty, one has many jobs queued, one has as many queued and as many done.
    """
    _show(claim.run(_place(session), claim.Options(jobs, samples, rounds), _say), as_json=as_json)


@bench.command("scale", short_help="Many workers against one, on simulated devices; to 1,000 with --simulated.")
@click.option("--simulated", is_flag=True, help="Hundreds of workers in each of a few processes, through pgbouncer.")
@click.option(
    "--workers",
    type=_Counts(),
    metavar="LIST",
    help="How many, one after the other.  [default: 1,2,4,8,16,32,64; simulated: 1,10,30,100,300,1000]",
)
@click.option(
    "--seconds",
    type=Number(1, 3_600),
    metavar="SECONDS",
    help="Of each turn, or of each look at a simulated fleet.  [default: 50; simulated: 20]",
)
@click.option(
    "--rate",
    type=Number(0.1, 1e6),
    metavar="N",
    help="Rows per second of a device.  [default: 500, or what fits; simulated: 8]",
)
@click.option("--rounds", type=Whole(1), metavar="N", help="How often each is run.  [default: 5; simulated: 3]")
@click.option(
    "--rows-per-job", type=Whole(1), metavar="N", help="Of simulated workers.  [default: two seconds of a device's]"
)
@click.option("--processes", type=Whole(1, 256), metavar="N", help="Of simulated workers.  [default: 4]")
@click.option(
    "--pool-size", type=Whole(1, 10_000), metavar="N", help="pgbouncer's connections to the server.  [default: 40]"
)
@click.option("--no-pooler", is_flag=True, help="Let simulated workers connect to the server directly.")
@click.option("--listen", is_flag=True, help="Let simulated workers hear NOTIFY, on a direct connection each.")
@_json
@command
def scale_(session: Session, *, as_json: bool, simulated: bool, no_pooler: bool, listen: bool, **numbers: Any) -> None:
    """Run workers whose embedder sleeps as a device would, all together and one alone in turns.

    Shows the speed-up, its share of the ideal, what a claim takes meanwhile, and what the database keeps busy.

    With --simulated, fleets of up to 1,000 workers, idle and at work: what claims, heartbeats and NOTIFY take, what
    each worker costs the database, how many connections there are, and at how many workers which part is full.
    """
    given = {name: value for name, value in numbers.items() if value is not None}
    if simulated:
        shown = simulation.run(_place(session), simulation.Options(**given, pooled=not no_pooler, listen=listen), _say)
    else:
        only = [f"--{name.replace('_', '-')}" for name in ("rows_per_job", "processes", "pool_size") if name in given]
        only += [name for name, is_given in (("--no-pooler", no_pooler), ("--listen", listen)) if is_given]
        if only:
            raise click.UsageError(f"{only[0]} says how simulated workers run; give --simulated as well")
        shown = scale.run(_place(session), scale.Options(**given), _say)
    _show(shown, as_json=as_json)


@bench.command("memory", short_help="What a worker needs above its model.")
@click.option("--model", type=Text(), default=load.MODEL, show_default=True, help="The model.")
@click.option("--device", type=Device(), default="cpu", show_default=True, help="cpu, mps, cuda or cuda:N.")
@click.option(
    "--document", type=Size(), metavar="SIZE", default="10000000", show_default=True, help="Of the large document."
)
@click.option("--job-rows", type=Whole(1), metavar="N", default=100_000, show_default=True, help="Of the large job.")
@_rows(500_000, "Of the large table.")
@_rounds(1)
@_json
@command
def memory_(
    session: Session, *, as_json: bool, model: str, device: str, document: int, job_rows: int, rows: int, rounds: int
) -> None:
    """Measure a worker's peak of resident memory with a large document, a large job and a large table.

    What is shown is above a process that has only loaded the model.
    """
    options = memory.Options(model, device, document, job_rows, rows, rounds)
    _show(memory.run(_place(session), options, _say), as_json=as_json)


bench.add_command(cost)


def _place(session: Session) -> Place:
    dsn = session.database.conninfo("bench")
    return Place(dsn, embedded.administrator(dsn))


def _say(line: str) -> None:
    click.echo(line, err=True)


def _show(report: Report, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(report.as_json()))
        return
    out = console()
    out.print(by_size(report) if report.parameters.get("simulated") else _table(report))
    for note in report.notes:
        out.print(note)
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items() if version)
    machine = report.machine
    accelerator = f", {machine['accelerator']}" if machine["accelerator"] else ""
    out.print(
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory'] / 2**30:.0f} GiB{accelerator}; {versions}"
    )


def _table(report: Report) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(report.measure, overflow="fold")
    for title in ("median", "lowest", "highest"):
        table.add_column(title, justify="right", no_wrap=True)
    for figure in report.figures:
        table.add_row(_words(figure), *map(_number, (figure.median, figure.lowest, figure.highest)))
    for ratio in report.ratios:
        table.add_row(_words(ratio), *(f"{number:.2f}" for number in (ratio.median, ratio.lowest, ratio.highest)))
    return table


def by_size(report: Report) -> Table:
    """The medians of fleets of several sizes, one column each."""
    sizes = list(report.parameters["workers"])
    medians = {figure.name: figure.median for figure in report.figures}
    table = Table(box=None, pad_edge=False)
    table.add_column("workers", overflow="fold")
    for size in sizes:
        table.add_column(f"{size:,}", justify="right", no_wrap=True)
    for name in dict.fromkeys(name.rpartition("_of_")[0] for name in medians):
        values = [medians.get(f"{name}_of_{size}") for size in sizes]
        table.add_row(name.replace("_", " "), *("" if value is None else _number(value) for value in values))
    return table


def _words(figure: Figure) -> str:
    return figure.name.replace("_", " ")


def _number(number: float) -> str:
    return f"{number:,.0f}" if number >= 1_000 else f"{number:,.3g}"
