"""The schema has one history: fresh, upgraded and described are the same, and what is applied is never edited."""

import asyncio
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import crew
import first_release
import pytest

from ruv_swarm_store import NewEvent, Store, TaskStatus, engines, migrations, schema
from ruv_swarm_store.engines import Engine, Options
from ruv_swarm_store.errors import SchemaMismatch, StoreError, Unavailable

HEAD = schema.REVISION
APPLIED = [(known.version, known.name, known.checksum) for known in migrations.available()]


def split(body: str) -> list[str]:
    """The parts of a CREATE TABLE's body, at its outermost commas."""
    parts, depth, quoted, start = [], 0, False, 0
    for index, letter in enumerate(body):
        quoted ^= letter == "'"
        depth += {"(": 1, ")": -1}.get(letter, 0) if not quoted else 0
        if letter == "," and depth == 0 and not quoted:
            parts.append(body[start:index])
            start = index + 1
    return [*parts, body[start:]]


def normal(sql: str) -> str:
    """DDL with white space folded and table constraints, whose order means nothing, sorted behind the columns."""
    sql = " ".join(sql.replace('"', "").split())
    if not (table := re.fullmatch(r"(CREATE TABLE \w+) ?\((.*)\)(.*)", sql)):
        return sql
    parts = [part.strip() for part in split(table[2])]
    constraints = sorted(part for part in parts if part.startswith(("CONSTRAINT", "CHECK", "UNIQUE", "FOREIGN", "PRIMARY")))
    columns = [part for part in parts if part not in constraints]
    return f"{table[1]} ({', '.join(columns + constraints)}){table[3].rstrip()}"


def ddl(path: Path) -> dict[str, str]:
    """The whole schema of a database file, normalised; Alembic's own table is none of ours."""
    connection = sqlite3.connect(path)
    try:
        rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT IN ('alembic_version')")
        return {name: normal(sql) for name, sql in rows if not name.startswith("sqlite_")}
    finally:
        connection.close()


def rows(path: Path, sql: str) -> list[tuple[object, ...]]:
    """What a query finds in a database file."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


def opened(path: Path) -> Engine:
    return engines.connect(path, Options())


@pytest.fixture
def described(tmp_path: Path) -> Path:
    """A database made by `create_all`."""
    path = tmp_path / "described.db"
    engine = opened(path)
    with engine.migration() as connection:
        schema.metadata.create_all(connection)
    engine.close()
    return path


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A database made by opening a store."""
    path = tmp_path / "fresh.db"
    Store.open(path).close()
    return path


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The migration scripts, copied to where a test may change them."""
    copy = tmp_path / "alembic"
    shutil.copytree(migrations.scripts(), copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(migrations, "_PACKAGED", copy)
    return copy


def after(revision: str) -> str:
    """The number of the revision that comes next."""
    return f"{int(revision) + 1:04}"


def add_revision(scripts: Path, name: str, upgrade: str, downgrade: str = "pass") -> str:
    """Adds a revision above the newest to copied scripts."""
    path = scripts / "versions" / f"{after(HEAD)}_{name}.py"
    path.write_text(
        f'''
import sqlalchemy as sa
from alembic import op

revision = "{after(HEAD)}"
down_revision = "{HEAD}"


def upgrade():
    {upgrade}


def downgrade():
    {downgrade}
'''
    )
    return after(HEAD)


def test_fresh_and_described_schemas_are_the_same(fresh: Path, described: Path) -> None:
    assert ddl(fresh) == ddl(described)


def test_an_upgraded_schema_is_the_same(tmp_path: Path, described: Path, fresh: Path) -> None:
    path = tmp_path / "upgraded.db"
    engine = opened(path)
    for target in [known.id for known in migrations.available()]:
        migrations.upgrade(engine, target)
    migrations.downgrade(engine, "-1")
    migrations.upgrade(engine)
    engine.close()
    assert ddl(path) == ddl(described)
    # Where nothing was upgraded, Alembic's own table is as Alembic would have made it.
    [(upgraded,)], [(made,)] = (rows(p, "SELECT sql FROM sqlite_master WHERE name = 'alembic_version'") for p in (path, fresh))
    assert normal(upgraded) == normal(made)
    assert rows(path, "SELECT * FROM alembic_version") == rows(fresh, "SELECT * FROM alembic_version")


@pytest.mark.parametrize(
    "change",
    [
        "DROP INDEX ix_tasks_ready; CREATE INDEX ix_tasks_ready ON tasks (priority, position) WHERE status = 'pending'",
        "DROP INDEX ix_tasks_ready; CREATE INDEX ix_tasks_ready ON tasks (priority DESC, position) WHERE status = 'blocked'",
        "DROP TRIGGER events_no_update",
        "ALTER TABLE agents ADD COLUMN more TEXT",
        "DROP TABLE message_cursors",
    ],
)
def test_the_comparison_notices(fresh: Path, described: Path, change: str) -> None:
    connection = sqlite3.connect(fresh)
    connection.executescript(change)
    connection.close()
    assert ddl(fresh) != ddl(described)


def test_a_changed_check_is_noticed() -> None:
    one = "CREATE TABLE t (a INTEGER, b TEXT, CONSTRAINT x CHECK (a IN (1, 2)), CONSTRAINT y UNIQUE (b)) STRICT"
    reordered = "CREATE TABLE t (a INTEGER,\n b TEXT, CONSTRAINT y UNIQUE (b), CONSTRAINT x CHECK (a IN (1, 2))) STRICT"
    assert normal(one) == normal(reordered)
    assert normal(one) != normal(one.replace("(1, 2)", "(1, 3)"))
    assert normal(one) != normal("CREATE TABLE t (b TEXT, a INTEGER, CONSTRAINT x CHECK (a IN (1, 2)), CONSTRAINT y UNIQUE (b)) STRICT")


THEIRS = {
    "CREATE TABLE tasks (id INTEGER); CREATE TABLE other (a INTEGER)": ["tasks"],
    "CREATE VIEW agents AS SELECT 1": ["agents"],
    f"CREATE TABLE alembic_version (version_num VARCHAR(32)); INSERT INTO alembic_version VALUES ('{HEAD}')": ["alembic_version"],
    "CREATE TABLE alembic_version (version_num VARCHAR(32)); INSERT INTO alembic_version VALUES ('abcd')": ["alembic_version"],
    "CREATE TABLE schema_migrations (version TEXT); CREATE TABLE posts (id INTEGER)": ["schema_migrations"],
}
"""How other programs' databases are made, and which of their tables are in the way."""


