"""The demo's text: the docstrings of Python's own standard library, read from its source files, nothing imported."""

from __future__ import annotations

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pgvec_queue.database import Connection, statement, transaction

DEFAULT_DOCUMENTS = 1_500
TABLE = "pgvec_demo"
QUERIES = (
    "how do I wait for several coroutines at once",
    "compress a file",
    "parse a date from a string",
)

_SKIPPED = {"test", "tests", "site-packages"}


@dataclass(frozen=True, slots=True)
class Docstring:
    """What one module, class or function says of itself."""

    name: str
    """Dotted, such as ``asyncio.tasks.gather``."""
    text: str


def docstrings(library: Path | None = None) -> Iterator[Docstring]:
    """Yields every docstring below ``library`` (default: this Python's standard library), in a fixed order."""
    root = library or Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if _SKIPPED & set(parts):
            continue
        module = ".".join(parts).removesuffix(".__init__")
        try:
            with warnings.catch_warnings():
                # What the library's own code is warned about is no news to whoever runs the demo.
                warnings.simplefilter("ignore")
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            # A few files of the library are broken on purpose, for its own tests.
            continue
        yield from _of_node(tree, module)


def _of_node(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str
) -> Iterator[Docstring]:
    text = ast.get_docstring(node)
    if text and text.strip():
        # PostgreSQL's text holds no NUL; one docstring has one.
        yield Docstring(name, text.replace("\0", "\ufffd"))
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _of_node(child, f"{name}.{child.name}")


def load(connection: Connection, documents: int | None) -> int:
    """Fills the demo's table with docstrings spread over the whole library; returns how many it now holds.

    ``documents`` None takes all. Running it again adds what is missing and changes nothing else.
    """
    found = list({d.name: d for d in docstrings()}.values())
    if documents is not None and documents < len(found):
        step = len(found) / documents
        found = [found[int(i * step)] for i in range(documents)]
    with transaction(connection):
        connection.execute(statement("demo", "create_table"))
        connection.execute(statement("demo", "create_staging"))
        with connection.cursor() as cursor, cursor.copy("COPY pgvec_demo_staging (name, docstring) FROM STDIN") as copy:
            for one in found:
                copy.write_row((one.name, one.text))
        connection.execute(statement("demo", "merge"))
    row = connection.execute(statement("demo", "count")).fetchone()
    return int(row[0]) if row else 0
