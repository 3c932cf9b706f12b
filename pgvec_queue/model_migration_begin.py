"""Begins a migration to another model: works out what the second vectorizer is, from the first and what is to be
otherwise, and makes it.

Everything is taken over but what is named, and what belongs to a model (its prompts, its dimensions), which goes with
it. The new vectors go beside the old ones, under a name that nothing has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pgvec_queue import catalog, definition, definition_differences, progress, vector_index, vectorizer
from pgvec_queue.catalog import find_relation, quoted_name
from pgvec_queue.database import Connection, Versions, statement, transaction
from pgvec_queue.definition import Defined, Options
from pgvec_queue.errors import DefinitionDiffersError, DefinitionError
from pgvec_queue.model_migration import Migration, find
from pgvec_queue.template import Template
from pgvec_queue.vectorizer import Vectorizer

OTHER = "@other"
"""Ends the name of the one that waits: the new one before the switch, the old one after it."""
_LONGEST_NAME = 190
_LONGEST_TABLE = 54
_LONGEST_COLUMN = 55
"""With room for a number, for a partition's, and for what the column of hashes is called."""
_LONGEST_SHORT = 30

OF_THE_MODEL = ("revision", "query_prompt", "document_prompt", "dimensions", "tokenizer")
"""What another model has its own of."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A migration that is there, and what its new vectorizer is."""

    migration: Migration
    defined: Defined
    limit: int | None
    """How many rows are still to be planned, where the old one has a part of them only."""


def begin(connection: Connection, name: str, given: Mapping[str, Any], versions: Versions) -> Begun:
    """Makes the second vectorizer, or finds the one that was made for the same; its jobs are not planned yet.

    ``given`` is what shall be otherwise, by the names of ``Options``. Raises ``DefinitionError`` where nothing would be
    otherwise, another migration is open, or the new definition does not fit.
    """
    old, open_, options = _wanted(connection, name, given)
    limit = _rows_left(connection, old, options.name) if vectorizer.is_limited(connection, old.id) else None

    def begun(new: Vectorizer) -> None:
        connection.execute(statement("model_migration", "begin"), {"old": old.id, "new": new.id})

    try:
        # Stored together: at no moment there are two that a search without a name could mean.
        defined = definition.define(connection, options, versions, also=begun)
    except DefinitionDiffersError as error:
        raise _other_target(name, open_, options, error) from error
    except DefinitionError as error:
        raise _as_it_can_be_said(error) from error
    with transaction(connection):
        begun(defined.vectorizer)
        if defined.new:
            vector_index.want_alike(connection, defined.vectorizer, old)
    made = find(connection, old)
    if made is None or made.new.id != defined.vectorizer.id or made.old.id != old.id:
        raise DefinitionError(
            f"somebody else has begun to migrate {name} at this moment; `pgvec migrate-model {name}` shows it"
        )
    return Begun(made, replace(defined, vectorizer=made.new), limit)


def propose(connection: Connection, name: str, given: Mapping[str, Any], versions: Versions) -> Vectorizer:
    """Checks what ``begin`` would, and returns the vectorizer that it would make; nothing is made."""
    _, open_, options = _wanted(connection, name, given)
    try:
        return definition.propose(connection, options, versions)
    except DefinitionDiffersError as error:
        raise _other_target(name, open_, options, error) from error
    except DefinitionError as error:
        raise _as_it_can_be_said(error) from error


def _wanted(
    connection: Connection, name: str, given: Mapping[str, Any]
) -> tuple[Vectorizer, Migration | None, Options]:
    """Returns the old vectorizer, the migration that is open, and what the new one is to be."""
    found = vectorizer.get(connection, name)
    open_ = find(connection, found)
    if open_ is not None and open_.switched_at is not None:
        raise DefinitionError(
            f"{open_.new.name} was switched to {open_.new.model}, and {open_.old.name} still has {open_.old.model}; "
            f"end that first: pgvec migrate-model {open_.new.name} --finish, or --rollback"
        )
    old = found if open_ is None else open_.old
    source = catalog.get_relation(connection, quoted_name(old.source_schema, old.source_table))
    options = replace(_options(old, given), index_new=vector_index.is_wanted(connection, old))
    _refuse_for_others(options, given)
    _refuse_the_same(connection, old, options, source)
    half_made = open_.new if open_ is not None else vectorizer.find(connection, _other_name(old.name))
    _refuse_chunks(old, half_made, given)
    into = None if options.into is None else _existing(connection, source, options.into)
    if into is not None:
        # Its columns have names of their own; those of the old one's say nothing about them.
        options = replace(options, columns={}, partitions=given.get("partitions"))
    _refuse_for_collection(connection, old, half_made, options, into)
    if half_made is not None:
        options = replace(options, partitions=given.get("partitions"))
    if open_ is not None:
        return old, open_, replace(options, name=open_.new.name, **_where_it_is(open_.new, options))
    options = replace(options, name=_other_name(old.name), rows_per_job=old.rows_per_job, priority=old.priority)
    if half_made is not None:
        # Somebody has made it by hand, or a migration was ended by dropping the old one.
        return old, None, replace(options, **_where_it_is(half_made, options))
    return old, None, replace(options, **_where_to(connection, old, options, source))


