"""``pgvec service``: a worker, gateway or exporter that starts with the machine, by systemd or launchd."""

from __future__ import annotations

import os
import pwd
import re
import shlex
import socket
import stat
import sys
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
import psycopg
from psycopg.rows import dict_row

import pgvec_queue
from pgvec_queue import service as services
from pgvec_queue.cli.common import Session, command
from pgvec_queue.cli.texts import duration, plain
from pgvec_queue.cli.types import Text
from pgvec_queue.database import Database, one_line, statement
from pgvec_queue.errors import PgvecError, SettingsError
from pgvec_queue.masking import without_secrets
from pgvec_queue.service import Manager, Service, files
from pgvec_queue.service.asking import done
from pgvec_queue.service.launchd import Launchd
from pgvec_queue.service.systemd import Systemd

_HOMES = tuple(Path(home) for home in ("/home", "/root", "/run/user"))
_HIDDEN = (*_HOMES, Path("/tmp"), Path("/var/tmp"))  # noqa: S108
"""What a unit with ``ProtectHome`` and ``PrivateTmp`` does not see."""
_SECRET_OPTIONS = ("--dsn", "--direct-dsn")
_LINES = 10


class _Name(click.ParamType):  # type: ignore[type-arg]
    """A part of the names of files and units."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,39}", str(value)):
            self.fail(f"{value!r} is no name of lower-case letters, digits and '-', 40 at most", param, ctx)
        return str(value)


def _which(function: Any) -> Any:
    """Options that say which service is meant, and whose."""
    options = (
        click.option("--name", type=_Name(), help="What the service is called.  [default: its kind]"),
        click.option("--system", "scope", flag_value="system", help="The machine's own.  [default for root]"),
        click.option("--user", "scope", flag_value="user", help="That of the person who runs this.  [default else]"),
        click.option(
            "--manager",
            type=click.Choice(["systemd", "launchd"]),
            help="Who keeps it.  [default: launchd on a Mac, else systemd]",
        ),
        click.option(
            "--root",
            type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
            metavar="DIRECTORY",
            help="The files of the system below it, such as an image; nothing is started or stopped.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


@click.group("service")
def service() -> None:
    """Run pgvec as a service of this machine: systemd on Linux, launchd on a Mac."""


@service.command(short_help="Write the unit, the environment file and the address, and start it.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARGS]...")
@click.option("--kind", type=click.Choice(list(services.COMMANDS)), help="[default: as it is, else worker]")
@_which
@click.option("--run-as", type=Text(), metavar="ACCOUNT", help="Of the machine's: whom it runs as.  [default: made up]")
@click.option("--no-start", is_flag=True, help="Only write the files.")
@click.option("--restart", is_flag=True, help="Start it anew even where no file has changed, as after an upgrade.")
@click.option("--no-check", is_flag=True, help="Do not look whether the database answers.")
@click.option("--dry-run", is_flag=True, help="Print the unit; write and start nothing.")
@command
def install(
    session: Session,
    *,
    arguments: tuple[str, ...],
    kind: str | None,
    name: str | None,
    scope: str | None,
    manager: str | None,
    root: Path | None,
    run_as: str | None,
    no_start: bool,
    restart: bool,
    no_check: bool,
    dry_run: bool,
) -> None:
    """Have this machine run a worker, gateway or exporter from its start on; ARGS go to it: -- --device cuda.

    The database is found as by every command, and kept in a file of its own, since its address may hold a password:
    the unit, the environment file and the list of processes do not. Running it again changes what has to be changed:
    address, account and ARGS that are there already are kept where none are given, and so is the environment file.
    """
    chosen = name or kind or "worker"
    of_a_person, found = _manager(manager, scope, root, run_as, reading=dry_run)
    before = found.installed(chosen)
    if before is not None:
        if kind not in (None, before.kind):
            raise PgvecError(f"{chosen} is a {before.kind}; give another --name, or uninstall it first")
        kind = before.kind
        arguments = arguments or before.arguments
        if before.account and run_as is None:
            run_as = before.account
            of_a_person, found = _manager(manager, scope, root, run_as, reading=dry_run)
    kind = kind or "worker"
    _refuse_arguments(kind, arguments)
    one = Service(kind, chosen, _program(of_a_person, run_as), arguments)
    layout = found.layout(one.name)
    dsn = _dsn(session, layout.dsn, of_a_person=of_a_person)
    if dry_run:
        click.echo(found.text(one), nl=False)
        return
    if layout.unit.exists() and not files.is_ours(layout.unit):
        raise PgvecError(f"{layout.unit} is there, and was not written by this program; move it away, or give --name")
    starts = not (no_start or root)
    if starts:
        reason = found.absent() or found.unfit()
        if reason:
            raise SettingsError(f"{reason}; --no-start writes the files all the same")
    if not (no_check or root):
        from pgvec_queue.service.looking import look

        look(dsn, of_a_person=of_a_person, account=run_as)
    changed = [
        _write(layout.dsn, dsn + "\n", files.PRIVATE),
        not layout.environment.exists() and _write(layout.environment, files.environment(one, layout), files.PRIVATE),
        _write(layout.unit, found.text(one), files.PUBLIC),
    ]
    if layout.log is not None:
        # launchd makes no directories.
        layout.log.parent.mkdir(parents=True, exist_ok=True)
    if starts:
        found.start(one.name, _run, anew=restart or any(changed))
    advice = found.advice(one.name)
    if advice and not root:
        _say(advice)
    if starts:
        _say(f"it is installed; pgvec service status{_named(one.name)} tells how it is")
    elif not root:
        _say(f"it is not started; do that with: {shlex.join(found.by_hand(one.name))}")


@service.command(short_help="Tell whether it runs, what it said last, and whether the database hears of it.")
@_which
@command
def status(session: Session, *, name: str | None, scope: str | None, manager: str | None, root: Path | None) -> int:
    """Tell whether the service runs, what it said last, and which workers of this machine the database knows.

    The exit code is 0 while it runs, else 1.
    """
    _, found = _manager(manager, scope, root, None, reading=True)
    chosen = name or "worker"
    layout = found.layout(chosen)
    if not files.is_ours(layout.unit):
        raise PgvecError(_nothing(layout.unit, chosen))
    state = found.state(chosen)
    click.echo(f"{'unit':<9} {layout.unit}")
    click.echo(f"{'state':<9} {plain(state.said)}")
    for line in _seen(session, layout.dsn):
        click.echo(f"{'database':<9} {plain(line)}")
    for line in found.log(chosen, _LINES):
        click.echo(f"{'log':<9} {plain(without_secrets(line))}")
    return 0 if state.running else 1


@service.command(short_help="Stop it and remove its unit.")
@_which
@click.option("--purge", is_flag=True, help="Remove its environment file and the database's address, too.")
@command
def uninstall(
    session: Session,  # noqa: ARG001
    *,
    name: str | None,
    scope: str | None,
    manager: str | None,
    root: Path | None,
    purge: bool,
) -> None:
    """Stop the service, which leaves as by SIGTERM, and remove its unit; its settings stay, but for --purge.

    Its logs, its cache of models and what was added to its unit (systemctl edit) stay in any case. Nothing is removed
    from the database: that is pgvec uninstall.
    """
    _, found = _manager(manager, scope, root, None, reading=False)
    chosen = name or "worker"
    layout = found.layout(chosen)
    settings_of_it = [path for path in (layout.environment, layout.dsn) if path.exists()]
    if not files.is_ours(layout.unit):
        if layout.unit.exists():
            raise PgvecError(f"{layout.unit} was not written by this program, and stays")
        if not (purge and settings_of_it):
            raise PgvecError(_nothing(layout.unit, chosen))
    absent = None if root else found.absent()
    if absent:
        _say(f"nothing is stopped: {absent}")
    there = root is None and not absent
    try:
        if there and layout.unit.exists():
            found.stop(chosen, _run)
    finally:
        # What could not be stopped must not start with the machine again.
        for path in (layout.unit, *(settings_of_it if purge else [])):
            if path.exists():
                _remove(path)
    if there:
        found.forget(_run)
    if settings_of_it and not purge:
        _say(f"kept, with the database's address: {', '.join(map(str, settings_of_it))} (--purge removes it)")


def _manager(
    manager: str | None, scope: str | None, root: Path | None, run_as: str | None, *, reading: bool
) -> tuple[bool, Manager]:
    """Returns whether the service is a person's, and who keeps it. Raises ``click.UsageError`` for what cannot be."""
    manager = manager or ("launchd" if sys.platform == "darwin" else "systemd" if sys.platform == "linux" else None)
    if manager is None:
        raise SettingsError(f"there is neither systemd nor launchd on {sys.platform}")
    is_root = os.geteuid() == 0
    below = root or Path("/")
    if manager == "launchd":
        if run_as or scope == "system":
            raise click.UsageError("launchd's agents are a person's: --system and --run-as belong to systemd")
        if is_root and not (root or reading):
            raise SettingsError("launchd's agents are a person's: run this as that person, without sudo")
        return True, Launchd(Path.home(), root=below)
    if (scope or ("system" if is_root else "user")) == "user":
        if run_as:
            raise click.UsageError("--run-as belongs to a service of the machine: --system")
        configuration = os.environ.get("XDG_CONFIG_HOME")
        return True, Systemd(
            person=Path.home(), configuration=Path(configuration) if configuration else None, root=below
        )
    if not (is_root or root or reading):
        raise SettingsError("a service of the machine (--system) is for root to install or remove: use sudo")
    return False, Systemd(account=run_as, home=_home(run_as) if run_as and root is None else None, root=below)


