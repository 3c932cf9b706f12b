"""Settings: each with the options that say the same, its type, and what it is when nobody says it."""

from __future__ import annotations

import click
from pgvec_reference import cli
from pgvec_reference.markdown import code, prose, table

from pgvec_queue.cli.types import SETTINGS
from pgvec_queue.settings import KNOWN

_KINDS = {str: "string", int: "whole number", float: "number", bool: "true or false", list: "list of strings"}


def uses() -> dict[str, list[tuple[str, click.Option]]]:
    """Returns for each setting the commands and options that it stands in for."""
    found: dict[str, list[tuple[str, click.Option]]] = {key: [] for key in KNOWN}
    for name, command in cli.commands():
        for one in command.params:
            key = cli.setting(one) if isinstance(one, click.Option) else None
            if isinstance(one, click.Option) and key is not None:
                found[key].append((name, one))
            elif isinstance(one, click.Option) and "--dsn" in one.opts:
                found["dsn"].append((name, one))
    return found


def missing() -> list[str]:
    """Returns settings that no option with a description explains."""
    return [key for key, used in uses().items() if not any(one.help for _, one in used)]


def text() -> str:
    rows = []
    for key, used in uses().items():
        if not used:
            continue
        names = list(dict.fromkeys(name for name, _ in used))
        flags = list(dict.fromkeys("/".join((*one.opts, *one.secondary_opts)) for _, one in used))
        where = "every command" if len(names) > 10 else ", ".join(code(name) for name in names)
        one = used[0][1]
        rows.append(
            (
                code(key),
                code(f"PGVEC_{key.upper()}"),
                f"{', '.join(map(code, flags))} of {where}",
                kind(key),
                prose(cli.default(one)),
                prose(cli.meaning(one)),
            )
        )
    return table(("in `pgvec.toml`", "in the environment", "on the command line", "value", "default", "meaning"), rows)


def kind(key: str) -> str:
    """Returns in words what a setting may be."""
    taken = SETTINGS.get(key)
    if isinstance(taken, click.Choice):
        return ", ".join(code(str(choice)) for choice in taken.choices)
    if isinstance(taken, click.IntRange | click.FloatRange):
        low = "" if taken.min is None else f" from {taken.min:,}"
        high = "" if taken.max is None else f" to {taken.max:,}"
        return f"{_KINDS[KNOWN[key]]}{low}{high}"
    named = {"size": "size, such as `512M` or `4G`", "device": "`auto`, `cpu`, `mps`, `cuda` or `cuda:N`"}
    return named.get(getattr(taken, "name", ""), _KINDS[KNOWN[key]])
