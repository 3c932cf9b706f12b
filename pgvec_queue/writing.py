"""Writes a slice: vectors and progress in one short READ COMMITTED transaction, after the model has run.

What it guarantees: a worker that lost its job writes nothing (the fence); the destination ends with the chunks of the
text as it is at the write, since every row of the slice is looked at again; rows that changed meanwhile are left
alone and queued as a list of keys. The steps and why each is there: docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from psycopg.types.json import Jsonb

from pgvec_queue.database import Connection, statement, transaction
from pgvec_queue.fragments import Fragments
from pgvec_queue.queue import Job, Key, Membership
from pgvec_queue.slices import Embedded, Fate, Plan, Slice, Written
from pgvec_queue.writing_column import write_column
from pgvec_queue.writing_table import write_table

KEYS_PER_JOB = 1_000
RETRY_LATER = 1.0
"""Seconds before rows are tried again that somebody else holds locked."""


def write(
    connection: Connection,
    fragments: Fragments,
    part: Slice,
    embedded: Sequence[Embedded],
    member: Membership,
    *,
    read_to: list[str] | None = None,
) -> Written:
    """Writes one slice and moves its job's checkpoint, all or nothing.

    ``embedded`` holds one entry per document of the slice, in its order. ``read_to`` tells others how far the job has
    been read, empty for all of it, where that is beyond the slice. Raises what psycopg raises; nothing is written then.
    """
    vectorizer = fragments.vectorizer
    job = part.job
    joins = "on" if vectorizer.destination_ordered else "off"
    with transaction(connection, statement_timeout=60, lock_timeout=10):
        if not _fence(connection, job, member):
            return Written(Fate.LOST, job)
        connection.execute(statement("reading", "local_settings"), {"joins": joins})
        if not vectorizer.into_column:
            lock = "lock_exclusive" if job.kind == "keys" else "lock_shared"
            connection.execute(statement("writing", lock), {"vectorizer": vectorizer.id})
        fragments.refuse_to_miss_rows(connection)
        if job.kind == "sweep":
            result = _sweep(connection, fragments, part)
            _record(connection, part, result, Plan(), member.worker, read_to)
            return result
        plan = _look_again(connection, fragments, part, embedded)
        result = Written(Fate.WRITTEN, job)
        skipped: list[Key] = []
        to_clear: list[Key] = []
        if vectorizer.into_column:
            skipped, to_clear = write_column(connection, fragments, part, plan, result)
        else:
            write_table(connection, fragments, part, plan, result)
        requeue = [*plan.requeue, *skipped]
        result.rows_embedded = len(plan.write) - len(skipped)
        result.rows_wasted = sum([item.vectors is not None for item in embedded]) - result.rows_embedded
        result.requeued = len(requeue)
        result.failed = len(plan.fail)
        result.quarantined = plan.fail
        result.error_classes = [item.failure.error_class for item in plan.fail if item.failure is not None]
        result.rows_right = plan.selected - len(requeue)
        result.rows_unchanged = max(plan.selected - len(plan.write) - len(plan.fail) - len(plan.requeue), 0)
        result.chunks_kept = sum([item.kept for item in plan.write])
        result.chunks_reused = sum([item.reused for item in plan.write])
        result.chunks_cached = sum([item.cached for item in plan.write])
        result.tokens = sum([chunk.tokens for item in plan.write for chunk in item.chunks])
        result.truncated = sum([item.truncated for item in plan.write])
        known = _keep_quarantine(connection, fragments, part, plan, member.worker)
        result.documents_gained = result.rows_embedded + result.failed - known - result.documents_lost
        _requeue(connection, job, requeue, expected=not _is_live(job), delay=RETRY_LATER if skipped else 0.0)
        # These are no rows that the totals wait for.
        _requeue(connection, job, to_clear, expected=False, delay=RETRY_LATER)
        _record(connection, part, result, plan, member.worker, read_to)
        return result


def cut(connection: Connection, fragments: Fragments, part: Slice, upper_key: list[str] | None) -> Slice:
    """Returns what is left of a range's slice when the bound of its job is ``upper_key`` now.

    It ends the job if it reached as far as that; what was read beyond it is not in it any more.
    """
    part = replace(part, job=replace(part.job, upper_key=upper_key), selected=None)
    ends = [list(document.key) for document in part.documents]
    if part.checkpoint is not None:
        ends.append(part.checkpoint)
    with transaction(connection, read_only=True):
        found = connection.execute(
            fragments.compose(
                "writing", "within", listed=fragments.listed(), listed_is_within=fragments.listed_is_within()
            ),
            {**fragments.key_lists(ends), "upper": upper_key},
        ).fetchall()
    documents = part.documents[: len(found)]
    if part.checkpoint is not None and len(found) == len(ends):
        return replace(part, last=part.checkpoint == upper_key)
    return replace(part, checkpoint=upper_key, last=True, documents=documents)


def count_waste(
    connection: Connection, vectorizer: int, embedded: Sequence[Embedded], member: Membership, *, refused: bool
) -> None:
    """Counts vectors that were made in vain; ``refused``: by a worker that had lost the job, as the fence found."""
    rows = sum(item.vectors is not None for item in embedded)
    if not rows and not refused:
        return
    with transaction(connection):
        connection.execute(
            statement("writing", "count_waste"),
            {"vectorizer": vectorizer, "worker": member.worker, "rows_wasted": rows, "refused": int(refused)},
        )


def _fence(connection: Connection, job: Job, member: Membership) -> bool:
    row = connection.execute(
        statement("writing", "fence"),
        {
            "id": job.id,
            "worker": member.worker,
            "world": member.world,
            "epoch": job.epoch,
            "checkpoint": job.checkpoint,
            "upper_key": job.upper_key,
        },
    ).fetchone()
    return row is not None


def _look_again(connection: Connection, fragments: Fragments, part: Slice, embedded: Sequence[Embedded]) -> Plan:
    """Step 3: reads the slice's rows once more, in a new statement, and sorts them by what has happened to them."""
    if part.job.kind == "keys":
        return _look_again_at_keys(connection, fragments, part, embedded)
    plan = _survey(connection, fragments, part, embedded)
    if plan is not None:
        return plan
    has_lower, has_upper = part.lower is not None, part.upper is not None
    bounds = {"lower": part.lower, "upper": part.upper}
    moved = {
        tuple(key): (hash_, blank, settled)
        for key, _, hash_, blank, settled in connection.execute(
            fragments.of_range(connection, "writing", "moved_in_range", lower=has_lower, upper=has_upper),
            {**bounds, "horizon": part.horizon},
        )
    }
    counted = connection.execute(
        fragments.of_range(connection, "writing", "count_and_gone", lower=has_lower, upper=has_upper),
        {
            **bounds,
            **fragments.key_lists([item.document.key for item in embedded]),
            "vectorizer": fragments.vectorizer.id,
        },
    ).fetchone()
    assert counted is not None
    selected, gone_positions, has_chunks, has_failures = counted
    gone = {embedded[i - 1].document.key for i in gone_positions}
    plan = Plan(selected=selected, has_chunks=has_chunks, has_failures=has_failures)
    for item in embedded:
        key = item.document.key
        now = moved.pop(key, None)
        if key in gone:
            plan.gone.append(key)
        elif now is not None and now[0] != item.document.hash:
            plan.requeue.append(key)
        else:
            (plan.fail if item.failure else plan.write).append(item)
    # What is left was not read: new rows, and rows that were settled then and are not now.
    plan.requeue.extend(key for key, (_, blank, settled) in moved.items() if not blank and not settled)
    return plan


