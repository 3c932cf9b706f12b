"""What an `enqueue` would mean, told before anything is done: rows, chunks, tokens, bytes, time and cost.

Each number is an estimate with an interval, from a sample in two steps: ``survey`` counts the rows and takes
whole pages of them, ``documents`` draws documents, which are cut as a worker would cut them, and
``totals`` makes totals of both. Bytes follow from the layout of a row (``storage``,
``hnsw``). Nothing is written, and every transaction is READ ONLY. docs/dry-run.md says how each is made.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pgvec_queue import destination as destinations
from pgvec_queue import embedders
from pgvec_queue.catalog import Relation, find_relation, quoted_name
from pgvec_queue.cutting import Recipe, recipe_of
from pgvec_queue.database import Connection, Versions, statement
from pgvec_queue.errors import DefinitionError, EmbedderError, MissingExtraError
from pgvec_queue.estimate import pace, repeats, space
from pgvec_queue.estimate.documents import Documents, Drawn, State, draw
from pgvec_queue.estimate.pace import Pace
from pgvec_queue.estimate.survey import SMALL, Survey, Surveyor, reading
from pgvec_queue.estimate.totals import Floats, Interval, Totals
from pgvec_queue.fragments import Fragments
from pgvec_queue.tokenizers import Tokenizer
from pgvec_queue.vectorizer import Vectorizer

DEFAULT_SAMPLE = 2_000
"""Documents that are cut."""


@dataclass(frozen=True, slots=True)
class Wish:
    """How an estimate is to be made."""

    sample: int = DEFAULT_SAMPLE
    limit: int | None = None
    """Rows that `enqueue --limit` would add."""
    price: float | None = None
    """Of a million tokens."""
    small: int = SMALL
    """Rows of a source that is read as a whole, sizes only."""
    seed: int | None = None
    """Makes the sample the same again."""


@dataclass(slots=True)
class Estimate:
    """What an `enqueue` would mean; None where a number cannot be told, and ``notes`` say why."""

    name: str
    source: str
    destination: str
    model: str
    destination_exists: bool
    sampled_rows: int
    """Rows of which the size was looked at."""
    sampled_documents: int
    """Documents that were read and cut."""
    rows_in_source: Interval
    rows_selected: Interval
    rows_new: Interval
    rows_changed: Interval
    rows_unchanged: Interval
    rows_blank: Interval
    rows_in_quarantine: Interval
    """In quarantine with the text that they have: not tried again."""
    jobs: Interval
    too_long_quarantined: Interval | None = None
    too_long_truncated: Interval | None = None
    chunks: Interval | None = None
    tokens: Interval | None = None
    table_bytes: Interval | None = None
    """What is added to the destination: heap and TOAST; for a vector column, new versions of the rows."""
    key_index_bytes: Interval | None = None
    hnsw_vector_bytes: Interval | None = None
    hnsw_vector_memory_bytes: Interval | None = None
    hnsw_halfvec_bytes: Interval | None = None
    hnsw_halfvec_memory_bytes: Interval | None = None
    wal_bytes: Interval | None = None
    """Of the backfill, without the HNSW index."""
    hnsw_wal_bytes: Interval | None = None
    """Of building the HNSW index of the destination's own type."""
    seconds: Interval | None = None
    workers: int = 0
    """That ``seconds`` is told by."""
    cost: Interval | None = None
    partitions: int = 0
    """Whose HNSW indexes are built one after the other: memory is that of the largest; 0: one table."""
    maintenance_work_mem: int = 0
    """Bytes, as this session has it."""
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in self.__slots__}
        return {
            name: _interval_as_json(value, whole=name not in ("seconds", "cost"))
            if isinstance(value, Interval)
            else value
            for name, value in values.items()
        }


def estimate(connection: Connection, vectorizer: Vectorizer, versions: Versions, wish: Wish | None = None) -> Estimate:
    """Estimates what planning and working off ``vectorizer`` would mean, which need not be stored.

    Needs a connection in autocommit mode. Raises what psycopg raises, such as for a filter that fails on a row, and
    ``DefinitionError`` where a template leaves no room for the text.
    """
    return _Estimator(connection, vectorizer, versions, wish or Wish()).run()


