"""Where the database is and what the defaults are: flags, then ``PGVEC_*``, then ``pgvec.toml``, then built-in
defaults.

What holds a password may stand in a file of its own, such as a service manager's credential: ``PGVEC_DSN_FILE``.

The file is ``pgvec.toml`` in the working directory, else in the user's configuration directory. Its keys are the
settings below; anything else in it is an error, so that a misspelt key is not silently without effect.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import platformdirs

from pgvec_queue.errors import SettingsError

APPLICATION = "pgvec-queue"
_EMBEDDED = "embedded:"

KNOWN: Mapping[str, type] = {
    "dsn": str,
    "log_level": str,
    "log_format": str,
    "log_text": bool,
    "model": str,
    "embedder": str,
    "endpoint": str,
    "tokenizer": str,
    "device": str,
    "dtype": str,
    "runtime": str,
    "lease": float,
    "batch_tokens": int,
    "threads": int,
    "tokenizers": int,
    "processes": int,
    "memory": str,
    "cache": str,
    "listen": bool,
    "direct_dsn": str,
    "stall": float,
    "pool_size": int,
    "metrics_port": int,
    "metrics_host": str,
    "exporter_port": int,
    "exporter_host": str,
    "gateway_host": str,
    "gateway_port": int,
    "gateway_models": list,
    "gateway_body_bytes": str,
    "gateway_bodies_bytes": str,
    "gateway_texts": int,
    "gateway_text_bytes": str,
    "gateway_requests": int,
    "gateway_streams": int,
    "gateway_per_minute": int,
    "gateway_request_seconds": float,
    "gateway_body_seconds": float,
    "gateway_head_seconds": float,
    "gateway_unread_seconds": float,
    "gateway_connection_seconds": float,
    "gateway_pool_size": int,
    "gateway_queued_rows": int,
    "gateway_keep_tasks_days": float,
    "index": bool,
    "rows_per_job": int,
    "chunk_size": int,
    "chunk_overlap": int,
    "search_limit": int,
    "threshold": float,
}
"""Settings that a file may hold, and their types. Each is ``PGVEC_<NAME>`` in the environment."""

_IN_WORDS = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list of strings",
}

SECRETS = ("dsn", "direct_dsn", "endpoint_key")
"""What may also stand in a file of its own, which ``PGVEC_<NAME>_FILE`` names."""

_LIBPQ = ("PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGUSER", "PGSERVICE", "PGSERVICEFILE")


@dataclass(frozen=True, slots=True)
class FileSettings:
    """The settings of one ``pgvec.toml``; ``path`` is None when there is none."""

    path: Path | None
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class DsnSource:
    """Where the database is: ``dsn`` for libpq, or ``directory`` of an embedded server; ``origin`` says who said so."""

    dsn: str | None
    directory: Path | None
    origin: str


def read_file(directory: Path | None = None) -> FileSettings:
    """Reads ``pgvec.toml`` from ``directory`` (default: the working directory), else the user's configuration
    directory.

    Raises ``SettingsError`` when the file is no TOML, or a key is unknown or has a value of the wrong type.
    """
    for folder in (directory or Path.cwd(), platformdirs.user_config_path(APPLICATION)):
        path = folder / "pgvec.toml"
        if path.is_file():
            return FileSettings(path, _checked(path, _parsed(path)))
    return FileSettings(None, {})


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from error
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from error


def _checked(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    for key, value in values.items():
        expected = KNOWN.get(key)
        if expected is None:
            raise SettingsError(f"{path} has an unknown setting {key!r}; known are: {', '.join(sorted(KNOWN))}")
        number = expected is float and isinstance(value, int) and not isinstance(value, bool)
        strings = not isinstance(value, list) or all(isinstance(one, str) for one in value)
        if not (number or (type(value) is expected and strings)):
            # What stands there may hold a password, so it is not shown.
            raise SettingsError(f"{path}: {key} must be {_IN_WORDS[expected]}")
    return values


def find_database(
    flag: str | None, file: FileSettings, environment: Mapping[str, str] | None = None, *, embedded_default: Path
) -> DsnSource:
    """Decides which database is meant: flag, ``PGVEC_DSN``, the file, libpq's own variables, else the embedded server.

    Raises ``SettingsError`` for an ``embedded:`` address without an absolute directory, for a URI in which a password
    stands where host, port or database should (those are shown to people), and for a ``PGVEC_DSN_FILE`` of no use.
    """
    environment = os.environ if environment is None else environment
    if flag is not None and not flag.strip():
        raise SettingsError("--dsn is empty; leave it out to use PGVEC_DSN, pgvec.toml or the PG* variables")
    for dsn, origin in (
        (flag, "--dsn"),
        # A file that is not asked for need not be there.
        ("", "") if flag else secret("dsn", environment),
        (file.values.get("dsn"), str(file.path)),
    ):
        if dsn:
            return _parse_dsn(dsn, origin)
    used = [name for name in _LIBPQ if environment.get(name)]
    if used:
        if "://" in environment.get("PGDATABASE", ""):
            raise SettingsError("PGDATABASE holds a URI, where libpq wants a name; put it into PGVEC_DSN")
        return DsnSource("", None, ", ".join(used))
    return DsnSource(None, embedded_default, "default")


def secret(name: str, environment: Mapping[str, str]) -> tuple[str, str]:
    """Returns what ``PGVEC_<NAME>`` says, else the one line of the file that ``PGVEC_<NAME>_FILE`` names, and the
    variable that said it; two empty strings where neither is set.

    Unlike libpq's PGPASSFILE, the file may be readable for a group: so are systemd's credentials and the secrets of
    Kubernetes, which show them to nobody else.

    Raises ``SettingsError`` where the file cannot be read, or does not hold one line.
    """
    assert name in SECRETS
    variable = f"PGVEC_{name.upper()}"
    if environment.get(variable):
        return environment[variable], variable
    variable += "_FILE"
    path = environment.get(variable)
    if not path:
        return "", ""
    try:
        lines = Path(path).read_text("utf-8").strip().splitlines()
    except OSError as error:
        raise SettingsError(f"{variable}: {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{variable}: {path} holds no text") from error
    if len(lines) != 1:
        # What stands there is not shown.
        raise SettingsError(f"{variable}: {path} holds {len(lines)} lines instead of one")
    return lines[0], variable


def environment_with_key() -> dict[str, str]:
    """Returns this process's environment, with the endpoint's key in its variable where it stands in a file.

    For whoever has to know what not to show. A file that cannot be read holds nothing that could be shown: whoever
    needs the key says so.
    """
    try:
        key = secret("endpoint_key", os.environ)[0]
    except SettingsError:
        key = ""
    return {**os.environ, **({"PGVEC_ENDPOINT_KEY": key} if key else {})}


def _parse_dsn(dsn: str, origin: str) -> DsnSource:
    dsn = dsn.strip()
    if not dsn.startswith(_EMBEDDED):
        _refuse_misplaced_password(dsn, origin)
        return DsnSource(dsn, None, origin)
    directory = Path(unquote(dsn.removeprefix(_EMBEDDED).removeprefix("//")))
    if not directory.is_absolute() or directory == Path("/"):
        raise SettingsError(f"{dsn!r} ({origin}) names no directory; write embedded:///absolute/directory")
    return DsnSource(None, directory, origin)


def _refuse_misplaced_password(dsn: str, origin: str) -> None:
    """Raises for a URI whose password holds a bare @, / or ?, or stands where the port should, or the database."""
    scheme, separator, rest = dsn.partition("://")
    if not separator or scheme not in ("postgresql", "postgres"):
        if re.search(r"\bdbname\s*=\s*'?\s*postgres(ql)?://", dsn):
            raise SettingsError(f"the connection string ({origin}) has a URI for a dbname; give the URI alone")
        return
    authority, _, path = rest.partition("?")[0].partition("/")
    host = authority.rpartition("@")[2]
    port = re.sub(r"\[[^\]]*\]", "", host).partition(":")[2]
    if "@" in path or authority.count("@") > 1 or not re.fullmatch(r"[0-9]*(,[^:@]*(:[0-9]*)?)*", port):
        raise SettingsError(
            f"the connection string ({origin}) cannot be read: the port is no number, or the password holds a "
            "character that must be written as %40 (@), %2F (/), %3A (:) or %3F (?)"
        )
