"""``pgvec bench cost``: jobs, bytes, hours and money for any size, by arithmetic; ``docs/scaling.md`` explains it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.table import Table

from pgvec_queue.cli.common import Session, command
from pgvec_queue.cli.texts import console
from pgvec_queue.cli.types import Number, Size, Whole
from pgvec_queue.definition_options import MOST_PARTITIONS

if TYPE_CHECKING:
    from pgvec_queue.estimate.cost import Plan

F = TypeVar("F", bound=Callable[..., Any])

_LARGEST = 1e15
_FACTORS = {"k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9}
_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


class _Count(Number):
    """A number that may be written like 100M, 1e9 or 2.5k."""

    name = "count"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value).strip()
        factor = _FACTORS.get(text[-1:].lower(), 1.0)
        if factor == 1.0:
            return super().convert(text, param, ctx)
        return super().convert(super().convert(text[:-1], param, ctx) * factor, param, ctx)


class _Constant(click.ParamType):  # type: ignore[type-arg]
    """NAME=NUMBER, of the constants that were measured."""

    name = "constant"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        from pgvec_queue.estimate.cost import Constants

        name, _, number = str(value).partition("=")
        known = [one.name for one in fields(Constants)]
        if name not in known or not number:
            self.fail(f"{value!r} is no constant; write NAME=NUMBER, of {', '.join(known)}", param, ctx)
        # A graph grows with the logarithm of its vectors, which of one is nothing.
        least = 1 if name == "build_at" else 0
        return name, Number(least, _LARGEST, min_open=True).convert(number, param, ctx)


def _price(name: str, what: str) -> Callable[[F], F]:
    return click.option(name, type=Number(0, 1e9), metavar="N", default=0.0, show_default=True, help=what)


@click.command("cost", short_help="What any number of rows takes on any fleet, by arithmetic.")
@click.option("--rows", type=_Count(1, _LARGEST), metavar="N", default="1M", show_default=True, help="Of the source.")
@click.option(
    "--chunks-per-row", type=Number(0.001, 1e6), metavar="N", default=1.0, show_default=True, help="On average."
)
@click.option(
    "--tokens-per-chunk", type=Number(1, 1e6), metavar="N", default=100.0, show_default=True, help="On average."
)
@click.option(
    "--chunk-bytes", type=Number(0, 1e6), metavar="N", default=400.0, show_default=True, help="Of a chunk's text."
)
@click.option("--dimensions", type=Whole(1, 16_000), metavar="N", default=384, show_default=True, help="Of a vector.")
@click.option(
    "--store",
    type=click.Choice(["vector", "halfvec"]),
    default="vector",
    show_default=True,
    help="Type of the vectors.",
)
@click.option("--rows-per-job", type=Whole(1), metavar="N", default=1_000, show_default=True, help="As of enqueue.")
@click.option(
    "--partitions",
    type=Whole(1, MOST_PARTITIONS),
    metavar="N",
    default=1,
    show_default=True,
    help="Of the destination.",
)
@click.option("--devices", type=Whole(1, 1_000_000), metavar="N", default=1, show_default=True, help="GPUs, or Macs.")
@click.option(
    "--tokens-per-second",
    type=_Count(1, _LARGEST),
    metavar="N",
    default="50k",
    show_default=True,
    help="Of each device, as `pgvec bench encode` shows.",
)
@click.option(
    "--server-cores", type=Whole(1, 4_096), metavar="N", default=16, show_default=True, help="Of the database."
)
@click.option(
    "--server-memory", type=Size(), metavar="SIZE", default="64G", show_default=True, help="Half of it for an index."
)
@click.option(
    "--disk", type=Size(), metavar="SIZE", default="1000M", show_default=True, help="That its disk writes per second."
)
@click.option(
    "--build-processes", type=Whole(1, 1_024), metavar="N", default=8, show_default=True, help="That build the index."
)
@click.option("--no-index", is_flag=True, help="No HNSW index.")
@_price("--price-device-hour", "Of a device for an hour.")
@_price("--price-server-hour", "Of the database server for an hour.")
@_price("--price-storage-gb-month", "Of a GB for a month.")
@click.option(
    "--constant",
    "given",
    type=_Constant(),
    multiple=True,
    metavar="NAME=N",
    help="Another value of a constant that was measured, such as slice_ms=4.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@command
def cost(
    session: Session,  # noqa: ARG001
    *,
    as_json: bool,
    no_index: bool,
    given: tuple[tuple[str, float], ...],
    server_memory: int,
    disk: int,
    price_device_hour: float,
    price_server_hour: float,
    price_storage_gb_month: float,
    **numbers: Any,
) -> None:
    """Compute what a backfill takes: jobs, bytes, WAL, memory and hours for the index, hours in all, and money.

    No database is asked. The constants behind it were measured, each by a command that docs/scaling.md names; what it
    does not see makes the hours a lower bound. What does not hold at that size is said below the figures.
    """
    from pgvec_queue.estimate import cost as model

    plan = model.Plan(
        **numbers,
        server_memory=server_memory,
        disk_bytes_per_second=disk,
        index=not no_index,
        prices=model.Prices(price_device_hour, price_server_hour, price_storage_gb_month),
        constants=model.Constants(**dict(given)),
    )
    found = model.cost(plan)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "plan": asdict(plan),
                    "figures": {name: float(f"{value:.6g}") for name, value in found.figures.items()},
                    "bottleneck": found.bottleneck,
                    "breaks": list(found.breaks),
                }
            )
        )
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    for name, value in found.figures.items():
        if "money" not in name or value:
            table.add_row(*_shown(name, value))
    out = console()
    out.print(table)
    out.print(
        f"embedding takes as long as {found.bottleneck} need" + ("s" if found.bottleneck.endswith("disk") else "")
    )
    out.print(_assumed(plan))
    for one in found.breaks:
        out.print(f"- {one}")


def _assumed(plan: Plan) -> str:
    """What the hours rest on, and what is not in them."""
    devices = f"{plan.devices:,} device{'s' if plan.devices > 1 else ''} of {plan.tokens_per_second:,.0f} tokens/s"
    of_each = f"{plan.chunks_per_row:,.3g} x {plan.tokens_per_chunk:,.3g} tokens a row, {plan.dimensions:,} dimensions"
    prices = plan.prices
    no_money = not (prices.device_hour or prices.server_hour or prices.storage_gb_month)
    money = "; no price was given, so no money is shown (--price-…)" if no_money else ""
    return f"assumed: {devices}, {of_each} as {plan.store}, a server of {plan.server_cores:,.0f} cores{money}"


def _shown(name: str, value: float) -> tuple[str, str]:
    if name == "wal_bytes_per_second":
        return "WAL per second", _size(value)
    if name.endswith("_bytes"):
        return name.removesuffix("_bytes").replace("_", " ").replace("wal", "WAL").replace("hnsw", "HNSW"), _size(value)
    if name == "hours" or name.endswith("_hours"):
        what = name.removesuffix("_hours").replace("_", " ")
        return ("in all" if name == "hours" else what), _hours(value)
    if name.endswith("_share"):
        return name.removesuffix("_share").replace("_", " "), f"{value:.1%}"
    return name.replace("_", " "), f"{value:,.0f}" if value >= 100 else f"{value:,.3g}"


def _size(size: float) -> str:
    for unit in _UNITS:
        if size < 1_000 or unit == _UNITS[-1]:
            break
        size /= 1_000
    return f"{size:,.3g} {unit}"


def _hours(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{hours * 60:,.1f} min" if hours >= 1 / 60 else f"{hours * 3600:,.1f} s"