class _Estimator:
    """One estimate over one connection."""

    def __init__(self, connection: Connection, vectorizer: Vectorizer, versions: Versions, wish: Wish) -> None:
        self._connection = connection
        self._vectorizer = vectorizer
        self._fragments = Fragments(vectorizer, versions.vector_schema)
        self._wish = wish
        self._random = np.random.default_rng(wish.seed)
        self._notes: list[str] = []

    def run(self) -> Estimate:
        vectorizer, wish = self._vectorizer, self._wish
        source = find_relation(self._connection, quoted_name(vectorizer.source_schema, vectorizer.source_table))
        if source is None:
            raise DefinitionError(f"{vectorizer.source} is gone")
        destination = destinations.find(self._connection, vectorizer)
        survey = Surveyor(self._connection, self._fragments, wish.sample, small=wish.small, seed=wish.seed).survey(
            source
        )
        drawn, chances = draw(survey.population.sizes, wish.sample, self._random)
        recipe, tokenizer = self._recipe()
        reader = Documents(self._connection, self._fragments, destination_exists=destination is not None)
        documents = list(reader.read(survey, drawn, recipe, tokenizer))
        totals = Totals(survey.population, drawn, chances)
        found = self._rows(totals, documents, survey, destination_exists=destination is not None)
        if recipe is not None and tokenizer is not None:
            with reading(self._connection):
                speed = pace.of_model(self._connection, vectorizer)
            self._work(found, totals, documents, recipe, survey)
            self._time(found, speed)
            self._space(found, totals, documents, 1 / chances, survey, destination, speed)
        self._settings(found)
        return self._limited(found)

    def _recipe(self) -> tuple[Recipe | None, Tokenizer | None]:
        """How documents are cut, where the model's tokenizer can be had here."""
        try:
            info = embedders.describe(self._vectorizer.spec)
            return recipe_of(self._vectorizer, info), embedders.tokenizer_of(self._vectorizer.spec)
        except (EmbedderError, MissingExtraError) as error:
            self._notes.append(f"chunks and tokens are not known here: {error}")
            return None, None

    def _rows(
        self, totals: Totals, documents: Sequence[Drawn], survey: Survey, *, destination_exists: bool
    ) -> Estimate:
        states = np.array([one.state.value for one in documents])
        source = totals.source_rows()
        selected = totals.selected()
        if not len(survey.keys) and selected.high > 0:
            self._notes.append("no row that the filter selects was met; what such rows would add is not known")

        def count(state: State, *, possible: bool = True) -> Interval:
            return totals.count(states == state.value) if possible else Interval.exactly(0)

        # One for each full range, and one for the rest.
        per_job = self._vectorizer.rows_per_job
        jobs = Interval(*(float(rows // per_job + 1) for rows in (source.estimate, source.low, source.high)))
        return Estimate(
            name=self._vectorizer.name,
            source=self._vectorizer.source,
            destination=self._vectorizer.destination,
            model=self._vectorizer.model,
            destination_exists=destination_exists,
            sampled_rows=int(survey.population.cluster_rows.sum()),
            sampled_documents=totals.documents,
            rows_in_source=source,
            rows_selected=selected,
            rows_new=count(State.NEW),
            rows_changed=count(State.CHANGED, possible=destination_exists),
            rows_unchanged=count(State.UNCHANGED, possible=destination_exists),
            rows_blank=count(State.BLANK),
            rows_in_quarantine=count(State.QUARANTINED, possible=self._vectorizer.id != 0),
            jobs=jobs,
            notes=self._notes,
        )

    def _work(
        self, found: Estimate, totals: Totals, documents: Sequence[Drawn], recipe: Recipe, survey: Survey
    ) -> None:
        found.chunks = totals.total(_values(len(one.chunks) for one in documents))
        found.tokens = totals.total(_values(one.tokens for one in documents))
        # A document has as many chunks as it needs: without a bound on its tokens only one of 10 MB is too long, and
        # where none of so many rows has a tenth of that, none is taken to have all of it.
        bounded = recipe.size is None and recipe.max_tokens is not None
        largest = survey.population.sizes.max(initial=0.0)
        possible = bounded or 10 * largest > recipe.max_document_bytes
        too_long = totals.count(np.array([one.too_long for one in documents], bool))
        found.too_long_quarantined = too_long if possible else Interval.exactly(0)
        truncated = totals.count(np.array([one.truncated for one in documents], bool))
        cuts = (bounded and recipe.truncate) or recipe.template is not None
        found.too_long_truncated = truncated if cuts else Interval.exactly(0)

    def _time(self, found: Estimate, speed: Pace | None) -> None:
        assert found.tokens is not None
        if speed is not None:
            todo = found.rows_new.plus(found.rows_changed)
            found.seconds, found.workers = speed.seconds(found.tokens, todo), speed.workers
        if self._wish.price is not None:
            found.cost = found.tokens.times(self._wish.price / 1e6)

    def _space(
        self,
        found: Estimate,
        totals: Totals,
        documents: Sequence[Drawn],
        weights: Floats,
        survey: Survey,
        destination: Relation | None,
        speed: Pace | None,
    ) -> None:
        vectorizer, todo = self._vectorizer, found.rows_new.plus(found.rows_changed)
        assert found.chunks is not None
        if vectorizer.into_column:
            needed = space.of_column(vectorizer, survey.parts, found.rows_in_source, todo)
        else:
            needed = space.of_table(
                self._connection,
                vectorizer,
                destination,
                totals,
                documents,
                weights,
                found.jobs,
                todo,
                found.seconds,
                speed,
            )
        found.table_bytes, found.key_index_bytes = needed.table_bytes, needed.key_index_bytes
        found.wal_bytes = needed.wal_bytes
        if needed.other_indexes:
            self._notes.append(
                f"{found.destination} has indexes of other kinds than B-tree and HNSW ({needed.other_indexes}), "
                "which grow besides"
            )
        elements = repeats.distinct(documents, weights, totals.scale, found.chunks)
        found.partitions, largest = self._partitions(destination)
        vector, halfvec = (
            space.of_hnsw(vectorizer, found.chunks, elements, store, largest) for store in ("vector", "halfvec")
        )
        if vector is not None:
            found.hnsw_vector_bytes, found.hnsw_vector_memory_bytes = vector.index_bytes, vector.memory_bytes
        if halfvec is not None:
            found.hnsw_halfvec_bytes, found.hnsw_halfvec_memory_bytes = halfvec.index_bytes, halfvec.memory_bytes
        own = vector or halfvec if vectorizer.store == "vector" else halfvec
        found.hnsw_wal_bytes = own.wal_bytes if own is not None else None

    def _partitions(self, destination: Relation | None) -> tuple[int, float]:
        """Returns how many partitions the destination has, and the share of the largest; 0 and 1 for one table."""
        if destination is None:
            count = self._vectorizer.partitions or 0
            return count, 1 / max(count, 1)
        with reading(self._connection):
            row = self._connection.execute(statement("estimate", "partitions"), {"oid": destination.oid}).fetchone()
        count, largest = row or (0, None)
        return count, largest or 1 / max(count, 1)

    def _settings(self, found: Estimate) -> None:
        """Says where the server is set otherwise than the arithmetic takes it to be."""
        with reading(self._connection):
            settings: dict[str, str] = dict(self._connection.execute(statement("estimate", "settings")).fetchall())
            row = self._connection.execute(statement("estimate", "unfinished"), {"id": self._vectorizer.id}).fetchone()
        found.maintenance_work_mem = int(settings["maintenance_work_mem"]) * 1024
        for name, assumed in (("full_page_writes", "on"), ("wal_compression", "off"), ("block_size", "8192")):
            if settings[name] != assumed:
                self._notes.append(f"{name} is {settings[name]} on this server; bytes are told for {assumed}")
        if settings["wal_level"] == "minimal":
            self._notes.append("wal_level is minimal on this server; the WAL of the index is told for replica")
        if row and row[0]:
            self._notes.append(
                f"jobs of an earlier plan are unfinished ({row[0]:,}): what they cover is not planned again"
            )

    def _limited(self, found: Estimate) -> Estimate:
        """What is left of an estimate with ``--limit``: as large a share of everything as of the rows."""
        limit, selected = self._wish.limit, found.rows_selected
        if limit is None or limit >= selected.high:
            return found
        factor = min(1.0, limit / max(selected.estimate, 1.0))
        for name in _LIMITED:
            value = getattr(found, name)
            if value is not None:
                setattr(found, name, value.times(factor).within(selected.high / max(selected.estimate, 1.0) - 1.0))
        found.rows_selected = selected.clipped(0, limit)
        per_row = found.rows_in_source.estimate / max(selected.estimate, 1.0)
        rows = found.rows_selected.times(per_row / self._vectorizer.rows_per_job)
        found.jobs = Interval(*(float(math.ceil(jobs)) for jobs in (rows.estimate, rows.low, rows.high)))
        return found


_LIMITED = (
    *("rows_new", "rows_changed", "rows_unchanged", "rows_blank", "rows_in_quarantine"),
    *("too_long_quarantined", "too_long_truncated", "chunks", "tokens", "table_bytes", "key_index_bytes"),
    *("hnsw_vector_bytes", "hnsw_vector_memory_bytes", "hnsw_halfvec_bytes", "hnsw_halfvec_memory_bytes"),
    *("wal_bytes", "hnsw_wal_bytes", "seconds", "cost"),
)


def _interval_as_json(value: Interval, *, whole: bool) -> dict[str, float]:
    """``whole``: there are no parts of a row or a byte."""
    numbers = {"estimate": value.estimate, "low": value.low, "high": value.high}
    return {name: round(number) for name, number in numbers.items()} if whole else numbers


def _values(numbers: Iterable[float]) -> Floats:
    return np.array([*numbers], np.float64)