def _survey(connection: Connection, fragments: Fragments, part: Slice, embedded: Sequence[Embedded]) -> Plan | None:
    """Returns the plan where every row is as it was read; None where something may have happened, or cannot be told.

    A row that is there now and has not moved was there when the slice was read. So where they are as many now as then,
    none is gone and none is new. That does not hold for a filter whose answer may change by itself.
    """
    vectorizer = fragments.vectorizer
    if part.selected is None or vectorizer.into_column or not (vectorizer.filter is None or vectorizer.sync):
        return None
    row = connection.execute(
        fragments.of_range(connection, "writing", "survey", lower=part.lower is not None, upper=part.upper is not None),
        {"lower": part.lower, "upper": part.upper, "horizon": part.horizon, "vectorizer": vectorizer.id},
    ).fetchone()
    assert row is not None
    selected, moved, has_chunks, has_failures = row
    if moved or selected != part.selected:
        return None
    plan = Plan(selected=selected, has_chunks=has_chunks, has_failures=has_failures)
    for item in embedded:
        (plan.fail if item.failure else plan.write).append(item)
    return plan


def _look_again_at_keys(
    connection: Connection, fragments: Fragments, part: Slice, embedded: Sequence[Embedded]
) -> Plan:
    read = {item.document.key: item for item in embedded}
    rows = connection.execute(
        fragments.compose(
            "writing", "present_keys", listed=fragments.listed(), listed_is_source=fragments.listed_is("s")
        ),
        fragments.key_lists(part.keys),
    ).fetchall()
    plan = Plan(selected=sum(1 for row in rows if row[1]))
    for ordinal, selected, xmin, hash_, blank, settled in rows:
        key = tuple(part.keys[ordinal - 1])
        item = read.get(key)
        if not selected or blank:
            plan.gone.append(key)
        elif item is None:
            if not settled:
                plan.requeue.append(key)
        elif (xmin is not None and xmin == item.document.xmin) or hash_ == item.document.hash:
            (plan.fail if item.failure else plan.write).append(item)
        else:
            plan.requeue.append(key)
    return plan