def _home(account: str) -> Path | None:
    """Returns where the account has its caches: its home, if that is a person's.

    Raises ``SettingsError`` where there is no such account.
    """
    try:
        home = Path(pwd.getpwnam(account).pw_dir)
    except KeyError:
        raise SettingsError(f"there is no account {account!r} on this machine") from None
    return home if home.is_dir() and any(place in _HOMES for place in (home, *home.parents)) else None


def _refuse_arguments(kind: str, arguments: tuple[str, ...]) -> None:
    """Raises ``click.UsageError`` for what the command would refuse, or what has no place in a unit."""
    from pgvec_queue.cli import program

    for option in _SECRET_OPTIONS:
        if any(word == option or word.startswith(f"{option}=") for word in arguments):
            remedy = (
                "set PGVEC_DSN, or PGVEC_DSN_FILE, for this command"
                if option == "--dsn"
                else "set PGVEC_DIRECT_DSN, or PGVEC_DIRECT_DSN_FILE, in the environment file"
            )
            raise click.UsageError(f"{option} may hold a password, and every user sees a unit: {remedy}")
    if any(re.search(r"[\x00-\x1f\x7f]", word) for word in arguments):
        raise click.UsageError("an argument holds control characters")
    name = services.COMMANDS[kind]
    root = click.get_current_context().find_root()
    called = program.get_command(root, name)
    assert called is not None
    parsed = called.make_context(name, list(arguments), parent=root)
    if parsed.params.get("drain"):
        raise click.UsageError("--drain ends when all is done: a service goes on")


