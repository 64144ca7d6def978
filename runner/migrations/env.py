"""Run by Alembic; the connection comes from runner/store.py, there is no alembic.ini."""

from alembic import context

from runner.schema import METADATA

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=METADATA, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
