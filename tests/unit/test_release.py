"""What a tag has to be so that it is released: the package's version, and the changelog's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.release import ROOT, NotReleasableError, notes

CHANGELOG = """\
# Changelog

## 1.2.3

New things.

- One.

## 1.2.2

Old things.
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "pgvec_queue").mkdir()
    (tmp_path / "pgvec_queue" / "__init__.py").write_text('"""A package."""\n\n__version__ = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    return tmp_path


def test_the_notes_are_the_section_of_the_version_alone(root: Path) -> None:
    assert notes("v1.2.3", root) == "New things.\n\n- One."


@pytest.mark.parametrize("tag", ["1.2.3", "v1.2", "v1.2.3.4", "v1.2.3-rc1", "release", "v1.2.3\n"])
def test_a_tag_that_is_no_version_is_refused(root: Path, tag: str) -> None:
    with pytest.raises(NotReleasableError, match="names no version"):
        notes(tag, root)


def test_a_tag_of_another_version_is_refused(root: Path) -> None:
    with pytest.raises(NotReleasableError, match=r"the tag is v1\.2\.4, and __version__ .* is 1\.2\.3"):
        notes("v1.2.4", root)


@pytest.mark.parametrize(
    ("heading", "said"),
    [("## 1.2.3 (unreleased)", r"is '1\.2\.3 \(unreleased\)'"), ("## 1.2.2", r"is '1\.2\.2'"), ("", "is '1.2.2'")],
)
def test_the_changelog_has_to_begin_with_the_version(root: Path, heading: str, said: str) -> None:
    (root / "CHANGELOG.md").write_text(CHANGELOG.replace("## 1.2.3", heading))
    with pytest.raises(NotReleasableError, match=said):
        notes("v1.2.3", root)


def test_an_empty_section_is_refused(root: Path) -> None:
    (root / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.3\n\n## 1.2.2\n\nOld things.\n")
    with pytest.raises(NotReleasableError, match=r"says nothing of 1\.2\.3"):
        notes("v1.2.3", root)


def test_it_runs_before_anything_is_installed() -> None:
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-c", "import runpy, sys; sys.path.insert(0, '.'); sys.argv[1:] = ['v0.0.0'];"
         "runpy.run_module('tests.release', run_name='__main__')"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 1
    assert ran.stderr.startswith("not released: the tag is v0.0.0, and __version__")
    assert ran.stdout == ""
