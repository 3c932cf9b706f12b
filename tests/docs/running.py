"""Runs the commands of a page, in order, against the page's own database."""

from __future__ import annotations

import os
import re
import shlex
import socket
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from pgvec_queue.embedded import Server
from tests.docs.pages import ROOT, RUN, Command, Fence, Mark, Page
from tests.docs.shell import Background, Ended, Shell
from tests.waiting import wait_until

SECONDS = 120.0
"""Longest that a command may take; the machine may be busy with other tests."""
CHEAP = {"sentence-transformers/all-MiniLM-L6-v2": "hashing-384", "BAAI/bge-small-en-v1.5": "hashing-512"}
"""Models, and what embeds in their place where a page is not about meaning."""
_NAMED_AFTER = {"bge_small_en_v1_5": "hashing_512"}
"""Parts of the names of tables that come from a model's."""
_PORTS = ("8000", "9189", "9190")
_URI = re.compile(r"postgres(?:ql)?://[^\s'\"]*\.example\b[^\s'\"]*|host=\S*\.example\b[^'\"\n]*")
_ELLIPSIS = re.compile(r"(PGVEC_DSN=)(['\"]?)[^\s'\"]*…[^\s'\"]*\2")
_REQUIREMENT = re.compile(r"^pgvec-queue(?:\[(?P<extras>[\w,]+)\])?(?:[=<>~].*)?$|^\.(?:\[(?P<own>[\w,]+)\])?$")


@dataclass(frozen=True, slots=True)
class World:
    """Where a page's commands run."""

    dsn: str
    """Of the page's database, as a superuser; empty where the page has a server of its own."""
    directory: Path
    """Home, working directory and scratch of the page."""
    programs: Path
    """The folder with ``psql``."""
    embedded: str = ""
    """The address of the page's own server."""

    @property
    def reached_at(self) -> str:
        """The DSN by which a test gets into the page's database."""
        return self.dsn or Server(Path(self.embedded.removeprefix("embedded://"))).uri()


class Stuck(Exception):
    """A command does not end, so that nothing more can be run in its shell."""


@dataclass(slots=True)
class Run:
    """What was run of a page, and what went wrong."""

    commands: int = 0
    wrong: list[str] = field(default_factory=list)


def not_run(page: Page) -> Iterator[tuple[int, str]]:
    """Yields line and reason of each fence that is not run."""
    for fence in page.fences:
        reason = fence.mark("not run")
        if fence.language in RUN and reason is not None:
            yield fence.line, reason


def run(page: Page, world: World) -> Run:
    """Runs a page from top to bottom; goes on after what fails, so that all of it is told."""
    done = Run()
    scratch = world.directory / "scratch"
    scratch.mkdir()
    ports = {port: str(_free_port()) for port in _PORTS}
    substitute = substitution(page, world, ports)
    with Shell(_here(world), scratch, _environment(page, world, ports)) as shell:
        try:
            for item in page.items:
                if isinstance(item, Mark):
                    if item.name == "run":
                        _run(done, page, shell, Command(item.line, item.value), substitute, world, ports)
                    if item.name == "wait":
                        _wait_until_idle(world, lambda: False)
                elif item.language in RUN and item.mark("not run") is None:
                    _run_fence(done, page, shell, item, substitute, world, ports)
        except Stuck as error:
            done.wrong.append(f"{error}\n  the rest of the page was not run")
            return done
        for one in shell.background:
            if one.what:
                ended = shell.wait(one)
                if ended.status not in (0, 130):
                    done.wrong.append(
                        f"{page.name}: pgvec {one.what} left with {ended.status}\n{_indented(ended.output)}"
                    )
    return done


