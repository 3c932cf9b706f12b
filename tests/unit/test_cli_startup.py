"""How the command line starts: what it imports, its pages of help, and what it refuses without a database."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import pgvec_queue
from pgvec_queue.cli import program
from tests.commandline import CommandLine
from tests.support import run_pgvec

pytestmark = pytest.mark.usefixtures("isolated")

COMMANDS = [
    "init",
    "enqueue",
    "import-pgai",
    "work",
    "status",
    "dashboard",
    "search",
    "verify",
    "index",
    "failures",
    "retry",
    "pause",
    "resume",
    "cancel",
    "drop",
    "alter",
    "migrate-model",
    "workers",
    "serve",
    "uninstall",
    "api-token",
    "exporter",
    "doctor",
    "service",
    "db",
    "bench",
    "demo",
]

HEAVY = {"torch", "sentence_transformers", "transformers", "tokenizers", "tiktoken", "sqlalchemy", "alembic"}
GATEWAY = {"fastapi", "starlette", "uvicorn", "opentelemetry"}
MEDIUM = {"numpy", "psycopg", "rich", "httpx2", "structlog", "pgvec_queue.database"}

LOADED = """
import sys
sys.argv = ["pgvec", *sys.argv[1:]]
try:
    if sys.argv[1:]:
        from pgvec_queue.cli import main
        main()
    else:
        import pgvec_queue
finally:
    print("loaded", *sys.modules, file=sys.stderr)
