"""Alembic's entry point: runs revisions on the connection the library hands over, or on the database of `-x url=…`.

alembic upgrade head                      # swarm.db in this directory
alembic -x url=other.db upgrade head
"""

from alembic import context

from ruv_swarm_store import schema
from ruv_swarm_store.clock import system_clock
from ruv_swarm_store.engines import Options, connect
from ruv_swarm_store.migrations import journal_kept, record


def render(kind, item, autogen):
    """Puts this schema's own types and guards into a new revision's words."""
    if kind == "type" and isinstance(item, schema.Choice):
        return "sa.Text()"
    if kind == "type" and isinstance(item, (schema.Int64, schema.Json, schema.Real)):
        autogen.imports.add("from ruv_swarm_store import schema")
        return f"schema.{type(item).__name__}()"
    if kind == "check" and (dialect := item.info.get("dialect")):
        return f"sa.CheckConstraint({str(item.sqltext)!r}, name=op.f({item.name!r})).ddl_if(dialect={dialect!r})"
    return False


def number(migration, revision, directives):
    """Numbers revisions 0001, 0002, …: the number is also the version in schema_migrations."""
    for script in directives:
        script.rev_id = f"{int(revision[0] if revision else 0) + 1:04}"


def run(connection):
    clock = context.config.attributes.get("clock", system_clock)
    context.configure(
        connection=connection,
        target_metadata=schema.metadata,
        render_item=render,
        process_revision_directives=number,
        render_as_batch=connection.dialect.name == "sqlite",
        on_version_apply=lambda ctx, step, heads, run_args: record(ctx.connection, step, clock()),
    )
    with context.begin_transaction(), journal_kept(connection, clock):
        context.run_migrations()


handed_over = context.config.attributes.get("connection")
if handed_over is not None:
    run(handed_over)
elif context.is_offline_mode():
    raise SystemExit("Offline mode (--sql) is not supported: give the database to migrate with -x url=…")
else:
    engine = connect(context.get_x_argument(as_dictionary=True).get("url", "swarm.db"), Options())
    try:
        with engine.migration() as connection:
            run(connection)
    finally:
        engine.close()
