"""What the measures are made of, apart from a database: figures, texts, and how a report is printed."""

from __future__ import annotations

import itertools
import json
import os

import pytest

from pgvec_queue.bench import memory
from pgvec_queue.bench.machine import machine
from pgvec_queue.bench.report import Figure, Report, percentile, ratios
from pgvec_queue.bench.texts import documents
from pgvec_queue.cli.bench import _show

MACHINE = {"cpu": "a processor", "cores": 2, "memory": 2**32, "os": "an OS", "accelerator": None}
REPORT = Report(
    "load",
    {"rows": 10},
    [Figure("worker_rows_per_second", [3_000.0, 1_000.0, 2_000.0]), Figure("first_job_seconds", [0.012345678])],
    [Figure("worker_to_copy", [0.5, 0.25, 0.75])],
    ["said once"],
    MACHINE,
    {"pgvec-queue": "1.0", "torch": None},
    {"fsync": "on"},
)


def test_a_figure_tells_its_median_and_its_extremes() -> None:
    figure = Figure("x", [3.0, 1.0, 2.0])
    assert (figure.median, figure.lowest, figure.highest) == (2.0, 1.0, 3.0)


def test_a_ratio_is_taken_within_each_round() -> None:
    assert ratios("x", [10.0, 40.0], [5.0, 10.0]) == Figure("x", [2.0, 4.0])


@pytest.mark.parametrize(("percent", "value"), [(0, 1), (1, 1), (50, 50), (95, 95), (99, 99), (100, 100)])
def test_a_percentile_is_one_of_the_values(percent: float, value: float) -> None:
    assert percentile(list(range(100, 0, -1)), percent) == value
    assert percentile([7.0], percent) == 7.0


def test_the_json_object_holds_all_that_a_report_knows(capsys: pytest.CaptureFixture[str]) -> None:
    _show(REPORT, as_json=True)
    assert json.loads(capsys.readouterr().out) == {
        "measure": "load",
        "machine": MACHINE,
        "versions": {"pgvec-queue": "1.0", "torch": None},
        "server": {"fsync": "on"},
        "parameters": {"rows": 10},
        "medians": {
            "worker_rows_per_second": {"median": 2_000.0, "lowest": 1_000.0, "highest": 3_000.0, "rounds": 3},
            "first_job_seconds": {"median": 0.012346, "lowest": 0.012346, "highest": 0.012346, "rounds": 1},
        },
        "ratios": {"worker_to_copy": {"median": 0.5, "lowest": 0.25, "highest": 0.75, "rounds": 3}},
        "notes": ["said once"],
    }


def test_the_table_is_plain_text_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    _show(REPORT, as_json=False)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "load                    median  lowest  highest",
        "worker rows per second   2,000   1,000    3,000",
        "first job seconds       0.0123  0.0123   0.0123",
        "worker to copy            0.50    0.25     0.75",
        "said once",
        "a processor, 2 cores, 4 GiB; pgvec-queue 1.0",
    ]


def test_the_machine_is_described_without_loading_torch() -> None:
    found = machine()
    assert set(found) == set(MACHINE)
    assert found["cpu"]
    assert 1 <= found["cores"] <= (os.cpu_count() or 1)
    assert found["memory"] > 2**28


def test_texts_go_on_beyond_the_library_short_and_long_and_never_repeat() -> None:
    found = list(itertools.islice(documents(), 20_000))
    assert len(set(found)) == len(found)
    assert all(text.strip() and "\0" not in text for text in found)
    lengths = sorted(map(len, found))
    assert lengths[len(lengths) // 10] * 10 < lengths[len(lengths) * 9 // 10], "short and long ones"


def test_a_large_document_has_the_size_asked_for_and_no_sentence_twice() -> None:
    text = memory._document(100_000)
    assert len(text.encode()) == 100_000
    sentences = text.split(". ")
    assert len(set(sentences)) == len(sentences)
