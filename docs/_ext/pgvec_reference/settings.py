"""Settings: each with the options that say the same, its type, and what it is when nobody says it."""

from __future__ import annotations

import click

from pgvec_queue.cli.types import SETTINGS
from pgvec_queue.settings import KNOWN
from pgvec_reference import cli
from pgvec_reference.markdown import code, prose, table

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
        one = used[0][1]
        said = f"{prose(cli.meaning(one))} ({_options(used)})"
        rows.append((code(key), said, kind(key), prose(cli.default(one))))
    return table(("setting", "meaning, and options that say the same", "value", "default"), rows)


def _options(used: list[tuple[str, click.Option]]) -> str:
    """Returns the options that a setting stands in for, with their commands."""
    if len(used) > 10:
        return f"{code(used[0][1].opts[0])} of every command"
    return ", ".join(dict.fromkeys(code(f"{name.removeprefix('pgvec ')} {one.opts[0]}") for name, one in used))


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
