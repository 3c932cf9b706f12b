"""The fleet: partitioned destinations, roles, versions side by side.

Revision ID: 0008
Revises: 0007
"""

from pgvec_queue.schema import run_migration

revision = "0008"
down_revision = "0007"
oldest_program = "0007"
"""Programs that are made for this revision or a later one work with the schema; see docs/upgrading.md."""


def upgrade() -> None:
    run_migration("0008_fleet.sql")


def downgrade() -> None:
    raise NotImplementedError("drop the schema pgvec to remove everything but the destinations")
