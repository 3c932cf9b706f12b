"""The text around each chunk in what is embedded, such as ``$title: $chunk``.

``$name`` or ``${name}`` stands for a column of the source row, ``$chunk`` for the chunk (also where a column has that
name), ``$$`` for a dollar sign. Guarantees that ``$chunk`` stands there exactly once, so that what surrounds it can be
rendered and counted once per row. Knows nothing of tokens: how long column values are cut is in ``chunking``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from pgvec_queue.errors import DefinitionError

_PLACEHOLDER = re.compile(r"\$(?:(?P<escape>\$)|(?P<name>[^\W\d]\w*)|\{(?P<braced>[^{}]+)\}|)")
_CHUNK = "chunk"

Columns = Mapping[str, str | None]
"""Values of one source row by column name; None for NULL, which renders as nothing."""


@dataclass(frozen=True, slots=True)
class _Column:
    name: str


_Parts = tuple[str | _Column, ...]


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template; make one with ``Template.parse``."""

    text: str
    """As it was written."""
    before: _Parts
    after: _Parts

    @classmethod
    def parse(cls, text: str) -> Template:
        """Returns the template; raises ``DefinitionError`` unless ``$chunk`` is in it once and each ``$`` is used."""
        sides: list[list[str | _Column]] = [[]]
        end = 0
        for found in _PLACEHOLDER.finditer(text):
            sides[-1].append(text[end : found.start()])
            end = found.end()
            name = found["name"] or found["braced"]
            if found["escape"]:
                sides[-1].append("$")
            elif name == _CHUNK:
                sides.append([])
            elif name:
                sides[-1].append(_Column(name))
            else:
                raise DefinitionError(
                    f"template {text!r}: the '$' at character {found.start() + 1} starts no column name;"
                    " write $name or ${name} for a column, $$ for a dollar sign"
                )
        sides[-1].append(text[end:])
        if len(sides) != 2:
            raise DefinitionError(
                f"template {text!r} has $chunk {len(sides) - 1} times; it must stand there once, where the chunk's text"
                " goes, such as in '$title: $chunk'"
            )
        before, after = (tuple(part for part in side if part != "") for side in sides)
        return cls(text, before, after)

    @property
    def columns(self) -> tuple[str, ...]:
        """The source columns that it needs, each once, in the order of their first use."""
        return tuple(dict.fromkeys(self.uses))

    @property
    def uses(self) -> tuple[str, ...]:
        """The column of each place that shows one, in order."""
        return tuple(part.name for part in self.before + self.after if isinstance(part, _Column))

    def sides(self, columns: Columns) -> tuple[str, str]:
        """Returns what stands before and after the chunk in this row; raises ``KeyError`` when a column is missing."""
        return _render(self.before, columns), _render(self.after, columns)

    def render(self, chunk: str, columns: Columns) -> str:
        """Returns the text to embed for a chunk of this row; raises ``KeyError`` when a column is missing."""
        before, after = self.sides(columns)
        return before + chunk + after


def _render(parts: _Parts, columns: Columns) -> str:
    return "".join(part if isinstance(part, str) else columns[part.name] or "" for part in parts)
