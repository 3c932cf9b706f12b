"""``pgvec search``: ask a vectorizer's destination."""

from __future__ import annotations

import json
import sys
import textwrap

import click
from rich.console import Console
from rich.markup import escape

from pgvec_queue import embedders, vectorizer
from pgvec_queue import search as searching
from pgvec_queue.cli.common import Session, command, setting
from pgvec_queue.embedders import DeviceOptions

_LINES = 4


@click.command()
@click.argument("name")
@click.argument("query")
@setting("--limit", key="search_limit", type=click.IntRange(1, 10_000), help="Most hits.  [default: 10]")
@setting("--threshold", key="threshold", type=click.FloatRange(-1, 1), help="Least cosine similarity.")
@setting("--device", key="device", help="Where the model runs.  [default: auto]")
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
    embedder = embedders.load(found.spec, DeviceOptions(device or "auto"))
    try:
        answer = searching.search(connection, found, versions, embedder, query, limit=limit or 10, threshold=threshold)
    finally:
        embedder.close()
    if as_json:
        for hit in answer.hits:
            click.echo(json.dumps(hit.as_json(), ensure_ascii=False))
    else:
        print_hits(answer)
    if not answer.hits:
        click.echo(f"pgvec: {_why_nothing(name, answer, threshold)}", err=True)


def print_hits(answer: searching.Answer) -> None:
    """Prints hits for people: score, key and the first lines of the text."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    for hit in answer.hits:
        place = "" if hit.chunk_index is None else f" · chunk {hit.chunk_index}"
        console.print(f"[bold]{hit.score:.3f}[/bold]  {escape(', '.join(hit.key))}{place}")
        text = " ".join((hit.chunk or "").split())
        lines = textwrap.wrap(text, width=max(min(console.width, 100) - 7, 20))
        if len(lines) > _LINES:
            lines = [*lines[: _LINES - 1], lines[_LINES - 1] + " …"]
        for line in lines:
            console.print(f"       {escape(line)}", style="dim")


def _why_nothing(name: str, answer: searching.Answer, threshold: float | None) -> str:
    if answer.best_score is None:
        return f"{name} has no vectors yet; see `pgvec status {name}`"
    return f"nothing reaches {threshold}; the best score was {answer.best_score:.3f}"
