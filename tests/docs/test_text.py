"""What pages say beside their commands: options that exist, links that lead somewhere, files that can be read."""

from __future__ import annotations

import re
import shlex
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from pgvec_queue.cli import program
from pgvec_queue.settings import KNOWN
from tests.docs import pages, running

ALL = [pages.read(path) for path in pages.paths()]
# The changelog tells of options that have gone since, and of what a version was called then.
PRESENT = [page for page in ALL if page.name != "CHANGELOG.md"]
_SPAN = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\]\((?!https?:|mailto:)(?P<path>[^)#\s]*)(?:#(?P<anchor>[^)\s]+))?\)")
_HEADING = re.compile(r"^#+ +(?P<text>.*?) *$")
_BEGINS = re.compile(
    r"^(?:\$ |[\w.-]+\$ |pgvec (?!.* {3})|pip install|make |python -m |curl |psql |docker |apt-get )", re.MULTILINE
)
_COMMON = {"--dsn", "--log-level", "--log-format", "--debug", "--help", "-h", "--version"}


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.name)
def test_a_fence_with_commands_says_that_it_has(page: pages.Page) -> None:
    for fence in page.fences:
        if fence.language == "":
            assert not _BEGINS.match(fence.text.lstrip("\n")), f"{page.name}:{fence.line}: write console, bash or text"
        if fence.language == "console":
            assert fence.commands, f"{page.name}:{fence.line}: no line begins with a prompt"
        assert fence.mark("not run") != "", f"{page.name}:{fence.line}: say why it is not run"


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.name)
def test_no_command_hides_in_an_indented_block(page: pages.Page) -> None:
    before = ""
    for number, line in page.prose():
        if line.startswith("    ") and not before.strip():
            assert not _BEGINS.match(line.strip()), f"{page.name}:{number}: use a fence"
        before = line


@pytest.mark.parametrize("page", PRESENT, ids=lambda page: page.name)
def test_commands_in_the_text_have_the_options_that_they_name(page: pages.Page) -> None:
    wrong = []
    for number, line in page.prose():
        spans = [span for span in _SPAN.findall(line) if span.startswith("pgvec ")]
        wrong += [f"{page.name}:{number}: `{span}`: {found}" for span in spans if (found := misnamed(span))]
    for fence in page.fences:
        if fence.mark("not run") is not None and fence.language in pages.RUN:
            for command in fence.commands:
                wrong += [f"{page.name}:{command.line}: {found}" for found in unknown(command.text)]
    assert not wrong, "\n".join(wrong)


def misnamed(command: str) -> str | None:
    """Returns what a command of ours names that does not exist; placeholders and ellipses are anything."""
    words = re.sub(r"[…|,\[\]()]|\.\.\.", " ", command).split()[1:]
    if not words or not re.fullmatch(r"[a-z][a-z-]*", words[0]):
        return None
    found: click.Command | None = program
    options = set[str]()
    for word in words:
        if isinstance(found, click.Group) and re.fullmatch(r"[a-z][a-z-]*", word):
            inner = found.get_command(click.Context(found), word)
            if inner is None:
                return f"there is no command {word}"
            found = inner
            options = {name for one in inner.params for name in (*one.opts, *one.secondary_opts)} | _COMMON
        elif word.startswith("--"):
            option = re.split(r"[=/.:;]", word)[0]
            if option not in options | _COMMON:
                return f"there is no option {option}"
    return None


def unknown(text: str) -> Iterator[str]:
    """Yields what a command that is not run names of this repository and does not exist."""
    for part in re.split(r"&&|\|\||;|\|", text):
        try:
            words = shlex.split(part, comments=True)
        except ValueError:
            continue
        while words and re.match(r"^\w+=|^sudo$|^env$", words[0]):
            words = words[1:]
        if words[:1] == ["pgvec"] and (problem := misnamed(" ".join(words))):
            yield problem
        if words[:1] == ["make"]:
            targets = re.findall(r"^([\w-]+):", (pages.ROOT / "Makefile").read_text(), re.MULTILINE)
            yield from (
                f"there is no make {word}"
                for word in words[1:]
                if "=" not in word and "-" not in word[:1] and word not in targets
            )
        if words[:2] == ["python", "-m"] and len(words) > 2 and words[2].split(".")[0] in ("tests", "benchmarks"):
            module = pages.ROOT / words[2].replace(".", "/")
            if not (module.with_suffix(".py").exists() or (module / "__main__.py").exists()):
                yield f"there is no module {words[2]}"


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.name)
def test_links_lead_to_a_file_and_to_a_heading_in_it(page: pages.Page) -> None:
    wrong = []
    for number, line in page.prose():
        for found in _LINK.finditer(_SPAN.sub("", line)):
            target = (page.path.parent / found["path"]).resolve() if found["path"] else page.path
            if not target.exists():
                wrong.append(f"{page.name}:{number}: there is no {found['path']}")
            elif found["anchor"] and target.suffix == ".md" and found["anchor"] not in anchors(target):
                wrong.append(f"{page.name}:{number}: {target.name} has no heading #{found['anchor']}")
    assert not wrong, "\n".join(wrong)


