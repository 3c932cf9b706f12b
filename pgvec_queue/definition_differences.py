"""Tells in what a definition that is asked for differs from the stored one of that name, and refuses it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from pgvec_queue import catalog, destination, source_checks
from pgvec_queue.catalog import Relation
from pgvec_queue.database import Connection
from pgvec_queue.definition_options import DEFAULT_CHUNK_SIZE, MIGRATED, Options
from pgvec_queue.errors import DefinitionDiffersError, DefinitionError
from pgvec_queue.vectorizer import Vectorizer


def refuse(connection: Connection, known: Vectorizer, options: Options, source: Relation) -> None:
    """Raises ``DefinitionDiffersError`` where ``options`` ask for something else than what is stored.

    With --text a definition is stated in full; a bare `enqueue SOURCE` takes it as it stands.
    """
    if (source.schema, source.name) != (known.source_schema, known.source_table):
        raise DefinitionDiffersError(
            f"the vectorizer {known.name!r} is over {known.source}, not {source.label}; give another --name"
        )
    for name, type_ in zip(known.key_columns, known.key_types, strict=True):
        if source.column(name, "the key").base_type != type_:
            raise DefinitionError(
                f"the key {name} of {source.label} was {type_} and is {source.column(name, 'the key').base_type} now; "
                f"drop the vectorizer {known.name!r} and make it anew"
            )
    for flag, have, want in _stated(known, options, source) if options.text else ():
        _refuse_other(known, flag, have, want)
    for flag, have, want in _said(connection, known, options, source):
        if want is not None:
            _refuse_other(known, flag, have, want)


def _stated(known: Vectorizer, options: Options, source: Relation) -> Iterator[tuple[str, object, object]]:
    """What has a default that is known without looking at the model."""
    yield "--text", known.text_columns, tuple(source_checks.text_columns(source, options.text))
    yield "--into-column", known.destination_roles.embedding if known.into_column else None, options.into_column
    yield "--where", known.filter, options.where
    yield "--template", known.template, options.template
    yield "--store", known.store, options.store or "vector"
    yield "--trust-remote-code", known.trust_remote_code, options.trust_remote_code
    yield "--embedder", known.embedder, options.resolved_embedder
    yield "--model", known.model, options.resolved_model
    yield "--endpoint", known.endpoint, options.endpoint
    yield "--no-chunking", known.chunk_size is None, not options.chunked
    if options.chunked:
        yield "--chunk-size", known.chunk_size, options.chunk_size or DEFAULT_CHUNK_SIZE
        if options.chunk_overlap is not None:
            yield "--chunk-overlap", known.chunk_overlap, options.chunk_overlap
    if options.tokenizer is not None:
        yield "--tokenizer", known.tokenizer, options.tokenizer


def _said(
    connection: Connection, known: Vectorizer, options: Options, source: Relation
) -> Iterator[tuple[str, object, object | None]]:
    """What can be told apart from its default, which a file of settings cannot hold; None: not said."""
    yield "--into-column", known.destination_roles.embedding if known.into_column else None, options.into_column
    yield "--where", known.filter, options.where
    yield "--template", known.template, options.template
    yield "--store", known.store, options.store
    yield "--trust-remote-code", known.trust_remote_code, options.trust_remote_code or None
    yield "--no-chunking", known.chunk_size is None, not options.chunked or None
    yield "--key", set(known.key_columns), {source.column(c, "--key").attname for c in options.key} or None
    yield "--revision", known.revision, options.revision
    yield "--query-prompt", known.query_prompt, options.query_prompt
    yield "--document-prompt", known.document_prompt, options.document_prompt
    yield "--dimensions", known.dimensions, options.dimensions
    yield "--too-long", known.too_long, options.too_long
    yield "--partitions", known.partitions or 1, options.partitions
    if options.into is not None:
        into = destination.named_table(connection, source, options.into)
        yield "--into", None if known.into_column else known.destination, into
    roles = known.destination_roles.as_json()
    for role, names in options.columns.items():
        have = roles.get(role)
        as_held = have if isinstance(have, list) else [have]
        want = [name if name in as_held else catalog.folded(name) for name in names]
        yield f"--column {role}", as_held, want


def _refuse_other(known: Vectorizer, flag: str, have: object, want: object) -> None:
    if have != want:
        raise DefinitionDiffersError(
            f"the vectorizer {known.name!r} exists with another definition: {flag} was {_shown(have)}, "
            f"now it is {_shown(want)}; {_way(known, flag, want)}"
        )


def _way(known: Vectorizer, flag: str, want: object) -> str:
    """What to do about it."""
    if flag.removeprefix("--").replace("-", "_") not in MIGRATED or want is None or want is False:
        return "give another --name, or drop it first"
    option = flag if want is True else f"{flag} {shlex.quote(_shown(want))}"
    return (
        f"new vectors beside the present ones, until you switch to them: pgvec migrate-model {shlex.quote(known.name)} "
        f"{option}; or give another --name"
    )


def _shown(value: object) -> str:
    if value is None or value is False:
        return "not given"
    if value is True:
        return "given"
    if isinstance(value, tuple | set | list):
        shown = [_shown(item) for item in value]
        return ", ".join(sorted(shown) if isinstance(value, set) else shown)
    return str(value)
