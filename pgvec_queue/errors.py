"""The exceptions that pgvec-queue raises, and the three kinds that decide what happens to the work at hand.

Every message is one line for a person: what is wrong, where, and what to do about it. None holds a password.
"""

from __future__ import annotations

import enum


class Kind(enum.Enum):
    """What an error says about the work that met it."""

    ROW = "row"
    """The document's own fault: halve the work until the document is alone, quarantine it, go on."""
    PASSING = "passing"
    """Goes away by itself: back off and try again; no attempt is counted."""
    VECTORIZER = "vectorizer"
    """No document of this vectorizer can succeed: block it with the reason, other vectorizers go on."""


class PgvecError(Exception):
    """Base of all errors that a user is meant to read; ends a command with exit code 1."""


class SettingsError(PgvecError):
    """A setting, a file of settings or an environment variable cannot be used."""


class DatabaseError(PgvecError):
    """The database cannot be reached, is too old, or lacks an extension, a right or the schema."""


class SchemaOutdatedError(DatabaseError):
    """The pgvec schema is missing, or too old or too new for this program; `pgvec init` mends the first two."""


class SchemaMissingError(SchemaOutdatedError):
    """There is no pgvec schema in this database."""


class DefinitionError(PgvecError):
    """A vectorizer cannot be defined as asked: table, column, key, destination or option do not fit."""


class DefinitionDiffersError(DefinitionError):
    """A vectorizer of that name exists with another definition."""


class EmbedderError(PgvecError):
    """An embedder could not embed; ``kind`` says whose fault it is."""

    def __init__(self, message: str, kind: Kind, *, retry_after: float | None = None) -> None:
        """``retry_after`` is in seconds, as an endpoint asked for it."""
        super().__init__(message)
        self.kind = kind
        self.retry_after = retry_after


class StalledError(PgvecError):
    """A call of a model, a tokenizer or the database did not come back in time, and cannot be ended from outside."""


class MissingExtraError(PgvecError):
    """An optional dependency is not installed; the message holds the command that installs it."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs packages that are not installed; run: pip install 'pgvec-queue[{extra}]'")
        self.extra = extra
