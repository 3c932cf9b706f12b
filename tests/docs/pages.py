"""Pages of the documentation as what is in them: fences, the comments that mark them, and commands."""

from __future__ import annotations

import re
import subprocess
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
RUN = ("console", "bash", "sh", "sql")
SETUPS = ("none", "empty", "tables", "vectors")
_ALONE = ", own server"
_PLACES = ("*.md", "docs/**/*.md", "benchmarks/**/*.md", "deploy/**/*.md", "tests/**/*.md")
_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,}|~{3,})(?P<language>[\w{}:-]*).*$")
_PROMPT = re.compile(r"^(?:[\w.@-]+)?\$ (?P<command>.*)$")
_MARK = re.compile(r"^(?P<name>not run|fails|shown|setup|model|run|wait)\b:?\s*(?P<value>.*)$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Mark:
    """A comment that says something to the tests."""

    line: int
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a fence, or a hidden one; ``output`` is what the page shows of its output."""

    line: int
    text: str
    output: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fence:
    """A fenced block, with the marks in the lines right before it."""

    line: int
    language: str
    text: str
    marks: tuple[Mark, ...] = ()

    def mark(self, name: str) -> str | None:
        """Returns what the mark of that name says; None where there is none."""
        return next((mark.value for mark in self.marks if mark.name == name), None)

    @property
    def commands(self) -> list[Command]:
        if self.language == "sql":
            return [Command(self.line + 1, self.text)]
        if self.language == "console":
            return list(_of_console(self.line + 1, self.text.splitlines()))
        return list(_of_script(self.line + 1, self.text.splitlines()))


@dataclass(slots=True)
class Page:
    """One page: its fences and hidden commands, in order."""

    path: Path
    text: str
    items: list[Fence | Mark] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT)) if self.path.is_relative_to(ROOT) else self.path.name

    @property
    def fences(self) -> list[Fence]:
        return [item for item in self.items if isinstance(item, Fence)]

    @property
    def setup(self) -> tuple[str, str]:
        """What the page's database holds: a name of ``SETUPS``, and statements to run after it."""
        name, _, statements = (self._said("setup") or "tables").partition("\n")
        return name.strip().removesuffix(_ALONE), statements

    @property
    def alone(self) -> bool:
        """Whether the page has a server of its own, since it makes roles or settings that others would see."""
        return (self._said("setup") or "").partition("\n")[0].strip().endswith(_ALONE)

    @property
    def real_model(self) -> bool:
        return self._said("model") == "real"

    def prose(self) -> Iterator[tuple[int, str]]:
        """Yields number and text of each line outside of fences and comments."""
        hidden = set[int]()
        for first, last in _ranges(self.text.splitlines()):
            hidden.update(range(first, last + 1))
        for number, line in enumerate(self.text.splitlines(), 1):
            if number not in hidden:
                yield number, line

    def _said(self, name: str) -> str | None:
        marks = [mark for item in self.items for mark in (item.marks if isinstance(item, Fence) else (item,))]
        return next((mark.value for mark in marks if mark.name == name), None)


def paths() -> list[Path]:
    """Returns every page of the documentation."""
    found = {path for place in _PLACES for path in ROOT.glob(place)}
    return sorted(path for path in found if not path.is_relative_to(ROOT / "build"))


def read(path: Path) -> Page:
    return parse(path, path.read_text("utf-8"))


def parse(path: Path, text: str) -> Page:
    """Returns a page. Raises ``ValueError`` for a fence or a comment that does not end, and for an unknown setup."""
    page = Page(path, text)
    lines = text.splitlines()
    marks: list[Mark] = []
    end_of_marks = 0
    for first, last in _ranges(lines):
        inside = "\n".join(lines[first - 1 : last])
        if first != end_of_marks + 1:
            page.items += marks
            marks = []
        if inside.lstrip().startswith("<!--"):
            comment = inside.strip().removeprefix("<!--").removesuffix("-->").strip()
            if found := _MARK.match(comment):
                marks.append(Mark(first, found["name"], found["value"].strip()))
                end_of_marks = last
            continue
        opening = _FENCE.match(lines[first - 1])
        assert opening is not None
        body = textwrap.dedent("\n".join(lines[first : last - 1]))
        page.items.append(Fence(first, opening["language"], body, tuple(marks)))
        # What marks the page, or is run before the fence, stands for itself too.
        page.items[-1:-1] = [mark for mark in marks if mark.name in ("run", "wait", "setup", "model")]
        marks = []
    page.items += marks
    if page.setup[0] not in SETUPS:
        raise ValueError(f"{page.name}: there is no setup {page.setup[0]!r}, only {', '.join(SETUPS)}")
    return page


def _ranges(lines: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yields first and last line, from 1, of each fence and each comment that begins a line."""
    at = 0
    while at < len(lines):
        first = at
        opening = _FENCE.match(lines[at])
        if opening is not None:
            closing = re.compile(rf"^ *{opening['ticks'][0]}{{{len(opening['ticks'])},}} *$")
            at += 1
            while at < len(lines) and not closing.match(lines[at]):
                at += 1
            if at == len(lines):
                raise ValueError(f"the fence of line {first + 1} does not end")
            yield first + 1, at + 1
        elif lines[at].lstrip().startswith("<!--"):
            while at < len(lines) and "-->" not in lines[at]:
                at += 1
            if at == len(lines):
                raise ValueError(f"the comment of line {first + 1} does not end")
            yield first + 1, at + 1
        at += 1


def _of_console(first: int, lines: Sequence[str]) -> Iterator[Command]:
    """Lines with a prompt, each with those that it goes on in, and the output after it."""
    at = 0
    while at < len(lines):
        begun = at
        prompt = _PROMPT.match(lines[at])
        at += 1
        if prompt is None:
            continue
        text = prompt["command"]
        while at < len(lines) and not _PROMPT.match(lines[at]):
            if lines[at].startswith("> "):
                text += "\n" + lines[at][2:]
            elif _goes_on(text):
                text += "\n" + lines[at]
            else:
                break
            at += 1
        output = []
        while at < len(lines) and not _PROMPT.match(lines[at]):
            output.append(lines[at])
            at += 1
        yield Command(first + begun, text, tuple(output))


def _of_script(first: int, lines: Sequence[str]) -> Iterator[Command]:
    text, begun = "", 0
    for at, line in enumerate(lines):
        if not text and (not line.strip() or line.lstrip().startswith("#")):
            continue
        begun = begun if text else at
        text = f"{text}\n{line}" if text else line
        if not _goes_on(text):
            yield Command(first + begun, text)
            text = ""
    if text:
        yield Command(first + begun, text)


def _goes_on(text: str) -> bool:
    """Returns whether a shell would read another line: after a backslash, in a quote, a here-document or a loop."""
    if text.endswith("\\"):
        return True
    if not re.search(r"['\"`({]|<<|\b(?:if|for|while|until|case)\b", text):
        return False
    checked = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    return "unexpected EOF" in checked.stderr or "end of file" in checked.stderr or "here-document" in checked.stderr
