"""Taking over vectors that are there, as `enqueue --adopt` and `import-pgai` tell of it on stderr."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import click
from psycopg import sql

from pgvec_queue import adoption, adoption_check, definition
from pgvec_queue.adoption_check import Checked
from pgvec_queue.cli.rowbar import RowBar
from pgvec_queue.cli.texts import plain
from pgvec_queue.database import Connection, Versions
from pgvec_queue.fragments import Fragments
from pgvec_queue.planner import estimated_rows


def check(
    connection: Connection,
    options: definition.Options,
    versions: Versions,
    *,
    excepted: sql.Composable = adoption.NOTHING,
    dropped: Sequence[str] = (),
    otherwise: str = "leave --adopt out to embed all rows anew",
) -> Checked:
    """Loads the model and compares a sample; raises ``DefinitionError`` where the vectors are not the model's."""
    proposed = definition.propose(connection, options, versions)
    click.echo(
        f"pgvec: compares up to {adoption_check.SAMPLE} vectors of {plain(proposed.destination)} with what "
        f"{plain(proposed.model)} makes of their texts; the model is loaded for that",
        err=True,
    )
    checked = adoption_check.check(
        connection, proposed, versions, excepted=excepted, dropped=dropped, otherwise=otherwise
    )
    click.echo(f"pgvec: {checked.compared} vectors compared, the least cosine is {checked.least:.5f}", err=True)
    if checked.left:
        click.echo(
            f"pgvec: of {checked.documents} rows in the sample {sum(checked.left.values())} cannot be taken over: "
            f"{_reasons(checked.left)}",
            err=True,
        )
    indexes = adoption.vector_indexes(connection, proposed)
    if indexes:
        click.echo(
            f"pgvec: each row that is taken over is added to {plain(', '.join(indexes))} once more; for many rows it "
            "is quicker to drop it before, and to build it afterwards",
            err=True,
        )
    others, looked_at = checked.recut
    if others:
        click.echo(
            f"pgvec: {others} of {looked_at} rows are cut otherwise than they would be now; they keep their chunks "
            "until their text changes",
            err=True,
        )
    return checked


def adopt(
    connection: Connection, fragments: Fragments, checked: Checked, *, excepted: sql.Composable = adoption.NOTHING
) -> None:
    """Takes over what can be, and says how much that was."""
    name = fragments.vectorizer.name
    with RowBar("adopting", name, estimated_rows(connection, fragments.vectorizer)) as bar:
        adopted = adoption.adopt(connection, fragments, checked.rules, excepted=excepted, progress=bar)
    click.echo(f"pgvec: took over the vectors of {_rows(adopted.rows)}", err=True)
    left = sum(adopted.left.values())
    if left:
        click.echo(f"pgvec: the vectors of {_rows(left)} are made anew: {_reasons(adopted.left)}", err=True)


def _reasons(left: Counter[str]) -> str:
    return "; ".join(f"{count:,} {reason}" for reason, count in left.most_common())


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"
