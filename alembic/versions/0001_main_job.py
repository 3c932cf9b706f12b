"""Vectorizers, jobs, workers, counters, samples and failures.

Revision ID: 0001
Revises:
"""

from pgvec_queue.schema import run_migration

revision = "0001"
down_revision = None


def upgrade() -> None:
    run_migration("0001_main_job.sql")


def downgrade() -> None:
    raise NotImplementedError("drop the schema pgvec to remove everything but the destinations")
