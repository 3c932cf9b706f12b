"""Which options somebody has given on the command line, apart from settings and defaults, and what excludes what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import click
from click.core import ParameterSource

WHOLE_DOCUMENTS = (
    ("into_column", ("into", "chunk_size", "chunk_overlap", "partitions")),
    ("no_chunking", ("chunk_size", "chunk_overlap")),
)
"""What makes no sense with documents that stay whole, or with vectors in their source."""


def said_options(context: click.Context) -> dict[str, str]:
    """Returns the flags that were given, by the names of their parameters."""
    return {
        parameter.name: max(parameter.opts, key=len)
        for parameter in context.command.params
        if parameter.name and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    }


def refuse_together(said: Mapping[str, str], excluding: Iterable[tuple[str, Sequence[str]]]) -> None:
    """Raises ``click.UsageError`` where one was given beside another that it excludes."""
    for one, others in excluding:
        for other in others:
            if one in said and other in said and one != other:
                raise click.UsageError(f"{said[one]} and {said[other]} exclude each other")
