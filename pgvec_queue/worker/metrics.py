"""A worker's measures as Prometheus's metrics, and whether it is well."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.metrics_core import Metric as Family

from pgvec_queue import __version__
from pgvec_queue.exposition import Families, Metric
from pgvec_queue.worker.lifecycle import Worker
from pgvec_queue.worker.measures import BATCH_BOUNDS, Counted, Look

STATES = ("starting", "idle", "loading", "working", "stopping")

_OF_VECTORIZERS = {
    "pgvec_worker_claims_total": ("claims", "Jobs claimed from the queue."),
    "pgvec_worker_steals_total": ("steals", "Jobs that are the rest of another worker's."),
    "pgvec_worker_writes_total": ("writes", "Write transactions that were committed, one per slice or part of one."),
    "pgvec_worker_slices_dropped_total": ("slices_dropped", "Slices that were read and not written here."),
    "pgvec_worker_rows_right_total": ("rows_right", "Rows made or found right; of live changes, those gained."),
    "pgvec_worker_rows_embedded_total": ("rows_embedded", "Rows whose vectors were written."),
    "pgvec_worker_rows_unchanged_total": (
        "rows_unchanged",
        "Rows found as they were when they were embedded, or blank.",
    ),
    "pgvec_worker_rows_wasted_total": ("rows_wasted", "Rows embedded whose vectors were thrown away."),
    "pgvec_worker_chunks_written_total": ("chunks_written", "Chunks written."),
    "pgvec_worker_chunks_kept_total": ("chunks_kept", "Chunks of changed documents that kept their vector."),
    "pgvec_worker_chunks_reused_total": ("chunks_reused", "Chunks that took the vector of an identical one."),
    "pgvec_worker_chunks_cached_total": ("chunks_cached", "Chunks whose vector the worker remembered."),
    "pgvec_worker_tokens_written_total": ("tokens", "Tokens of the chunks written, without padding."),
    "pgvec_worker_written_bytes_total": ("bytes_written", "Bytes of keys, chunks and vectors sent to destinations."),
}

METRICS = (
    Metric(
        "pgvec_worker_info",
        "gauge",
        "Always 1; says what the worker is. Device, dtype and runtime are empty until a model is loaded.",
        ("version", "device", "dtype", "runtime"),
    ),
    Metric("pgvec_worker_state", "gauge", "1 for the state in which the worker is, 0 for the others.", ("state",)),
    Metric(
        "pgvec_worker_last_beat_timestamp_seconds",
        "gauge",
        "When the last successful heartbeat began, by the worker's clock.",
    ),
    Metric("pgvec_worker_lease_seconds", "gauge", "Silence after which others take over the worker's jobs."),
    Metric("pgvec_worker_lease_losses_total", "counter", "How often the worker found its lease gone and began afresh."),
    Metric("pgvec_worker_jobs", "gauge", "Jobs in hand."),
    Metric("pgvec_worker_slices", "gauge", "Slices in hand, read and not yet written."),
    Metric("pgvec_worker_waits", "gauge", "Things that the worker waits for; pgvec workers says which."),
    *(Metric(name, "counter", text, ("vectorizer",)) for name, (_, text) in _OF_VECTORIZERS.items()),
    Metric(
        "pgvec_worker_documents_failed_total",
        "counter",
        "Documents put into quarantine; classes beyond the first fifty are called other.",
        ("vectorizer", "error_class"),
    ),
    Metric("pgvec_worker_chunks_embedded_total", "counter", "Chunks that the model was given."),
    Metric("pgvec_worker_cache_chunks", "gauge", "Vectors in the cache; missing while it is switched off."),
    Metric("pgvec_worker_cache_bytes", "gauge", "What they take; missing while it is switched off."),
    Metric("pgvec_worker_cache_lookups_total", "counter", "Chunks looked for in the cache."),
    Metric("pgvec_worker_cache_hits_total", "counter", "Chunks found there."),
    Metric("pgvec_worker_batch_tokens", "histogram", "Tokens of the batches that the model took, padding included."),
    Metric("pgvec_worker_padding_tokens_total", "counter", "Tokens of these batches that were padding."),
    Metric("pgvec_worker_padding_ratio", "gauge", "Share, 0 to 1, of all tokens computed so far that were padding."),
    Metric(
        "pgvec_worker_stage_seconds_total",
        "counter",
        "How each stage spent its time: working, starved (nothing to do), blocked (no room in the next stage), "
        "or held (by a limit, or before another try).",
        ("stage", "activity"),
    ),
    Metric(
        "pgvec_worker_device_busy_ratio",
        "gauge",
        "Share, 0 to 1, of the last minute with a job in hand in which the device worked.",
    ),
    Metric("pgvec_worker_device_memory_bytes", "gauge", "Memory of the device that the process holds, where known."),
    Metric("pgvec_worker_models", "gauge", "Models in memory."),
    Metric("pgvec_worker_model_memory_bytes", "gauge", "What the weights of these models take."),
    Metric("pgvec_worker_model_loads_total", "counter", "Models loaded."),
    Metric("pgvec_worker_peak_memory_bytes", "gauge", "The most resident memory that the process has had."),
)


class WorkerCollector:
    """Tells of one worker, at each scrape as it is then."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def collect(self) -> Iterator[Family]:
        families = Families(METRICS)
        look = self._worker.look()
        _add_look(families, look)
        families.add("pgvec_worker_last_beat_timestamp_seconds", self._worker.measures.beat_time)
        _add_counted(families, self._worker.measures.read())
        return iter(families)


