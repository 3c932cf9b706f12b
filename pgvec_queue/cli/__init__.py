"""The command line. Commands are imported when they are called: `pgvec --help` has to come at once.

Exit codes: 0 done, 1 an error (one line on stderr; the traceback only with --debug), 2 usage, 3 some documents are in
quarantine.
"""

from __future__ import annotations

import importlib
import io
import os
import re
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import click

from pgvec_queue import __version__
from pgvec_queue.errors import PgvecError

_COMMANDS = {
    "init": ("init", "Create or upgrade the schema pgvec."),
    "enqueue": ("enqueue", "Plan the jobs that turn a table into vectors, or bring them up to date."),
    "import-pgai": ("import_pgai", "Make ours of a vectorizer of pgai, and take its vectors over."),
    "work": ("work", "Claim jobs, embed and write until stopped, or until all is done."),
    "status": ("status", "Show how far each vectorizer is, and why nothing moves."),
    "dashboard": ("dashboard", "Show all of it live on a terminal, and steer it with keys."),
    "search": ("search", "Find the chunks nearest to a query."),
    "verify": ("verify", "Compare a source with its vectors; --fix queues what differs."),
    "index": ("index", "Build the index on a vectorizer's vectors, drop it, or measure what it finds."),
    "failures": ("steer", "List the documents in quarantine."),
    "retry": ("steer", "Take documents out of quarantine and try them again."),
    "pause": ("steer", "Stop the work on a vectorizer."),
    "resume": ("steer", "Let a paused, blocked or cancelled vectorizer go on."),
    "cancel": ("steer", "Give up a vectorizer's unfinished jobs."),
    "drop": ("steer", "Remove a vectorizer; its destination stays."),
    "alter": ("steer", "Change a vectorizer's name, priority or limits."),
    "migrate-model": ("migrate_model", "Move a vectorizer to another model while it is searched."),
    "workers": ("workers", "List the workers, or tell those of a host to leave."),
    "serve": ("serve", "Serve the HTTP gateway: texts in, answers out, and a page to watch."),
    "uninstall": ("uninstall", "Remove the schema pgvec and its triggers; destinations stay."),
    "api-token": ("api_token", "Make, list and revoke the tokens that the gateway asks for."),
    "exporter": ("exporter", "Serve metrics of the whole queue to Prometheus."),
    "doctor": ("doctor", "Check database and settings, and say where each came from."),
    "service": ("service", "Run pgvec as a service of this machine: systemd or launchd."),
    "db": ("db", "Run the embedded PostgreSQL server, for those who have none."),
    "bench": ("bench", "Measure this machine and its database."),
    "demo": ("demo", "Embed and search the docstrings of Python's standard library."),
}


_GONE = ("3F000", "42P01", "42883")
"""SQLSTATEs of a schema, a table and a function that are not there: somebody has uninstalled meanwhile."""
_LACKING = re.compile(r"(permission denied for|must be owner of) (?:\w+ )+\"?([\w(]+)")
_OURS = re.compile(r'(?:^|[ "])pgvec[".]')


class _Lazy(click.Group):
    """Knows its commands by name, and imports the module of the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"pgvec_queue.cli.{_COMMANDS[cmd_name][0]}")
        command = getattr(module, cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="pgvec")
def program() -> None:
    """Embeds the text of PostgreSQL tables into pgvector; the database is the only coordinator.

    Commands take --dsn (or PGVEC_DSN), --log-level, --log-format and --debug; see `pgvec COMMAND --help`.
    """


def main() -> None:
    """The program ``pgvec``."""
    # A parent may have closed them; what is printed then goes nowhere.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A result that the terminal's encoding cannot show is written as its escapes, as stderr does by itself.
        sys.stdout.reconfigure(errors="backslashreplace")
    # Like Ctrl-C: what was opened is closed, and an embedded server stops. `work` has a way of its own.
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(run(sys.argv[1:]))


def _terminate(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    raise SystemExit(128 + number)


def run(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit code; every error a user can meet ends as one line on stderr."""
    if any("\udc80" <= character <= "\udcff" for argument in arguments for character in argument):
        click.echo("pgvec: an argument is not valid text in this locale's encoding", err=True)
        return 2
    try:
        result = program.main(args=list(arguments), prog_name="pgvec", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("pgvec: interrupted", err=True)
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone; nothing is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if "--debug" in arguments:
            raise
        _say(_line(error) + _role_needed(arguments, error))
        return 1


def _say(message: str) -> None:
    """Says why a command has failed: in a line of its own, or as an event where all lines are JSON."""
    from pgvec_queue.cli.logs import are_json

    if are_json():
        from pgvec_queue.log import get_logger

        get_logger("pgvec.cli").error("command has failed", error=message)
    else:
        click.echo(f"pgvec: {message}", err=True)


def _role_needed(arguments: Sequence[str], error: Exception) -> str:
    """Names the role that may run the command, where it was a right on our own schema that was lacking."""
    import psycopg

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, psycopg.errors.InsufficientPrivilege):
        cause = getattr(cause, "orig", None) or cause.__cause__
    found = _LACKING.search(str(cause)) if cause is not None else None
    command = next((one for one in arguments if one in _COMMANDS), "")
    if found is None or "docs/roles.md" in str(error):
        return ""
    from pgvec_queue import roles, schema

    named = found[2].partition("(")[0]
    if named != "pgvec" and named not in {name for _, name in schema.names()}:
        return ""
    role = roles.COMMANDS.get(command)
    return f"; a member of {role} may (docs/roles.md)" if role else ""


def _line(error: Exception) -> str:
    from pgvec_queue.cli.texts import plain

    if isinstance(error, PgvecError):
        return plain(str(error))
    if type(error).__module__.startswith("psycopg"):
        from pgvec_queue.database import one_line

        if getattr(error, "sqlstate", None) in _GONE and _OURS.search(one_line(error)):
            return "the schema pgvec is gone, or is not the one that this program needs; run: pgvec init"
        # An error without an SQLSTATE is the client's own: a connection that broke, or a parameter that makes no sense.
        who = "the database refused" if getattr(error, "sqlstate", None) else "the database cannot be used"
        return f"{who}: {plain(one_line(error))}"
    return f"unexpected {type(error).__name__}: {plain(str(error))} (run again with --debug for the traceback)"
