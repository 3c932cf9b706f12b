"""``python -m tests.guards``: takes out a guard after the other, in a copy, and sees the test about it turn red.

A guard is a piece of text of the program that is replaced once. What is not found any more is an error, so that this
list cannot rot in silence. Not a part of the test run: each guard costs a start of the test server.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_PARTS = ("pgvec_queue", "sql", "alembic", "tests", "benchmarks", "docs", "pyproject.toml")


@dataclass(frozen=True)
class Guard:
    """What stands where, what stands there without it, and the test that has to notice."""

    name: str
    file: str
    text: str
    without: str
    test: str


GUARDS = [
    Guard(
        "1: a write is one transaction",
        "pgvec_queue/database.py",
        "    doing = stage.get()\n    with connection.transaction():\n",
        "    doing = stage.get()\n    if True:\n",
        "tests/integration/test_invariants.py::test_1_together_or_not_at_all",
    ),
    Guard(
        "2: the second look at the source",
        "pgvec_queue/writing.py",
        "elif now is not None and now[0] != item.document.hash:",
        "elif False:",
        "tests/integration/test_invariants.py::test_2_right_when_idle",
    ),
    Guard(
        "2: rows that have gone since the read are missed in the count",
        "pgvec_queue/writing.py",
        "    if moved or selected != part.selected:\n",
        "    if moved:\n",
        "tests/integration/test_write_protocol.py::"
        "test_a_row_that_was_deleted_since_the_read_gets_no_vectors_and_loses_its_old_ones",
    ),
    Guard(
        "2: rows that have moved since the read are looked at",
        "pgvec_queue/writing.py",
        "    if moved or selected != part.selected:\n",
        "    if selected != part.selected:\n",
        "tests/integration/test_write_protocol.py::"
        "test_a_row_that_changed_since_the_read_is_left_alone_and_queued_by_its_key",
    ),
    Guard(
        "2: the lock between ranges and lists of keys",
        "pgvec_queue/writing.py",
        '            connection.execute(statement("writing", lock), {"vectorizer": vectorizer.id})\n',
        "",
        "tests/integration/test_write_protocol.py::test_a_list_of_keys_waits_for_a_range_that_is_being_written",
    ),
    Guard(
        "2: chunks of rows that are gone are deleted",
        "pgvec_queue/writing_table.py",
        "        result.chunks_deleted += _delete_orphans(connection, fragments, part)\n",
        "",
        "tests/integration/test_write_protocol.py::"
        "test_a_row_that_was_deleted_since_the_read_gets_no_vectors_and_loses_its_old_ones",
    ),
    Guard(
        "3: the fence",
        "pgvec_queue/writing.py",
        "if not _fence(connection, job, member):",
        "if False:",
        "tests/integration/test_invariants.py::test_3_fenced",
    ),
    Guard(
        "3: the epoch in the fence",
        "sql/writing.sql",
        "AND worker_id = %(worker)s AND epoch = %(epoch)s",
        "AND worker_id = %(worker)s AND %(epoch)s > 0",
        "tests/integration/test_write_protocol.py::test_an_old_epoch_of_the_same_worker_writes_nothing",
    ),
    Guard(
        "3: the world in the fence",
        "sql/writing.sql",
        "  AND pgvec.world() = %(world)s\nFOR NO KEY UPDATE;",
        "FOR NO KEY UPDATE;",
        "tests/integration/test_worlds.py::"
        "test_a_worker_from_before_a_restore_writes_nothing_into_the_restored_database",
    ),
    Guard(
        "3: a worker that was declared gone beats no more",
        "sql/queue.sql",
        "WHERE w.id = %(worker)s AND NOT w.gone AND pgvec.world()",
        "WHERE w.id = %(worker)s AND pgvec.world()",
        "tests/integration/test_worker.py::test_a_worker_that_was_declared_gone_starts_afresh_under_a_new_id",
    ),
    Guard(
        "3: the bound in the fence",
        "sql/writing.sql",
        "  AND upper_key IS NOT DISTINCT FROM %(upper_key)s::text[]\n",
        "",
        "tests/integration/test_stealing.py::test_the_owner_touches_nothing_of_what_was_stolen",
    ),
    Guard(
        "3: a theft compares how far the job was",
        "sql/stealing.sql",
        "      AND j.checkpoint IS NOT DISTINCT FROM %(checkpoint)s::text[]\n",
        "",
        "tests/integration/test_stealing.py::test_a_job_that_is_no_longer_as_it_was_seen_is_left_alone",
    ),
    Guard(
        "stealing: what was read beyond the new bound is dropped",
        "pgvec_queue/worker/writer.py",
        "            run.dropped |= part.last\n",
        "",
        "tests/integration/test_stealing.py::test_what_was_read_beyond_the_new_bound_is_dropped_and_counted_as_wasted",
    ),
    Guard(
        "turns: what was served longest ago",
        "sql/queue.sql",
        "coalesce((%(served)s::jsonb ->> v.id::text)::bigint, 0), v.id, k.rank",
        "v.id, k.rank",
        "tests/integration/test_turns.py::test_nothing_of_the_highest_priority_starves",
    ),
    Guard(
        "5: halving",
        "pgvec_queue/worker/embedding.py",
        "            if error.kind is not Kind.ROW:\n                raise\n            if len(documents) == 1:",
        "            raise\n            if len(documents) == 1:",
        "tests/integration/test_invariants.py::test_5_one_bad_row_costs_one_row",
    ),
    Guard(
        "6: jobs without a living worker return",
        "sql/queue.sql",
        "AND NOT EXISTS (SELECT FROM pgvec.workers w WHERE w.id = j.worker_id AND NOT w.gone)\n    ORDER BY j.id",
        "AND false\n    ORDER BY j.id",
        "tests/integration/test_invariants.py::test_6_nothing_is_stuck",
    ),
    Guard(
        "6: others are judged only after a lease of one's own",
        "pgvec_queue/worker/heartbeat.py",
        "now - self._unbroken_since >= self.lease and (overdue or now >= self._reclaim_at)",
        "True",
        "tests/integration/test_worker.py::test_a_worker_judges_nobody_before_its_own_heart_beat_for_a_lease",
    ),
    Guard(
        "6: a backend that waits for a lock sees its client die",
        "sql/database.sql",
        "set_config('client_connection_check_interval', '1s', true)",
        "NULL",
        "tests/integration/test_write_protocol.py::"
        "test_a_job_whose_dead_worker_was_waiting_for_a_lock_is_free_within_seconds",
    ),
    Guard(
        "7: whoever was told to leave is not counted",
        "sql/queue.sql",
        "w.state = 'stopping')",
        "w.state = 'never')",
        "tests/integration/test_poison.py::test_a_worker_that_dies_while_it_leaves_counts_no_attempt",
    ),
    Guard(
        "8: a list holds a thousand keys",
        "sql/sync.sql",
        "FROM pgvec_old pgvec_o FULL JOIN",
        "FROM pgvec_old pgvec_o CROSS JOIN (VALUES (1), (2)) twice FULL JOIN",
        "tests/integration/test_invariants.py::test_8_the_queue_grows_with_jobs_not_rows",
    ),
    Guard(
        "9: the database's clock at the moment",
        "sql/queue.sql",
        "beat_at < clock_timestamp() - lease",
        "beat_at < now() - lease",
        "tests/integration/test_invariants.py::test_9_the_database_s_clock_is_the_only_clock",
    ),
    Guard(
        "10: a slice is bounded by bytes",
        "pgvec_queue/worker/reader.py",
        "SLICE_BYTES = 8 * 1024 * 1024",
        "SLICE_BYTES = 8 * 1024 * 1024 * 1024",
        "tests/integration/test_invariants.py::test_10_memory_is_bounded",
    ),
    Guard(
        "sync: only what changes the text is queued",
        "sql/sync.sql",
        "OR {no_new} OR {changed}",
        "OR {no_new} OR true",
        "tests/integration/test_sync.py::test_what_changes_no_text_queues_nothing",
    ),
    Guard(
        "poison: a sick model quarantines nothing",
        "pgvec_queue/worker/writer.py",
        "if not self._embedded.add(vectorizer, fates) or not failed:",
        "if True:",
        "tests/integration/test_poison.py::test_a_model_that_fails_most_documents_is_sick_and_quarantines_none",
    ),
    Guard(
        "logs: no text of a document",
        "pgvec_queue/log.py",
        '        keys["error"] = hidden(str(keys["error"]), text)\n',
        "        pass\n",
        "tests/integration/test_logs.py::test_a_document_in_quarantine_is_named_with_its_error_and_without_its_text",
    ),
    Guard(
        "logs: no secret",
        "pgvec_queue/cli/logs.py",
        "return without_secrets(value, self._secrets)",
        "return value",
        "tests/unit/test_logs.py::test_a_line_masks_every_key",
    ),
    Guard(
        "logs: a closed terminal ends no worker",
        "pgvec_queue/cli/logs.py",
        "except (OSError, ValueError):",
        "except ZeroDivisionError:",
        "tests/integration/test_logs.py::test_a_worker_whose_lines_nobody_reads_any_more_goes_on",
    ),
    Guard(
        "doctor: what may not be looked at is a note",
        "pgvec_queue/doctor/__init__.py",
        "    except psycopg.Error as problem:\n        yield note(name",
        "    except ZeroDivisionError as problem:\n        yield note(name",
        "tests/integration/test_doctor.py::test_what_a_role_may_not_look_at_is_a_note",
    ),
    Guard(
        "6: what was claimed unheard goes back",
        "pgvec_queue/worker/reader.py",
        "            if time.monotonic() >= self._strays_at:\n",
        "            if False:\n",
        "tests/integration/test_watch.py::test_a_job_that_was_claimed_unheard_goes_back",
    ),
    Guard(
        "7: a pause gives back what is in hand",
        "pgvec_queue/worker/heartbeat.py",
        "                self._stopping[one] = now + _GRACE\n                self.state.stop_vectorizer(one)\n",
        "                self._stopping.clear()\n",
        "tests/integration/test_steering.py::test_a_pause_is_obeyed_by_workers_in_the_middle_of_their_jobs",
    ),
    Guard(
        "a limit on what is read is kept by all workers together",
        "pgvec_queue/worker/reader.py",
        "            if not self._pace.keep(run, len(part.documents)):\n",
        "            if False:\n",
        "tests/integration/test_steering.py::test_a_rate_is_kept_by_all_workers_together_and_live_changes_go_before",
    ),
    Guard(
        "a standby that is behind holds up the work",
        "pgvec_queue/worker/heartbeat.py",
        "self._lag_seconds is not None and self._lag_seconds > lag:",
        "False:",
        "tests/integration/test_steering.py::test_nothing_is_claimed_while_a_standby_is_far_behind",
    ),
    Guard(
        "slow commits hold up the work",
        "pgvec_queue/worker/heartbeat.py",
        "            elif commit is not None and taken > commit:\n",
        "            elif False:\n",
        "tests/integration/test_steering.py::test_nothing_is_claimed_while_commits_are_slow",
    ),
    Guard(
        "dry run: nothing can be written on its connection",
        "pgvec_queue/cli/enqueue.py",
        "        connection.read_only = True\n",
        "",
        "tests/integration/test_estimate.py::test_a_dry_run_works_where_nothing_can_be_written_at_all",
    ),
    Guard(
        "dry run: old statistics are found out",
        "pgvec_queue/estimate/survey.py",
        "if abs(seen - rows) > _BELIEVED * math.hypot(error, spread):",
        "if abs(seen - rows) < 0:",
        "tests/integration/test_estimate.py::test_old_statistics_are_found_out_by_the_sample",
    ),
    Guard(
        "dry run: what was never analyzed is counted",
        "pgvec_queue/estimate/survey.py",
        "return self.pages == 0 or (self.analyzed_pages > 0 and self.analyzed_rows >= 0)",
        "return True",
        "tests/integration/test_estimate.py::test_a_table_that_was_never_analyzed_is_counted",
    ),
    Guard(
        "dry run: more pages where they are unlike",
        "pgvec_queue/estimate/survey.py",
        "factor = (_error_of_sizes(clusters) / _SURE) ** 2",
        "factor = 0.0",
        "tests/integration/test_estimate.py::test_long_texts_that_stand_side_by_side_have_more_pages_read",
    ),
    Guard(
        "dry run: pages are units of the variance",
        "pgvec_queue/estimate/totals.py",
        "first = self._scale**2 * ",
        "first = 0.0 * ",
        "tests/unit/test_estimate_totals.py::test_intervals_hold_the_truth_nineteen_times_in_twenty",
    ),
    Guard(
        "dry run: a document stands for as many as its chance says",
        "pgvec_queue/estimate/totals.py",
        "self._weights = 1.0 / chances",
        "self._weights = np.full(len(chances), float((1.0 / chances).mean()) if len(chances) else 1.0)",
        "tests/unit/test_estimate_totals.py::"
        "test_small_documents_count_as_much_as_large_ones_however_seldom_they_are_drawn",
    ),
    Guard(
        "metrics: counters survive the loss of a lease",
        "pgvec_queue/worker/lifecycle.py",
        "State(self.measures)",
        "State()",
        "tests/integration/test_worker_metrics.py::test_counters_survive_the_loss_of_a_lease",
    ),
    Guard(
        "metrics: a scrape waits for the database no longer than it may",
        "pgvec_queue/metrics.py",
        "look.done.wait(self._patience)",
        "look.done.wait(20)",
        "tests/integration/test_exporter.py::test_a_scrape_has_its_answer_though_the_database_gives_none",
    ),
    Guard(
        "overview: what has not changed is not sent",
        "pgvec_queue/gateway/overview.py",
        "        if shown == self._shown:\n            return\n",
        "",
        "tests/gateway/test_overview.py::test_all_who_watch_share_a_look_and_hear_only_of_news",
    ),
    Guard(
        "overview: looks keep their distance",
        "pgvec_queue/gateway/overview.py",
        "await asyncio.sleep(max(self._next_at - time.monotonic(), 0))",
        "await asyncio.sleep(0)",
        "tests/gateway/test_overview.py::test_looks_keep_their_distance_however_often_pages_come_and_go",
    ),
    Guard(
        "overview: nobody watches, nothing is asked",
        "pgvec_queue/gateway/overview.py",
        "if not self._watchers or self._closed:",
        "if self._closed:",
        "tests/gateway/test_overview.py::test_nobody_watches_nothing_is_asked",
    ),
    Guard(
        "vectorizers: tables of the system are refused",
        "pgvec_queue/gateway/routes/definitions.py",
        "        if schema in _SYSTEM:",
        "        if False:",
        "tests/gateway/test_vectorizers.py::test_what_does_not_fit_is_refused_and_nothing_is_made",
    ),
    Guard(
        "vectorizers: models are those that are allowed",
        "pgvec_queue/gateway/routes/definitions.py",
        "    if wanted.model not in context.limits.models:",
        "    if False:",
        "tests/gateway/test_vectorizers.py::test_what_does_not_fit_is_refused_and_nothing_is_made",
    ),
    Guard(
        "vectorizers: a plan ends with its gateway",
        "pgvec_queue/gateway/plans.py",
        "            if self._stop.is_set():",
        "            if False:",
        "tests/gateway/test_vectorizers.py::test_a_plan_ends_with_its_gateway_and_goes_on_later",
    ),
    Guard(
        "page: control characters are written out",
        "pgvec_queue/gateway/static/dom.js",
        ".trim().replace(CONTROL, written);",
        ".trim();",
        "tests/browser/test_dashboard.py::test_what_is_hostile_stays_text",
    ),
    Guard(
        "page: only what is allowed to run runs",
        "pgvec_queue/gateway/routes/dashboard.py",
        "require-trusted-types-for 'script'; ",
        "",
        "tests/browser/test_dashboard.py::test_only_what_is_allowed_to_run_runs",
    ),
    Guard(
        "page: the focus stays while rows are updated",
        "pgvec_queue/gateway/static/dom.js",
        "const row = this.rows.get(key) ?? this.make(item);",
        "const row = this.make(item);",
        "tests/browser/test_dashboard.py::test_it_goes_on_live_and_nothing_jumps",
    ),
    Guard(
        "gateway: texts, jobs and task are one transaction",
        "pgvec_queue/tasks.py",
        "    async with async_transaction(connection, statement_timeout=60):\n        cursor",
        "    if True:\n        cursor",
        "tests/gateway/test_vectorize.py::test_a_broken_request_leaves_nothing",
    ),
    Guard(
        "gateway: a key belongs to one request",
        "pgvec_queue/tasks.py",
        "    if bytes(row[1]) != digest:\n",
        "    if False:\n",
        "tests/gateway/test_vectorize.py::test_a_key_makes_one_task",
    ),
    Guard(
        "gateway: a key makes one task of two at once",
        "sql/gateway.sql",
        "ON CONFLICT (token_id, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING\n",
        "",
        "tests/gateway/test_vectorize.py::test_keys_under_concurrency",
    ),
    Guard(
        "gateway: one default collection is made",
        "pgvec_queue/collections.py",
        '        connection.execute(statement("gateway", "creating"))\n',
        "",
        "tests/gateway/test_vectorize.py::test_first_requests_at_once_make_one_default_collection",
    ),
    Guard(
        "gateway: only allowed models",
        "pgvec_queue/gateway/routes/vectorize.py",
        "    if model not in gateway.limits.models:\n",
        "    if False:\n",
        "tests/gateway/test_vectorize.py::test_what_is_not_right_is_refused_and_nothing_is_stored",
    ),
    Guard(
        "gateway: a full queue takes no more",
        "pgvec_queue/gateway/pressure.py",
        "if known.rows and known.rows + texts > self._most:",
        "if False:",
        "tests/gateway/test_vectorize.py::test_a_full_queue_refuses_more",
    ),
    Guard(
        "gateway: a text without a chunk ends",
        "sql/gateway.sql",
        "WHEN idle.idle THEN 'skipped'",
        "WHEN false THEN 'skipped'",
        "tests/gateway/test_vectorize.py::test_a_text_of_which_no_job_is_left_does_not_keep_a_task_open",
    ),
    Guard(
        "gateway: the device's batch is bounded",
        "pgvec_queue/worker/embedding.py",
        "        if batch_size is None:\n",
        "        if True:\n",
        "tests/gateway/test_batch_size.py::test_the_embedder_is_given_no_more_chunks_at_a_time",
    ),
    Guard(
        "gateway: lists of other bounds stay apart at the claim",
        "sql/queue.sql",
        "\n                        AND batch_size IS NOT DISTINCT FROM first_batch_size)",
        ")",
        "tests/gateway/test_batch_size.py::test_lists_of_other_bounds_are_not_claimed_together",
    ),
    Guard(
        "gateway: slices of other bounds stay apart before the model",
        "pgvec_queue/worker/embedding.py",
        "alike and work.run.job.batch_size == window[0].run.job.batch_size",
        "alike",
        "tests/gateway/test_batch_size.py::test_jobs_side_by_side_keep_their_own_bounds",
    ),
    Guard(
        "gateway: what is queued again keeps its bound",
        "pgvec_queue/writing.py",
        '"batch_size": job.batch_size',
        '"batch_size": None',
        "tests/gateway/test_batch_size.py::test_a_text_that_changes_under_the_workers_hands_keeps_its_bound",
    ),
    Guard(
        "gateway: a bound that is none stops no user",
        "sql/sync.sql",
        "substring(current_setting('pgvec.batch_size', true) FROM '^[1-9][0-9]{{0,8}}$')::integer",
        "nullif(current_setting('pgvec.batch_size', true), '')::integer",
        "tests/gateway/test_batch_size.py::test_the_setting_is_the_transactions_own",
    ),
    Guard(
        "gateway: a cancelled task takes out its own texts only",
        "sql/gateway.sql",
        " AND s.xmin::text = w.xid\n",
        "\n",
        "tests/gateway/test_tasks.py::test_cancelling_takes_out_what_is_not_embedded",
    ),
    Guard(
        "gateway: what others wrote since supersedes",
        "sql/gateway.sql",
        "WHEN s.xid <> w.xid AND pgvec.source_hash(s.text) <> t.source_hash THEN",
        "WHEN false THEN",
        "tests/gateway/test_tasks.py::test_a_text_that_is_updated_or_deleted_first_is_superseded",
    ),
    Guard(
        "gateway: a result's page ends before what waits",
        "sql/gateway.sql",
        " AND t.ordinal < (SELECT ordinal FROM bound)",
        "",
        "tests/gateway/test_tasks.py::test_a_client_that_follows_a_running_task_gets_every_vector_once",
    ),
    Guard(
        "gateway: writers announce what they wrote",
        "pgvec_queue/worker/writer.py",
        "and not len(self._source):\n",
        "and False:\n",
        "tests/gateway/test_tasks.py::test_a_change_is_told_well_before_the_next_tick",
    ),
    Guard(
        "gateway: one look for all streams",
        "pgvec_queue/gateway/watch.py",
        "        if self._looking is None or self._looking.done():\n",
        "        if True:\n",
        "tests/gateway/test_tasks.py::test_one_look_serves_all_streams",
    ),
    Guard(
        "gateway: a collection is made whole or not at all",
        "pgvec_queue/collections.py",
        "    with transaction(connection, statement_timeout=60):\n        connection.execute(statement(",
        "    if True:\n        connection.execute(statement(",
        "tests/gateway/test_collections.py::test_what_cannot_be_is_refused",
    ),
    Guard(
        "gateway: a role may no more than its own",
        "pgvec_queue/gateway/auth.py",
        "        if not identity.may(role):",
        "        if False:",
        "tests/gateway/test_admission.py::test_a_role_may_what_those_below_it_may_and_no_more",
    ),
    Guard(
        "gateway: a revoked token ends",
        "sql/api_tokens.sql",
        "WHERE revoked_at IS NULL AND (expires_at",
        "WHERE (expires_at",
        "tests/gateway/test_admission.py::test_a_revoked_token_is_refused_within_seconds",
    ),
    Guard(
        "gateway: the name of another host",
        "pgvec_queue/gateway/admission.py",
        "        if host in self._access.hosts or",
        "        if True or",
        "tests/gateway/test_admission.py::test_another_name_is_refused_where_no_token_is_asked_for",
    ),
    Guard(
        "gateway: a body is bounded though it does not say so",
        "pgvec_queue/gateway/bodies.py",
        "            if len(body) + len(part) > self._limits.body_bytes:",
        "            if False:",
        "tests/gateway/test_bodies.py::test_a_body_that_is_too_large_is_refused_by_what_it_says_and_by_what_it_is",
    ),
    Guard(
        "gateway: the end of an answer waits for nobody",
        "pgvec_queue/gateway/connections.py",
        "            kernel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)\n",
        "",
        "tests/gateway/test_guards.py::test_the_end_of_an_answer_does_not_wait_for_the_client_to_acknowledge_its_beginning",
    ),
    Guard(
        "heartbeat: a beat that is cut off lets go of its row",
        "sql/database.sql",
        "set_config('idle_in_transaction_session_timeout', '5s', true);",
        "set_config('idle_in_transaction_session_timeout', '60s', true);",
        "tests/integration/test_worker.py"
        "::test_a_worker_that_is_cut_off_in_the_middle_of_a_beat_is_declared_gone_as_any_other",
    ),
    Guard(
        "gateway: only administrators pause",
        "pgvec_queue/gateway/routes/vectorizers.py",
        'requires("admin")',
        'requires("write")',
        "tests/gateway/test_admission.py::test_every_endpoint_asks_for_the_role_that_it_is_for",
    ),
    Guard(
        "gateway: streams end with it",
        "pgvec_queue/gateway/server.py",
        "        self._app.state.streams.end_all()\n",
        "",
        "tests/gateway/test_guards.py::test_streams_end_in_order_when_the_gateway_leaves",
    ),
    Guard(
        "twice: a cache belongs to one loaded model",
        "pgvec_queue/worker/cache.py",
        "if shelf is not None and shelf.owner() is embedder:",
        "if shelf is not None:",
        "tests/unit/test_cache.py::test_an_address_that_another_model_had_before_tells_nothing",
    ),
    Guard(
        "twice: what is no number is not remembered",
        "pgvec_queue/worker/cache.py",
        "            if np.isfinite(vectors).all():\n",
        "            if True:\n",
        "tests/unit/test_cache.py::test_a_call_with_what_is_no_number_is_not_remembered",
    ),
    Guard(
        "twice: a cache stays within its bytes",
        "pgvec_queue/worker/cache.py",
        "                self._make_room(shelf, len(places))\n",
        "",
        "tests/unit/test_cache.py::test_models_share_the_bytes_and_never_a_vector",
    ),
    Guard(
        "twice: what was used last is kept",
        "pgvec_queue/worker/cache.py",
        "            rows.move_to_end(key)\n",
        "",
        "tests/unit/test_cache.py::test_it_holds_the_texts_that_were_used_last_and_no_more_than_fit",
    ),
    Guard(
        "twice: a size that was given holds",
        "pgvec_queue/worker/cache.py",
        "        if not self._always:\n",
        "        if True:\n",
        "tests/unit/test_cache.py::test_a_size_that_was_given_holds_whether_it_pays_or_not",
    ),
    Guard(
        "twice: only chunks that this vectorizer made are kept",
        "pgvec_queue/fragments.py",
        "        if self.vectorizer.destination_created or roles.created_at is None:\n            return ours\n",
        "        if True:\n            return ours\n",
        "tests/integration/test_nothing_twice.py::test_nothing_is_kept_that_may_come_from_another_model",
    ),
    Guard(
        "twice: chunks without a hash are nobody's",
        "pgvec_queue/fragments.py",
        """ours = sql.SQL("{} IS NOT NULL").format(identifier("d", roles.source_hash))""",
        """ours = sql.SQL("true")""",
        "tests/integration/test_nothing_twice.py::test_nothing_is_kept_that_may_come_from_another_model",
    ),
    Guard(
        "twice: a template with columns keeps nothing",
        "pgvec_queue/fragments.py",
        " and not self.template_columns\n        return not self.vectorizer.into_column",
        "\n        return not self.vectorizer.into_column",
        "tests/integration/test_nothing_twice.py"
        "::test_where_the_text_does_not_tell_what_the_model_was_given_nothing_is_kept",
    ),
    Guard(
        "twice: old vectors are bounded",
        "sql/reading.sql",
        "LIMIT %(most)s;\n\n-- name: sweep_window",
        "LIMIT %(most)s + 1000;\n\n-- name: sweep_window",
        "tests/integration/test_nothing_twice.py::test_the_vectors_read_for_a_slice_are_bounded_and_the_rest_is_embedded",
    ),
    Guard(
        "twice: a first backfill looks for no old chunks",
        "pgvec_queue/reading.py",
        "if has_old and documents else Old()",
        "if fragments.keeps_vectors and documents else Old()",
        "tests/integration/test_nothing_twice.py::test_a_first_backfill_looks_for_no_old_chunks",
    ),
    Guard(
        "adopt: the vectors are those of the model",
        "pgvec_queue/adoption_check.py",
        "        if not misses:\n",
        "        if True:\n",
        "tests/integration/test_adoption.py::test_vectors_of_another_model_are_refused_and_nothing_is_changed",
    ),
    Guard(
        "adopt: the chunks are those of the present text",
        "pgvec_queue/adoption.py",
        "    if not covers(document, pieces, rules.dropped):\n",
        "    if False:\n",
        "tests/integration/test_adoption.py::test_only_what_is_not_of_the_present_text_is_made_anew",
    ),
    Guard(
        "adopt: no vector and no number is missing",
        "pgvec_queue/adoption.py",
        "    if not candidate.complete or (whole and candidate.pieces != 1):\n",
        "    if False:\n",
        "tests/integration/test_adoption.py::test_only_what_is_not_of_the_present_text_is_made_anew",
    ),
    Guard(
        "adopt: what the model does not read in full is made anew",
        "pgvec_queue/adoption.py",
        "            if tokens > most:\n",
        "            if False:\n",
        "tests/integration/test_adoption.py::test_chunks_that_the_model_does_not_read_in_full_are_made_anew",
    ),
    Guard(
        "adopt: a text that has changed since it was compared keeps no hash",
        "sql/adoption.sql",
        "    WHERE {selected} AND {hash} = u.pgvec_hash AND d.pgvec_unknown",
        "    WHERE {selected} AND d.pgvec_unknown",
        "tests/integration/test_adoption.py::test_a_row_that_changed_since_it_was_compared_is_left_alone",
    ),
    Guard(
        "adopt: chunks that have changed since they were compared keep no hash",
        "sql/adoption.sql",
        " AND d.pgvec_digest = u.pgvec_digest",
        "",
        "tests/integration/test_adoption.py::test_a_row_that_changed_since_it_was_compared_is_left_alone",
    ),
    Guard(
        "adopt: each chunk has text that the one before it has not",
        "pgvec_queue/covering.py",
        "            if starts[before] < at and fresh[before] < at + len(piece):\n",
        "            if starts[before] < at:\n",
        "tests/unit/test_covering.py::test_examples",
    ),
    Guard(
        "import-pgai: what waits in its queue is not believed",
        "sql/pgai.sql",
        "EXISTS (SELECT FROM {queue} q WHERE {same_key})",
        "false",
        "tests/integration/test_import_pgai.py::test_a_column_of_the_source_with_a_composite_key_is_taken_over",
    ),
    Guard(
        "uninstall: what others made of ours is kept",
        "pgvec_queue/uninstall.py",
        "    if dependents:\n",
        "    if False:\n",
        "tests/integration/test_uninstall.py::test_what_others_made_of_ours_is_named_and_kept",
    ),
    Guard(
        "uninstall: workers leave first",
        "pgvec_queue/cli/uninstall.py",
        "    if left and not anyway:\n",
        "    if False:\n",
        "tests/integration/test_uninstall.py::test_a_worker_that_stays_is_named",
    ),
    Guard(
        "model: a search whose vectorizer has gone is done again",
        "pgvec_queue/search.py",
        "            if now is None or now.id == found.id:\n                raise\n",
        "            raise\n",
        "tests/integration/test_model_migration.py::test_a_search_whose_vectors_go_while_its_query_is_embedded_is_done_again",
    ),
    Guard(
        "model: the same in an event loop",
        "pgvec_queue/search.py",
        "            if now.id == found.id:\n                raise\n",
        "            raise\n",
        "tests/integration/test_model_migration.py::test_in_an_event_loop_it_is_done_again_as_well",
    ),
    Guard(
        "model: the new one gives way to the one that is read",
        "sql/model_migration.sql",
        "SET priority = o.priority - 1,",
        "SET priority = o.priority,",
        "tests/integration/test_model_migration.py::test_a_second_vectorizer_is_made_beside_the_first_with_all_but_what_was_named",
    ),
    Guard(
        "model: a switch waits for tasks that are being written",
        "sql/control.sql",
        "        LOCK TABLE pgvec.tasks IN SHARE ROW EXCLUSIVE MODE;\n",
        "        NULL;\n",
        "tests/gateway/test_model_migration.py::test_a_task_that_is_being_written_moves_too",
    ),
    Guard(
        "model: tasks move along",
        "sql/control.sql",
        "    UPDATE pgvec.tasks SET vectorizer_id = to_id WHERE vectorizer_id = from_id;\n",
        "",
        "tests/gateway/test_model_migration.py::test_a_collection_moves_with_its_tasks",
    ),
    Guard(
        "model: a task belongs to what its collection is now",
        "sql/gateway.sql",
        "coalesce((SELECT c.vectorizer_id FROM pgvec.collections c WHERE c.name = %(collection)s), %(vectorizer)s)",
        "%(vectorizer)s",
        "tests/gateway/test_model_migration.py::test_a_task_belongs_to_what_its_collection_has_become_meanwhile",
    ),
    Guard(
        "model: what waits beside another is searched by its name alone",
        "sql/search.sql",
        "WHERE v.id = CASE WHEN m.switched_at IS NULL THEN m.new_id ELSE m.old_id END)",
        "WHERE false)",
        "tests/gateway/test_model_migration.py::test_searches_over_http_never_fail_and_never_mix",
    ),
    Guard(
        "model: pages of a result are of one model",
        "pgvec_queue/gateway/routes/tasks.py",
        "    if whose and found.vectorizer_id not in (0, whose):\n",
        "    if False:\n",
        "tests/gateway/test_model_migration.py::test_pages_of_one_result_are_of_one_model",
    ),
    Guard(
        "model: a collection goes with what waits beside it",
        "pgvec_queue/collections.py",
        "            _drop_partner(connection, vectorizer_id)\n",
        "",
        "tests/gateway/test_model_migration.py::test_a_collection_is_deleted_with_what_waits_beside_it",
    ),
    Guard(
        "model: what is not ready is not switched to",
        "pgvec_queue/cli/migrate_model.py",
        "        if against:\n",
        "        if False:\n",
        "tests/integration/test_model_migration.py::test_from_the_command_line",
    ),
    Guard(
        "model: only what waits can be dropped",
        "pgvec_queue/model_migration_end.py",
        "        if switched != (dropped.id == migration.old.id):\n",
        "        if False:\n",
        "tests/integration/test_model_migration.py::test_the_old_one_is_dropped_with_all_that_it_had",
    ),
    Guard(
        "model: code of another model is not trusted",
        "pgvec_queue/model_migration_begin.py",
        'kept |= dict.fromkeys(OF_THE_MODEL) | {"trust_remote_code": False}',
        "kept |= dict.fromkeys(OF_THE_MODEL)",
        "tests/integration/test_model_migration.py::test_what_belongs_to_the_model_goes_with_it",
    ),
    Guard(
        "model: what a limit has selected stays selected",
        "pgvec_queue/model_migration_begin.py",
        "if vectorizer.is_limited(connection, old.id) else None",
        "if False else None",
        "tests/integration/test_model_migration.py::test_what_a_limit_has_selected_stays_selected",
    ),
    Guard(
        "index: it is claimable when no range is queued",
        "sql/index.sql",
        "           ELSE NOT EXISTS (SELECT FROM pgvec.jobs r",
        "           ELSE true OR NOT EXISTS (SELECT FROM pgvec.jobs r",
        "tests/integration/test_index.py::test_it_is_claimable_when_no_range_is_unfinished",
    ),
    Guard(
        "index: nobody claims it while a range runs",
        "sql/index.sql",
        "AND r.state = 'running'\n                      AND r.kind IN ('range', 'sweep', 'index'))",
        "AND r.state = 'running'\n                      AND r.kind = 'index')",
        "tests/integration/test_index.py::test_it_is_claimable_when_no_range_is_unfinished",
    ),
    Guard(
        "index: one builder per table",
        "pgvec_queue/index_building.py",
        "                mine = bool(row and row[0])",
        "                mine = True",
        "tests/integration/test_index.py::test_whoever_waits_for_a_build_has_no_transaction_open",
    ),
    Guard(
        "index: a build that goes on is waited for",
        "pgvec_queue/index_building.py",
        "            if mine and not builds:\n",
        "            if True:\n",
        "tests/integration/test_index.py::test_a_worker_that_is_killed_leaves_a_build_that_the_next_waits_for",
    ),
    Guard(
        "index: what a build has left is dropped",
        "pgvec_queue/index_building.py",
        "    _drop_leftovers(connection, target, attendant)\n    there",
        "    there",
        "tests/integration/test_index.py::test_a_worker_that_is_told_to_leave_ends_the_build_and_leaves",
    ),
    Guard(
        "index: a build ends with its worker",
        "pgvec_queue/worker/indexing.py",
        "return self._run.stopped or self._state.stopping.is_set() or self._state.aborted.is_set()",
        "return self._run.stopped or self._state.aborted.is_set()",
        "tests/integration/test_index.py::test_a_worker_that_is_told_to_leave_ends_the_build_and_leaves",
    ),
    Guard(
        "index: a build ends with the lease",
        "pgvec_queue/worker/indexing.py",
        "return self._run.stopped or self._state.stopping.is_set() or self._state.aborted.is_set()",
        "return self._run.stopped or self._state.stopping.is_set()",
        "tests/integration/test_index.py::test_a_worker_that_lost_its_lease_ends_its_build",
    ),
    Guard(
        "index: a build ends when its vectorizer is stopped",
        "pgvec_queue/worker/heartbeat.py",
        "                self.state.stop_index(one)\n",
        "",
        "tests/integration/test_index.py::test_a_vectorizer_that_is_stopped_has_its_build_ended",
    ),
    Guard(
        "index: somebody's own is respected",
        "pgvec_queue/vector_index.py",
        "if one.valid and (not one.is_ours or one.fits(wish))",
        "if one.valid and one.is_ours and one.fits(wish)",
        "tests/integration/test_index.py::test_an_index_of_somebody_s_own_is_respected",
    ),
    Guard(
        "index: one without the right leaves it to others",
        "pgvec_queue/worker/indexing.py",
        "                if hindrance is not None:\n",
        "                if False:\n",
        "tests/integration/test_index.py::test_a_worker_that_may_not_leaves_it_to_one_that_may",
    ),
    Guard(
        "index: not through a pooler",
        "pgvec_queue/worker/indexing.py",
        "        if route.finds_pooler(connection):\n",
        "        if False:\n",
        "tests/integration/test_pgbouncer.py::test_an_index_is_left_to_workers_with_a_way_past_the_pooler",
    ),
    Guard(
        "index: what does not fit is refused",
        "pgvec_queue/index_room.py",
        "        if needed > TOO_LARGE * may and not wish.anyway:\n",
        "        if False:\n",
        "tests/unit/test_index_room.py::test_what_needs_four_times_as_much_is_refused_with_what_to_do",
    ),
    Guard(
        "index: the new one is valid before the old one goes",
        "pgvec_queue/index_building.py",
        "    old = [one for one in there if one.valid and one.is_ours]\n",
        "    old = [one for one in there if one.valid and one.is_ours]\n"
        "    for one in old:\n        drop(connection, one.label, attendant)\n",
        "tests/integration/test_index_command.py"
        "::test_another_definition_takes_the_place_of_the_old_one_when_it_is_valid",
    ),
    Guard(
        "search: what an index of halfvec finds is sorted by the vectors themselves",
        "sql/search_function.sql",
        "format('ORDER BY (met - 1) / %s, distance, met', depth)",
        "''",
        "tests/integration/test_search.py::test_vectors_that_halfvec_cannot_tell_apart_are_sorted_by_themselves",
    ),
    Guard(
        "gateway: a task does not wait for an index",
        "sql/gateway.sql",
        "j.state = 'queued' AND j.kind <> 'index'",
        "j.state = 'queued'",
        "tests/gateway/test_vectorize.py::test_a_text_of_which_no_job_is_left_does_not_keep_a_task_open",
    ),
    Guard(
        "recall: the query itself does not count",
        "pgvec_queue/recall.py",
        "    near = sum(score >= exact[-1] - _SAME for score in through) - itself\n",
        "    near = sum(score >= exact[-1] - _SAME for score in through)\n",
        "tests/unit/test_recall.py",
    ),
    Guard(
        "model: gateways load the new model before the switch",
        "pgvec_queue/gateway/preparing.py",
        "            await queries.keep(",
        "            set(",
        "tests/gateway/test_model_migration.py::test_the_new_model_is_loaded_before_anybody_switches",
    ),
    Guard(
        "model: models of a migration stay beside the others",
        "pgvec_queue/queries.py",
        "if spec not in self._kept]",
        "]",
        "tests/unit/test_queries.py::test_models_that_are_kept_are_loaded_ahead_and_stay_beside_the_others",
    ),
    Guard(
        "model: the new one is stored together with its migration",
        "pgvec_queue/model_migration_begin.py",
        "definition.define(connection, options, versions, also=begun)",
        "definition.define(connection, options, versions)",
        "tests/integration/test_model_migration.py::test_the_second_one_is_never_there_without_being_the_second",
    ),
    Guard(
        "moving: nothing of others in the schema goes with it",
        "pgvec_queue/uninstall.py",
        "    refuse(_foreign(connection))\n    sync",
        "    sync",
        "tests/integration/test_uninstall.py::test_what_others_made_in_the_schema_is_never_dropped",
    ),
    Guard(
        "moving: our schema takes no vectors",
        "pgvec_queue/destination_checks.py",
        'if schema == "pgvec":',
        "if False:",
        "tests/integration/test_destination.py::test_our_own_schema_takes_no_vectors_and_is_no_source",
    ),
    Guard(
        "moving: our schema is no source",
        "pgvec_queue/source_checks.py",
        'if source.schema == "pgvec":',
        "if False:",
        "tests/integration/test_destination.py::test_our_own_schema_takes_no_vectors_and_is_no_source",
    ),
    Guard(
        "moving: vectors are counted before their table is locked",
        "pgvec_queue/definition.py",
        """            with transaction(connection, statement_timeout=600, read_only=True):
                base = _count_chunks(connection, proposed)
        with transaction(connection, lock_timeout=5):
            destination.make(connection, where_to)