def health(worker: Worker) -> tuple[bool, str]:
    """Returns whether the worker's last heartbeat is younger than its lease, and a line that says so, or why not."""
    look = worker.look()
    age = worker.measures.beat_age
    why = f": {worker.measures.beat_error}" if worker.measures.beat_error else ""
    if look.stalled is not None:
        return False, f"{look.stalled} does not come back; the worker is ending"
    if look.schema is not None:
        # Another start would not help.
        return True, look.schema
    if age is None:
        return False, f"there was no heartbeat yet; the worker is {look.activity}{why}"
    line = f"the last heartbeat was {age:.1f} s ago; the lease is {look.lease:g} s"
    return age < look.lease, f"{line}{why}"


def _add_look(families: Families, look: Look) -> None:
    families.add("pgvec_worker_info", 1, __version__, look.device or "", look.dtype or "", look.runtime or "")
    for state in STATES:
        families.add("pgvec_worker_state", state == look.activity, state)
    families.add("pgvec_worker_lease_seconds", look.lease)
    families.add("pgvec_worker_jobs", look.jobs)
    families.add("pgvec_worker_slices", look.slices)
    families.add("pgvec_worker_waits", look.waits)
    families.add("pgvec_worker_device_busy_ratio", look.busy)
    families.add("pgvec_worker_device_memory_bytes", look.device_bytes)
    families.add("pgvec_worker_models", look.models)
    families.add("pgvec_worker_cache_chunks", look.cache.chunks)
    families.add("pgvec_worker_cache_bytes", look.cache.bytes)
    families.add("pgvec_worker_cache_lookups_total", look.cache.lookups)
    families.add("pgvec_worker_cache_hits_total", look.cache.hits)
    families.add("pgvec_worker_model_memory_bytes", look.model_bytes)
    families.add("pgvec_worker_model_loads_total", look.loads)
    families.add("pgvec_worker_peak_memory_bytes", look.peak_memory)


def _add_counted(families: Families, counted: Counted) -> None:
    families.add("pgvec_worker_chunks_embedded_total", counted.chunks_embedded)
    families.add("pgvec_worker_lease_losses_total", counted.lease_losses)
    for vectorizer, tally in sorted(counted.tallies.items()):
        for name, (field, _) in _OF_VECTORIZERS.items():
            families.add(name, getattr(tally, field), vectorizer)
        for error_class, documents in sorted(tally.failures.items()):
            families.add("pgvec_worker_documents_failed_total", documents, vectorizer, error_class)
    families.add_histogram("pgvec_worker_batch_tokens", BATCH_BOUNDS, counted.batches, counted.batch_tokens)
    families.add("pgvec_worker_padding_tokens_total", counted.padding_tokens)
    if counted.batch_tokens:
        families.add("pgvec_worker_padding_ratio", counted.padding_tokens / counted.batch_tokens)
    for (stage, activity), seconds in counted.seconds.items():
        families.add("pgvec_worker_stage_seconds_total", seconds, stage, activity)
