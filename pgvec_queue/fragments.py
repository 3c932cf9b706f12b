"""The parts of a statement that depend on a vectorizer: its tables, keys, document, filter and what counts as current.

The statements themselves stand in ``sql/``; here identifiers and the operator's own filter are put into their places.
In all of them ``s`` is the source and ``d`` the destination.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

from psycopg import sql
from psycopg.adapt import PyFormat

from pgvec_queue.database import Connection, statement
from pgvec_queue.template import Template
from pgvec_queue.vectorizer import Vectorizer

_AND = sql.SQL(" AND ")
_COMMA = sql.SQL(", ")


def literal_sql(text: str) -> sql.SQL:
    """Takes SQL written by the operator (a filter) or by the catalog (a type's name) as it stands."""
    return sql.SQL(text.replace("%", "%%"))


def identifier(*names: str) -> sql.Identifier:
    """Quotes a name. Statements always run with parameters, where a percent sign in a name has to be doubled."""
    return sql.Identifier(*(name.replace("%", "%%") for name in names))


def _row(parts: Iterable[sql.Composable]) -> sql.Composed:
    return sql.SQL("({})").format(_COMMA.join(parts))


class Fragments:
    """Composes the statements of one vectorizer."""

    def __init__(self, vectorizer: Vectorizer, vector_schema: str) -> None:
        """``vector_schema`` is the schema of the pgvector extension."""
        self.vectorizer = vectorizer
        self.vector_schema = vector_schema
        self.template_columns = Template.parse(vectorizer.template).columns if vectorizer.template else ()
        self.source = identifier(vectorizer.source_schema, vectorizer.source_table)
        self.destination = identifier(vectorizer.destination_schema, vectorizer.destination_table)
        roles = vectorizer.destination_roles
        self.source_key = [identifier("s", name) for name in vectorizer.key_columns]
        self.destination_key = [identifier("d", name) for name in roles.key]
        self.key_casts = [literal_sql(t) for t in vectorizer.key_types]
        self.destination_casts = [literal_sql(t) for t in vectorizer.destination_key_types]
        self._of_ranges: dict[tuple[str, str, bool, bool], bytes] = {}

    def compose(self, file: str, name: str, **parts: sql.Composable) -> sql.Composed:
        """Returns the statement with this vectorizer's parts, and those given, in their places."""
        return statement(file, name).format(**{**self._parts, **parts})

    def of_range(self, connection: Connection, file: str, name: str, *, lower: bool, upper: bool) -> bytes:
        """Returns the statement for the source rows in ``scope``, a range, and their chunks in ``destination_scope``,
        and for ``listed`` rows of the source.

        It is kept: each slice needs it, and composing one takes about 0.2 ms of the interpreter.
        """
        known = self._of_ranges.get((file, name, lower, upper))
        if known is None:
            # Keys of another type have no range: any chunk at all may be one of them.
            ordered = self.vectorizer.destination_ordered
            chunks = self.bounds("d", lower=lower, upper=upper) if ordered else sql.SQL("true")
            scope = self.bounds("s", lower=lower, upper=upper)
            composed = self.compose(
                file,
                name,
                scope=scope,
                destination_scope=chunks,
                has_old=self._has_old(chunks if ordered else None),
                listed=self.listed(),
                listed_is_source=self.listed_is("s"),
            )
            known = self._of_ranges[file, name, lower, upper] = composed.as_bytes(connection)
        return known

    @property
    def keeps_vectors(self) -> bool:
        """Whether a chunk's text in the destination tells that its vector is that of the same text now; see
        ``keeping``.
        """
        roles = self.vectorizer.destination_roles
        ours = self.vectorizer.destination_created or roles.created_at is not None
        tells = roles.chunk is not None and roles.source_hash is not None and not self.template_columns
        return not self.vectorizer.into_column and ours and tells

    @property
    def made_here(self) -> sql.Composable:
        """The condition that this vectorizer has made the vector of ``d``."""
        roles = self.vectorizer.destination_roles
        assert roles.source_hash is not None
        ours = sql.SQL("{} IS NOT NULL").format(identifier("d", roles.source_hash))
        if self.vectorizer.destination_created or roles.created_at is None:
            return ours
        # A column of another type tells no time that could be compared.
        return sql.SQL(
            "{} AND CASE WHEN pg_typeof({created}) = 'timestamptz'::regtype THEN {created}::text::timestamptz"
            " >= (SELECT created_at FROM pgvec.vectorizers WHERE id = {}) ELSE false END"
        ).format(ours, sql.Literal(self.vectorizer.id), created=identifier("d", roles.created_at))

    def _has_old(self, chunks: sql.Composable | None) -> sql.Composable:
        """Whether the destination may hold chunks whose vectors could be kept, in the scope ``chunks`` where it has
        one.
        """
        if not self.keeps_vectors or chunks is None:
            return sql.SQL("true" if self.keeps_vectors else "false")
        return sql.SQL("EXISTS (SELECT FROM {} d WHERE {})").format(self.destination, chunks)

    @functools.cached_property
    def _parts(self) -> dict[str, sql.Composable]:
        roles = self.vectorizer.destination_roles
        return {
            "source": self.source,
            "destination": self.destination,
            "key": _COMMA.join(self.source_key),
            "key_text": self.text_array(self.source_key),
            "destination_key": _COMMA.join(self.destination_key),
            "destination_key_text": self.text_array(self.destination_key),
            "key_columns": _COMMA.join(identifier(name) for name in self.vectorizer.key_columns),
            "cast_key": _COMMA.join(
                sql.SQL("{}::{}").format(key, cast_to)
                for key, cast_to in zip(self.source_key, self.destination_casts, strict=True)
            ),
            "document": self.document,
            "hash": self.hash,
            "selected": self.selected,
            "blank": sql.SQL("pgvec.is_blank({})").format(self.document),
            "settled": self.settled,
            "exact": self.exact,
            "xmin": sql.SQL("NULL::xid") if self.vectorizer.source_is_view else sql.SQL("s.xmin"),
            "moved": (
                # A view has no xmin: every row has to be compared by its hash.
                sql.SQL("true") if self.vectorizer.source_is_view else sql.SQL("age(s.xmin) <= age(%(horizon)s::xid)")
            ),
            "template_columns": self._template_text,
            "embedding": identifier(roles.embedding),
            "source_hash": identifier(roles.source_hash) if roles.source_hash else sql.NULL,
            "chunk_text": identifier("d", roles.chunk) if roles.chunk else sql.NULL,
            "matches_destination": self.matches_destination,
            "vector": identifier(self.vector_schema, self.vectorizer.store),
        }

    @functools.cached_property
    def refuse_hidden(self) -> sql.SQL:
        """Raises where row-level security keeps rows from this role, and sees that it stays so in the transaction."""
        names = {"source_name": self.source, "destination_name": self.destination}
        literals: dict[str, sql.Composable] = {part: sql.Literal(name.as_string(None)) for part, name in names.items()}
        literals["filtered"] = sql.Literal(self.vectorizer.filter is not None)
        literals["beyond"] = sql.Literal(self.vectorizer.filter is not None or self.vectorizer.source_is_view)
        # Composed once: each slice needs it.
        return sql.SQL(self.compose("writing", "refuse_hidden", **literals).as_string(None))

    def refuse_to_miss_rows(self, connection: Connection) -> None:
        """Raises where row-level security keeps rows from this role that it would take for gone: of the source, or of
        what the filter reads. It stays so until the transaction ends.
        """
        row = connection.execute(self.refuse_hidden, {}).fetchone()
        if row is not None and row[1]:
            connection.execute(statement("writing", "row_security"), {"as": "off"})
            connection.execute(self.compose("writing", "hidden_elsewhere"), {})
            connection.execute(statement("writing", "row_security"), {"as": "on"})

    @functools.cached_property
    def document(self) -> sql.Composable:
        """The text of a row: its text columns joined by a blank line, NULLs left out."""
        columns = [sql.SQL("{}::text").format(identifier("s", c)) for c in self.vectorizer.text_columns]
        if len(columns) == 1:
            return columns[0]
        return sql.SQL(r"concat_ws(E'\n\n', {})").format(_COMMA.join(columns))

    @functools.cached_property
    def hash(self) -> sql.Composable:
        """The document's hash; what a template puts before its chunks belongs to it."""
        text: sql.Composable = self.document
        if self.template_columns:
            text = sql.SQL(r"concat({}, {})").format(
                text,
                _COMMA.join(sql.SQL(r"E'\x1f', {}::text").format(identifier("s", c)) for c in self.template_columns),
            )
        return sql.SQL("pgvec.source_hash({})").format(text)

    @property
    def _template_text(self) -> sql.Composable:
        return sql.SQL("ARRAY[{}]::text[]").format(
            _COMMA.join(sql.SQL("{}::text").format(identifier("s", c)) for c in self.template_columns)
        )

    @property
    def selected(self) -> sql.Composable:
        """The operator's filter; true without one."""
        if self.vectorizer.filter is None:
            return sql.SQL("true")
        # The line break ends a comment that the filter may end with.
        return sql.SQL("({}\n)").format(literal_sql(self.vectorizer.filter))

    @property
    def matches_destination(self) -> sql.Composed:
        """Source key = destination key, in the destination's types so that its index serves."""
        return _AND.join(
            sql.SQL("{} = {}").format(
                d, s if self.vectorizer.destination_ordered else sql.SQL("{}::{}").format(s, cast_to)
            )
            for d, s, cast_to in zip(self.destination_key, self.source_key, self.destination_casts, strict=True)
        )

    @functools.cached_property
    def settled(self) -> sql.Composable:
        """Nothing is to do for the row: its vectors are current, or it is in quarantine unchanged."""
        return sql.SQL("({current} OR {quarantined})").format(current=self.current, quarantined=self.quarantined)

    @functools.cached_property
    def exact(self) -> sql.Composable:
        """As ``settled``, but looked at chunk by chunk: nothing is there but the chunks of the row's present text, each
        once, or nothing at all for a row in quarantine. What nobody but us writes needs no such look.
        """
        if self.vectorizer.into_column:
            return sql.SQL("({current} OR (s.{embedding} IS NULL AND {quarantined}))").format(
                current=self.current,
                embedding=identifier(self.vectorizer.destination_roles.embedding),
                quarantined=self.quarantined,
            )
        # No chunk: bool_and is NULL.
        return sql.SQL(
            "(SELECT coalesce(bool_and(NOT {wrong}), {quarantined}) FROM"
            " (SELECT {chunk}, row_number() OVER (ORDER BY {order}) AS place FROM {destination} d WHERE {matches}) d)"
        ).format(
            wrong=self.wrong_chunk(self.hash),
            quarantined=self.quarantined,
            chunk=self.chunk,
            order=self.chunk_order,
            destination=self.destination,
            matches=self.matches_destination,
        )

    @property
    def quarantined(self) -> sql.Composable:
        """The row is in quarantine with the text that it has; looked up only where anything is."""
        return sql.SQL(
            "((SELECT true FROM pgvec.failures WHERE vectorizer_id = {id} LIMIT 1) IS NOT NULL"
            " AND (SELECT true FROM pgvec.failures f WHERE f.vectorizer_id = {id}"
            " AND f.key = {key_text} AND f.source_hash = {hash} LIMIT 1) IS NOT NULL)"
        ).format(id=sql.Literal(self.vectorizer.id), key_text=self.text_array(self.source_key), hash=self.hash)

    @property
    def chunk(self) -> sql.Composed:
        """What ``wrong_chunk`` has to know of a chunk, as columns ``vector_there``, ``hash`` and ``chunk_index``."""
        roles = self.vectorizer.destination_roles
        return sql.SQL("{} IS NOT NULL AS vector_there, {} AS hash, {} AS chunk_index").format(
            identifier("d", roles.embedding), *map(self._destination_column, (roles.source_hash, roles.chunk_index))
        )

    @property
    def chunk_order(self) -> sql.Composable:
        """The order of a document's chunks; without one of their own any is as good."""
        index = self.vectorizer.destination_roles.chunk_index
        return identifier("d", index) if index else _COMMA.join(self.destination_key)

    def wrong_chunk(self, hash_: sql.Composable) -> sql.Composed:
        """The condition that ``d`` is none of the chunks of a text of this hash, as far as the destination can tell.

        ``d`` has the columns of ``chunk``, and its ``place`` among the document's, from 1.
        """
        roles = self.vectorizer.destination_roles
        conditions: list[sql.Composable] = [sql.SQL("NOT d.vector_there")]
        if roles.source_hash is not None:
            conditions.append(sql.SQL("d.hash IS DISTINCT FROM {}").format(hash_))
        if roles.chunk_index is not None:
            conditions.append(sql.SQL("d.chunk_index IS DISTINCT FROM d.place - 1"))
        if self.vectorizer.chunk_size is None:
            conditions.append(sql.SQL("d.place > 1"))
        return sql.SQL("({})").format(sql.SQL(" OR ").join(conditions))

    @staticmethod
    def _destination_column(name: str | None) -> sql.Composable:
        return identifier("d", name) if name else sql.NULL

    @property
    def current(self) -> sql.Composable:
        """The destination holds the vectors of the row's present text, as far as it can tell.

        Not EXISTS, which the planner may answer by reading the whole destination once.
        """
        roles = self.vectorizer.destination_roles
        if self.vectorizer.into_column:
            hash_column = identifier("s", roles.source_hash) if roles.source_hash else None
            there = sql.SQL("{} IS NOT NULL").format(identifier("s", roles.embedding))
            if hash_column is None:
                return there
            return sql.SQL("coalesce({} = {}, false) AND {}").format(hash_column, self.hash, there)
        same = (
            sql.SQL(" AND {} = {}").format(identifier("d", roles.source_hash), self.hash)
            if roles.source_hash
            else sql.SQL("")
        )
        return sql.SQL("(SELECT true FROM {} d WHERE {}{} LIMIT 1) IS NOT NULL").format(
            self.destination, self.matches_destination, same
        )

    @staticmethod
    def text_array(columns: Sequence[sql.Composable]) -> sql.Composed:
        return sql.SQL("ARRAY[{}]").format(_COMMA.join(sql.SQL("{}::text").format(c) for c in columns))

    def bounds(self, alias: str, *, lower: bool, upper: bool) -> sql.Composable:
        """The condition that a key of ``s`` or ``d`` lies in (``%(lower)s``, ``%(upper)s``], each a ``text[]``."""
        key, casts = (
            (self.source_key, self.key_casts) if alias == "s" else (self.destination_key, self.destination_casts)
        )
        conditions = [
            sql.SQL("{} {} {}").format(_row(key), operator, self._parameter(name, casts))
            for name, operator, wanted in (("lower", sql.SQL(">"), lower), ("upper", sql.SQL("<="), upper))
            if wanted
        ]
        if len(key) > 1 or not conditions:
            # A view, or somebody's destination, may have rows without a key: they belong to no range.
            conditions.append(sql.SQL("{} IS NOT NULL").format(_row(key)))
        return _AND.join(conditions)

    @staticmethod
    def _parameter(name: str, casts: Sequence[sql.Composable]) -> sql.Composed:
        return _row(
            sql.SQL("({}::text[])[{}]::{}").format(sql.Placeholder(name), sql.Literal(i), cast_to)
            for i, cast_to in enumerate(casts, 1)
        )

    def listed(self, *, extra: Sequence[str] = (), binary: Sequence[str] = ()) -> sql.Composed:
        """``unnest(…) AS u(pgvec_key0, …, pgvec_ordinal)`` over the parameters ``keys0``, …, each a ``text[]``.

        Named so that no column of the operator's filter is taken for one of these.

        ``extra`` names further array parameters as ``name::element type``; those in ``binary`` are sent in binary.
        """
        count = len(self.source_key)
        arrays = [sql.SQL("{}::text[]").format(sql.Placeholder(f"keys{i}")) for i in range(count)]
        columns = [identifier(f"pgvec_key{i}") for i in range(count)]
        for item in extra:
            name, _, type_name = item.partition("::")
            arrays.append(
                sql.SQL("{}::{}[]").format(
                    sql.Placeholder(name, PyFormat.BINARY if name in binary else PyFormat.AUTO), literal_sql(type_name)
                )
            )
            columns.append(identifier(f"pgvec_{name}"))
        return sql.SQL("unnest({}) WITH ORDINALITY AS u({}, pgvec_ordinal)").format(
            _COMMA.join(arrays), _COMMA.join(columns)
        )

    def listed_is(self, alias: str) -> sql.Composed:
        """The condition that a listed key is that of ``s`` or ``d``."""
        key, casts = (
            (self.source_key, self.key_casts) if alias == "s" else (self.destination_key, self.destination_casts)
        )
        conditions = []
        for i, (column, cast_to) in enumerate(zip(key, casts, strict=True)):
            listed: sql.Composable = identifier("u", f"pgvec_key{i}")
            if alias == "d" and not self.vectorizer.destination_ordered:
                # Through the source's type, so that the destination's text of a key is written as the cast writes it.
                listed = sql.SQL("{}::{}").format(listed, self.key_casts[i])
            conditions.append(sql.SQL("{} = {}::{}").format(column, listed, cast_to))
        return _AND.join(conditions)

    def listed_is_within(self) -> sql.Composed:
        """The condition that a listed key is at most ``%(upper)s``, where ``s`` has no row and lends its collations."""
        listed = (
            sql.SQL("coalesce({}, {}::{})").format(column, identifier("u", f"pgvec_key{i}"), cast_to)
            for i, (column, cast_to) in enumerate(zip(self.source_key, self.key_casts, strict=True))
        )
        return sql.SQL("{} <= {}").format(_row(listed), self._parameter("upper", self.key_casts))

    def source_key_from_destination(self) -> sql.Composed:
        """The source key that a destination's key of another type stands for; no row where it stands for none."""
        if self.vectorizer.destination_ordered:
            return sql.Composed([sql.SQL("true")])
        return _AND.join(
            sql.SQL("{} = CASE WHEN pgvec.is_input({}::text, {}) THEN {}::text::{} END").format(
                s, d, sql.Literal(type_name), d, cast_to
            )
            for s, d, type_name, cast_to in zip(
                self.source_key, self.destination_key, self.vectorizer.key_types, self.key_casts, strict=True
            )
        )

    def failures_key_is_source(self) -> sql.Composed:
        """The condition that a row of ``pgvec.failures f`` is about the source row."""
        return _AND.join(
            sql.SQL("{} = f.key[{}]::{}").format(column, sql.Literal(i), cast_to)
            for i, (column, cast_to) in enumerate(zip(self.source_key, self.key_casts, strict=True), 1)
        )

    def side(self, kind: str) -> dict[str, sql.Composable]:
        """The parts of a plan's hop over the source (``range``) or over the destination's own keys (``sweep``)."""
        ranged = kind == "range"
        key = self.source_key if ranged else self.destination_key
        alias = "s" if ranged else "d"
        names = self.vectorizer.key_columns if ranged else self.vectorizer.destination_roles.key
        return {
            "source": sql.SQL("{} AS {}").format(self.source if ranged else self.destination, identifier(alias)),
            "key": _COMMA.join(key),
            "next_key": _COMMA.join(identifier("n", name) for name in names),
            "hop_key_text": self.text_array([identifier(name) for name in names]),
            "after_hop": sql.SQL("{} > {}").format(_row(key), _row(identifier("h", name) for name in names)),
        }

    def key_lists(self, keys: Sequence[Sequence[str]]) -> dict[str, list[str]]:
        """The parameters of ``listed`` for these keys."""
        return {f"keys{i}": [key[i] for key in keys] for i in range(len(self.source_key))}