def _program(of_a_person: bool, run_as: str | None) -> tuple[str, ...]:
    """Returns the words that start this program. Raises ``SettingsError`` where the service could not see it."""
    directory = Path(sys.executable).parent
    script = directory / "pgvec"
    words = (str(script),) if script.exists() else (sys.executable, "-m", "pgvec_queue")
    if not (of_a_person or run_as):
        # An environment may borrow its interpreter, and the code may lie elsewhere (pip install --editable).
        for path in (directory, Path(sys.executable), Path(sys.base_prefix), Path(pgvec_queue.__file__).parent):
            _refuse_hidden(path)
            _refuse_hidden(path.resolve())
    return words


def _refuse_hidden(path: Path) -> None:
    """Raises ``SettingsError`` where a user that systemd makes up could not get at what is installed there."""
    for place in (path, *path.parents):
        if place in _HIDDEN or not place.stat().st_mode & stat.S_IXOTH:
            raise SettingsError(
                f"this program needs {path}, and a service of the machine may not look into {place}; install it "
                "elsewhere (python3 -m venv /opt/pgvec), or give --run-as or --user"
            )


def _dsn(session: Session, kept: Path, *, of_a_person: bool) -> str:
    """Returns where the service's database is: as it was said, else as it is kept."""
    source = session.source
    if source.origin == "default":
        try:
            return kept.read_text("utf-8").strip()
        except OSError:
            raise SettingsError("say where the database is: --dsn or PGVEC_DSN") from None
    if source.directory is not None:
        if not of_a_person:
            raise SettingsError("an embedded server belongs to whoever started it: give --user, or another --dsn")
        return f"embedded://{quote(str(source.directory))}"
    if not source.dsn:
        raise SettingsError(f"a service has not the variables of this shell ({source.origin}); give --dsn or PGVEC_DSN")
    if re.search(r"[\x00-\x1f\x7f]", source.dsn):
        raise SettingsError(f"the connection string ({source.origin}) holds control characters")
    return source.dsn


def _seen(session: Session, kept: Path) -> Iterator[str]:
    """Says which workers of this machine the database knows."""
    host = socket.gethostname()
    try:
        dsn = session.source.dsn if session.source.origin != "default" else kept.read_text("utf-8").strip()
    except OSError as error:
        yield f"its address cannot be read: {kept}: {error.strerror}"
        return
    if dsn is None or dsn.startswith("embedded:"):
        yield "an embedded server, which is not looked at"
        return
    try:
        with (
            Database(dsn).connect("service") as connection,
            connection.cursor(row_factory=dict_row) as cursor,
        ):
            rows = cursor.execute(statement("progress", "workers")).fetchall()
    except (psycopg.Error, PgvecError) as error:
        yield f"cannot be asked: {without_secrets(one_line(error))}"
        return
    here = [row for row in rows if row["host"] == host and row["state"] != "gone"]
    for row in here:
        yield (
            f"worker {row['worker_id']}, process {row['pid']}: {row['state']}, "
            f"heard of {duration(row['since_beat'].total_seconds())} ago"
        )
    if not here:
        yield f"knows no worker of {host}"


def _write(path: Path, text: str, mode: int) -> bool:
    changed = files.written(path, text, mode)
    if changed:
        _say(f"wrote {path}")
    return changed


def _remove(path: Path) -> None:
    try:
        path.unlink()
    except OSError as error:
        raise PgvecError(f"{path} cannot be removed: {error.strerror}") from error
    _say(f"removed {path}")


def _run(words: Sequence[str], /, *, fine: Container[int] = (), again: Container[int] = (), seconds: float = 0) -> None:
    _say(shlex.join(words))
    done(words, fine=fine, again=again, seconds=seconds)


def _nothing(unit: Path, name: str) -> str:
    if files.is_ours(Systemd().layout(name).unit):
        return f"there is no {unit}; the machine has one of that name: sudo pgvec service … --system"
    return f"there is no {unit}; see --name, --user and --system, or install it: pgvec service install"


def _named(name: str) -> str:
    return "" if name == "worker" else f" --name {name}"


def _say(text: str) -> None:
    click.echo(f"pgvec: {plain(text)}", err=True)
