"""``encode``: documents in the database to vectors in the database, against the model by itself.

One warm worker embeds docstrings of Python's standard library. Against it, on the very same chunk texts, read back from
the destination: ``SentenceTransformer.encode`` at the batch size that is its best here, which is found first, and the
model's forward pass alone, on tensors that lie ready on the device in length-sorted batches of the size that is best.
All three on the same device, in the same dtype, with as many threads, one after the other in each round: the worker is
idle while the others run, and the other way round.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pgvec_queue.bench import DEFAULT_ROUNDS, Say, part
from pgvec_queue.bench.database import Arena, Place, arena
from pgvec_queue.bench.fleet import Fleet, fleet
from pgvec_queue.bench.part import Done
from pgvec_queue.bench.reference import Reference
from pgvec_queue.bench.report import Figure, Report, ratios, report
from pgvec_queue.bench.texts import documents
from pgvec_queue.definition_options import Options as Definition
from pgvec_queue.embedders import DEFAULT_MODEL
from pgvec_queue.errors import DefinitionError, MissingExtraError

_FIRST_DOCUMENTS = 64
_SAMPLE_SECONDS = 5.0
"""Long enough for the largest batches to be more than one."""
_SPARE = 1.15
"""The forward pass alone has to last long enough, too."""
_BEAT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Options:
    """Which model, where, and for how long."""

    model: str = DEFAULT_MODEL
    device: str = "auto"
    dtype: str = "auto"
    runtime: str = "torch"
    """What computes on a CPU, in the worker and in the forward pass; ``encode`` is torch's."""
    threads: int | None = None
    """None: as many as torch takes by itself."""
    batch_tokens: int | None = None
    """Tokens per batch, of the worker and of the forward pass; None: what suits each."""
    seconds: float = 60.0
    """That each side is measured, at least."""
    rounds: int = DEFAULT_ROUNDS
    chunks: int | None = None
    """About so many per round, whatever ``seconds`` says."""


@dataclass(frozen=True, slots=True)
class _Round:
    """The seconds that each side took for the same chunks."""

    done: Done
    encode: float
    forward: float
    busy: float | None
    """Share of the time that the worker says its device was busy; None where it does not say."""
    padding: float | None
    """Share of the tokens that the worker has computed since its start."""
    encode_padding: float
    forward_padding: float


@dataclass(frozen=True, slots=True)
class _Sample:
    """What a first run says of the model and its texts."""

    documents_per_second: float
    chunks_per_document: float
    texts: list[str]


def run(place: Place, options: Options, say: Say) -> Report:
    """Measures in a database of its own."""
    spec = Definition(source="documents", model=options.model).spec
    if spec.embedder != "sentence-transformers":
        raise DefinitionError(f"bench encode compares with sentence-transformers, which has no model {options.model}")
    threads = options.threads or _torch_threads()
    texts = documents()
    with arena(place) as own:
        with fleet(own, [_arguments(options, threads)]) as workers:
            say(f"loading {options.model} in the worker, and finding out how fast it is")
            sample = _sample(own, workers, options, texts)
            worker = _worker(workers)
            say(f"loading it beside, on {worker['device']} in {worker['dtype']}, and finding its best batches")
            reference = Reference(spec, worker["device"], worker["dtype"], threads, worker["runtime"])
            size = reference.best_batch_size(sample.texts)
            budget = options.batch_tokens or reference.best_batch_tokens(sample.texts)
            wanted = _documents_per_round(options, sample)
            rounds: list[_Round] = []
            while len(rounds) < options.rounds or not _is_enough(options, rounds):
                say(f"round {len(rounds) + 1} of {options.rounds}: {wanted:,} documents")
                name = f"round_{len(rounds) + 1}"
                rounds.append(
                    _round(own, workers, reference, name, itertools.islice(texts, wanted), options.model, size, budget)
                )
        measured = {
            "device": worker["device"],
            "dtype": worker["dtype"],
            "runtime": worker["runtime"],
            "threads": threads,
        }
        return report(
            own,
            "encode",
            {**asdict(options), **measured, "rounds": len(rounds), "encode_batch_size": size, "forward_tokens": budget},
            list(_figures(rounds)),
            [
                ratios("worker_to_encode", [one.encode for one in rounds], [one.done.seconds for one in rounds]),
                ratios("worker_to_forward", [one.forward for one in rounds], [one.done.seconds for one in rounds]),
            ],
            [
                f"encode was fastest with a batch size of {size}",
                f"the forward pass had batches of {budget:,} tokens",
                f"each side was measured for at least {_least_seconds(rounds):.0f} s",
            ],
        )


