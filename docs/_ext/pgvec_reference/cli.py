"""The command line, from click's own account of it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import click

from pgvec_queue.cli import program
from pgvec_reference.markdown import code, prose, table

COMMON = ("--dsn", "--log-level", "--log-format", "--debug", "--help")
"""What every command takes; told once."""


def commands(group: click.Group = program, names: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Yields every command with its full name, those of a group after the group."""
    context = click.Context(group, info_name=" ".join(names) or "pgvec")
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield " ".join(("pgvec", *names, name)), command
        if isinstance(command, click.Group):
            yield from commands(command, (*names, name))


def options(command: click.Command) -> list[click.Option]:
    """Returns a command's own options, as its help lists them."""
    found = [one for one in command.params if isinstance(one, click.Option) and not one.hidden]
    return [one for one in found if not set(one.opts) & set(COMMON)]


def missing() -> list[str]:
    """Returns commands and options without a description."""
    found = [name for name, command in commands() if not _said(command)]
    found += [f"{name} {one.opts[0]}" for name, command in commands() for one in options(command) if not one.help]
    return found


def text() -> str:
    parts = []
    for name, command in commands():
        level = "#" * len(name.split())
        parts += [f"{level} {name}\n", f"```text\n{_usage(name, command)}\n```\n", _said(command) + "\n"]
        rows = [_row(one) for one in options(command)]
        if rows:
            parts.append(table(("option", "meaning", "default", "setting"), rows))
    return "\n".join([*parts, _of_all()])


def default(option: click.Option) -> str:
    """Returns what an option is when nobody says it, as its help tells."""
    found = re.search(r"\[default: (.*)\]$", option.help or "")
    if found is not None:
        return found[1]
    if option.show_default and option.default is not None:
        return str(option.default)
    return ""


def meaning(option: click.Option) -> str:
    return re.sub(r" *\[default: .*\]$", "", option.help or "")


def setting(option: click.Option) -> str | None:
    """Returns the key of the setting that stands in for an option."""
    name = option.envvar
    return name.removeprefix("PGVEC_").lower() if isinstance(name, str) and name.startswith("PGVEC_") else None


def flags(option: click.Option) -> str:
    """Returns how an option is written, with what it takes."""
    names = ", ".join(option.opts)
    if option.secondary_opts:
        names += "/" + "/".join(option.secondary_opts)
    if option.is_flag or option.count:
        return names
    if isinstance(option.type, click.Choice):
        return f"{names} {option.metavar or 'KIND'}"
    return f"{names} {option.make_metavar(click.Context(click.Command('x')))}"


def _row(option: click.Option) -> tuple[str, str, str, str]:
    key = setting(option)
    said = prose(meaning(option))
    if isinstance(option.type, click.Choice):
        said += " One of " + ", ".join(code(str(choice)) for choice in option.type.choices) + "."
    return code(flags(option)), said, prose(default(option)), code(key) if key else ""


def _of_all() -> str:
    command = next(command for name, command in commands() if name == "pgvec status")
    common = [one for one in command.params if isinstance(one, click.Option) and set(one.opts) & set(COMMON)]
    rows = [_row(one) for one in common] + [("`--help`, `-h`", "Show how a command is called.", "", "")]
    return "## What every command takes\n\n" + table(("option", "meaning", "default", "setting"), rows)


def _usage(name: str, command: click.Command) -> str:
    # A command keeps the option for help that its first context asked for.
    context = click.Context(command, info_name=name, **(program.context_settings))
    return context.get_usage().removeprefix("Usage: ")


def _said(command: click.Command) -> str:
    """Returns the help as Markdown; a paragraph that is to stay as it is becomes a block."""
    parts = []
    for part in inspect.cleandoc(command.help or "").split("\n\n"):
        if part.startswith("\b"):
            parts.append("```text\n" + part.removeprefix("\b").lstrip("\n") + "\n```")
        else:
            parts.append(prose(part.replace("\n", " ")))
    return "\n\n".join(parts).strip()