@pytest.mark.parametrize("script", THEIRS)
def test_another_program_s_database_is_refused_and_left_as_it_is(tmp_path: Path, script: str) -> None:
    path = tmp_path / "theirs.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)
    before = path.read_bytes()
    for options in ({}, {"migrate": False}, {"read_only": True}):
        with pytest.raises(SchemaMismatch, match=r"another program's tables.*Name another file") as caught:
            Store.open(path, **options)
        assert caught.value.data == {"tables": THEIRS[script]}
    engine = opened(path)
    for migrate in (migrations.upgrade, lambda engine: migrations.downgrade(engine, "base")):
        with pytest.raises(SchemaMismatch, match="another program's tables"):
            migrate(engine)
    engine.close()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("script", THEIRS)
def test_another_program_s_tables_on_a_server_are_refused_and_left_as_they_are(postgresql: Any, script: str) -> None:
    address = postgresql.new(absent=True)
    with postgresql.connect(address) as connection:
        if "schema=" in address:
            connection.execute("CREATE SCHEMA IF NOT EXISTS " + address.rpartition("schema=")[2])
        connection.execute(script)
        connection.commit()
        for migrate in (True, False):
            with pytest.raises(SchemaMismatch, match=r"another program's tables.*\?schema=") as caught:
                Store.open(address, migrate=migrate)
            assert caught.value.data == {"tables": THEIRS[script]}
        found = connection.execute("SELECT relname FROM pg_class WHERE relkind IN ('r', 'v') AND relname IN ('events', 'swarm_config')")
        assert not found.fetchall()
    postgresql.drop(address)