def _sweep(connection: Connection, fragments: Fragments, part: Slice) -> Written:
    """Deletes what no source row has; after the last part, quarantined documents whose row is gone leave as well."""
    vectorizer = fragments.vectorizer
    result = Written(Fate.WRITTEN, part.job)
    if not vectorizer.into_column:
        row = connection.execute(
            fragments.compose(
                "writing",
                "sweep",
                destination_scope=fragments.bounds("d", lower=part.lower is not None, upper=part.upper is not None),
                key_from_destination=fragments.source_key_from_destination(),
            ),
            {"lower": part.lower, "upper": part.upper},
        ).fetchone()
        assert row is not None
        result.chunks_deleted, result.documents_lost = row
    absolved = 0
    if part.last:
        absolved = connection.execute(
            fragments.compose("planner", "absolve_gone", key_is_failures=fragments.failures_key_is_source()),
            {"id": vectorizer.id},
        ).rowcount
    result.documents_gained = -result.documents_lost - absolved
    return result


def _keep_quarantine(connection: Connection, fragments: Fragments, part: Slice, plan: Plan, worker: int) -> int:
    """Adds what failed and lets go what did not; returns how many of the slice's documents had been there before."""
    vectorizer = fragments.vectorizer
    known = 0
    if not plan.fail and not plan.has_failures:
        return known
    for item in plan.fail:
        assert item.failure is not None
        row = connection.execute(
            statement("writing", "quarantine"),
            {
                "vectorizer": vectorizer.id,
                "key": list(item.document.key),
                "hash": item.document.hash,
                "error_class": item.failure.error_class,
                # PostgreSQL's text holds no NUL; an error's message may.
                "message": item.failure.message.replace("\0", "\ufffd"),
                "model": vectorizer.model,
            },
        ).fetchone()
        known += row is not None and row[0] > 1
    if plan.fail:
        _note_quarantined(connection, fragments, part, plan.fail, worker)
    settled = [list(item.document.key) for item in plan.write] + [list(key) for key in plan.gone]
    if settled:
        known += connection.execute(
            statement("writing", "absolve"), {"vectorizer": vectorizer.id, "keys": Jsonb(settled)}
        ).rowcount
    return known


