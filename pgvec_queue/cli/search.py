"""``pgvec search``: ask a vectorizer's destination."""

from __future__ import annotations

import json

import click
from rich.text import Text as Shown

from pgvec_queue import embedders, vectorizer
from pgvec_queue import search as searching
from pgvec_queue.cli.common import Session, command
from pgvec_queue.cli.texts import console, plain
from pgvec_queue.cli.types import Text, setting
from pgvec_queue.embedders import DeviceOptions

_LINES = 4
_WIDTH = 100
_INDENT = 7


@click.command()
@click.argument("name", type=Text())
@click.argument("query", type=Text())
@setting("--limit", key="search_limit", metavar="N", help="Most hits.  [default: 10]")
@setting("--threshold", key="threshold", help="Least cosine similarity.")
@setting("--device", key="device", help="Where the model runs: auto, cpu, mps, cuda or cuda:N.  [default: auto]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per hit and line.")
@command
def search(
    session: Session,
    *,
    name: str,
    query: str,
    limit: int | None,
    threshold: float | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Find the chunks of the vectorizer NAME that are nearest to QUERY, by cosine similarity."""
    connection, versions = session.connect_checked("search")
    found = vectorizer.get(connection, name)
    embedder = embedders.load(found.spec, DeviceOptions(device or "auto", runtime="torch"))
    try:
        answer = searching.search(connection, found, versions, embedder, query, limit=limit or 10, threshold=threshold)
    finally:
        embedder.close()
    if as_json:
        for hit in answer.hits:
            click.echo(json.dumps(hit.as_json()))
    else:
        print_hits(answer)
    if not answer.hits:
        click.echo(f"pgvec: {_why_nothing(name, answer, threshold)}", err=True)


def print_hits(answer: searching.Answer) -> None:
    """Prints hits for people: score, key and the first lines of the text."""
    out = console()
    width = max(min(out.width, _WIDTH) - _INDENT, 20)
    for hit in answer.hits:
        place = "" if hit.chunk_index is None else f", chunk {hit.chunk_index}"
        out.print(Shown.assemble((f"{hit.score:.3f}", "bold"), f"  {plain(', '.join(hit.key))}{place}"), soft_wrap=True)
        # Wrapping a whole document takes seconds, and four lines of it are shown.
        start = plain((hit.chunk or "")[: 3 * _LINES * width])
        lines = Shown(start).wrap(out, width)
        if len(lines) > _LINES:
            lines[_LINES - 1].truncate(width - 4)
            lines[_LINES - 1].append(" ...")
        for line in lines[:_LINES]:
            out.print(Shown(" " * _INDENT + line.plain.rstrip(), style="dim"), soft_wrap=True)


def _why_nothing(name: str, answer: searching.Answer, threshold: float | None) -> str:
    if answer.best_score is None:
        return f"{name} has no vectors yet; see `pgvec status {name}`"
    return f"nothing reaches {threshold}; the best score was {answer.best_score:.3f}"
