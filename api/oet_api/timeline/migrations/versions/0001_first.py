"""Make the tables of the timeline."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

__all__ = ["down_revision", "revision", "upgrade"]

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "oet_head",
        sa.Column("one", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("last_id", sa.BigInteger, nullable=False),
        sa.Column("namespace", sa.Text, nullable=False),
    )
    op.create_table(
        "oet_entries",
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("execution_uid", sa.Text, nullable=False),
        sa.Column("procedure_id", sa.BigInteger, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("seq", sa.BigInteger),
        sa.Column("time", sa.Double, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sa.UniqueConstraint("execution_uid", "source", "number", name="oet_entries_once"),
    )
    op.create_index("oet_entries_by_execution", "oet_entries", ["execution_uid", "id"])
    on_stream = sa.text("kind <> 'log'")
    op.create_index("oet_entries_on_stream", "oet_entries", ["id"], postgresql_where=on_stream, sqlite_where=on_stream)
    op.create_table(
        "oet_procedures",
        sa.Column("execution_uid", sa.Text, primary_key=True),
        sa.Column("procedure_id", sa.BigInteger, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("execution", sa.Text, nullable=False),
        sa.Column("ended_at", sa.Double),
        sa.Column("removed_at", sa.Double),
        sa.Column("origin", sa.Text),
        sa.Column("runner_seq", sa.BigInteger, nullable=False),
        sa.Column("runner_states", sa.Integer, nullable=False),
        sa.Column("log_bytes", sa.BigInteger, nullable=False),
        sa.Column("dropped", sa.BigInteger, nullable=False),
        sa.Column("is_runner_done", sa.Boolean, nullable=False),
        sa.Column("is_end_told", sa.Boolean, nullable=False),
    )
    op.create_index("oet_procedures_by_id", "oet_procedures", ["procedure_id"])
    op.create_index("oet_procedures_by_end", "oet_procedures", ["ended_at"])
