"""``pgvec search``: ask a vectorizer's destination."""

from __future__ import annotations

import json
from typing import Any

import click
from rich.text import Text as Shown

from pgvec_queue import embedders
from pgvec_queue import search as searching
from pgvec_queue.cli.common import Session, command
from pgvec_queue.cli.texts import console, plain
from pgvec_queue.cli.types import Text, Whole, setting
from pgvec_queue.embedders import DeviceOptions, Vectors
from pgvec_queue.search import MAX_NEIGHBOURS, MAX_SKIP, Search
from pgvec_queue.vectorizer import Vectorizer

_LINES = 4
_WIDTH = 100
_INDENT = 7


class Filter(click.ParamType):  # type: ignore[type-arg]
    """A JSON object."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        try:
            found = json.loads(value, parse_constant=_refuse)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            self.fail(f'{value!r} is no JSON object; write it like \'{{"lang": "en"}}\'', param, ctx)
        return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


@click.command()
@click.argument("name", type=Text())
@click.argument("query", type=Text())
@setting("--limit", key="search_limit", metavar="N", help="Most hits.  [default: 10]")
@click.option("--offset", type=Whole(0, MAX_SKIP), metavar="N", default=0, help="Leave out the first N hits.")
@setting("--threshold", key="threshold", help="Least cosine similarity.")
@click.option("--hybrid", is_flag=True, help="Look for the words as well, and fuse both rankings.")
@click.option("--text-only", is_flag=True, help="Look for the words alone; no model is loaded.")
@click.option("--language", type=Text(), metavar="NAME", default="english", help="Of the words.  [default: english]")
@click.option("--filter", "filter_", type=Filter(), metavar="JSON", help="What the source's column metadata contains.")
@click.option("--exact", is_flag=True, help="Compare with every vector, not through an index.")
@click.option("--all-chunks", is_flag=True, help="Show every chunk that fits, not only the best of each document.")
@click.option(
    "--neighbours", type=Whole(0, MAX_NEIGHBOURS), metavar="N", default=0, help="Show N chunks before and after a hit."
)
@setting("--device", key="device", help="Where the model runs: auto, cpu, mps, cuda or cuda:N.  [default: auto]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per hit and line.")
@command
def search(
    session: Session,
    *,
    name: str,
    query: str,
    limit: int | None,
    offset: int,
    threshold: float | None,
    hybrid: bool,
    text_only: bool,
    language: str,
    filter_: dict[str, Any] | None,
    exact: bool,
    all_chunks: bool,
    neighbours: int,
    device: str | None,
    as_json: bool,
) -> None:
    """Find the chunks of the vectorizer NAME that are nearest to QUERY, by cosine similarity."""
    if hybrid and text_only:
        raise click.UsageError("--hybrid and --text-only exclude each other")
    request = Search(
        query,
        limit=limit or 10,
        offset=offset,
        # Words alone have no cosine to compare it with, wherever it is set.
        threshold=None if text_only else threshold,
        filter=filter_,
        mode="hybrid" if hybrid else "text" if text_only else "vector",
        exact=exact,
        all_chunks=all_chunks,
        neighbours=neighbours,
        language=language,
    )
    connection, _ = session.connect_checked("search")
    options = DeviceOptions(device or "auto", runtime="torch")
    _, answer = searching.by_name(
        connection, name, request, lambda found: None if text_only else _embed(found, options, query)
    )
    if as_json:
        for hit in answer.hits:
            click.echo(json.dumps(hit.as_json()))
    else:
        print_hits(answer)
    if not answer.hits:
        click.echo(f"pgvec: {_why_nothing(name, answer, request)}", err=True)


def _embed(found: Vectorizer, options: DeviceOptions, query: str) -> Vectors:
    embedder = embedders.load(found.spec, options)
    try:
        vector: Vectors = embedder.embed_queries([query])[0]
        return vector
    finally:
        embedder.close()


def print_hits(answer: searching.Answer) -> None:
    """Prints hits for people: score, key and the first lines of the text, with what stands around it."""
    out = console()
    width = max(min(out.width, _WIDTH) - _INDENT, 20)
    for hit in answer.hits:
        place = "" if hit.chunk_index is None else f", chunk {hit.chunk_index}"
        score = "  -  " if hit.score is None else f"{hit.score:.3f}"
        out.print(Shown.assemble((score, "bold"), f"  {plain(', '.join(hit.key))}{place}"), soft_wrap=True)
        for text, style in (
            (hit.context_before, "dim italic"),
            (hit.chunk or "", "dim"),
            (hit.context_after, "dim italic"),
        ):
            if text is None:
                continue
            # Wrapping a whole document takes seconds, and four lines of it are shown.
            start = plain(text[: 3 * _LINES * width])
            lines = Shown(start).wrap(out, width)
            if len(lines) > _LINES:
                lines[_LINES - 1].truncate(width - 4)
                lines[_LINES - 1].append(" ...")
            for line in lines[:_LINES]:
                out.print(Shown(" " * _INDENT + line.plain.rstrip(), style=style), soft_wrap=True)


def _why_nothing(name: str, answer: searching.Answer, request: Search) -> str:
    if request.mode == "text":
        return "no text has any of these words"
    if answer.best_score is None:
        if request.filter is not None:
            return "no text that the filter lets through has a vector"
        return f"{name} has no vectors yet; see `pgvec status {name}`"
    if request.threshold is None or answer.best_score >= request.threshold:
        return f"there are no more than {request.offset} hits; the best score was {answer.best_score:.3f}"
    return f"nothing reaches {request.threshold}; the best score was {answer.best_score:.3f}"
