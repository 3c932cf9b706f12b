"""pgvec-queue: embeds the text of PostgreSQL tables into pgvector; the database is the only coordinator."""

__version__ = "0.7.0"

__all__ = ["__version__"]
