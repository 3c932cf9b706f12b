"""Whether a service could use its database: looked at as whoever it runs as, in a process of its own.

That process has neither the variables of the shell that installs the service nor, unless it is a person's, the files of
the one who does: an address without a user means the service's own, and certificates and passwords are looked for in
the home of an account that is named. A user that systemd makes up has no home, and is not there before the service is:
what the server tells apart by the account alone (``peer``) cannot be seen beforehand.
"""

from __future__ import annotations

import os
import pwd
import re
import subprocess
import sys

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgvec_queue import schema
from pgvec_queue.database import Database, one_line, versions
from pgvec_queue.errors import DatabaseError, PgvecError
from pgvec_queue.service.systemd import ACCOUNT

_DSN = "PGVEC_DSN"
_PATIENCE = 120.0
_KEPT = r"PATH|LANG|LC_.*|TZ|PYTHON.*|LD_LIBRARY_PATH|SSL_CERT_.*"
"""Of this shell's variables, those that a program needs to start; others may be secrets of whoever installs."""


def look(dsn: str, *, of_a_person: bool, account: str | None = None) -> None:
    """Raises ``DatabaseError`` where the service of a person, of ``account`` or of a user made up could not use it."""
    if dsn.startswith("embedded:"):
        return
    kept = {name: value for name, value in os.environ.items() if re.fullmatch(_KEPT, name)}
    uid: int | None = None
    gid: int | None = None
    groups: list[int] | None = None
    if of_a_person:
        kept |= {name: os.environ[name] for name in ("HOME", "USER", "LOGNAME") if name in os.environ}
    else:
        user, home = account or ACCOUNT, "/nonexistent"
        if account is not None:
            entry = pwd.getpwnam(account)
            home = entry.pw_dir
            uid, gid, groups = entry.pw_uid, entry.pw_gid, os.getgrouplist(account, entry.pw_gid)
        kept |= {"HOME": home, "USER": user, "LOGNAME": user}
        dsn = make_conninfo("", **{"user": user, **conninfo_to_dict(dsn)})
    try:
        ran = subprocess.run(
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_PATIENCE,
            cwd="/",
            env={**kept, _DSN: dsn},
            user=uid,
            group=gid,
            extra_groups=groups,
        )
    except subprocess.TimeoutExpired as error:
        raise DatabaseError(f"the database does not answer within {_PATIENCE:.0f} s") from error
    except OSError as error:
        raise PgvecError(f"{sys.executable} cannot be run as {account}: {error.strerror}") from error
    if ran.returncode:
        said = (ran.stdout.strip() or ran.stderr.strip() or f"exit code {ran.returncode}").splitlines()[-1]
        raise DatabaseError(said if of_a_person else f"as {account or 'a user that systemd makes up'}: {said}")


def main() -> int:
    """Prints why the database of ``PGVEC_DSN`` cannot be used; returns 1 then."""
    try:
        with Database(os.environ[_DSN]).connect("service") as connection:
            versions(connection)
            schema.require(connection)
    except (psycopg.Error, PgvecError) as error:
        print(one_line(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
