"""Live changes, deaths at a checkpoint, the world that a worker belongs to, and what was made in vain.

Revision ID: 0002
Revises: 0001
"""

from pgvec_queue.schema import run_migration

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    run_migration("0002_live_changes.sql")


def downgrade() -> None:
    raise NotImplementedError("drop the schema pgvec to remove everything but the destinations")