def anchors(path: Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub makes them."""
    headings = [found["text"] for _, line in pages.read(path).prose() if (found := _HEADING.match(line))]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.name)
def test_files_that_a_page_shows_can_be_read(page: pages.Page) -> None:
    for fence in page.fences:
        where = f"{page.name}:{fence.line}"
        if fence.language == "toml":
            strange = set(tomllib.loads(fence.text)) - set(KNOWN)
            assert not strange, f"{where}: no setting: {', '.join(sorted(strange))}"
        if fence.language == "python":
            compile(textwrap.dedent(fence.text), where, "exec")


def test_a_page_has_one_title() -> None:
    for page in ALL:
        titles = [line for _, line in page.prose() if line.startswith("# ")]
        assert len(titles) == 1, f"{page.name}: {titles}"


def test_what_is_not_there_would_be_found() -> None:
    assert misnamed("pgvec enqueue articles --texts body") == "there is no option --texts"
    assert misnamed("pgvec enqeue articles") == "there is no command enqeue"
    assert misnamed("pgvec db begin") == "there is no command begin"
    assert misnamed("pgvec alter NAME --sync|--no-sync") is None
    assert list(unknown("make nothing && python -m benchmarks.nothing")) == [
        "there is no make nothing",
        "there is no module benchmarks.nothing",
    ]
    with pytest.raises(AssertionError, match="names an extra"):
        running.installs("pip install 'pgvec-queue[nothing]'")


def test_commands_are_found_with_what_they_go_on_in_and_what_they_print() -> None:
    text = textwrap.dedent("""
        # Page

        <!-- setup: empty
        CREATE TABLE t ();
        -->
        <!-- fails: 3 -->
        ```console
        $ one \\
              more   # said
        printed
        mac-1$ echo 'two
        lines'
        $ cat <<X
        > y
        > X
        ```

        <!-- run: hidden -->
        <!-- not run: needs a moon -->
        ```bash
        first
        # nothing

        if true; then
          second
        fi
        ```
        """)
    page = pages.parse(pages.ROOT / "page.md", text)
    console, script = page.fences
    assert [(one.line, one.text, one.output) for one in console.commands] == [
        (9, "one \\\n      more   # said", ("printed",)),
        (12, "echo 'two\nlines'", ()),
        (14, "cat <<X\ny\nX", ()),
    ]
    assert [one.text for one in script.commands] == ["first", "if true; then\n  second\nfi"]
    assert page.setup == ("empty", "CREATE TABLE t ();")
    assert not page.alone
    alone = pages.parse(page.path, "<!-- setup: vectors, own server -->")
    assert (alone.setup, alone.alone) == (("vectors", ""), True)
    assert console.mark("fails") == "3"
    assert console.mark("not run") is None
    assert [item.value for item in page.items if isinstance(item, pages.Mark) and item.name == "run"] == ["hidden"]
    assert list(running.not_run(page)) == [(21, "needs a moon")]


def test_output_that_is_shown_has_to_be_printed() -> None:
    printed = "docs: 1,234 rows in 4.8 s\nall is right\n"
    assert running.not_shown(("docs: 12 rows in 0.1 s", "all … right"), printed) == []
    assert running.not_shown(("docs: 12 lines in 0.1 s",), printed) == ["docs: 12 lines in 0.1 s"]
    assert running.not_shown(("all is right", "docs: 1 rows in 1 s"), printed) == ["docs: 1 rows in 1 s"]
