"""The dialect beside SQLAlchemy's own suite: URLs, pools, and migrations with Alembic."""

import pytest
import sqlalchemy as sa
import sqljs_dbapi
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import exc
from sqlalchemy.engine import make_url
from sqljs_dbapi.dialect import SQLiteDialect_sqljs


def arguments(url: str):
    """What the driver is called with for a URL."""
    return SQLiteDialect_sqljs(dbapi=sqljs_dbapi).create_connect_args(make_url(url))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite+sqljs://", ([":memory:"], {})),
        ("sqlite+sqljs:///:memory:", ([":memory:"], {})),
        ("sqlite+sqljs:///name", (["name"], {})),
        (
            "sqlite+sqljs:///a.db?durability=commit&sync_interval=0.5&strict=true&timeout=2&mode=fail&key=k",
            (["a.db"], {"durability": "commit", "sync_interval": 0.5, "strict": True, "timeout": 2.0, "mode": "fail", "key": "k"}),
        ),
    ],
)
def test_urls(url, expected):
    assert tuple(arguments(url)) == expected
    assert make_url(url).get_dialect() is SQLiteDialect_sqljs


@pytest.mark.parametrize("url", ["sqlite+sqljs://host/name", "sqlite+sqljs:///name?durable=yes"])
def test_wrong_urls(url):
    with pytest.raises(exc.ArgumentError):
        arguments(url)


def test_connections_of_a_shared_database():
    engine = sa.create_engine("sqlite+sqljs:///file:shared?mode=memory&cache=shared&uri=true", poolclass=sa.pool.QueuePool)
    with engine.begin() as one:
        one.exec_driver_sql("CREATE TABLE t (x)")
        one.exec_driver_sql("INSERT INTO t VALUES (1)")
    with engine.connect() as one, engine.connect() as two:
        assert one.exec_driver_sql("SELECT x FROM t").scalar() == two.exec_driver_sql("SELECT x FROM t").scalar() == 1
    engine.dispose()


def test_errors_come_through():
    engine = sa.create_engine("sqlite+sqljs://")
    table = sa.Table("t", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String, unique=True))
    with engine.connect() as connection:
        table.create(connection)
        connection.execute(sa.insert(table), [{"id": 1, "name": "x"}])
        with pytest.raises(exc.IntegrityError) as caught:
            connection.execute(sa.insert(table), {"id": 2, "name": "x"})
        assert caught.value.orig.sqlite_errorname == "SQLITE_CONSTRAINT_UNIQUE"
        with pytest.raises(exc.OperationalError, match="no such table"):
            connection.exec_driver_sql("SELECT * FROM absent")
    engine.dispose()


@pytest.mark.parametrize("url", ["sqlite+sqljs://", "sqlite://"], ids=["sqljs", "sqlite3"])
def test_alembic_operations_and_batches(url):
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        operations = Operations(MigrationContext.configure(connection))
        operations.create_table(
            "t", sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String), sa.Column("old", sa.Float)
        )
        operations.create_index("i", "t", ["name"])
        operations.bulk_insert(sa.table("t", sa.column("name"), sa.column("old")), [{"name": "a", "old": 1.5}, {"name": "b", "old": None}])
        with operations.batch_alter_table("t", recreate="always") as batch:
            batch.alter_column("name", nullable=False, new_column_name="title")
            batch.drop_column("old")
            batch.add_column(sa.Column("kind", sa.String(10), server_default="x", nullable=False))
        assert connection.exec_driver_sql("SELECT id, title, kind FROM t").all() == [(1, "a", "x"), (2, "b", "x")]
        assert [column["name"] for column in sa.inspect(connection).get_columns("t")] == ["id", "title", "kind"]
        with operations.batch_alter_table("t") as batch:
            batch.create_unique_constraint("u", ["title"])
        assert [one["name"] for one in sa.inspect(connection).get_unique_constraints("t")] == ["u"]
        with operations.batch_alter_table("t") as batch:
            batch.drop_constraint("u", type_="unique")
            batch.alter_column("title", nullable=True, new_column_name="name")
        assert sa.inspect(connection).get_unique_constraints("t") == []
        assert {index["name"] for index in sa.inspect(connection).get_indexes("t")} == {"i"}
        operations.drop_table("t")
        assert sa.inspect(connection).get_table_names() == []
    engine.dispose()


def test_alembic_commands_go_up_and_down(tmp_path):
    """A history of revisions, by Alembic's own commands; the second is a batch."""
    from alembic import command
    from alembic.config import Config

    (tmp_path / "versions").mkdir()
    (tmp_path / "env.py").write_text(
        "from alembic import context\nconnection = context.config.attributes['connection']\n"
        "context.configure(connection=connection, render_as_batch=True, transaction_per_migration=True)\n"
        "with context.begin_transaction():\n    context.run_migrations()\n"
    )
    revision = (
        "revision = '{}'\ndown_revision = {}\nfrom alembic import op\n"
        "import sqlalchemy as sa\ndef upgrade():\n    {}\ndef downgrade():\n    {}\n"
    )
    (tmp_path / "versions" / "1.py").write_text(
        revision.format("1", None, "op.create_table('t', sa.Column('id', sa.Integer, primary_key=True))", "op.drop_table('t')")
    )
    up = "\n    with op.batch_alter_table('t', recreate='always') as batch: batch.add_column(sa.Column('x', sa.Text))"
    down = "\n    with op.batch_alter_table('t') as batch: batch.drop_column('x')"
    (tmp_path / "versions" / "2.py").write_text(revision.format("2", "'1'", up, down))
    config = Config()
    config.set_main_option("script_location", str(tmp_path))
    config.set_main_option("path_separator", "os")
    engine = sa.create_engine("sqlite+sqljs://")
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        found = []
        for step in (
            lambda: command.upgrade(config, "head"),
            lambda: command.downgrade(config, "1"),
            lambda: command.downgrade(config, "base"),
        ):
            step()
            inspector = sa.inspect(connection)
            found.append([column["name"] for column in inspector.get_columns("t")] if inspector.has_table("t") else None)
        assert found == [["id", "x"], ["id"], None]
    engine.dispose()