def _options(old: Vectorizer, given: Mapping[str, Any]) -> Options:
    """Returns the old definition with what is given in its place; what belongs to the model goes with it."""
    kept: dict[str, Any] = {
        "template": old.template,
        "chunk_size": old.chunk_size,
        "chunk_overlap": old.chunk_overlap,
        "no_chunking": old.chunk_size is None,
        "too_long": old.too_long,
        "store": old.store,
        "partitions": old.partitions,
        "embedder": old.embedder,
        "endpoint": old.endpoint,
        "model": old.model,
        "trust_remote_code": old.trust_remote_code,
    } | {name: getattr(old, name) for name in OF_THE_MODEL}
    embedder = given.get("embedder") or (None if given.get("endpoint") is None else "openai")
    if given.get("model") not in (None, old.model) or embedder not in (None, old.embedder):
        kept |= dict.fromkeys(OF_THE_MODEL) | {"trust_remote_code": False}
        if old.embedder != "openai" or embedder not in (None, "openai"):
            kept |= {"embedder": None, "endpoint": None}
    elif "revision" in given:
        kept["trust_remote_code"] = False
    if given.get("chunk_size") is not None:
        kept["no_chunking"] = False
        if old.chunk_overlap is not None and 2 * old.chunk_overlap > given["chunk_size"]:
            kept["chunk_overlap"] = None
    if given.get("no_chunking") or given.get("into_column") is not None:
        kept |= {"no_chunking": True, "chunk_size": None, "chunk_overlap": None}
    if given.get("into_column") is not None:
        kept["partitions"] = None
    roles = old.destination_roles.as_json()
    return Options(
        source=quoted_name(old.source_schema, old.source_table),
        text=old.text_columns,
        key=old.key_columns,
        where=old.filter,
        columns={}
        if old.into_column or given.get("into_column")
        else {role: names if isinstance(names, list) else [names] for role, names in roles.items()},
        sync=old.sync or None,
        **(kept | dict(given)),
    )


def _refuse_for_others(options: Options, given: Mapping[str, Any]) -> None:
    """Raises ``DefinitionError`` for what would have no effect with this embedder."""
    for one in ("endpoint", "tokenizer"):
        if given.get(one) is not None and options.resolved_embedder != "openai":
            raise DefinitionError(f"--{one} is for the embedder openai, not {options.resolved_embedder}")


def _refuse_chunks(old: Vectorizer, half_made: Vectorizer | None, given: Mapping[str, Any]) -> None:
    """Raises ``DefinitionError`` where chunks are asked for in a column, which takes one vector per document."""
    place = old if half_made is None else half_made
    if given.get("into") is not None or not place.into_column:
        return
    for one, flag in (("chunk_size", "--chunk-size"), ("chunk_overlap", "--chunk-overlap")):
        if given.get(one) is not None:
            raise DefinitionError(
                f"{old.name} has its vectors in a column, one for each whole document; {flag} needs --into TABLE"
            )


def _refuse_for_collection(
    connection: Connection,
    old: Vectorizer,
    half_made: Vectorizer | None,
    options: Options,
    into: catalog.Relation | None,
) -> None:
    """Raises ``DefinitionError`` for what the gateway could not read, or not drop, with its collection."""
    found = connection.execute(statement("model_migration", "collection"), {"id": old.id}).fetchone()
    if found is None:
        return
    whose = f"{old.name} is the collection {found[0]!r} of the gateway"
    if options.into_column is not None:
        raise DefinitionError(f"{whose}, whose vectors are in a table of their own; leave --into-column out")
    if into is not None and (half_made is None or into.label != half_made.destination):
        raise DefinitionError(f"{whose}, whose vectors need a table of their own; {into.label} exists: name a new one")
    columns = Template.parse(options.template).columns if options.template else ()
    if columns:
        raise DefinitionError(
            f"{whose}, which tells by the text alone what is embedded; leave ${columns[0]} out of the template"
        )