""",
        """            base = 0
        with transaction(connection, lock_timeout=5):
            destination.make(connection, where_to)
            base = _count_chunks(connection, proposed)
""",
        "tests/integration/test_adoption.py::test_nobody_waits_while_vectors_are_counted",
    ),
    Guard(
        "model: a column for the hash that was there before stays",
        "pgvec_queue/model_migration_end.py",
        "    if hash_ is None or (embedding, hash_) not in itertools.pairwise(names):",
        "    if hash_ is None:",
        "tests/integration/test_model_migration.py::test_a_column_that_took_the_hashes_and_was_there_before_stays",
    ),
    Guard(
        "model: another table of that name stays",
        "pgvec_queue/model_migration_end.py",
        "    if stranger is not None:",
        "    if False:",
        "tests/integration/test_model_migration.py::test_a_table_that_has_the_name_of_ours_by_now_stays",
    ),
    Guard(
        "model: the old destination is waited for before the source is locked",
        "pgvec_queue/model_migration_end.py",
        "            _lock_destination(connection, dropped)\n",
        "            pass\n",
        "tests/integration/test_model_migration.py::test_the_source_stays_readable_while_somebody_reads_the_old_vectors",
    ),
    Guard(
        "model: a deadlock is told like a lock",
        "pgvec_queue/locks.py",
        "NOT_HAD = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)",
        "NOT_HAD = (psycopg.errors.LockNotAvailable,)",
        "tests/integration/test_model_migration.py::test_deadlocks_are_told_like_locks",
    ),
    Guard(
        "model: all trigger functions are made anew when columns go",
        "pgvec_queue/model_migration_end.py",
        "                    sync.renew(connection, one)\n",
        "                    sync.renew(connection, one) if one.into_column else None\n",
        "tests/integration/test_model_migration.py::test_all_who_follow_a_source_go_on_when_its_old_columns_are_dropped",
    ),
    Guard(
        "model: columns that a filter reads stay",
        "pgvec_queue/model_migration_end.py",
        "    except DefinitionError as error:\n        return str(error)\n",
        "",
        "tests/integration/test_model_migration.py::test_columns_that_another_filter_reads_stay",
    ),
    Guard(
        "model: no chunks in a column",
        "pgvec_queue/model_migration_begin.py",
        "    _refuse_chunks(old, half_made, given)\n",
        "",
        "tests/integration/test_model_migration.py::test_a_column_takes_no_chunks",
    ),
    Guard(
        "model: columns of an existing table by their names",
        "pgvec_queue/model_migration_begin.py",
        "        options = replace(options, columns={})\n",
        "        pass\n",
        "tests/integration/test_model_migration.py::test_columns_of_an_existing_table_are_found_by_their_names",
    ),
    Guard(
        "model: an endpoint has an embedder of its own",
        "pgvec_queue/model_migration_begin.py",
        '(None if given.get("endpoint") is None else "openai")',
        "None",
        "tests/integration/test_model_migration.py::test_an_endpoint_is_that_of_its_own_embedder",
    ),
    Guard(
        "model: no endpoint for another embedder",
        "pgvec_queue/model_migration_begin.py",
        "    _refuse_for_others(options, given)\n",
        "",
        "tests/integration/test_model_migration.py::test_an_endpoint_is_that_of_its_own_embedder",
    ),
    Guard(
        "model: a percent sign in a destination's name",
        "pgvec_queue/model_report.py",
        'table.replace("%", "%%")',
        "table",
        "tests/integration/test_model_migration.py::test_a_percent_sign_is_a_part_of_a_name",
    ),
    Guard(
        "model: partitions that the new one does not follow",
        "pgvec_queue/model_report.py",
        "sync.uncovered(connection, migration.new) if migration.new.sync else []",
        "[]",
        "tests/integration/test_model_migration.py::test_a_partition_that_only_the_old_one_follows_is_told",
    ),
    Guard(
        "model: a collection stays what the gateway can read",
        "pgvec_queue/model_migration_begin.py",
        "    _refuse_for_collection(connection, old, half_made, options, into)\n",
        "",
        "tests/gateway/test_model_migration.py::test_what_a_collection_cannot_be_is_refused",
    ),
    Guard(
        "drop: waits as long as its caller says",
        "sql/control.sql",
        "    IF patient THEN\n        PERFORM set_config('lock_timeout', '5s', true);",
        "    IF true THEN\n        PERFORM set_config('lock_timeout', '5s', true);",
        "tests/integration/test_steering.py::test_a_drop_waits_for_locks_as_long_as_its_caller_says",
    ),
    Guard(
        "model: a task whose vectors go is read again",
        "pgvec_queue/tasks.py",
        "except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn):",
        "except ZeroDivisionError:",
        "tests/gateway/test_model_migration.py::test_a_task_whose_vectors_go_while_it_is_read_is_read_again",
    ),
    Guard(
        "index: nobody waits for one that is not wanted",
        "sql/queue.sql",
        "FROM pgvec.indexes i\nWHERE i.state <> 'unwanted'",
        "FROM pgvec.indexes i\nWHERE true",
        "tests/integration/test_index.py::test_a_job_of_what_is_not_wanted_any_more_holds_up_no_drain",
    ),
    Guard(
        "index: what somebody has ended is not begun anew",
        "pgvec_queue/worker/indexing.py",
        "if is_ended:",
        "if False:",
        "tests/integration/test_index.py::test_a_build_that_somebody_ends_is_not_begun_anew",
    ),
    Guard(
        "index: it costs three workers at most",
        "pgvec_queue/worker/indexing.py",
        "if run.attempts >= _TRIES and",
        "if False and",
        "tests/integration/test_index.py::test_a_build_that_costs_one_worker_after_the_other_is_refused",
    ),
    Guard(
        "index: a wish during a build has a job of its own",
        "sql/index.sql",
        "j.state = 'running' AND NOT %(anew)s",
        "j.state = 'running'",
        "tests/integration/test_index.py::test_a_wish_that_is_made_during_a_build_is_fulfilled_after_it",
    ),
    Guard(
        "index: what is left goes with its vectorizer",
        "pgvec_queue/worker/indexing.py",
        "            self._clear(connection, one)",
        "            pass",
        "tests/integration/test_index.py::test_what_a_build_leaves_goes_with_its_vectorizer",
    ),
    Guard(
        "docs: a command that fails is told",
        "tests/docs/running.py",
        "if ended.status not in (expected or {0}):",
        "if False:",
        "tests/docs/test_runner.py::test_a_command_that_fails_is_told",
    ),
    Guard(
        "docs: what a page shows has to be printed",
        "tests/docs/running.py",
        'if fence.mark("shown") is not None and',
        "if False and",
        "tests/docs/test_runner.py::test_output_that_is_not_printed_is_told",
    ),
    Guard(
        "docs: what HTTP refuses has failed",
        "tests/docs/running.py",
        "fail-with-body",
        "",
        "tests/docs/test_runner.py::test_what_http_refuses_has_failed",
    ),
    Guard(
        "docs: what a page starts has to leave in order",
        "tests/docs/running.py",
        "if ended.status not in (0, 130):",
        "if False:",
        "tests/docs/test_runner.py::test_what_serves_has_to_leave_in_order",
    ),
    Guard(
        "docs: each column of a view has a comment",
        "sql/views.sql",
        "COMMENT ON COLUMN pgvec.progress.name IS 'Its name';",
        "",
        "tests/docs/test_reference.py::test_all_that_the_reference_lists_has_a_description",
    ),
    Guard(
        "docs: each option has a description",
        "pgvec_queue/cli/verify.py",
        'help="One JSON object instead of text."',
        "help=None",
        "tests/docs/test_reference.py::test_all_that_the_reference_lists_has_a_description",
    ),
]


def main() -> int:
    """Prints a line per guard; returns 1 when a test stayed green without its guard, or a guard is not there."""
    chosen = [guard for guard in GUARDS if len(sys.argv) < 2 or any(word in guard.name for word in sys.argv[1:])]
    bad = 0
    for guard in chosen:
        with tempfile.TemporaryDirectory(prefix="pgvec-guard-") as directory:
            verdict, red = _without(guard, Path(directory))
        bad += not red
        print(f"{'red  ' if red else 'GREEN'} without {guard.name}\n      {guard.test.rpartition('::')[2]}: {verdict}")
    return 1 if bad else 0


def _without(guard: Guard, directory: Path) -> tuple[str, bool]:
    for part in _PARTS:
        source = _ROOT / part
        if source.is_dir():
            shutil.copytree(source, directory / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, directory / part)
    path = directory / guard.file
    before = path.read_text()
    if before.count(guard.text) < 1:
        return "the guard is not where this list says", False
    path.write_text(before.replace(guard.text, guard.without, 1))
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", guard.test],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(directory)},
        capture_output=True,
        text=True,
        check=False,
    )
    errors = re.findall(r"^E +(.+)$", ran.stdout, re.MULTILINE)
    return (errors[0][:150] if errors else ran.stdout.strip().splitlines()[-1]), ran.returncode == 1


if __name__ == "__main__":
    sys.exit(main())
