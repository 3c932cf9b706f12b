"""Lines of the log: what they look like, what they never hold, and that every event is on the page that lists them."""

from __future__ import annotations

import ast
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pgvec_queue import log as logs
from pgvec_queue.cli.logs import PROCESS, Lines, configure
from pgvec_queue.masking import secrets_of, without_secrets, without_text
from pgvec_queue.worker.tally import EVERY, Tally
from tests.commandline import PASSWORD, undone
from tests.logs import COMMON, documented

PACKAGE = Path(logs.__file__).parent
LEVELS = {"debug", "info", "warning", "error"}


@pytest.fixture
def logger() -> Iterator[Any]:
    with undone():
        logging.getLogger("pgvec").setLevel(logging.DEBUG)
        yield logs.get_logger("pgvec.worker")
        logs.show_texts(False)


def line(caplog: pytest.LogCaptureFixture, form: str = "json", *secrets: str) -> str:
    """The last record as the command line would show it."""
    return Lines(form, secrets).format(caplog.records[-1])


def keys(caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(line(caplog))
    return found


# Every event is documented


def said() -> Iterator[tuple[str, str, set[str], str]]:
    """Yields level, event and keys of each call of a logger in the package, and where it stands."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            whose = node.func.value
            if not (
                isinstance(whose, ast.Name) and whose.id == "log" and node.func.attr in LEVELS | {"log", "exception"}
            ):
                continue
            arguments = node.args[1:] if node.func.attr == "log" else node.args
            where = f"{path.relative_to(PACKAGE)}:{node.lineno}"
            assert len(arguments) == 1, f"{where}: what varies is a key"
            (event,) = arguments
            assert isinstance(event, ast.Constant), f"{where}: an event is always in the same words"
            names = {keyword.arg or "**" for keyword in node.keywords} - {"exc_info"}
            level = "error" if node.func.attr == "exception" else node.func.attr
            yield level, str(event.value), names, where


def test_every_event_is_on_the_page_with_its_level_and_its_keys() -> None:
    events = documented()
    for level, event, names, where in said():
        assert event in events, where
        known = events[event]
        assert level == "log" or level in known.levels, where
        assert known.keys <= names <= known.keys | known.optional, where
        assert not names & COMMON, where


def test_every_event_on_the_page_is_somewhere_in_the_program() -> None:
    assert documented().keys() == {event for _, event, _, _ in said()}


def test_no_module_but_those_that_tame_other_libraries_speaks_past_structlog() -> None:
    allowed = {"log.py", "cli/logs.py", "embedders/model_loading.py"}
    found = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if re.search(r"logging\.getLogger|structlog\.get_logger", path.read_text())
    }
    assert found == allowed


# What a line looks like


def test_a_line_in_json_has_the_common_keys_first_and_then_its_own(
    logger: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PROCESS, "cuda:1")
    logger.info("job is stolen", vectorizer="docs", job=7, rows=None)
    found = keys(caplog)
    assert [*found] == ["time", "level", "logger", "process", "event", "vectorizer", "job"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", found.pop("time"))
    assert found == {
        "level": "info",
        "logger": "pgvec.worker",
        "process": "cuda:1",
        "event": "job is stolen",
        "vectorizer": "docs",
        "job": 7,
    }


def test_a_line_for_people_is_short_and_names_level_and_process_where_they_matter(
    logger: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger.info("job is stolen", vectorizer="two words", job=7)
    assert re.fullmatch(r'\d\d:\d\d:\d\d job is stolen vectorizer="two words" job=7', line(caplog, "text"))
    monkeypatch.setenv(PROCESS, "2")
    logger.warning("document is quarantined", key=["1", "b"], error="no\nvector \x1b[31m")
    expected = r"\d\d:\d\d:\d\d \[2\] warning: document is quarantined key=1,b: no vector \\x1b\[31m"
    assert re.fullmatch(expected, line(caplog, "text"))


def test_whom_a_process_speaks_of_stands_where_its_own_name_would(
    logger: Any, caplog: pytest.LogCaptureFixture
) -> None:
    logger.info("process begins afresh", process="cuda:1")
    assert keys(caplog)["process"] == "cuda:1"
    assert line(caplog, "text").endswith(" [cuda:1] process begins afresh")


def test_a_handler_that_knows_nothing_of_this_gets_a_line_in_words(
    logger: Any, caplog: pytest.LogCaptureFixture
) -> None:
    logger.info("job is lost", job=7, error="taken")
    assert caplog.messages == ["job is lost job=7: taken"]


def test_other_libraries_lines_have_the_same_form(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("another.library").warning("error connecting in %r", "pool-1")
    found = keys(caplog)
    assert found.keys() == COMMON
    assert (found["logger"], found["event"]) == ("another.library", "error connecting in 'pool-1'")
    assert line(caplog, "text").endswith(" warning: error connecting in 'pool-1'")


def test_a_traceback_is_a_key_of_its_own(logger: Any, caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise RuntimeError(f"postgresql://me:{PASSWORD}@host/shop")
    except RuntimeError:
        logger.debug("stage has failed", stage="reader", exc_info=True)
        shown = [line(caplog, form) for form in ("json", "text")]
    traceback = json.loads(shown[0])["traceback"]
    assert traceback.startswith("Traceback (most recent call last):")
    assert "RuntimeError: postgresql://me:***@host/shop" in traceback
    assert shown[1].endswith("RuntimeError: postgresql://me:***@host/shop")
    assert "error" not in json.loads(shown[0])


def test_levels_are_those_of_the_command_line_and_others_speak_from_warning_on(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with undone():
        configure("warning", "text", debug=False)
        logger = logs.get_logger("pgvec.worker")
        logger.info("job is stolen")
        logger.warning("job is lost")
        logging.getLogger("others").info("nobody asked")
    assert re.fullmatch(r"\d\d:\d\d:\d\d warning: job is lost\n", capfd.readouterr().err)


# What no line holds

SECRET = "hunter2-and-more"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"postgresql://me:{SECRET}@host:5432/shop?x=1", "postgresql://me:***@host:5432/shop?x=1"),
        (f"postgresql://me:a/b@{SECRET}@host/shop", "postgresql://me:***@host/shop"),
        (f"('http://u:{SECRET}@proxy:3128')", "('http://u:***@proxy:3128')"),
        (f"host=h password={SECRET} dbname=d", "host=h password=*** dbname=d"),
        (f"host=h password = 'two {SECRET} \\' words' dbname=d", "host=h password = *** dbname=d"),
        (f"host=h sslpassword='{SECRET} without an end", "host=h sslpassword=***"),
        (f"postgresql://host/d?user=u&password={SECRET}&x=1", "postgresql://host/d?user=u&password=***&x=1"),
        (f"{{'password': '{SECRET}', 'user': 'u'}}", "{'password': ***, 'user': 'u'}"),
        (f"PGPASSWORD={SECRET} psql", "PGPASSWORD=*** psql"),
        (f"Authorization: Bearer {SECRET}", "Authorization: Bearer ***"),
        (f"{{'authorization': 'Bearer {SECRET}'}}", "{'authorization': 'Bearer ***'}"),
        (f"authorization=Basic {SECRET}; x", "authorization=Basic ***; x"),
        (f"the header was bearer {SECRET}", "the header was bearer ***"),
        (f"OPENAI_API_KEY={SECRET} is wrong", "OPENAI_API_KEY=*** is wrong"),
        (f'{{"api-key": "{SECRET}"}}', '{"api-key": ***}'),
        (f"Incorrect API key provided: sk-{SECRET}.", "Incorrect API key provided: sk-***."),
        (f"hf_{SECRET} was refused", "hf_*** was refused"),
    ],
)
def test_secrets_are_masked_wherever_they_stand(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        'password authentication failed for user "me"',
        "postgresql://me@host/shop",
        "http://127.0.0.1:8000/v1/embeddings answered 500",
        "fe_sendauth: no password supplied",
        "key=17 error_class=NotFinite",
        "mail me@host.example",
    ],
)
def test_what_is_no_secret_is_shown(text: str) -> None:
    assert without_secrets(text) == text


def test_values_of_the_environment_are_masked_if_they_are_no_common_words() -> None:
    environment = {"PGVEC_ENDPOINT_KEY": f" {SECRET} ", "HF_TOKEN": "", "PGPASSWORD": "shop", "HOME": "/home/somebody"}
    known = secrets_of(environment)
    assert known == [SECRET]
    assert without_secrets(f"the shop said: '{SECRET}'", known) == "the shop said: '***'"


def test_a_line_masks_every_key(logger: Any, caplog: pytest.LogCaptureFixture) -> None:
    logger.warning(f"at postgresql://me:{SECRET}@h", error=f"password={SECRET}", key=[f"x {SECRET}"], job=1)
    for form in ("json", "text"):
        shown = line(caplog, form, SECRET)
        assert SECRET not in shown
        assert shown.count("***") == 3


TEXT = "The quick brown fox\n jumps over   the lazy dog."


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (f"refused: {TEXT}", "refused: …"),
        ("refused: brown fox jumps over", "refused:…"),
        ("the fox is brown", "the fox is brown"),
        ('invalid input "The quick br" at 3', 'invalid input "…" at 3'),
        ("nothing of it", "nothing of it"),
    ],
)
def test_what_an_error_repeats_of_a_document_is_taken_out(message: str, shown: str) -> None:
    assert without_text(message, TEXT) == shown


def test_a_short_text_is_taken_out_as_a_word() -> None:
    assert without_text('the word "cat" in concatenate', "cat") == 'the word "…" in concatenate'
    assert without_text("nothing  here", "") == "nothing here"


def test_a_text_is_shown_where_that_was_asked_for_and_never_otherwise(
    logger: Any, caplog: pytest.LogCaptureFixture
) -> None:
    logger.warning("document is quarantined", error=f"refused: {TEXT}", text=TEXT)
    assert "brown" not in line(caplog)
    assert "brown" not in caplog.messages[-1]
    assert "text" not in keys(caplog)
    logs.show_texts(True)
    logger.warning("document is quarantined", error=f"refused: {TEXT}", text=TEXT * 1_000)
    assert keys(caplog)["error"] == f"refused: {TEXT}"
    assert keys(caplog)["text"] == (TEXT * 1_000)[: logs.LONGEST_TEXT]


def test_a_value_that_the_database_quotes_is_taken_out() -> None:
    quoted = 'reading docs: invalid input syntax for type integer: "some\n"text""'
    assert logs.hidden_data(quoted) == 'reading docs: invalid input syntax for type integer: "…"'


# Nobody reads


def test_a_line_that_nobody_reads_any_more_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.pipe()
    stream = os.fdopen(theirs, "w")
    monkeypatch.setattr(sys, "stderr", stream)
    os.close(ours)
    with undone():
        configure("info", "text", debug=False)
        logger = logs.get_logger("pgvec.worker")
        logger.info("job is stolen")
        assert sys.stderr is not stream
        logger.info("job is lost")
    os.dup2(os.open(os.devnull, os.O_WRONLY), theirs)
    stream.close()
    sys.stderr.close()


def test_a_closed_stream_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    with undone():
        configure("info", "json", debug=False)
        logs.get_logger("pgvec.worker").info("job is stolen")
    sys.stderr.close()


# Jobs are summed up


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def tallied(caplog: pytest.LogCaptureFixture) -> list[tuple[str, int, int, float]]:
    found = []
    for record in caplog.records:
        one = json.loads(Lines("json").format(record))
        assert one["event"] == "jobs are done"
        assert one["rows_per_second"] == round(one["rows"] / one["seconds"], 1)
        found.append((one["vectorizer"], one["jobs"], one["rows"], one["seconds"]))
    caplog.clear()
    return found


@pytest.mark.usefixtures("logger")
def test_a_vectorizer_gets_a_line_every_ten_seconds_however_many_jobs_are_done(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    tally = Tally(clock)
    for second in range(1, 32):
        clock.now = 1_000.0 + second
        tally.wrote("a", 100, begun=1_000.0, done=second % 2 == 0)
    assert tallied(caplog) == [("a", 5, 1_100, EVERY + 1), *[("a", 5, 1_000, EVERY)] * 2]
    for second in range(1, 10_001):
        clock.now = 2_000.0 + second / 100
        tally.wrote("b", 1, begun=clock.now, done=True)
        tally.wrote("c", 1, begun=clock.now, done=True)
    told = [name for name, *_ in tallied(caplog)]
    assert 9 <= told.count("b") <= 10
    assert 9 <= told.count("c") <= 10


@pytest.mark.usefixtures("logger")
def test_a_model_that_takes_long_to_load_brings_no_line_before_its_time(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    tally = Tally(clock)
    clock.now += 60
    tally.wrote("a", 100, begun=1_000.0, done=False)
    assert tallied(caplog) == []
    clock.now += 1
    tally.wrote("a", 100, begun=1_000.0, done=True)
    tally.tell(idle=True)
    assert tallied(caplog) == [("a", 1, 200, 61.0)]


@pytest.mark.usefixtures("logger")
def test_a_job_that_takes_long_is_told_of_when_it_is_done(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    tally = Tally(clock)
    for second in range(1, 36):
        clock.now = 1_000.0 + second
        tally.wrote("a", 96, begun=1_000.0, done=second == 34)
    assert tallied(caplog) == [("a", 1, 96 * 34, 34.0)]
    for second in range(36, 60):
        clock.now = 1_000.0 + second
        tally.wrote("a", 96, begun=1_000.0, done=False)
        tally.tell(idle=True)
    assert tallied(caplog) == []
    tally.tell(ending=True)
    assert tallied(caplog) == [("a", 0, 96 * 25, 25.0)]


@pytest.mark.usefixtures("logger")
def test_who_has_nothing_left_to_do_tells_at_once_but_not_more_often(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    tally = Tally(clock)
    for second in range(1, 25):
        clock.now = 1_000.0 + second
        tally.wrote("live", 1, begun=clock.now - 0.5, done=True)
        tally.tell(idle=True)
    assert tallied(caplog) == [("live", 1, 1, 0.5), ("live", 10, 10, 9.5), ("live", 10, 10, 9.5)]
    tally.tell(ending=True)
    assert tallied(caplog) == [("live", 3, 3, 2.5)]
    tally.tell(ending=True)
    assert tallied(caplog) == []
