"""``python -m tests.upgrade``: a rolling upgrade under load, and every failure in it counted.

Workers of one version follow users who change the source and search it all the time. The schema is upgraded beneath
them with the next version's `pgvec init`; then they are told to leave one by one, and one of the next version takes the
place of each. In the end the queue is emptied and source and destination are compared. Exit code 0: nothing failed.

The next version is made of the present one, with a migration that adds columns to every table that workers write to.
``--old CHECKOUT`` goes from that version to the present one instead.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

from pgvec_queue import quarantine, schema, vectorizer
from tests.chaos.program import Program
from tests.chaos.server import Server
from tests.support import Bench
from tests.upgrade import versions
from tests.upgrade.fleet import Fleet, Member, wait_for
from tests.upgrade.users import SOURCE, User
from tests.waiting import wait_until

_LEASE = "5"
_ROWS = 20_000
_ALARMS = re.compile(r"^\S+ (?:\[.*?\] )?error: .*$|^Traceback.*$", re.MULTILINE)


@dataclass
class Report:
    """What happened; ``failures`` by kind."""

    failures: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def add(self, kind: str, what: list[str]) -> None:
        self.failures[kind] += len(what)
        self.examples += [f"{kind}: {one}" for one in what[:5]]


def main() -> int:
    """Runs it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.upgrade", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=2.0, help="for which users are at it  [default: 2]")
    parser.add_argument("--workers", type=int, default=3, help="of each version  [default: 3]")
    parser.add_argument("--users", type=int, default=3, help="[default: 3]")
    parser.add_argument("--old", type=Path, metavar="CHECKOUT", help="the version to begin with")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgvec-upgrade-")))
        for name in ("old", "new"):
            (directory / name).mkdir()
        old = Program(directory / "old", arguments.old)
        new = Program(directory / "new") if arguments.old else versions.following(directory / "new", compatible=True)
        server = stack.enter_context(closing(Server()))
        server.create()
        fleet = Fleet(server.dsn, directory, {"PGVEC_HASHING_FAULTS": "delay=0.002", "PGVEC_INDEX": "false"})
        stack.callback(fleet.close)
        report = _roll(server.dsn, fleet, old, new, arguments)
    print(*report.lines, sep="\n")
    total = sum(report.failures.values())
    print(f"failures counted: {total}", *report.examples, sep="\n  ")
    return 1 if total else 0


def _roll(dsn: str, fleet: Fleet, old: Program, new: Program, arguments: argparse.Namespace) -> Report:
    report = Report()
    seconds = arguments.minutes * 60
    old.must("init", dsn=dsn)
    with ExitStack() as stack:
        bench = stack.enter_context(closing(Bench(dsn)))
        bench.sql(SOURCE)
        bench.sql("INSERT INTO docs (body) SELECT 'document number ' || i FROM generate_series(1, %s) i", _ROWS)
        named = ("--model", "hashing-8", "--embedder", "hashing", "--no-chunking", "--rows-per-job", "50")
        old.must("enqueue", "docs", "--text", "body", "--sync", *named, dsn=dsn)
        members = [fleet.start(old, "work", "--lease", _LEASE) for _ in range(arguments.workers)]
        users = [User(dsn, number) for number in range(arguments.users)]
        with ExitStack() as at_it:
            for user in users:
                at_it.enter_context(user)
            for member in members:
                wait_for(member, "worker is ready", 120)
            _pass(seconds / 4, members)
            began = time.monotonic()
            new.must("init", dsn=dsn)
            report.lines.append(
                f"schema: {schema.revision(bench.connection)} after an init of {time.monotonic() - began:.2f} s"
            )
            if "oldest_program" in (old.directory / "pgvec_queue" / "schema.py").read_text():
                # As a service manager would start it, before anybody has installed the next version there.
                _end(members.pop(0), report)
                members.append(fleet.start(old, "work", "--lease", _LEASE))
                wait_for(members[-1], "worker is ready", 120)
            for _ in range(arguments.workers):
                _end(members.pop(0), report)
                members.append(fleet.start(new, "work", "--lease", _LEASE))
                wait_for(members[-1], "worker is ready", 120)
                _pass(seconds / 2 / arguments.workers, members)
            _pass(seconds / 4, members)
        wait_until(lambda: bench.progress("docs").state == "complete", 600, what="an empty queue")
        for member in members:
            _end(member, report)
        _judge(bench, fleet, users, report)
    return report


def _pass(seconds: float, members: list[Member]) -> None:
    """Lets time pass; whoever ends meanwhile shows when it is told to leave."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and all(member.runs for member in members):
        time.sleep(0.1)


def _end(member: Member, report: Report) -> None:
    if not member.runs:
        report.add("workers that ended by themselves", [f"{member.name} with {member.process.returncode}"])
    elif (code := member.leave()) != 0:
        report.add("workers that did not leave in order", [f"{member.name} with {code}"])


def _judge(bench: Bench, fleet: Fleet, users: list[User], report: Report) -> None:
    done: Counter[str] = sum((user.done for user in users), Counter())
    report.add("users' errors", [failure for user in users for failure in user.failures])
    report.add("errors in logs", [line for member in fleet.members for line in _ALARMS.findall(member.said)])
    events = bench.sql("SELECT kind, message FROM pgvec.events WHERE kind IN ('blocked', 'quarantined', 'reclaimed')")
    report.add("events", [f"{kind}: {message}" for kind, message in events])
    report.add("attempts", [f"job {job}" for (job,) in bench.sql("SELECT id FROM pgvec.jobs WHERE attempts > 0")])
    docs = vectorizer.get(bench.connection, "docs")
    report.add("documents in quarantine", [str(one["key"]) for one in quarantine.failures(bench.connection, docs.id)])
    report.add("wrong rows", [kind for kind, count in bench.wrong(docs).items() for _ in range(count)])
    rows, counted = bench.sql("SELECT count(*), count(DISTINCT id) FROM docs_vectors")[0]
    report.add("rows twice", ["a row"] * (rows - counted))
    report.lines += [
        f"rows: {rows} in the end, {bench.progress('docs').rows_embedded} embedded",
        "users: " + ", ".join(f"{count} × {kind}" for kind, count in sorted(done.items())),
        f"workers: {len(fleet.members)} processes",
    ]


if __name__ == "__main__":
    sys.exit(main())
