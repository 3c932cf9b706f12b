"""Runs the migrations in one transaction, so that a failed one leaves nothing behind and two at once take turns."""

from pgvec_queue.schema import configure_and_run

configure_and_run()
