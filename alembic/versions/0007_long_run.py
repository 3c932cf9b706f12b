"""The long run: what is not embedded twice, indexes, another model, moving in.

Revision ID: 0007
Revises: 0006
"""

from pgvec_queue.schema import run_migration

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    run_migration("0007_long_run.sql")


def downgrade() -> None:
    raise NotImplementedError("drop the schema pgvec to remove everything but the destinations")
