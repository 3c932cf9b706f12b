"""The gateway: tokens, collections, tasks, and jobs that bound the device's batch.

Revision ID: 0006
Revises: 0005
"""

from pgvec_queue.schema import run_migration

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    run_migration("0006_gateway.sql")


def downgrade() -> None:
    raise NotImplementedError("drop the schema pgvec to remove everything but the destinations")
