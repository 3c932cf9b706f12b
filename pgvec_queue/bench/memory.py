"""``memory``: what a worker needs above its model, whatever the document, the job and the table.

One worker each, started for it alone: for a document of 10 MB, for a single job of many rows, and for a table of many
rows in jobs of 1,000. What is read is the peak of its resident memory; what the model takes is the same peak of a
process that has done nothing but load it and embed one text. The bar is 250 MB above that.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from pgvec_queue.bench import Say, part
from pgvec_queue.bench.database import Arena, Place, arena
from pgvec_queue.bench.fleet import fleet
from pgvec_queue.bench.part import Part
from pgvec_queue.bench.report import Figure, Report, report
from pgvec_queue.definition_options import Options as Definition
from pgvec_queue.embedders import ModelSpec
from pgvec_queue.errors import PgvecError

BAR = 250.0
"""MB above the model."""
_SENTENCE = "This is sentence {} of a document that does not end before it is as long as it was asked to be. "
_MB = 1_000_000

# Nothing of ours but the embedder: what a worker needs besides is not the model's.
_LOAD = """
import json, sys
from pgvec_queue import embedders, process
spec, options = json.loads(sys.argv[1])
embedders.load(embedders.ModelSpec(**spec), embedders.DeviceOptions(**options)).embed_query("one text")
print(process.peak_memory() or 0, flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True, slots=True)
class Options:
    """How much of everything."""

    model: str = "hashing-384"
    device: str = "cpu"
    document_bytes: int = 10_000_000
    job_rows: int = 100_000
    rows: int = 500_000
    rounds: int = 1


def run(place: Place, options: Options, say: Say) -> Report:
    """Measures in databases of its own."""
    cases: dict[str, Callable[[Arena], Part]] = {
        "document": lambda own: part.of_texts(
            own, "documents", [_document(options.document_bytes)], model=options.model
        ),
        "job": lambda own: part.of_rows(
            own, "documents", options.job_rows, model=options.model, rows_per_job=options.job_rows
        ),
        "table": lambda own: part.of_rows(own, "documents", options.rows, model=options.model),
    }
    spec = Definition(source="documents", model=options.model).spec
    model: list[float] = []
    above: dict[str, list[float]] = {case: [] for case in cases}
    for number in range(1, options.rounds + 1):
        model.append(_model_megabytes(spec, options.device))
        for case, make in cases.items():
            say(f"round {number} of {options.rounds}: a large {case}")
            above[case].append(_worker_megabytes(place, make, options.device) - model[-1])
    with arena(place) as own:
        return report(
            own,
            "memory",
            {**asdict(options), "bar_mb": BAR},
            [
                Figure("model_mb", model),
                *(Figure(f"{case}_mb_above_model", megabytes) for case, megabytes in above.items()),
            ],
            [Figure(f"{case}_to_bar", [one / BAR for one in megabytes]) for case, megabytes in above.items()],
        )


def _document(size: int) -> str:
    """Returns a text of so many bytes, no sentence of which comes twice."""
    sentences: list[str] = []
    length = 0
    while length < size:
        sentences.append(_SENTENCE.format(len(sentences)))
        length += len(sentences[-1])
    return "".join(sentences)[:size]


def _worker_megabytes(place: Place, make: Callable[[Arena], Part], device: str) -> float:
    """Returns the peak of one worker that did this and nothing else."""
    with arena(place) as own:
        work = make(own)
        with fleet(own, [("--device", device)]) as workers:
            work.work(workers)
            (worker,) = workers.rows()
            return _peak(worker["pid"], worker["memory_bytes"]) / _MB


def _peak(process: int, told: int | None) -> float:
    """Returns the peak of a process in bytes: as Linux says, elsewhere as the worker itself told when it last beat."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        if told is None:
            raise PgvecError("this system does not tell how much memory a process has held") from None
        return told
    lines = dict(line.split(":", 1) for line in status.splitlines())
    return float(lines["VmHWM"].split()[0]) * 1024


def _model_megabytes(spec: ModelSpec, device: str) -> float:
    """Returns the peak of a process that loads the model, embeds one text, and is otherwise idle."""
    argument = json.dumps([asdict(spec), {"device": device}])
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            [sys.executable, "-c", _LOAD, argument],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        told = process.stdout.readline()
        if not told:
            log.seek(0)
            lines = log.read().strip().splitlines()
            raise PgvecError(f"the model {spec.model} cannot be loaded: {lines[-1] if lines else 'it said nothing'}")
        megabytes = _peak(process.pid, int(told)) / _MB
        process.communicate()
    return megabytes
