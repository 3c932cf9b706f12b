"""Limits beside production, workers that are told to leave, events, and throughput for days.

Revision ID: 0005
Revises: 0004
"""

from pgvec_queue.schema import run_migration

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    run_migration("0005_steering.sql")


def downgrade() -> None:
    raise NotImplementedError("drop the schema pgvec to remove everything but the destinations")
