"""Faults of the hashing embedder: each is brought about by its word, and by nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from pgvec_queue.embedders import DeviceOptions, Embedder, ModelSpec, load
from pgvec_queue.embedders.faults import Faults, FaultyEmbedder
from pgvec_queue.embedders.hashing import HashingEmbedder
from pgvec_queue.errors import EmbedderError, Kind, SettingsError

SPEC = ModelSpec("hashing", "hashing-8")


def faulty(text: str) -> Embedder:
    return FaultyEmbedder(HashingEmbedder(SPEC), Faults.parse(text))


def embed(embedder: Embedder, *texts: str) -> np.ndarray:
    return embedder.embed_documents(texts, embedder.tokenizer.count(texts))


def test_every_entry_is_read() -> None:
    text = "delay=0.002; refuse=a;nan=b;inf=c;shape=d;kill=e;hang=f;rate=500;"
    assert Faults.parse(text) == Faults(0.002, "a", "b", "c", "d", "e", "f", 500.0)


@pytest.mark.parametrize(
    "text",
    [
        *("delay", "delay=", "delay=x", "delay=-1", "delay=nan", "delay=inf", "nam=b", "nan=b;nan=c"),
        *("rate=x", "rate=0", "rate=-1", "rate=nan", "rate=1e-9"),
    ],
)
def test_a_value_that_cannot_be_read_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(SettingsError, match="PGVEC_HASHING_FAULTS") as caught:
        Faults.parse(text)
    assert "\n" not in str(caught.value)


def test_the_variable_switches_faults_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGVEC_HASHING_FAULTS", raising=False)
    assert type(load(SPEC, DeviceOptions())) is HashingEmbedder
    monkeypatch.setenv("PGVEC_HASHING_FAULTS", "refuse=bad")
    with pytest.raises(EmbedderError):
        embed(load(SPEC, DeviceOptions()), "a bad text")


def test_without_the_variable_the_faults_are_not_even_imported() -> None:
    code = (
        "import sys; from pgvec_queue.embedders import *; from pgvec_queue import embedders as e\n"
        "e.load(e.ModelSpec('hashing', 'hashing-8'), e.DeviceOptions())\n"
        "sys.exit('pgvec_queue.embedders.faults' in sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PGVEC_HASHING_FAULTS"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=60, check=False).returncode == 0


def test_texts_without_a_word_have_the_usual_vectors() -> None:
    embedder = faulty("refuse=a1;nan=b2;inf=c3;shape=d4;kill=e5;hang=f6")
    texts = ["one text", "another"]
    np.testing.assert_array_equal(embed(embedder, *texts), embed(HashingEmbedder(SPEC), *texts))
    assert embed(embedder).shape == (0, 8)


def test_a_refused_text_is_the_rows_error() -> None:
    with pytest.raises(EmbedderError, match="'bad'") as caught:
        embed(faulty("refuse=bad"), "good", "a bad text")
    assert caught.value.kind is Kind.ROW


@pytest.mark.parametrize("name", ["nan", "inf"])
def test_nan_and_inf_are_in_the_vectors_of_their_texts_alone(name: str) -> None:
    vectors = embed(faulty(f"{name}=bad"), "good", "a bad text", "good too")
    assert np.isfinite(vectors).all(axis=1).tolist() == [True, False, True]
    assert (np.isnan if name == "nan" else np.isinf)(vectors[1, 0])


def test_a_wrong_shape_is_that_of_the_whole_call() -> None:
    assert embed(faulty("shape=bad"), "good", "a bad text").shape == (2, 7)


def test_a_delay_is_per_text() -> None:
    started = time.monotonic()
    embed(faulty("delay=0.02"), *["text"] * 5)
    assert time.monotonic() - started >= 0.1


def test_no_call_is_faster_than_the_rate() -> None:
    started = time.monotonic()
    embed(faulty("rate=50"), *["text"] * 5)
    assert time.monotonic() - started >= 0.1


def test_a_text_can_kill_the_process() -> None:
    code = (
        "from pgvec_queue import embedders as e\n"
        "e.load(e.ModelSpec('hashing', 'hashing-8'), e.DeviceOptions()).embed_documents(['a bad text'], [3])"
    )
    environment = {**os.environ, "PGVEC_HASHING_FAULTS": "kill=bad"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, timeout=60, check=False)
    assert ended.returncode == -signal.SIGKILL


def test_a_text_can_hang_the_call() -> None:
    embedder = faulty("hang=bad")
    began, returned = threading.Event(), threading.Event()

    def call() -> None:
        embed(embedder, "good")
        began.set()
        embed(embedder, "a bad text")
        returned.set()

    threading.Thread(target=call, daemon=True).start()
    assert began.wait(10)
    assert not returned.wait(0.2)


def test_queries_have_no_faults() -> None:
    np.testing.assert_array_equal(faulty("refuse=bad").embed_query("bad"), HashingEmbedder(SPEC).embed_query("bad"))