def _note_quarantined(
    connection: Connection, fragments: Fragments, part: Slice, failed: Sequence[Embedded], worker: int
) -> None:
    first = failed[0]
    assert first.failure is not None
    others = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
    message = f"{', '.join(first.document.key)}{others}: {first.failure.error_class}"
    connection.execute(
        statement("writing", "note_quarantined"),
        {
            "vectorizer": fragments.vectorizer.id,
            "worker": worker,
            "job": part.job.id,
            "message": message.replace("\0", "\ufffd"),
        },
    )


def _requeue(connection: Connection, job: Job, keys: Sequence[Key], *, expected: bool, delay: float) -> None:
    for start in range(0, len(keys), KEYS_PER_JOB):
        some = [list(key) for key in keys[start : start + KEYS_PER_JOB]]
        connection.execute(
            statement("writing", "requeue"),
            {
                "vectorizer": job.vectorizer_id,
                "keys": Jsonb(some),
                "key_count": len(some),
                "rows": len(some) if expected else 0,
                "delay": delay,
                "batch_size": job.batch_size,
            },
        )


def _is_live(job: Job) -> bool:
    """Made by a trigger: the totals expect nothing of it, so what it changes is counted as it is found."""
    return job.merged == 0 if job.kind == "sweep" else job.kind == "keys" and job.rows == 0


def _record(
    connection: Connection, part: Slice, result: Written, plan: Plan, worker: int, read_to: list[str] | None
) -> None:
    """Step 5: checkpoint or end of the job, and the counters."""
    job = part.job
    seen = job.rows_seen + plan.selected - result.requeued
    # A job's planned rows become its real ones when it ends; rows left to a list of keys are planned there.
    adjusted = (seen - job.rows if part.last else 0) + result.requeued
    if _is_live(job):
        # A range that is still to come counts the row where it finds it.
        adjusted = result.rows_right = 0 if job.ranges_left else result.documents_gained
    elif job.kind == "sweep":
        adjusted = 0
    if part.last and job.kind == "keys":
        connection.execute(statement("writing", "finish_list"), {"id": job.id})
    else:
        connection.execute(
            statement("writing", "finish" if part.last else "checkpoint"),
            {
                "id": job.id,
                "checkpoint": part.checkpoint,
                "read_to": part.checkpoint if read_to is None else read_to,
                "rows_seen": seen,
                "alone": job.alone,
            },
        )
    numbers = {
        "vectorizer": job.vectorizer_id,
        "worker": worker,
        "rows_right": result.rows_right,
        "rows_embedded": result.rows_embedded,
        "rows_adjusted": adjusted,
        "rows_wasted": result.rows_wasted,
        "chunks_written": result.chunks_written,
        "chunks_deleted": result.chunks_deleted,
        "rows_unchanged": result.rows_unchanged,
        "chunks_kept": result.chunks_kept,
        "chunks_reused": result.chunks_reused,
        "chunks_cached": result.chunks_cached,
        "tokens": result.tokens,
        "truncated": result.truncated,
        # No plan counted these.
        "jobs_added": job.merged if part.last and job.kind == "keys" else int(part.last and job.merged == 0),
        "jobs_done": max(job.merged, 1) if part.last else 0,
        "bytes_written": result.bytes_written,
        "rows": result.rows_embedded if job.kind == "keys" else result.rows_right,
    }
    connection.execute(statement("writing", "count"), numbers)
    if numbers["rows"] or result.chunks_written:
        connection.execute(statement("writing", "sample"), numbers)
    result.job = replace(job, checkpoint=part.checkpoint, rows_seen=seen, attempts=0)