def _existing(connection: Connection, source: catalog.Relation, into: str) -> catalog.Relation | None:
    """Returns the table that ``--into`` names, where there is one: beside the source, or along the search path."""
    return find_relation(connection, into, schema=source.schema) or find_relation(connection, into)


def _as_it_can_be_said(error: DefinitionError) -> DefinitionError:
    """Columns of a table that is there can be given roles by `enqueue` alone."""
    said, _, advice = str(error).partition("; ")
    if "--column " not in advice:
        return error
    return DefinitionError(
        f"{said}; give --into a new name, or a table whose columns are called as the key's and "
        f"{', '.join(vectorizer.ROLES[1:])}"
    )


def _refuse_the_same(connection: Connection, old: Vectorizer, options: Options, source: catalog.Relation) -> None:
    """Raises ``DefinitionError`` where the vectors would be the ones that there are, and in the same place."""
    if options.into is not None or options.into_column is not None:
        return
    column = old.destination_roles.embedding if old.into_column else None
    try:
        definition_differences.refuse(
            connection, old, replace(options, name=old.name, into_column=column, columns={}), source
        )
    except DefinitionDiffersError:
        return
    raise DefinitionError(
        f"{old.name} is embedded with {old.model} as it is, in the same way; say what shall be otherwise: --model MODEL"
    )


def _where_it_is(new: Vectorizer, options: Options) -> dict[str, Any]:
    """Where the new vectors go already, unless another place was asked for."""
    if options.into is not None or options.into_column is not None:
        return {}
    if new.into_column:
        return {"into_column": new.destination_roles.embedding, "columns": {}}
    return {"into": None}


def _where_to(connection: Connection, old: Vectorizer, options: Options, source: catalog.Relation) -> dict[str, Any]:
    """A place for the new vectors beside the old ones, whose name nothing has."""
    if options.into is not None or options.into_column is not None:
        return {}
    short = _short(options.resolved_model)
    if old.into_column:
        # Without the old model's name, which an earlier migration has put there.
        column = re.sub(f"_{_short(old.model)}(_[0-9]+)?$", "", old.destination_roles.embedding) or "embedding"
        names = _numbered(column, short, _LONGEST_COLUMN)
        return {
            "into_column": next(
                one for one in names if one not in source.columns and f"{one}_hash" not in source.columns
            )
        }
    usual = f"{old.source_table}_vectors"
    given = re.sub(f"_{_short(old.model)}(_[0-9]+)?$", "", old.destination_table) or usual
    base = usual if old.destination_table.startswith(usual) else given
    schema = old.destination_schema
    names = _numbered(base, short, _LONGEST_TABLE)
    free = next(one for one in names if find_relation(connection, quoted_name(schema, one)) is None)
    return {"into": quoted_name(schema, free)}


def _short(model: str) -> str:
    """Returns a model's name as a part of a table's."""
    last = re.split(r"[/\\]", model.rstrip("/\\"))[-1]
    return re.sub("[^a-z0-9]+", "_", last.lower()).strip("_")[:_LONGEST_SHORT].strip("_") or "model"


def _numbered(base: str, short: str, longest: int) -> Iterator[str]:
    room = longest - len(short) - 1
    stem = f"{base.encode()[:room].decode(errors='ignore')}_{short}"
    yield stem
    number = 2
    while True:
        yield f"{stem}_{number}"
        number += 1


def _other_name(name: str) -> str:
    return name[:_LONGEST_NAME] + OTHER


def _other_target(
    name: str, open_: Migration | None, options: Options, error: DefinitionDiffersError
) -> DefinitionError:
    if open_ is None:
        return DefinitionError(
            f"the name {options.name}, which the new vectorizer would have, belongs to one with another definition; "
            f"drop that, or rename it: pgvec alter {options.name} --name NEW"
        )
    return DefinitionError(
        f"{name} is on its way to {open_.new.model} already, in {open_.new.name}, and what is asked for now differs "
        f"({str(error).partition(': ')[2].partition(';')[0]}); give that up first: "
        f"pgvec migrate-model {open_.old.name} --abandon"
    )


def _rows_left(connection: Connection, old: Vectorizer, name: str | None) -> int:
    """How many rows the new one still lacks of those that `enqueue --limit` has selected for the old one."""
    selected = sum(one.rows_total for one in progress.read(connection, old.name))
    return max(selected - sum(one.rows_total for one in progress.read(connection, name)), 0)
