"""The Sphinx extension: `<!-- generated: NAME -->` in a page becomes what the program tells of itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import docname_join
from sphinx.util.matching import patfilter

from pgvec_reference import cli, http, schema, settings

_MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
_TEXTS = {"cli": cli.text, "settings": settings.text, "sql": schema.text, "http": http.text}
# A link to a folder means something on a forge only; here it is its name.
_FOLDER = re.compile(r"\[(?P<text>[^\]\n]+)\]\((?P<path>(?![a-z]+:)[^)#\s]+)\)")

# A pattern for pages that are still to come is no mistake.
_TOCTREE = re.compile(r"^```\{toctree\}\n.*?^```$", re.MULTILINE | re.DOTALL)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", _read)
    app.connect("env-before-read-docs", _always)
    app.connect("build-finished", _redirect)
    return {"parallel_read_safe": False, "parallel_write_safe": True}


def _read(app: Sphinx, docname: str, source: list[str]) -> None:
    page = Path(app.env.doc2path(docname))

    def linked(found: re.Match[str]) -> str:
        return found["text"] if found["path"].endswith("/") or (page.parent / found["path"]).is_dir() else found[0]

    def there(found: re.Match[str]) -> str:
        return "\n".join(line for line in found[0].split("\n") if "*" not in line or matches(line.strip()))

    def matches(pattern: str) -> list[str]:
        return list(patfilter(app.env.found_docs, docname_join(docname, pattern)))

    text = _MARK.sub(lambda found: _TEXTS[found[1]](), source[0])
    source[0] = _TOCTREE.sub(there, _FOLDER.sub(linked, text))


def _always(app: Sphinx, env: Any, docnames: list[str]) -> None:
    """Reads pages that are generated again each time: what they are made of is no file of theirs."""
    for name in env.found_docs:
        if name not in docnames and "<!-- generated:" in Path(env.doc2path(name)).read_text("utf-8"):
            docnames.append(name)


def _redirect(app: Sphinx, error: Exception | None) -> None:
    """Leads from the site's own address to its first page, which lies in a folder as it does in the repository."""
    if error is None and app.builder.format == "html":
        target = f"{app.config.root_doc}.html"
        (Path(app.outdir) / "index.html").write_text(
            f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={target}">'
            f'<title>pgvec-queue</title><a href="{target}">pgvec-queue</a>\n',
            "utf-8",
        )
