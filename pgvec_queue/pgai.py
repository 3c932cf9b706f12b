"""What a vectorizer of pgai is in our words: the options of `enqueue` that say the same, and what differs.

Reads the schema ``ai`` of pgai 0.10 to 0.12 as JSON, and changes nothing of it. What has no counterpart here (files as
sources, parsers of documents, a template that shows the chunk twice) is refused with the reason; what changes only how
the work is done (batches, schedules) is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from pgvec_queue import catalog
from pgvec_queue.database import Connection, one_line, statement
from pgvec_queue.definition_options import Options
from pgvec_queue.destination_checks import INDEXABLE
from pgvec_queue.embedders import KINDS
from pgvec_queue.errors import DefinitionError
from pgvec_queue.fragments import identifier
from pgvec_queue.template import Template

CHARACTERS_PER_TOKEN = 4
"""Of ordinary text: what turns pgai's sizes, in characters, into tokens."""
_OLLAMA = "http://localhost:11434"
_SPLITTERS = ("character_text_splitter", "recursive_character_text_splitter")

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Theirs:
    """A vectorizer of pgai."""

    id: int
    name: str | None
    """None: a version that gives no names."""
    source_schema: str
    source_table: str
    key: tuple[str, ...]
    """In the order of the primary key."""
    config: Config
    target: tuple[str, str] | None
    """Schema and table of the chunks; None: a column of the source."""
    queue: tuple[str, str] | None
    disabled: bool

    @property
    def label(self) -> str:
        return self.name or str(self.id)

    def part(self, name: str) -> Config:
        found = self.config.get(name)
        return found if isinstance(found, dict) else {}

    @property
    def removal(self) -> str:
        """The statement that takes its triggers and its queue away, and leaves what it has made."""
        return f"SELECT ai.drop_vectorizer({self._argument});"

    @property
    def suspension(self) -> str:
        """The statement that keeps its worker from it."""
        return f"SELECT ai.disable_vectorizer_schedule({self._argument});"

    @property
    def _argument(self) -> str:
        return str(self.id) if self.name is None else sql.Literal(self.name).as_string(None)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user wants otherwise than pgai has it; None: as it is."""

    name: str | None = None
    model: str | None = None
    embedder: str | None = None
    endpoint: str | None = None
    tokenizer: str | None = None
    query_prompt: str | None = None
    document_prompt: str | None = None
    chunk_size: int | None = None
    chunk_overlap: int | None = None
    sync: bool = True


@dataclass(frozen=True, slots=True)
class Difference:
    """One setting, there and here."""

    setting: str
    theirs: str
    ours: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Ours:
    """A vectorizer of pgai as ours."""

    options: Options
    differences: Sequence[Difference] = ()
    dropped: Sequence[str] = ()
    """What its splitter leaves out between two chunks."""
    excepted: sql.Composable = field(default_factory=lambda: sql.SQL("false"))
    """The rows whose vectors may be of an older text."""


def read(connection: Connection, name: str) -> Theirs:
    """Returns the vectorizer of that name or id. Raises ``DefinitionError`` that lists the ones there are."""
    try:
        row = connection.execute(statement("pgai", "installed")).fetchone()
        if not row or not row[0]:
            raise DefinitionError("there is no pgai in this database: it has no table ai.vectorizer")
        found = [_theirs(values) for (values,) in connection.execute(statement("pgai", "vectorizers"))]
    except psycopg.errors.InsufficientPrivilege as error:
        raise DefinitionError(f"you may not read pgai's tables: {one_line(error)}") from error
    for one in found:
        if name == one.name or (name == str(one.id) and name not in [other.name for other in found]):
            return one
    there = f"there are: {', '.join(one.label for one in found)}" if found else "it has none"
    raise DefinitionError(f"pgai has no vectorizer {name!r}; {there}")


def _theirs(values: Mapping[str, Any]) -> Theirs:
    config = values["config"]
    destination = config.get("destination") or {}
    # Older versions keep it beside the configuration.
    within = destination if "target_table" in destination else values
    return Theirs(
        id=values["id"],
        name=values.get("name"),
        source_schema=values["source_schema"],
        source_table=values["source_table"],
        key=tuple(column["attname"] for column in sorted(values["source_pk"], key=lambda column: column["pknum"])),
        config=config,
        target=None
        if destination.get("implementation") == "column"
        else (within["target_schema"], within["target_table"]),
        queue=(values["queue_schema"], values["queue_table"]) if values.get("queue_table") else None,
        disabled=bool(values.get("disabled")),
    )


def pending(connection: Connection, theirs: Theirs) -> int:
    """Returns how many rows wait in its queue; 10,001 for more."""
    if theirs.queue is None:
        return 0
    row = connection.execute(statement("pgai", "pending").format(queue=identifier(*theirs.queue)), {}).fetchone()
    return int(row[0]) if row else 0


def busy(connection: Connection, theirs: Theirs) -> list[int]:
    """Returns the server processes of its workers that are at work on this vectorizer."""
    return [pid for (pid,) in connection.execute(statement("pgai", "busy"), {"id": theirs.id})]


def convert(connection: Connection, theirs: Theirs, wishes: Wishes) -> Ours:
    """Returns what `enqueue` has to be asked for. Raises ``DefinitionError`` for what has no counterpart."""
    differences: list[Difference] = []
    source = catalog.get_relation(connection, catalog.quoted_name(theirs.source_schema, theirs.source_table))
    text = _text(theirs, differences)
    chunking = _chunking(theirs, wishes, differences)
    template = _template(theirs, differences)
    model = _model(theirs, wishes, differences)
    into = _destination(connection, theirs, source, differences)
    differences.append(
        Difference(
            "live changes",
            "a trigger per row, a queue row per change",
            "a trigger per statement, a queue row per 1,000 keys" if wishes.sync else "none",
            "" if wishes.sync else "run `pgvec enqueue` to bring it up to date",
        )
    )
    _upkeep(theirs, differences)
    return Ours(
        options=Options(
            source=catalog.quoted_name(source.schema, source.name),
            text=(text,),
            name=wishes.name or theirs.name or source.name,
            template=template,
            tokenizer=wishes.tokenizer,
            query_prompt=wishes.query_prompt,
            document_prompt=wishes.document_prompt,
            sync=wishes.sync,
            adopt=True,
            **chunking,
            **model,
            **into,
        ),
        differences=differences,
        dropped=_dropped(theirs),
        excepted=_excepted(theirs),
    )


def _text(theirs: Theirs, differences: list[Difference]) -> str:
    loading, parsing, chunking = theirs.part("loading"), theirs.part("parsing"), theirs.part("chunking")
    implementation = loading.get("implementation", "column")
    column = loading.get("column_name") or chunking.get("chunk_column")
    if implementation != "column" or column is None:
        raise DefinitionError(
            f"pgai's {theirs.label} loads what a column names (ai.loading_{implementation}); pgvec embeds the text of "
            "columns: have something put the files' text into one"
        )
    parser = parsing.get("implementation", "auto")
    if parser not in ("auto", "none"):
        raise DefinitionError(
            f"pgai's {theirs.label} parses documents (ai.parsing_{parser}); pgvec embeds text columns"
        )
    differences.append(Difference("text", str(column), str(column)))
    return str(column)


def _chunking(theirs: Theirs, wishes: Wishes, differences: list[Difference]) -> dict[str, Any]:
    chunking = theirs.part("chunking")
    implementation = chunking.get("implementation")
    if implementation == "none":
        if wishes.chunk_size is not None or wishes.chunk_overlap is not None:
            raise DefinitionError(f"pgai's {theirs.label} does not chunk, so --chunk-size has no effect; leave it out")
        differences.append(Difference("chunking", "none", "none"))
        # Its column destination implies it, and is not asked for twice.
        return {"no_chunking": theirs.target is not None}
    if implementation not in _SPLITTERS:
        raise DefinitionError(f"pgai's {theirs.label} chunks by {implementation!r}, which is not known here")
    characters, shared = int(chunking["chunk_size"]), int(chunking["chunk_overlap"])
    size = wishes.chunk_size or max(4, round(characters / CHARACTERS_PER_TOKEN))
    overlap = wishes.chunk_overlap
    if overlap is None:
        overlap = min(round(shared / CHARACTERS_PER_TOKEN), size // 2)
    differences.append(
        Difference(
            "chunking",
            f"{characters} characters, overlap {shared} ({implementation})",
            f"{size} tokens, overlap {overlap}, at sentence ends",
            "for rows that change from now on; what is there keeps its cut",
        )
    )
    return {"chunk_size": size, "chunk_overlap": overlap}


def _dropped(theirs: Theirs) -> Sequence[str]:
    chunking = theirs.part("chunking")
    if chunking.get("implementation") != "character_text_splitter" or chunking.get("is_separator_regex"):
        return ()
    return (str(chunking.get("separator", "")),)


def _template(theirs: Theirs, differences: list[Difference]) -> str | None:
    formatting = theirs.part("formatting")
    text = str(formatting.get("template", "$chunk"))
    if formatting.get("implementation") == "chunk_value" or text in ("$chunk", "${chunk}"):
        return None
    try:
        Template.parse(text)
    except DefinitionError as error:
        raise DefinitionError(f"pgai's {theirs.label} has a format that is none here: {error}") from error
    differences.append(
        Difference(
            "format",
            f"{text!r}, stored formatted",
            f"{text!r}, the chunk is stored without it",
            "for rows that change from now on; NULL is shown as nothing, not as 'None'",
        )
    )
    return text


def _model(theirs: Theirs, wishes: Wishes, differences: list[Difference]) -> dict[str, Any]:
    embedding = theirs.part("embedding")
    host, model = str(embedding.get("implementation")), str(embedding.get("model"))
    shown = f"{model} ({host}{', ' + embedding['base_url'] if embedding.get('base_url') else ''})"
    asked: dict[str, Any]
    if wishes.model is not None and wishes.endpoint is None and wishes.embedder != "openai":
        asked = {"model": wishes.model, "embedder": wishes.embedder}
    else:
        endpoint = wishes.endpoint or _endpoint(theirs, embedding, host)
        dimensions = embedding.get("dimensions")
        asked = {"embedder": "openai", "model": wishes.model or model, "endpoint": endpoint, "dimensions": dimensions}
    where = asked.get("endpoint") or ("OpenAI" if asked.get("embedder") == "openai" else "on the workers themselves")
    note = ""
    if asked.get("embedder") == "openai":
        key = "OPENAI_API_KEY" if asked["endpoint"] is None else "PGVEC_ENDPOINT_KEY, where it asks for a key"
        note = f"a worker reads {key} from its environment"
    extra = [name for name in ("options", "keep_alive", "user", "extra_options", "input_type") if embedding.get(name)]
    if extra:
        note += f"{'; ' if note else ''}{', '.join(extra)} not passed on"
    differences.append(Difference("model", shown, f"{asked['model']} ({where})", note))
    return asked


def _endpoint(theirs: Theirs, embedding: Config, host: str) -> str | None:
    base = embedding.get("base_url")
    if host == "openai":
        return str(base) if base else None
    if host == "ollama":
        # Ollama answers as OpenAI does below /v1.
        return f"{str(base or _OLLAMA).rstrip('/')}/v1"
    raise DefinitionError(
        f"pgai's {theirs.label} asks {host} for its vectors; name an endpoint that answers as OpenAI's with "
        f"--endpoint, or a model that gives the same vectors with --model (embedders: {', '.join(KINDS)})"
    )


def _destination(
    connection: Connection, theirs: Theirs, source: catalog.Relation, differences: list[Difference]
) -> dict[str, Any]:
    if theirs.target is None:
        column = str(theirs.part("destination")["embedding_column"])
        differences.append(
            Difference(
                "destination",
                f"the column {column} of {source.label}",
                f"the same, and {column}_hash",
                "its trigger queues each row that gets a hash: have its worker stopped",
            )
        )
        return {"into_column": column, "store": _store(source, column)}
    schema, table = theirs.target
    name = catalog.quoted_name(schema, table)
    target = catalog.find_relation(connection, name)
    if target is None:
        raise DefinitionError(
            f"the table {schema}.{table} of pgai's {theirs.label} is gone, so there is nothing to import"
        )
    view = theirs.part("destination")
    differences.append(Difference("destination", target.label, "the same, and source_hash in it"))
    if view.get("view_name"):
        differences.append(
            Difference("view", f"{view.get('view_schema')}.{view['view_name']}", "stays, and shows ours too")
        )
    return {
        "into": name,
        "columns": {
            "key": list(theirs.key),
            "chunk_index": ["chunk_seq"],
            "chunk": ["chunk"],
            "embedding": ["embedding"],
        },
        "store": _store(target, "embedding"),
    }


def _store(relation: catalog.Relation, column: str) -> str | None:
    found = relation.columns.get(column)
    return found.typname if found is not None and found.typname in INDEXABLE else None


def _upkeep(theirs: Theirs, differences: list[Difference]) -> None:
    """What concerns how the work is done, not what comes of it."""
    for setting, none, ours in (
        ("indexing", "none", "see `pgvec index`; an index that is there stays"),
        ("scheduling", "none", "`pgvec work` runs all the time"),
        ("processing", "default", "sizes are found by the worker"),
    ):
        part = theirs.part(setting)
        values = [f"{name} {value}" for name, value in part.items() if name not in ("implementation", "config_type")]
        implementation = str(part.get("implementation", none))
        if values or implementation != none:
            differences.append(Difference(setting, ", ".join([implementation, *values]), ours))


def _excepted(theirs: Theirs) -> sql.Composable:
    """In a table the chunks' own text tells; a vector in the source has none."""
    if theirs.target is not None or theirs.queue is None:
        return sql.SQL("false")
    return statement("pgai", "is_pending").format(
        queue=identifier(*theirs.queue),
        same_key=sql.SQL(" AND ").join(
            sql.SQL("{} = {}").format(identifier("q", name), identifier("s", name)) for name in theirs.key
        ),
    )
