"""How far an owner has read, what a worker's device does, and which vectorizers share a model.

Revision ID: 0003
Revises: 0002
"""

from pgvec_queue.schema import run_migration

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    run_migration("0003_measures.sql")


def downgrade() -> None:
    raise NotImplementedError("drop the schema pgvec to remove everything but the destinations")