def test_what_shares_another_program_s_database_is_in_wal_mode_too(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (a)")
    before = path.read_bytes()
    with pytest.raises(SchemaMismatch, match="no schema of this store"):
        Store.open(path, migrate=False)
    assert path.read_bytes() == before
    with Store.open(path) as store:
        store.config.set("k", 1)
        assert rows(path, "PRAGMA journal_mode") == [("wal",)]
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")  # a store that somebody has taken out of it
    with Store.open(path, migrate=False) as store:
        assert store.config.get("k") == 1
        assert rows(path, "PRAGMA journal_mode") == [("wal",)]


def test_a_user_without_the_right_to_make_tables_is_told(postgresql: Any) -> None:
    import psycopg

    address = postgresql.new(absent=True)
    weak = f"ruv_swarm_weak_{os.getpid()}"
    with postgresql.connect(address) as connection:
        try:
            connection.execute(f"CREATE ROLE {weak}")
        except psycopg.errors.InsufficientPrivilege:
            pytest.skip("the database's user may not make another")
        try:
            if "schema=" not in address:
                connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")  # as it is from PostgreSQL 15 on
            with pytest.raises(StoreError, match="permission denied") as caught:
                Store.open(f"{address}&options=-crole%3D{weak}")
        finally:
            connection.execute(f"DROP ROLE {weak}")
    assert "Grant this user the rights" in str(caught.value.hint)
    assert "CREATE TABLE" not in str(caught.value)
    postgresql.drop(address)


def test_what_is_applied_is_on_record(fresh: Path) -> None:
    engine = opened(fresh)
    recorded = migrations.history(engine)
    engine.close()
    assert [applied.id for applied in recorded] == [known.id for known in migrations.available()]
    assert recorded[-1].id == schema.REVISION
    assert all(applied.applied_at for applied in recorded)
    assert rows(fresh, "SELECT version, name, checksum FROM schema_migrations ORDER BY version") == APPLIED
    assert APPLIED[0][:2] == (1, "initial")


# A store of an earlier release


@pytest.fixture
def first(path: Path) -> Path:
    """A database as the first release left it, with something in every table it wrote to."""
    engine = opened(path)
    migrations.upgrade(engine, first_release.REVISION)
    with engine.migration() as connection:
        for insert in first_release.ROWS:
            connection.exec_driver_sql(insert)
    engine.close()
    return path


Contents = dict[str, list[dict[str, object]]]


def contents(path: Path, like: Contents | None = None) -> Contents:
    """Every row of the tables the first release wrote to; only in the columns that `like` has, if given."""
    found = {}
    with closing(sqlite3.connect(path)) as connection:
        for table in [insert.split()[2] for insert in first_release.ROWS]:
            cursor = connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2")
            names = [column[0] for column in cursor.description]
            wanted = names if like is None else list(like[table][0])
            found[table] = [{name: row[names.index(name)] for name in wanted} for row in cursor]
    return found


def test_a_store_of_the_first_release_is_upgraded_with_all_it_holds(first: Path, described: Path) -> None:
    before = contents(first)
    assert all(before.values())
    Store.open(first).close()
    assert ddl(first) == ddl(described)
    assert contents(first, before) == before
    assert dict(rows(first, "SELECT id, awaited FROM tasks")) == first_release.AWAITED
    engine = opened(first)
    assert migrations.current(engine) == HEAD
    assert engine.check() == []
    migrations.downgrade(engine, first_release.REVISION)
    assert contents(first) == before
    assert rows(first, "SELECT version FROM schema_migrations") == [(1,)]
    migrations.upgrade(engine)
    engine.close()
    assert contents(first, before) == before
    assert dict(rows(first, "SELECT id, awaited FROM tasks")) == first_release.AWAITED


def test_work_goes_on_in_an_upgraded_store(first: Path) -> None:
    with Store.open(first) as store:
        assert [task.id for task in store.tasks.find_all()] == list(first_release.AWAITED)
        done = store.tasks.complete(store.tasks.get("t-2"), {"links": 0})  # under the lease taken before the upgrade
        assert done.status is TaskStatus.COMPLETED
        assert store.tasks.get("t-3").status is TaskStatus.PENDING
        assert [task.id for task in store.tasks.claim_many("a-2", 9, types=["parse"])] == ["t-4", "t-3"]
        assert store.tasks.failures("t-5")[0].error_message == "once"
        assert [message.id for message in store.messages.receive("a-2")] == ["m-2", "m-3"]
        assert [member.role for member in store.groups.members("g-1")] == ["lead", None]
        assert store.events.append("t-1", [NewEvent("seen")], type="task", expected_version=2) == 3
        assert store.metrics.aggregate("latency_ms")[0].sum == 19.75
        assert store.config.entry("topology").version == 3


def test_processes_that_open_an_earlier_store_at_once_upgrade_it_once(first: Path, described: Path) -> None:
    before = contents(first)
    assert crew.in_processes(4, crew.open_new, str(first)) == [[]] * 4
    assert ddl(first) == ddl(described)
    assert rows(first, "SELECT version, name, checksum FROM schema_migrations ORDER BY version") == APPLIED
    assert rows(first, "SELECT version_num FROM alembic_version") == [(HEAD,)]
    found = contents(first, before)
    for table in set(before) - {"agents", "message_cursors"}:  # each process has registered an agent
        assert found[table] == before[table]
    assert [agent for agent in found["agents"] if agent in before["agents"]] == before["agents"]


def test_everything_can_be_taken_down_and_put_up_again(fresh: Path) -> None:
    engine = opened(fresh)
    migrations.downgrade(engine, "base")
    assert migrations.current(engine) is None
    assert engine.tables() - {"sqlite_sequence"} == {"alembic_version"}
    migrations.upgrade(engine)
    assert migrations.current(engine) == schema.REVISION
    engine.close()


def test_data_survives_a_newer_revision_down_and_up(fresh: Path, copied: Path) -> None:
    with Store.open(fresh) as store:
        agent = store.agents.register("a", name="n")
    newest = add_revision(copied, "more", 'op.add_column("agents", sa.Column("more", sa.Text()))', 'op.drop_column("agents", "more")')
    engine = opened(fresh)
    migrations.upgrade(engine)
    assert migrations.current(engine) == newest
    migrations.downgrade(engine, "-1")
    migrations.upgrade(engine)
    migrations.downgrade(engine, HEAD)
    engine.close()
    with Store.open(fresh) as store:
        assert store.agents.find_all() == [agent]


def test_rebuilding_a_parent_table_keeps_its_children(fresh: Path, copied: Path) -> None:
    with Store.open(fresh) as store:
        agents = [store.agents.register("a") for _ in range(100)]
        group = store.groups.create("g")
        for agent in agents:
            store.groups.join(group, agent)  # ON DELETE CASCADE from agents
            store.tasks.enqueue("t")
            store.tasks.claim(agent)
    rebuild = 'with op.batch_alter_table("agents", recreate="always") as table: table.add_column(sa.Column("more", sa.Text()))'
    add_revision(copied, "rebuild", rebuild)
    engine = opened(fresh)
    migrations.upgrade(engine)
    assert engine.check() == []
    engine.close()
    connection = sqlite3.connect(fresh)
    assert connection.execute("SELECT count(*) FROM agent_group_members").fetchone() == (100,)
    assert connection.execute("SELECT count(*) FROM tasks WHERE agent_id IS NOT NULL").fetchone() == (100,)
    assert "more" in [name for _, name, *_ in connection.execute("PRAGMA table_info(agents)")]
    connection.close()


def test_a_revision_that_fails_leaves_nothing_behind(fresh: Path, copied: Path) -> None:
    before = ddl(fresh)
    add_revision(copied, "broken", 'op.create_table("half", sa.Column("x", sa.Text())); op.execute("SELECT nonsense FROM nowhere")')
    engine = opened(fresh)
    with pytest.raises(Exception, match="nowhere"):
        migrations.upgrade(engine)
    assert migrations.current(engine) == HEAD
    engine.close()
    assert ddl(fresh) == before
    assert rows(fresh, "SELECT version, name, checksum FROM schema_migrations ORDER BY version") == APPLIED


def test_a_revision_that_leaves_dangling_references_is_rolled_back(fresh: Path, copied: Path) -> None:
    with Store.open(fresh) as store:
        agent = store.agents.register("a")
        store.groups.join(store.groups.create("g"), agent)
    add_revision(copied, "orphans", 'op.execute("DELETE FROM agents")')
    engine = opened(fresh)
    with pytest.raises(StoreError, match="dangling"):
        migrations.upgrade(engine)
    engine.close()
    with Store.open(fresh, migrate=False) as store:
        assert store.agents.exists(agent)


@pytest.mark.parametrize("edited", migrations.available(), ids=lambda known: known.id)
def test_an_edited_revision_is_refused(fresh: Path, copied: Path, edited: migrations.Revision) -> None:
    script = copied / "versions" / f"{edited.id}_{edited.name}.py"
    script.write_text(script.read_text() + "# a harmless remark\n")
    with pytest.raises(SchemaMismatch, match=rf"{edited.id}.*edited") as caught:
        Store.open(fresh)
    assert caught.value.data == {"revision": edited.id}
    with pytest.raises(SchemaMismatch, match="edited"):
        Store.open(fresh, read_only=True)


def test_line_endings_are_no_edit(fresh: Path, copied: Path) -> None:
    script = copied / "versions" / "0001_initial.py"
    script.write_bytes(script.read_bytes().replace(b"\n", b"\r\n"))
    Store.open(fresh).close()


@pytest.mark.parametrize("newer", ["0099", "deadbeef"])
def test_a_newer_database_is_refused(fresh: Path, newer: str) -> None:
    connection = sqlite3.connect(fresh)
    connection.execute("UPDATE alembic_version SET version_num = ?", (newer,))
    connection.commit()
    connection.close()
    before = fresh.read_bytes()
    with pytest.raises(SchemaMismatch, match=rf"{newer}.*Upgrade ruv-swarm-store") as caught:
        Store.open(fresh)
    assert caught.value.data == {"actual": newer, "expected": schema.REVISION}
    assert fresh.read_bytes() == before


def test_without_migrate_a_schema_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.db"
    sqlite3.connect(path).close()
    for options in ({"migrate": False}, {"read_only": True}):
        with pytest.raises(SchemaMismatch, match=r"no schema of this store.*ruv-swarm upgrade.*without read_only=True") as caught:
            Store.open(path, **options)
        assert caught.value.data == {"actual": None, "expected": schema.REVISION}
    assert path.read_bytes() == b""


def test_without_migrate_no_file_is_made(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"absent\.db cannot be opened"):
        Store.open(tmp_path / "absent.db", migrate=False)
    with pytest.raises(Unavailable, match=r"absent\.db cannot be opened"):
        asyncio.run(Store.open_async(tmp_path / "absent.db", migrate=False))
    assert not list(tmp_path.iterdir())


def test_only_a_store_of_an_earlier_revision_needs_alembic(fresh: Path, python: Callable[..., str]) -> None:
    code = "import sys; from ruv_swarm_store import Store; Store.open(sys.argv[1]).close(); print('alembic' in sys.modules)"
    assert python(code, str(fresh)).strip() == "False"
    assert python(code, str(fresh.with_name("new.db"))).strip() == "False"
    engine = opened(earlier := fresh.with_name("earlier.db"))
    migrations.upgrade(engine, "0002")
    engine.close()
    assert python(code, str(earlier)).strip() == "True"


def test_a_database_that_holds_something_else_goes_through_the_revisions(tmp_path: Path, described: Path) -> None:
    with sqlite3.connect(path := tmp_path / "theirs.db") as connection:
        connection.execute("CREATE TABLE theirs (a)")
    connection.close()
    Store.open(path).close()
    assert {name: sql for name, sql in ddl(path).items() if name != "theirs"} == ddl(described)
    assert rows(path, "SELECT version, name, checksum FROM schema_migrations ORDER BY version") == APPLIED


def alembic(where: Path, environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "alembic", *arguments], cwd=where, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def workplace(tmp_path: Path, checkout: Path) -> Path:
    """A checkout to work in: the project file and the scripts."""
    where = tmp_path / "checkout"
    where.mkdir()
    shutil.copytree(checkout / "alembic", where / "alembic", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(checkout / "pyproject.toml", where)
    return where


def test_the_alembic_command_works_from_a_checkout(workplace: Path, environment: dict[str, str], described: Path) -> None:
    alembic(workplace, environment, "upgrade", "head")
    assert ddl(workplace / "swarm.db") == ddl(described)
    assert f"{schema.REVISION} (head)" in alembic(workplace, environment, "current")
    with Store.open(workplace / "swarm.db", migrate=False) as store:
        assert store.agents.count() == 0
    alembic(workplace, environment, "downgrade", "base")
    other = workplace / "other.db"
    alembic(workplace, environment, "-x", f"url={other}", "upgrade", "head")
    assert ddl(other) == ddl(described)


def test_autogenerate_finds_nothing_on_a_fresh_head(workplace: Path, environment: dict[str, str]) -> None:
    alembic(workplace, environment, "upgrade", "head")
    alembic(workplace, environment, "revision", "--autogenerate", "-m", "what changes")
    script = (workplace / "alembic" / "versions" / f"{after(HEAD)}_what_changes.py").read_text()
    for direction in ("upgrade", "downgrade"):
        body = script.split(f"def {direction}() -> None:\n")[1].split("def ")[0]
        statements = [line.strip() for line in body.splitlines() if line.strip() and not line.strip().startswith("#")]
        assert statements == ["pass"]


def test_autogenerate_finds_a_change(workplace: Path, environment: dict[str, str]) -> None:
    alembic(workplace, environment, "upgrade", "head")
    connection = sqlite3.connect(workplace / "swarm.db")
    connection.execute("DROP TABLE message_cursors")
    connection.close()
    alembic(workplace, environment, "revision", "--autogenerate", "-m", "what changes")
    assert "op.create_table" in (workplace / "alembic" / "versions" / f"{after(HEAD)}_what_changes.py").read_text()


def test_the_history_can_be_told(python: Callable[..., str], fresh: Path) -> None:
    code = (
        "import json, sys; from ruv_swarm_store import engines, migrations; "
        "engine = engines.connect(sys.argv[1], engines.Options()); "
        "print(json.dumps([[r.id, r.name, r.version] for r in migrations.history(engine)])); engine.close()"
    )
    assert json.loads(python(code, str(fresh))) == [[known.id, known.name, known.version] for known in migrations.available()]