"""


def loaded(*arguments: str) -> set[str]:
    """Returns what a process has imported after it ran a command line; without one, after it imported the package."""
    ran = subprocess.run([sys.executable, "-c", LOADED, *arguments], capture_output=True, text=True, check=True)
    return set(ran.stderr.split("loaded ")[1].split())


def commands() -> Iterator[tuple[str, ...]]:
    context = click.Context(program)
    for name in program.list_commands(context):
        yield (name,)
        command = program.get_command(context, name)
        if isinstance(command, click.Group):
            for below in command.list_commands(context):
                yield (name, below)


def test_the_public_surface_is_its_version() -> None:
    assert pgvec_queue.__all__ == ["__version__"]


def test_the_commands_are_these() -> None:
    assert program.list_commands(click.Context(program)) == COMMANDS


def test_importing_the_package_loads_nothing_else() -> None:
    assert not loaded() & (HEAVY | MEDIUM | {"click"})


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_and_version_load_neither_models_nor_numbers_nor_a_driver(arguments: list[str]) -> None:
    assert not loaded(*arguments) & (HEAVY | MEDIUM)


@pytest.mark.parametrize("command", ["status", "work", "enqueue", "search", "demo", "init", "bench", "migrate-model"])
def test_help_of_a_command_loads_no_model_library(command: str) -> None:
    assert not loaded(command, "--help") & HEAVY


@pytest.mark.parametrize("command", ["serve", "api-token", "work", "status"])
def test_a_command_loads_no_web_server_before_it_serves(command: str) -> None:
    assert not loaded(command, "--help") & GATEWAY


@pytest.mark.parametrize("command", ["status", "workers", "pause", "failures", "drop", "index", "init", "verify"])
def test_a_command_that_makes_no_vectors_loads_no_numpy(command: str) -> None:
    assert "numpy" not in loaded(command, "--help")


@pytest.mark.parametrize("command", ["status", "enqueue", "search", "workers", "db", "service"])
def test_a_command_that_logs_nothing_loads_no_structlog(command: str) -> None:
    assert "structlog" not in loaded(command, "--help")


def test_the_program_is_a_module_too() -> None:
    ran = run_pgvec("--version")
    assert (ran.code, ran.out, ran.err) == (0, f"pgvec, version {pgvec_queue.__version__}\n", "")


@pytest.mark.parametrize("columns", [80, 100, 200])
def test_every_command_has_a_page_of_help_that_fits(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for command in commands():
        ran = cli(*command, "--help")
        assert (ran.code, ran.err) == (0, ""), command
        assert ran.out.startswith(f"Usage: pgvec {' '.join(command)} ")
        lines = ran.out.splitlines()
        assert max(map(len, lines)) <= min(columns, 100), command
        assert ran.out.isascii()
        # What a command does is said in the second paragraph, in a sentence.
        assert lines[2].startswith("  ")
        assert "  -h, --help" in ran.out
        # Click's own words for the types of numbers tell nobody what to write.
        assert not re.search("INTEGER|RANGE|FLOAT", ran.out)
        assert "..." not in ran.out.replace("[ARGS]...", "").replace("[NAME]...", ""), "a sentence was cut off"


@pytest.mark.parametrize(
    "command", [c for c in commands() if c not in [("db",), ("bench",), ("api-token",), ("service",)]], ids=" ".join
)
def test_every_command_takes_the_options_that_all_have(cli: CommandLine, command: tuple[str, ...]) -> None:
    page = cli(*command, "--help").out
    for option in ("--dsn", "--log-level", "--log-format", "--debug"):
        assert f"  {option}" in page


def test_pages_of_help_need_no_usable_settings(cli: CommandLine) -> None:
    Path("pgvec.toml").write_text("nonsense")
    for command in commands():
        assert cli(*command, "--help").code == 0


def test_no_command_and_an_unknown_one_are_misuse(cli: CommandLine) -> None:
    ran = cli()
    assert (ran.code, ran.out) == (2, "")
    assert "Commands:" in ran.err
    assert cli.misused("statsu") == "No such command 'statsu'."
    assert cli.misused("status", "--nope") == "No such option '--nope'."
    assert cli.misused("pause") == "Missing argument 'NAME'."


SIZES = ["--body-bytes", "--bodies-bytes", "--text-bytes"]
NUMBERS = [
    *("--texts", "--requests", "--streams", "--per-minute", "--pool-size", "--queued-rows", "--keep-tasks-days"),
    *("--request-seconds", "--body-seconds", "--head-seconds", "--unread-seconds", "--connection-seconds"),
]
TEXTS = ["--text", "--key", "--where", "--into", "--into-column", "--model", "--revision", "--endpoint"]
BAD = [
    *(("enqueue docs", option, "", "it is empty") for option in [*TEXTS, "--tokenizer", "--template", "--name"]),
    ("enqueue docs", "--name", "two\nlines", "holds control characters"),
    ("enqueue docs", "--name", "\x1b[31mred", r"'\x1b[31mred' holds control characters"),
    ("enqueue docs", "--limit", "0", "x>=1"),
    ("enqueue docs", "--limit", "99999999999", "too large"),
    ("enqueue docs", "--sample", "99", "100<=x"),
    ("enqueue docs", "--price", "-0.1", "x>=0"),
    ("enqueue docs", "--price", "nan", "'nan' is not a valid number"),
    ("enqueue docs", "--column", "chunk=", "roles are key, chunk_id"),
    ("enqueue docs", "--column", "colour=red", "roles are key, chunk_id"),
    ("enqueue docs", "--embedder", "llm", "'sentence-transformers', 'openai', 'hashing'"),
    ("enqueue docs", "--dimensions", "0", "x>=1"),
    ("enqueue docs", "--partitions", "257", "1<=x<=256"),
    ("migrate-model docs", "--partitions", "0", "1<=x<=256"),
    ("enqueue docs", "--dimensions", "eight", "'eight' is not a valid integer"),
    ("enqueue docs", "--chunk-size", "3", "4<=x"),
    ("enqueue docs", "--chunk-size", "99999999999", "4<=x"),
    ("enqueue docs", "--chunk-overlap", "-1", "0<=x"),
    ("enqueue docs", "--too-long", "cut", "'quarantine', 'truncate'"),
    ("enqueue docs", "--store", "bit", "'vector', 'halfvec'"),
    ("enqueue docs", "--rows-per-job", "0", "1<=x"),
    ("enqueue docs", "--priority", "high", "'high' is not a valid integer"),
    ("enqueue docs", "--priority", "99999999999", "x<=1000000"),
    *(("import-pgai docs", option, "", "it is empty") for option in ["--name", "--model", "--endpoint", "--tokenizer"]),
    ("import-pgai docs", "--embedder", "llm", "'sentence-transformers', 'openai', 'hashing'"),
    ("import-pgai docs", "--chunk-size", "3", "4<=x"),
    ("import-pgai docs", "--chunk-overlap", "-1", "0<=x"),
    ("uninstall", "--wait", "-1", "0<=x"),
    ("work", "--device", "gpu", "none of auto, cpu, mps, cuda, cuda:N"),
    ("work", "--device", "cuda:x", "none of auto"),
    ("work", "--dtype", "int8", "'auto', 'float32'"),
    ("work", "--runtime", "onnx", "'auto', 'torch', 'openvino'"),
    ("work", "--lease", "0", "1<=x<=3600"),
    ("work", "--lease", "nan", "'nan' is not a valid number"),
    ("work", "--lease", "inf", "1<=x<=3600"),
    ("work", "--lease", "soon", "'soon' is not a valid number"),
    ("work", "--batch-tokens", "1", "x>=16"),
    ("work", "--threads", "0", "1<=x"),
    ("work", "--processes", "0", "1<=x<=256"),
    ("work", "--tokenizers", "-1", "0<=x<=256"),
    ("work", "--memory", "much", "write it like 800M or 4G"),
    ("work", "--memory", "0G", "write it like 800M or 4G"),
    ("work", "--memory", "0.0001", "write it like 800M or 4G"),
    ("work", "--memory", "9" * 400 + "G", "write it like 800M or 4G"),
    ("work", "--cache", "much", "neither auto, 0 nor a size"),
    ("work", "--cache", "0G", "write it like 800M or 4G"),
    ("work", "--cache", "", "neither auto, 0 nor a size"),
    ("work", "--pool-size", "0", "1<=x<=64"),
    ("work", "--stall", "1", "5<=x<=86400"),
    ("work", "--direct-dsn", "", "it is empty"),
    ("work", "--metrics-port", "-1", "0<=x<=65535"),
    ("work", "--metrics-port", "65536", "0<=x<=65535"),
    ("work", "--metrics-port", "http", "'http' is not a valid integer"),
    ("work", "--metrics-host", "", "it is empty"),
    ("exporter", "--port", "65536", "0<=x<=65535"),
    ("exporter", "--port", "", "'' is not a valid integer"),
    ("exporter", "--host", " ", "it is empty"),
    ("serve", "--host", " ", "it is empty"),
    ("serve", "--port", "65536", "0<=x<=65535"),
    ("serve", "--model", "", "it is empty"),
    ("serve", "--device", "gpu", "none of auto"),
    ("serve", "--allowed-host", "", "it is empty"),
    *(("serve", option, "much", "write it like 800M or 4G") for option in SIZES),
    *(("serve", option, "-1", "<=x") for option in NUMBERS),
    ("api-token create --role read", "--name", "two\nlines", "holds control characters"),
    ("api-token create --name n", "--role", "root", "'read', 'write', 'admin'"),
    ("api-token create --name n --role read", "--expires", "0", "0.001<=x"),
    ("search docs query", "--limit", "0", "1<=x<=10000"),
    ("search docs query", "--offset", "-1", "0<=x<=100000"),
    ("search docs query", "--neighbours", "101", "0<=x<=100"),
    ("search docs query", "--language", "", "it is empty"),
    ("search docs query", "--filter", "[1]", "is no JSON object"),
    ("search docs query", "--threshold", "2", "-1<=x<=1"),
    ("search docs query", "--threshold", "nan", "'nan' is not a valid number"),
    ("search docs query", "--device", "gpu", "none of auto"),
    ("retry docs", "--error", "", "it is empty"),
    ("alter docs", "--name", "two\nlines", "holds control characters"),
    ("alter docs", "--priority", "high", "'high' is not a valid integer"),
    ("alter docs", "--rows-per-job", "0", "1<=x"),
    ("alter docs", "--rows-per-second", "-1", "0<=x"),
    ("alter docs", "--max-replication-lag", "nan", "'nan' is not a valid number"),
    ("alter docs", "--max-commit-time", "soon", "'soon' is not a valid number"),
    *(
        ("migrate-model docs", option, "", "it is empty")
        for option in [*TEXTS[3:], "--tokenizer", "--template", "--query"]
    ),
    ("migrate-model docs", "--embedder", "llm", "'sentence-transformers', 'openai', 'hashing'"),
    ("migrate-model docs", "--dimensions", "0", "x>=1"),
    ("migrate-model docs", "--chunk-size", "3", "4<=x"),
    ("migrate-model docs", "--chunk-overlap", "-1", "0<=x"),
    ("migrate-model docs", "--too-long", "cut", "'quarantine', 'truncate'"),
    ("migrate-model docs", "--store", "bit", "'vector', 'halfvec'"),
    ("migrate-model docs", "--queries", "nowhere.txt", "does not exist"),
    ("migrate-model docs", "--sample", "1001", "0<=x<=1000"),
    ("migrate-model docs", "--device", "gpu", "none of auto"),
    ("doctor", "--device", "gpu", "none of auto"),
    ("doctor", "--wait", "-1", "x>=0"),
    ("doctor", "--wait", "nan", "'nan' is not a valid number"),
    ("demo", "--documents", "0", "x>=1"),
    ("index docs", "--m", "1", "2<=x<=100"),
    ("index docs", "--ef-construction", "1001", "4<=x<=1000"),
    ("index docs", "--store", "bit", "'vector', 'halfvec'"),
    ("index docs", "--memory", "much", "'much' is no size"),
    ("index docs", "--workers", "-1", "0<=x<=1024"),
    ("index docs", "--seconds", "0", "1<=x<=86400"),
    ("index docs", "--direct-dsn", " ", "it is empty"),
    ("bench encode", "--model", "", "it is empty"),
    ("bench encode", "--device", "gpu", "none of auto"),
    ("bench encode", "--dtype", "int8", "'auto', 'float32'"),
    ("bench encode", "--runtime", "onnx", "'auto', 'torch', 'openvino'"),
    ("bench encode", "--threads", "0", "1<=x"),
    ("bench encode", "--batch-tokens", "1", "x>=16"),
    ("bench encode", "--seconds", "0", "1<=x"),
    ("bench encode", "--chunks", "0", "x>=1"),
    ("bench load", "--rows", "0", "x>=1"),
    ("bench load", "--rounds", "0", "x>=1"),
    ("bench claim", "--jobs", "0", "x>=1"),
    ("bench claim", "--samples", "1", "x>=2"),
    ("bench scale", "--workers", "one", "write it like 1,2,4"),
    ("bench scale", "--workers", "1,0", "write it like 1,2,4"),
    ("bench scale", "--workers", "", "write it like 1,2,4"),
    ("bench scale", "--rate", "0", "0.1<=x"),
    ("bench memory", "--document", "much", "write it like 800M or 4G"),
    ("bench scale", "--rows-per-job", "0", "x>=1"),
    ("bench scale", "--processes", "0", "1<=x<=256"),
    ("bench scale", "--pool-size", "0", "1<=x<=10000"),
    ("bench cost", "--rows", "0", "1<=x"),
    ("bench cost", "--rows", "many", "'many' is not a valid count"),
    ("bench cost", "--chunks-per-row", "0", "0.001<=x"),
    ("bench cost", "--tokens-per-chunk", "0", "1<=x"),
    ("bench cost", "--chunk-bytes", "-1", "0<=x"),
    ("bench cost", "--dimensions", "0", "1<=x<=16000"),
    ("bench cost", "--store", "bit", "'vector', 'halfvec'"),
    ("bench cost", "--rows-per-job", "0", "x>=1"),
    ("bench cost", "--partitions", "0", "1<=x<=256"),
    ("bench cost", "--devices", "0", "1<=x"),
    ("bench cost", "--tokens-per-second", "0", "1<=x"),
    ("bench cost", "--server-cores", "0", "1<=x"),
    ("bench cost", "--server-memory", "much", "write it like 800M or 4G"),
    ("bench cost", "--disk", "fast", "write it like 800M or 4G"),
    ("bench cost", "--build-processes", "0", "1<=x"),
    ("bench cost", "--price-device-hour", "-1", "0"),
    ("bench cost", "--price-server-hour", "-1", "0"),
    ("bench cost", "--price-storage-gb-month", "-1", "0"),
    ("bench cost", "--constant", "colour=3", "is no constant; write NAME=NUMBER"),
    ("bench memory", "--job-rows", "0", "x>=1"),
    ("service install", "--kind", "broker", "'worker', 'gateway', 'exporter'"),
    ("service install", "--name", "Two words", "no name of lower-case letters"),
    ("service install", "--manager", "cron", "'systemd', 'launchd'"),
    ("service install", "--root", "nowhere", "does not exist"),
    ("service install", "--run-as", "", "it is empty"),
    ("service status", "--name", "../../etc/passwd", "no name of lower-case letters"),
    ("service uninstall", "--name", "", "no name of lower-case letters"),
    ("db start", "--port", "0", "1<=x<=65535"),
    ("db start", "--dir", "", "it is empty"),
    ("db start", "--listen", "", "it is empty"),
    ("db stop", "--dir", "", "it is empty"),
    ("db uri", "--dir", "", "it is empty"),
    *(
        (command, "--log-level", "loud", "'debug', 'info', 'warning', 'error'")
        for command in ("init", "status", "drop x")
    ),
    ("workers", "--log-format", "xml", "'text', 'json'"),
]


@pytest.mark.parametrize(("command", "option", "value", "reason"), BAD)
def test_a_bad_value_is_misuse_and_the_message_names_option_and_remedy(
    cli: CommandLine, command: str, option: str, value: str, reason: str
) -> None:
    line = cli.misused(*command.split(), option, value)
    assert line.startswith(f"Invalid value for '{option}': ")
    assert reason in line


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (("--model", "a model"), "run: pgvec migrate-model docs --model 'a model'"),
        (("--chunk-size", "64"), "run: pgvec migrate-model docs --chunk-size 64"),
        (("--into-column", "vector"), "run: pgvec migrate-model docs --into-column vector"),
        (("--no-chunking",), "run: pgvec migrate-model docs --no-chunking"),
        (("--where", "true"), "make another vectorizer"),
        (("--text", "body"), "make another vectorizer"),
    ],
)
def test_a_part_of_the_definition_is_not_altered_but_told_where_it_belongs(
    cli: CommandLine, given: tuple[str, ...], reason: str
) -> None:
    line = cli.misused("alter", "docs", *given)
    assert line.startswith(f"{given[0]} ")
    assert reason in line
    assert given[0] not in cli("alter", "--help").out


def test_every_option_with_a_value_was_tried_with_a_bad_one() -> None:
    tried = {(command.split()[0], option) for command, option, _, _ in BAD}
    anything_goes = {"--dsn", "--query-prompt", "--document-prompt", "--log-level", "--log-format"}
    context = click.Context(program)
    for name in COMMANDS:
        command = program.get_command(context, name)
        assert command is not None
        below = list(command.commands.values()) if isinstance(command, click.Group) else [command]
        for parameter in (parameter for each in below for parameter in each.params):
            if isinstance(parameter, click.Option) and not parameter.is_flag and not parameter.hidden:
                assert parameter.opts[0] in anything_goes or (name, parameter.opts[0]) in tried, (name, parameter)


@pytest.mark.parametrize(
    "arguments",
    [
        ["enqueue", ""],
        ["work", ""],
        ["status", ""],
        ["search", "", "query"],
        ["search", "docs", " "],
        ["failures", ""],
        ["retry", ""],
        ["pause", ""],
        ["resume", ""],
        ["cancel", "", "--yes"],
        ["drop", "", "--yes"],
        ["api-token", "revoke", ""],
        ["import-pgai", ""],
    ],
    ids=" ".join,
)
def test_an_empty_name_or_query_is_misuse(cli: CommandLine, arguments: list[str]) -> None:
    assert cli.misused(*arguments).endswith(": it is empty")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("enqueue docs --into a --into-column b", "--into-column and --into exclude each other"),
        ("enqueue docs --no-chunking --chunk-size 64", "--no-chunking and --chunk-size exclude each other"),
        (
            "enqueue docs --text t --no-chunking --chunk-overlap 8",
            "--no-chunking and --chunk-overlap exclude each other",
        ),
        ("enqueue docs --into-column a --chunk-size 64", "--into-column and --chunk-size exclude each other"),
        (
            "enqueue docs --text t --into-column a --chunk-overlap 8",
            "--into-column and --chunk-overlap exclude each other",
        ),
        ("enqueue docs --text t --too-long truncate", "add --no-chunking or --into-column"),
        ("enqueue docs --text t --embedder hashing --endpoint http://host/v1", "--endpoint is for the embedder"),
        (
            "enqueue docs --text t --embedder sentence-transformers --tokenizer t",
            "--tokenizer is for the",
        ),
        ("enqueue docs --model m", "--model is a part of the definition: give --text with it"),
        ("enqueue docs --chunk-size 64", "--chunk-size is a part of the definition"),
        ("enqueue docs --endpoint http://host/v1", "--endpoint is a part of the definition"),
        ("demo --all --documents 3", "--documents and --all exclude each other"),
        ("db start --port 5433", "--port needs --listen"),
        ("work --metrics-host 0.0.0.0", "--metrics-host needs --metrics-port"),
        ("search docs query --hybrid --text-only", "--hybrid and --text-only exclude each other"),
    ],
)
def test_options_that_contradict_each_other_are_misuse(cli: CommandLine, arguments: str, reason: str) -> None:
    assert reason in cli.misused(*arguments.split())


def test_a_setting_of_the_file_contradicts_nothing_that_was_said(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("pgvec.toml").write_text("chunk_size = 64")
    monkeypatch.setenv("PGVEC_CHUNK_OVERLAP", "8")
    monkeypatch.setenv("PGVEC_DSN", "host=127.0.0.1 port=1")
    assert "port 1 failed" in cli.refused("enqueue", "docs", "--no-chunking")


@pytest.mark.parametrize(
    ("name", "value", "command"),
    [
        ("LEASE", "soon", "work"),
        ("LISTEN", "maybe", "work"),
        ("METRICS_PORT", "70000", "work"),
        ("EXPORTER_PORT", "http", "exporter"),
        ("GATEWAY_TEXTS", "many", "serve"),
        ("MEMORY", "much", "work"),
        ("LOG_LEVEL", "loud", "status"),
        ("CHUNK_SIZE", "1", "enqueue docs"),
        ("EMBEDDER", "llm", "enqueue docs"),
        ("THRESHOLD", "2", "search docs query"),
        ("SEARCH_LIMIT", "0", "search docs query"),
    ],
)
def test_a_bad_value_in_the_environment_is_named_by_its_variable(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, name: str, value: str, command: str
) -> None:
    monkeypatch.setenv(f"PGVEC_{name}", value)
    assert cli.misused(*command.split()).startswith(f"Invalid value for PGVEC_{name}: ")


def test_doctor_looks_at_settings_that_other_commands_use(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGVEC_THREADS", "many")
    assert cli.refused("doctor").startswith("threads (from PGVEC_THREADS): 'many' is not a valid integer")
    monkeypatch.delenv("PGVEC_THREADS")
    path = Path("pgvec.toml").absolute()
    path.write_text("lease = 0")
    assert cli.refused("doctor").startswith(f"lease (from {path}): 0.0 is not in the range")


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("lease = -5", "work"),
        ('device = "gpu"', "work"),
        ('memory = "much"', "work"),
        ('cache = "much"', "work"),
        ("metrics_port = -1", "work"),
        ('exporter_host = ""', "exporter"),
        ('gateway_models = [" "]', "serve"),
        ('gateway_body_bytes = "much"', "serve"),
        ('log_level = "loud"', "status"),
        ('model = " "', "enqueue docs"),
        ("threshold = 2", "search docs query"),
    ],
)
def test_a_bad_value_in_the_file_is_named_by_key_and_path(cli: CommandLine, line: str, command: str) -> None:
    path = Path("pgvec.toml").absolute()
    path.write_text(line)
    key = line.partition(" ")[0]
    assert cli.misused(*command.split()).startswith(f"Invalid value for '{key}' in {path}: ")


@pytest.mark.parametrize("command", ["init", "enqueue docs", "work", "status", "doctor", "db uri", "demo"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("model =", "is not valid TOML: Invalid value"),
        ("modle = 'x'", "has an unknown setting 'modle'; known are: batch_tokens, "),
        ("model = 5", ": model must be a string"),
        ("threads = true", ": threads must be a whole number"),
    ],
)
def test_an_unusable_file_stops_every_command_in_one_line(
    cli: CommandLine, command: str, content: str, reason: str
) -> None:
    path = Path("pgvec.toml").absolute()
    path.write_text(content)
    line = cli.refused(*command.split())
    assert line.startswith(str(path))
    assert reason in line


def test_an_argument_that_is_no_text_is_refused(cli: CommandLine) -> None:
    ran = cli("status", os.fsdecode(b"\xff"))
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "pgvec: an argument is not valid text in this locale's encoding\n"


def test_a_secret_that_is_not_needed_may_be_out_of_reach(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DSN", "DIRECT_DSN", "ENDPOINT_KEY"):
        monkeypatch.setenv(f"PGVEC_{name}_FILE", "/nowhere")
    assert "127.0.0.1" in cli.refused("status", "--dsn", "host=127.0.0.1 port=1")
    assert cli.refused("status").startswith("PGVEC_DSN_FILE: /nowhere cannot be read: ")