def _arguments(options: Options, threads: int) -> list[str]:
    chosen = ["--device", options.device, "--dtype", options.dtype, "--runtime", options.runtime]
    chosen += ["--threads", str(threads)]
    return [*chosen, "--batch-tokens", str(options.batch_tokens)] if options.batch_tokens else chosen


def _torch_threads() -> int:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"bench encode ({error})", "worker") from error
    return int(torch.get_num_threads())


def _sample(own: Arena, workers: Fleet, options: Options, texts: Iterator[str]) -> _Sample:
    """Has the worker load the model and embed until a run lasts long enough to tell its speed."""
    count = min(_FIRST_DOCUMENTS, options.chunks or _FIRST_DOCUMENTS)
    part.of_texts(own, "warm", itertools.islice(texts, count), model=options.model).work(workers)
    while True:
        tried = part.of_texts(own, f"sample_{count}", itertools.islice(texts, count), model=options.model)
        done = tried.work(workers)
        if done.seconds >= _SAMPLE_SECONDS or options.chunks is not None:
            # Not all of them: each of the other sides' batch sizes is tried several times.
            some = math.ceil(done.chunks * min(1.0, _SAMPLE_SECONDS / done.seconds))
            return _Sample(count / done.seconds, done.chunks / count, tried.chunks()[:some])
        count *= 4


def _worker(workers: Fleet) -> dict[str, Any]:
    """Returns what the worker tells of itself, once a heartbeat has told where its model is."""
    workers.wait("the worker's heartbeat", _BEAT_SECONDS, lambda: workers.rows()[0]["device"] is not None)
    return workers.rows()[0]


def _documents_per_round(options: Options, sample: _Sample) -> int:
    if options.chunks is not None:
        return max(1, round(options.chunks / sample.chunks_per_document))
    return math.ceil(_SPARE * sample.documents_per_second * options.seconds / options.rounds)


def _round(
    own: Arena,
    workers: Fleet,
    reference: Reference,
    name: str,
    texts: Iterator[str],
    model: str,
    batch_size: int,
    batch_tokens: int,
) -> _Round:
    """Measures the three sides, one after the other, on the same chunks."""
    work = part.of_texts(own, name, texts, model=model)
    done = work.work(workers)
    told = workers.rows()[0]
    chunks = work.chunks()
    work.drop()
    encode = reference.encode(chunks, batch_size)
    ready = reference.prepare(chunks, batch_tokens)
    forward = reference.forward(ready)
    return _Round(
        done,
        encode,
        forward,
        told["busy"],
        told["padding"],
        reference.encode_padding(chunks, batch_size),
        ready.padding,
    )


def _is_enough(options: Options, rounds: list[_Round]) -> bool:
    return options.chunks is not None or _least_seconds(rounds) >= options.seconds


def _least_seconds(rounds: list[_Round]) -> float:
    return min(
        sum(one.done.seconds for one in rounds),
        sum(one.encode for one in rounds),
        sum(one.forward for one in rounds),
    )


def _figures(rounds: list[_Round]) -> Iterator[Figure]:
    yield Figure("worker_tokens_per_second", [one.done.tokens / one.done.seconds for one in rounds])
    yield Figure("encode_tokens_per_second", [one.done.tokens / one.encode for one in rounds])
    yield Figure("forward_tokens_per_second", [one.done.tokens / one.forward for one in rounds])
    yield Figure("worker_chunks_per_second", [one.done.chunks / one.done.seconds for one in rounds])
    yield Figure("encode_chunks_per_second", [one.done.chunks / one.encode for one in rounds])
    yield Figure("tokens_per_chunk", [one.done.tokens / one.done.chunks for one in rounds])
    yield Figure("encode_padding_share", [one.encode_padding for one in rounds])
    yield Figure("forward_padding_share", [one.forward_padding for one in rounds])
    busy = [one.busy for one in rounds if one.busy is not None]
    if busy:
        yield Figure("device_busy_share", busy)
    padding = [one.padding for one in rounds if one.padding is not None]
    if padding:
        yield Figure("worker_padding_share", padding)
