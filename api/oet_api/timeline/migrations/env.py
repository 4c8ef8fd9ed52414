"""Run the migrations on the connection that `oet_api.timeline.migrate` hands over. Alembic loads this file."""

from __future__ import annotations

from alembic import context

from oet_api.timeline.schema import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    version_table=context.config.attributes["version_table"],
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