def _run_fence(
    done: Run,
    page: Page,
    shell: Shell,
    fence: Fence,
    substitute: Callable[[str], str],
    world: World,
    ports: Mapping[str, str],
) -> None:
    fails = fence.mark("fails")
    expected = {0} if fails is None else {0, int(fails)}
    statuses = set[int]()
    for command in fence.commands:
        text = command
        if fence.language == "sql":
            file = world.directory / "scratch" / f"line-{fence.line}.sql"
            file.write_text(substitute(fence.text) + "\n")
            text = Command(command.line, f"psql -X -v ON_ERROR_STOP=1 -f {shlex.quote(str(file))}", command.output)
        ended = _run(done, page, shell, text, substitute, world, ports, expected)
        if ended is None:
            continue
        statuses.add(ended.status)
        if fence.mark("shown") is not None and (missing := not_shown(command.output, ended.output)):
            done.wrong.append(
                f"{page.name}:{command.line}: what the page shows is not what was printed:\n"
                f"{_indented(chr(10).join(missing))}\n  printed was\n{_indented(ended.output)}"
            )
    if fails is not None and int(fails) not in statuses:
        done.wrong.append(f"{page.name}:{fence.line}: no command of the fence has failed with {fails}")


def _run(
    done: Run,
    page: Page,
    shell: Shell,
    command: Command,
    substitute: Callable[[str], str],
    world: World,
    ports: Mapping[str, str],
    expected: set[int] | None = None,
) -> Ended | None:
    """Runs a command and notes what is wrong with it; None for what is only looked at."""
    if installs(command.text):
        return None
    done.commands += 1
    where = f"{page.name}:{command.line}: {command.text}"
    try:
        ended, started = shell.run(substitute(command.text), SECONDS)
        if started is not None:
            _settle(started, world, ports)
    except TimeoutError as error:
        raise Stuck(f"{where}\n  is not done within {SECONDS:g} s\n{_indented(str(error))}") from None
    except AssertionError as error:
        done.wrong.append(f"{where}\n{_indented(str(error))}")
        return None
    if ended.status not in (expected or {0}):
        done.wrong.append(f"{where}\n  exit status {ended.status}\n{_indented(ended.output)}")
    return ended


def installs(text: str) -> bool:
    """Returns whether a command only installs the package; checks that what it names exists."""
    words = shlex.split(text.split("&&")[0], comments=True)
    if words[:2] != ["pip", "install"]:
        return False
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words[2:]:
        if word.startswith("-"):
            continue
        found = _REQUIREMENT.match(word)
        assert found, f"{word} is not this package; mark the command"
        extras = (found["extras"] or found["own"] or "").split(",")
        assert set(filter(None, extras)) <= set(known), f"{word} names an extra that is not in pyproject.toml"
    return "&&" not in text


def not_shown(shown: tuple[str, ...], printed: str) -> list[str]:
    """Returns the lines shown that are not among those printed, in this order; … and numbers stand for any."""
    rest = [line.rstrip() for line in printed.splitlines()]
    missing = []
    for line in shown:
        if not line.strip() or line.strip() == "…":
            continue
        parts = re.split(r"(…|\d[\d,.]*)", line.rstrip())
        pattern = re.compile(
            "".join(".*" if p == "…" else r"\d[\d,.]*" if i % 2 else re.escape(p) for i, p in enumerate(parts))
        )
        at = next((i for i, one in enumerate(rest) if pattern.fullmatch(one)), None)
        if at is None:
            missing.append(line)
        else:
            rest = rest[at + 1 :]
    return missing


def _settle(started: Background, world: World, ports: Mapping[str, str]) -> None:
    """Waits until a gateway answers, or until a worker has nothing left to do."""
    if started.what in ("serve", "exporter"):
        port = int(ports["8000" if started.what == "serve" else "9189"])
        wait_until(lambda: _dead(started) or _answers(port), SECONDS, what=f"an answer at port {port}")
    elif started.what == "work":
        _wait_until_idle(world, lambda: _dead(started))
    assert not _dead(started), f"it has ended:\n{started.output.read_text('utf-8', 'replace')}"


