"""Who may run what: the table that docs/roles.md shows, as the test of each command under each role has seen it.

``python -m tests.roles`` prints it, for that page.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "roles.md"
BEGIN, END = "<!-- made by `python -m tests.roles` -->\n", "<!-- end -->\n"

LOGINS = ("owner", "worker", "enqueuer", "reader", "gateway")
"""Each is a member of the role of that name, and of no other; ``enqueuer`` owns the source ``app.docs``."""

_ENQUEUER = "a member of pgvec_enqueuer may (docs/roles.md)"
_APP = "permission denied for schema app"
_NOT_UNINSTALLED = (
    "you may not drop the schema pgvec: it belongs to pgvec_owner, and only its members may (docs/roles.md)"
)
_TRIGGERS = "you may not drop the triggers of app.docs; its owner (enqueuer) may"
_MAKE = "you may not make the destination app.others_vectors: permission denied for schema app"
_NOT_OWNER = "only the owner of app.docs_vectors (enqueuer) may index it; as that, run: pgvec index docs"


def _function(name: str) -> str:
    return f"permission denied for function {name}; {_ENQUEUER}"


@dataclass(frozen=True)
class Verb:
    """One command, and by whom it is refused with which words; all others may run it."""

    shown: str
    arguments: tuple[str, ...]
    """None of what runs until it is stopped, and refuses nobody: the test looks at what it reads."""
    refused: dict[str, str] = field(default_factory=dict)
    code: int = 0
    """Its exit code where it is allowed."""
    before: tuple[str, ...] = ()
    """What the enqueuer runs before it."""


def _steering(command: str, function: str, *more: str) -> Verb:
    refusal = _function(function)
    return Verb(f"{command} NAME", (command, "docs", *more), {"worker": refusal, "reader": refusal})


def _tokens(*arguments: str, others: tuple[str, ...]) -> Verb:
    refusal = "permission denied for table api_tokens; a member of pgvec_owner may (docs/roles.md)"
    return Verb(f"api-token {arguments[0]}", ("api-token", *arguments), dict.fromkeys(others, refusal))


_INIT = "permission denied for schema pgvec; a member of pgvec_owner may (docs/roles.md)"
_NOT_INIT = {name: _INIT for name in LOGINS if name != "owner"}
_NOT_WORKING = "permission denied for table workers; a member of pgvec_worker may (docs/roles.md)"

_NOT_SERVING = " may not write the gateway's tables; a member of pgvec_gateway may (docs/roles.md)"

VERBS = (
    Verb("init", ("init",), _NOT_INIT),
    Verb("init --roles", ("init", "--roles"), _NOT_INIT),
    Verb("status", ("status",)),
    Verb("status --json", ("status", "docs", "--json")),
    Verb("workers", ("workers",)),
    Verb("failures NAME", ("failures", "docs")),
    Verb("doctor", ("doctor", "--json"), code=-1),
    Verb("search NAME QUERY", ("search", "docs", "text 1"), {"owner": _APP, "gateway": _APP}),
    Verb(
        "verify NAME",
        ("verify", "docs"),
        {"owner": _APP, "gateway": _APP, "reader": "permission denied for table docs"},
    ),
    Verb(
        "verify NAME --fix",
        ("verify", "docs", "--fix"),
        {"owner": _APP, "gateway": _APP, "reader": "permission denied for table docs"},
    ),
    Verb(
        "enqueue SOURCE",
        ("enqueue", "app.docs", "--name", "docs"),
        {
            "owner": _APP,
            "gateway": _APP,
            "worker": f"permission denied for table vectorizers; {_ENQUEUER}",
            "reader": f"permission denied for table vectorizers; {_ENQUEUER}",
        },
    ),
    Verb(
        "enqueue SOURCE --text COL --sync",
        ("enqueue", "app.others", "--text", "body", "--sync", "--model", "hashing-8", "--no-chunking"),
        {
            "owner": _APP,
            "gateway": _APP,
            "worker": _MAKE,
            "reader": _MAKE,
        },
    ),
    Verb(
        "work --drain",
        ("work", "--drain", "--no-listen"),
        dict.fromkeys(("enqueuer", "reader", "gateway"), _NOT_WORKING),
    ),
    Verb(
        "index NAME",
        ("index", "docs"),
        {
            "owner": _NOT_OWNER,
            "gateway": _NOT_OWNER,
            "worker": f"permission denied for table indexes; {_ENQUEUER}",
            "reader": f"permission denied for table indexes; {_ENQUEUER}",
        },
    ),
    _steering("pause", "pause"),
    _steering("resume", "resume"),
    _steering("retry", "retry"),
    _steering("alter", "alter_vectorizer", "--priority", "1"),
    _steering("cancel", "cancel", "--yes"),
    Verb(
        "migrate-model NAME --model M",
        ("migrate-model", "docs", "--model", "hashing-16"),
        {
            "owner": _APP,
            "gateway": _APP,
            "worker": f"permission denied for table collections; {_ENQUEUER}",
            "reader": "permission denied for table docs",
        },
    ),
    Verb(
        "workers stop HOST",
        ("workers", "stop", "nowhere"),
        {"reader": "permission denied for function stop_workers; a member of pgvec_worker may (docs/roles.md)"},
    ),
    _tokens("create", "--name", "new", "--role", "read", others=("worker", "enqueuer", "reader", "gateway")),
    _tokens("list", others=("worker", "enqueuer", "reader")),
    _tokens("revoke", "known", others=("worker", "enqueuer", "reader", "gateway")),
    Verb("dashboard", ()),
    Verb("exporter", ()),
    Verb(
        "serve",
        ("serve", "--port", "0"),
        {name: f"{name}{_NOT_SERVING}" for name in ("worker", "enqueuer", "reader")},
    ),
    Verb(
        "drop NAME",
        ("drop", "docs", "--yes"),
        {
            "owner": _TRIGGERS,
            "gateway": _TRIGGERS,
            "worker": _TRIGGERS,
            "reader": _TRIGGERS,
        },
    ),
    Verb(
        "uninstall",
        ("uninstall", "--yes"),
        {name: _NOT_UNINSTALLED for name in LOGINS if name != "owner"},
        before=("drop", "docs", "--yes"),
    ),
)


def table() -> str:
    """Returns the table as Markdown: yes, or the letter of a refusal that is listed below."""
    refusals: dict[str, str] = {}
    rows = []
    for verb in VERBS:
        cells = []
        for login in LOGINS:
            words = verb.refused.get(login)
            if words is not None:
                words = words.replace(f"{login}{_NOT_SERVING}", f"LOGIN{_NOT_SERVING}")
                refusals.setdefault(words, chr(ord("a") + len(refusals)))
            cells.append("yes" if words is None else refusals[words])
        rows.append(f"| `{verb.shown}` | {' | '.join(cells)} |")
    head = f"| | {' | '.join(f'`pgvec_{login}`' for login in LOGINS)} |\n|---|{'---|' * len(LOGINS)}"
    legend = "\n".join(f"- {letter}: `{words}`" for words, letter in refusals.items())
    return f"{head}\n" + "\n".join(rows) + f"\n\n{legend}\n"


if __name__ == "__main__":
    print(table())
