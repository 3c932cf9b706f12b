"""``python -m tests.release v0.7.0``: whether this tag may be released; prints what the changelog says of the version.

The tag is the version of the package with a ``v`` before it, and the first section of the changelog is about it and no
longer unreleased. Needs nothing that is not in Python, so that it can run before anything is installed.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

_TAG = re.compile(r"v(\d+\.\d+\.\d+(?:(?:a|b|rc)\d+)?)")
_VERSION = re.compile(r'^__version__ = "([^"]+)"$', re.MULTILINE)


class NotReleasableError(Exception):
    """The tag may not be released; the message says why."""


def notes(tag: str, root: Path = ROOT) -> str:
    """Returns the changelog's section about a tag.

    Raises ``NotReleasableError`` where tag, package and changelog do not tell of the same version.
    """
    named = _TAG.fullmatch(tag)
    if named is None:
        raise NotReleasableError(f"the tag {tag!r} names no version; write one such as v1.2.3 or v1.2.3rc1")
    version = _VERSION.search((root / "pgvec_queue" / "__init__.py").read_text())
    if version is None or version[1] != named[1]:
        have = "none" if version is None else version[1]
        raise NotReleasableError(f"the tag is {tag}, and __version__ in pgvec_queue/__init__.py is {have}")
    _, *sections = re.split(r"^## ", (root / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    heading, _, text = sections[0].partition("\n") if sections else ("", "", "")
    if heading.strip() != named[1]:
        raise NotReleasableError(f"the first section of CHANGELOG.md is {heading.strip()!r}; it has to be {named[1]!r}")
    if not text.strip():
        raise NotReleasableError(f"CHANGELOG.md says nothing of {named[1]}")
    return text.strip()


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: python -m tests.release TAG", file=sys.stderr)
        return 2
    try:
        print(notes(sys.argv[1]))
    except NotReleasableError as error:
        print(f"not released: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