def _wait_until_idle(world: World, given_up: Callable[[], bool]) -> None:
    """Waits until some worker has nothing to do, and no active vectorizer has a job left."""
    with psycopg.connect(world.reached_at, autocommit=True) as connection:

        def idle() -> bool:
            row = connection.execute(
                "SELECT EXISTS (SELECT FROM pgvec.workers WHERE NOT gone AND state = 'idle')"
                " AND NOT EXISTS (SELECT FROM pgvec.jobs j JOIN pgvec.progress p USING (vectorizer_id)"
                " WHERE j.state IN ('queued', 'running') AND p.state IN ('active', 'complete'))"
            ).fetchone()
            return bool(row and row[0])

        wait_until(lambda: given_up() or idle(), SECONDS, what="an idle worker")


def _dead(one: Background) -> bool:
    """A process that nobody has waited for is a zombie."""
    try:
        os.kill(one.pid, 0)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{one.pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def substitution(page: Page, world: World, ports: Mapping[str, str]) -> Callable[[str], str]:
    """Returns what puts into a command what stands for something else: see CONTRIBUTING.md."""
    dsn = world.dsn or world.embedded

    def substitute(text: str) -> str:
        text = _ELLIPSIS.sub(lambda found: f"{found[1]}{shlex.quote(dsn)}", text)
        text = _URI.sub(lambda found: dsn if text[found.start() - 1] in "'\"" else shlex.quote(dsn), text)
        for port, free in ports.items():
            text = re.sub(rf"(:|port[= ]){port}\b", rf"\g<1>{free}", text)
        if not page.real_model:
            for model, cheap in (CHEAP | _NAMED_AFTER).items():
                text = text.replace(model, cheap)
        return text

    return substitute


def _here(world: World) -> Path:
    here = world.directory / "here"
    here.mkdir(exist_ok=True)
    return here


def _environment(page: Page, world: World, ports: Mapping[str, str]) -> dict[str, str]:
    home = world.directory / "home"
    tools = world.directory / "bin"
    home.mkdir()
    tools.mkdir()
    # What HTTP refuses has failed.
    (home / ".curlrc").write_text("fail-with-body\nsilent\nshow-error\n")
    for name, line in (
        ("pgvec", f'exec {shlex.quote(sys.executable)} -m pgvec_queue "$@"'),
        ("python", f'exec {shlex.quote(sys.executable)} "$@"'),
        ("psql", f'exec {shlex.quote(str(world.programs / "psql"))} -X "$@"'),
    ):
        tool = tools / name
        tool.write_text(f"#!/bin/sh\n{line}\n")
        tool.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "XDG_CONFIG", "XDG_DATA"))}
    chosen = {
        "HOME": str(home),
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PGVEC_GATEWAY_PORT": ports["8000"],
        "PGVEC_EXPORTER_PORT": ports["9189"],
        "COLUMNS": "160",
        "LC_ALL": "C.UTF-8",
    }
    if page.real_model:
        # Nothing is measured of a machine that runs tests: it takes longer than what is shown.
        chosen |= {"PGVEC_RUNTIME": "torch", "PGVEC_BATCH_TOKENS": "1024", "PGVEC_THREADS": "2"}
    else:
        chosen |= {"PGVEC_MODEL": "hashing-384", "PGVEC_GATEWAY_MODELS": " ".join(CHEAP.values())}
    if world.embedded:
        return kept | chosen | {"PGVEC_DSN": world.embedded}
    parts = psycopg.conninfo.conninfo_to_dict(world.dsn)
    libpq = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "dbname": "PGDATABASE"}
    return kept | chosen | {"PGVEC_DSN": world.dsn} | {libpq[k]: str(v) for k, v in parts.items() if k in libpq}


def _indented(text: str) -> str:
    lines = text.rstrip().splitlines()[-30:]
    return "\n".join(f"    {line}" for line in lines)
