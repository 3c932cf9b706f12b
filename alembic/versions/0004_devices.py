"""What computes on a worker's device, and how much of it is padding.

Revision ID: 0004
Revises: 0003
"""

from pgvec_queue.schema import run_migration

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    run_migration("0004_devices.sql")


def downgrade() -> None:
    raise NotImplementedError("drop the schema pgvec to remove everything but the destinations")
