"""What a destination has to hold, worked out apart from the SQL under test; what it does hold; and a worker by hand."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
from psycopg import sql

from pgvec_queue import queue
from pgvec_queue.chunking import Chunker
from pgvec_queue.embedders import DeviceOptions, load
from pgvec_queue.slices import Fate
from pgvec_queue.template import Template
from pgvec_queue.vectorizer import Vectorizer, by_ids
from tests.support import Bench

Held = list[tuple[Any, ...]]
"""Per chunk: key in text, its text, its hash, its vector; a role that the destination lacks is None."""

_TEXT_AS = {"bytea_output": "hex", "DateStyle": "ISO", "TimeZone": "UTC", "extra_float_digits": "1"}
_TYPES = {"vector": np.float32, "halfvec": np.float16}


def work_off(bench: Bench, rows: int = 3) -> None:
    """Works until nothing can be claimed, in slices of at most ``rows`` documents; a worker without its threads."""
    worker = bench.register()
    claimer = queue.Claimer(worker, None)
    while (job := claimer.claim(bench.connection)) is not None:
        [vectorizer] = by_ids(bench.connection, [job.vectorizer_id])
        last = False
        while not last:
            part = bench.read(vectorizer, job, rows)
            written = bench.write(vectorizer, part, bench.embed(vectorizer, part), worker)
            assert written.fate is Fate.WRITTEN
            job, last = written.job, part.last
    queue.leave(bench.connection, worker)


def expected(bench: Bench, vectorizer: Vectorizer) -> Held:
    """Reads the source, and chunks, hashes and embeds it here."""
    embedder = load(vectorizer.spec, DeviceOptions())
    template = Template.parse(vectorizer.template) if vectorizer.template else None
    names = template.columns if template else ()
    chunker = Chunker(
        embedder.tokenizer,
        vectorizer.chunk_size or 512,
        vectorizer.chunk_overlap or 0,
        template,
        embedder.info.document_prompt,
    )
    keys = len(vectorizer.key_columns)
    roles = vectorizer.destination_roles
    held: Held = []
    for row in _rows(
        bench,
        "SELECT {} FROM {} s WHERE {}",
        [*vectorizer.key_columns, *vectorizer.text_columns, *names],
        (vectorizer.source_schema, vectorizer.source_table),
        vectorizer.filter or "true",
    ):
        document = "\n\n".join(value for value in row[keys : keys + len(vectorizer.text_columns)] if value is not None)
        shown = row[keys + len(vectorizer.text_columns) :]
        columns = dict(zip(names, shown, strict=True))
        whole = None if vectorizer.chunk_size else chunker.whole(document, columns, None)
        chunks = chunker.chunks(document, columns) if vectorizer.chunk_size else [whole] if whole else []
        hashed = document + "".join("\x1f" + (value or "") for value in shown)
        hash_ = hashlib.sha256(hashed.encode()).digest()[:16] if roles.source_hash else None
        vectors = embedder.embed_documents([c.input for c in chunks], [c.tokens for c in chunks])
        for chunk, vector in zip(chunks, vectors, strict=True):
            text = chunk.text if roles.chunk else None
            held.append((*row[:keys], text, hash_, tuple(vector.astype(_TYPES[vectorizer.store]))))
    return _sorted(held)


def found(bench: Bench, vectorizer: Vectorizer) -> Held:
    """Reads what the destination holds."""
    roles = vectorizer.destination_roles
    keys = len(roles.key)
    names = [*roles.key, roles.embedding, *(name for name in (roles.chunk, roles.source_hash) if name)]
    table = (vectorizer.destination_schema, vectorizer.destination_table)
    held: Held = []
    for row in _rows(bench, "SELECT {} FROM {} WHERE {}", names, table, "true"):
        if row[keys] is None:
            assert vectorizer.into_column
            continue
        rest = list(row[keys + 1 :])
        text = rest.pop(0) if roles.chunk else None
        hash_ = bytes.fromhex(str(rest.pop(0))[2:]) if roles.source_hash else None
        held.append((*row[:keys], text, hash_, tuple(np.array(json.loads(str(row[keys])), _TYPES[vectorizer.store]))))
    return _sorted(held)


def assert_right(bench: Bench, *vectorizers: Vectorizer) -> None:
    """Each destination holds exactly what it has to, and every row is counted as done."""
    for vectorizer in vectorizers:
        assert found(bench, vectorizer) == expected(bench, vectorizer)
        progress = bench.progress(vectorizer.name)
        if not vectorizer.into_column:
            assert progress.chunks == len(found(bench, vectorizer))
        assert (progress.state, progress.rows_failed) == ("complete", 0)
        assert progress.rows_done == progress.rows_total


def _rows(
    bench: Bench, query: str, names: list[str], table: tuple[str, str], where: str
) -> list[tuple[str | None, ...]]:
    # Without parameters, so that a percent sign in a name or a filter is just that.
    text = sql.SQL(query).format(
        sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in names),
        sql.Identifier(*table),
        sql.SQL(f"({where}\n)"),
    )
    with bench.connection.transaction():
        for name, value in _TEXT_AS.items():
            bench.connection.execute("SELECT set_config(%s, %s, true)", [name, value])
        return bench.connection.execute(text).fetchall()


def _sorted(held: Held) -> Held:
    return sorted(held, key=repr)
