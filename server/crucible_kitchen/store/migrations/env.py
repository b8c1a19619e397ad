"""Alembic's entry: runs the migrations on the connection that the store lends."""

from alembic import context

from crucible_kitchen.store.tables import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
