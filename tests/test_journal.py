"""A journal outlives what happens to its database: migrations, copies, kills, and whoever writes without knowing of it."""

import logging
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, MetaData, Table, Text, select, text
from unruly import Unruly

from ruv_swarm_store import Conflict, InvalidValue, NewTask, Store, engines, migrations, schema
from ruv_swarm_store.engines import Engine, Options
from ruv_swarm_store.engines import journal as triggers
from ruv_swarm_store.errors import Unavailable, Unsupported
from ruv_swarm_store.transfer import copy

HEAD = schema.REVISION
NEXT = f"{int(HEAD) + 1:04}"
SCRIBE = Path(__file__).parent / "programs" / "scribe.py"


def in_a_file(request: pytest.FixtureRequest, directory: Path) -> str:
    Store.open(directory / "swarm.db").close()
    return str(directory / "swarm.db")


def on_postgresql(request: pytest.FixtureRequest, directory: Path) -> str:
    databases = request.getfixturevalue("postgresql")
    address: str = databases.new(absent=False)
    request.addfinalizer(lambda: databases.drop(address))
    return address


PLACES: dict[str, Callable[[pytest.FixtureRequest, Path], str]] = {
    "file": in_a_file,
    "postgresql": on_postgresql,
}


@pytest.fixture(params=PLACES)
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store."""
    return PLACES[request.param](request, tmp_path)


@pytest.fixture(params=PLACES)
def target(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Another one."""
    directory = tmp_path / "target"
    directory.mkdir()
    return PLACES[request.param](request, directory)


def do_anything(store: Store, clock: Any, steps: int, seed: int = 1) -> None:
    one = Unruly(store, clock, random.Random(seed))
    for _ in range(steps):
        one.step()


def agrees(store: Store) -> int:
    """How many events the journal has, which must add up to what is in the tables."""
    found = store.journal.rebuild()
    assert found.agrees, found.differences
    return found.events


def rows(store: Store) -> dict[str, list[str]]:
    """What is in the journaled tables, in a form to compare."""
    return {table.name: sorted(repr(sorted_keys(tuple(row))) for row in store.execute(select(table))) for table in triggers.TABLES}


def sorted_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: sorted_keys(item) for key, item in sorted(value.items())}
    if isinstance(value, (list, tuple)):
        return [sorted_keys(item) for item in value]
    return value + 0.0 if isinstance(value, float) else value


def engine_at(address: str) -> Engine:
    return engines.connect(address, Options())


# Migrations


@pytest.fixture
def newer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One revision more, that changes rows, and rebuilds a table where columns cannot be changed."""
    scripts = tmp_path / "alembic"
    shutil.copytree(migrations.scripts(), scripts, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(migrations, "_PACKAGED", scripts)
    (scripts / "versions" / f"{NEXT}_newer.py").write_text(
        f"""
import sqlalchemy as sa
from alembic import op

revision = "{NEXT}"
down_revision = "{HEAD}"


def upgrade():
    op.execute("UPDATE agents SET type = 'moved'")
    with op.batch_alter_table("agents", recreate="auto") as table:
        table.add_column(sa.Column("more", sa.Text()))
        table.alter_column("more", nullable=True, new_column_name="most")
    with op.batch_alter_table("events", recreate="auto") as table:
        table.add_column(sa.Column("more", sa.Text()))


def downgrade():
    op.drop_column("events", "more")
    op.drop_column("agents", "most")
"""
    )


def test_a_migrated_store_is_journaled_from_then_on(address: str, newer: None, clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(address, clock=clock, journal=True) as store:
        store.agents.register("w", id="a")
        do_anything(store, clock, 60)
        before = store.journal.status()
        assert agrees(store)
    monkeypatch.setattr(schema, "REVISION", NEXT)
    with Store.open(address, clock=clock) as store:
        after = store.journal.status()
        assert before is not None
        assert after is not None
        assert after.after > before.after
        assert agrees(store) == sum(store.journal.rebuild().rows.values())  # nothing but what it began with
        do_anything(store, clock, 60, seed=2)
        agrees(store)


def test_at_another_revision_the_journal_ends(address: str, newer: None, clock: Any, caplog: pytest.LogCaptureFixture) -> None:
    with Store.open(address, clock=clock, journal=True) as store:
        store.agents.register("w", id="a")
    engine = engine_at(address)
    with caplog.at_level(logging.WARNING):
        migrations.upgrade(engine)
    assert "the journal ended" in caplog.text
    migrations.downgrade(engine, HEAD)
    engine.close()
    with Store.open(address, clock=clock) as store:
        assert store.journal.status() is None
        assert [event.event_type for event in store.events.read("journal")] == ["journal.started", "journal.stopped"]
        assert store.agents.get("a").type == "moved"
        store.journal.start()
        agrees(store)


def test_where_nothing_is_to_be_migrated_it_goes_on(address: str) -> None:
    with Store.open(address, journal=True) as store:
        before = store.journal.status()
    engine = engine_at(address)
    migrations.upgrade(engine)
    engine.close()
    with Store.open(address) as store:
        assert store.journal.status() == before
        store.config.set("k", 1)
        assert agrees(store) == 1


def test_a_migration_begins_one_with_holes_anew(address: str, newer: None, clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(address, clock=clock, journal=True) as store:
        with store._engine.transaction() as run:
            triggers.remove(run)
            run.execute(text(triggers._WORDS[run.dialect.name].create(schema.agents)[0]), {})
        store.config.set("k", 1)
        assert store.journal.status() is None
    monkeypatch.setattr(schema, "REVISION", NEXT)
    with Store.open(address, clock=clock) as store:
        assert store.journal.status() is not None
        assert agrees(store) == 1


def test_a_revision_may_bring_a_table_that_is_journaled(address: str, newer: None, clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(address, clock=clock, journal=True) as store:
        store.config.set("k", 1)
    more = Table("more", MetaData(), Column("id", Text, primary_key=True), Column("what", Text))
    script = migrations.scripts() / "versions" / f"{NEXT}_newer.py"
    made = 'op.execute("CREATE TABLE more (id TEXT PRIMARY KEY, what TEXT)"); op.execute("INSERT INTO more VALUES (1, 2)")'
    script.write_text(script.read_text().replace("def upgrade():\n", f"def upgrade():\n    {made}\n"))
    monkeypatch.setattr(triggers, "TABLES", [*triggers.TABLES, more])
    monkeypatch.setattr(schema, "REVISION", NEXT)
    with Store.open(address, clock=clock) as store:
        assert store.journal.status() is not None
        store.execute(text("UPDATE more SET what = 'else'"))
        assert agrees(store) == 3
        assert [event.event_type for event in store.events.read("1", type="journal.more")] == ["more.inserted", "more.updated"]
        assert store.journal.stop()
        store.execute(text("DELETE FROM more"))
        assert len(store.events.read("1", type="journal.more")) == 2


def test_nothing_of_it_is_left_below_its_revision(address: str) -> None:
    with Store.open(address, journal=True) as store:
        store.config.set("k", 1)
    engine = engine_at(address)
    migrations.downgrade(engine, "0002")
    with engine.read() as run:
        named = "name FROM sqlite_master" if run.dialect.name == "sqlite" else "proname FROM pg_proc"
        assert not [name for (name,) in run.execute(text(f"SELECT {named}")) if name.startswith("journal_")]
    migrations.upgrade(engine)
    engine.close()
    with Store.open(address) as store:
        assert store.journal.status() is None
        store.config.set("k", 2)
        assert store.events.count() == 0 or store.events.read_all()[-1].event_type == "swarm_config.inserted"


def schema_of(path: Path) -> dict[str, str]:
    with closing(sqlite3.connect(path)) as connection:
        return dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall())


def test_stopped_it_leaves_the_schema_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "swarm.db"
    Store.open(path).close()
    before = schema_of(path)
    with Store.open(path, journal=True) as store:
        made = schema_of(path).keys() - before.keys()
        assert len(made) == sum(len(triggers._WORDS["sqlite"].create(table)) for table in triggers.TABLES)
        assert all(name.startswith("journal_") for name in made)
        store.journal.stop()
    assert schema_of(path) == before


# Copies, and stores made of a journal alone


def test_a_copy_of_a_journaled_store_is_journaled(address: str, target: str, clock: Any) -> None:
    with Store.open(address, clock=clock, journal=True) as store:
        do_anything(store, clock, 100)
        since, before, count = store.journal.status(), rows(store), agrees(store)
    copy(address, target)
    with Store.open(target, clock=clock) as store:
        assert (store.journal.status(), rows(store), agrees(store)) == (since, before, count)
        do_anything(store, clock, 50, seed=2)
        assert agrees(store) > count


def test_a_copy_of_a_journal_with_holes_has_them_too(address: str, target: str, clock: Any) -> None:
    with Store.open(address, clock=clock, journal=True) as store:
        store.config.set("k", 1)
        with store._engine.transaction() as run:
            for statement in triggers._WORDS[run.dialect.name].drop(schema.swarm_config):
                run.execute(text(statement), {})
        store.config.set("k", 2)
        assert store.journal.status() is None
    copy(address, target)
    with Store.open(target, clock=clock) as store:
        assert store.journal.status() is None
        assert not store.journal.rebuild().agrees
    with Store.open(target, clock=clock, journal=True) as store:
        assert [event.event_type for event in store.events.read("journal")] == ["journal.started"] * 2
        store.config.set("k", 3)
        assert agrees(store) == 2


def test_a_store_is_made_of_the_journal_alone(address: str, target: str, clock: Any) -> None:
    heard: list[tuple[str, int, int]] = []
    with Store.open(address, clock=clock, journal=True) as store:
        do_anything(store, clock, 300)
        # A parent that comes after its child: the verbs do not allow it.
        store.tasks.enqueue_many([NewTask("child", id="child"), NewTask("parent", id="parent")])
        store.execute(text("UPDATE tasks SET parent_task_id = 'parent' WHERE id = 'child'"))
        before = rows(store)
        found = store.journal.rebuild(into=target, report=lambda step, table, done, total: heard.append((step, done, total)))
        assert found.agrees
        assert found.into is not None
        with pytest.raises(Conflict, match="is not empty"):
            store.journal.rebuild(into=target)
        with pytest.raises(InvalidValue, match="would be gone"):
            store.journal.rebuild(into=":memory:")
    with Store.open(target, clock=clock) as made:
        assert rows(made) == before
        assert made.check() == []
        assert made.journal.status() is None
        assert made.tasks.enqueue("new").position > made.tasks.get("parent").position
    assert [step for step, done, total in heard if done == total][-1] == "verified"
    assert {total for step, _, total in heard if step == "folded"} == {found.events}


@pytest.mark.skipif(sys.platform == "win32", reason="there are no modes")
def test_a_file_that_is_made_of_the_journal_is_for_its_owner_only(tmp_path: Path) -> None:
    with Store.open(tmp_path / "swarm.db", journal=True) as store:
        store.journal.rebuild(into=tmp_path / "new.db")
    assert (tmp_path / "new.db").stat().st_mode & 0o777 == 0o600


def test_each_state_there_was_can_be_had_again(address: str, tmp_path: Path, clock: Any) -> None:
    with Store.open(address, clock=clock, journal=True) as store:
        one = Unruly(store, clock, random.Random(7))
        states = []
        for _ in range(4):
            for _ in range(40):
                one.step()
            states.append((store.events.last_position(), rows(store)))
        for position, state in states:
            path = tmp_path / f"at-{position}.db"
            store.journal.rebuild(until_position=position, into=path)
            with Store.open(path) as made:
                assert rows(made) == state


# Others


def scribe(address: str, seed: int, environment: dict[str, str], *, journal: bool) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIBE), address, str(seed), str(int(journal))]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_processes_that_know_nothing_of_it_are_journaled_and_may_be_killed(address: str, environment: dict[str, str]) -> None:
    with Store.open(address, journal=True):
        pass
    for round_ in range(2):
        with ExitStack() as stack:
            crew = [stack.enter_context(scribe(address, 10 * round_ + n, environment, journal=n == 0)) for n in range(2)]
            for one in crew:
                assert one.stdout is not None
                assert one.stdout.readline() == "ready\n"
                assert int(one.stdout.readline()) >= 100
            for one in crew:
                one.kill()
        with Store.open(address) as store:
            assert store.check() == []
            assert agrees(store) > 50


def test_a_store_opened_before_it_began_is_journaled_too(address: str) -> None:
    with Store.open(address) as early, Store.open(address) as other:
        early.config.set("k", 1)
        early.tasks.enqueue("t")
        with early.transaction() as work:
            work.config.set("k", 2)
        other.journal.start()
        early.config.set("k", 3)
        early.tasks.enqueue("t")
        assert agrees(other) == 4
        other.journal.stop()
        early.config.set("k", 4)
        assert other.config.get("k") == 4


@pytest.mark.long
def test_the_other_tests_hold_for_journaled_stores(tmp_path: Path, environment: dict[str, str], checkout: Path) -> None:
    """Some of the conformance suite, on one engine, with every store journaled, and equal to its journal in the end.

    One test is left out: it asks for all events about an agent, and the journal's are among them.
    """
    suite = [str(checkout / "tests" / "conformance" / f"test_{noun}.py") for noun in ("agents", "groups")]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--basetemp",
        str(tmp_path / "suite"),
        "-k",
        "[file and not history_survives",
    ]
    environment |= {"RUV_SWARM_TEST_JOURNAL": "1", "RUV_SWARM_TEST_POSTGRES": "none"}
    environment.pop("CI", None)
    environment.pop("RUV_SWARM_ALL_ENGINES", None)
    done = subprocess.run([*command, *suite], env=environment, cwd=checkout, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-5_000:] + done.stderr[-2_000:]


# SQLite


@pytest.fixture
def journaled(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "swarm.db", journal=True) as store:
        yield store


def test_sqlite_finds_a_row_s_events_by_their_index(journaled: Store) -> None:
    journaled.tasks.enqueue_many([("t", n) for n in range(50)])
    raw = journaled._engine._writer.raw  # type: ignore[attr-defined]
    newest = "EXPLAIN QUERY PLAN SELECT max(sequence_number) FROM events WHERE aggregate_id = 'x' AND aggregate_type = 'journal.tasks'"
    index = "sqlite_autoindex_events_2"  # of uq_events_stream, behind that of the id
    assert [row[3] for row in raw.execute(newest)] == [f"SEARCH events USING COVERING INDEX {index} (aggregate_id=?)"]
    heard: list[str] = []
    with Store.open(journaled.address, trace=lambda sql, _: heard.append(sql)) as other:
        other.journal.rebuild()
    page = next(sql for sql in heard if "aggregate_id, " in sql and "LIMIT" in sql and "json_each" not in sql)
    plan = [row[3] for row in raw.execute(f"EXPLAIN QUERY PLAN {page}", (1,) * page.count("?"))]
    assert plan == [f"SEARCH events USING INDEX {index} ((aggregate_id,sequence_number)>(?,?))"]


def test_sqlite_s_verbs_see_no_trace_of_the_triggers(journaled: Store) -> None:
    raw = journaled._engine._writer.raw  # type: ignore[attr-defined]
    for n in range(30):
        journaled.config.set(f"k-{n}", n)
    journaled.tasks.enqueue_many([("t", n) for n in range(5)])
    assert raw.execute("SELECT last_insert_rowid()").fetchone() == (5,)
    changed = raw.execute("UPDATE tasks SET priority = 6")
    assert changed.rowcount == raw.execute("SELECT changes()").fetchone()[0] == 5
    assert raw.execute("DELETE FROM tasks RETURNING position").fetchall() == [(n,) for n in range(1, 6)]
    agrees(journaled)


def test_sqlite_s_replace_and_json_functions_are_told_rightly(journaled: Store) -> None:
    for n in "ab":
        journaled.agents.register("w", id=n, name=n)
    journaled.execute(text("""UPDATE agents SET name = json_object('a', 1) WHERE id = 'a'"""))
    journaled.execute(text("INSERT OR REPLACE INTO swarm_config VALUES ('k', json('[1,  2]'), 1, NULL, NULL, 1)"))
    journaled.execute(text("INSERT OR REPLACE INTO swarm_config VALUES ('k', ' [ 1e16 , -0.0 ] ', 1, NULL, NULL, 1)"))
    # Takes the place of one row by its key, and of another by its name.
    journaled.execute(text("UPDATE OR REPLACE agents SET name = 'b' WHERE id = 'a'"))
    assert [agent.id for agent in journaled.agents.find_all()] == ["a"]
    agrees(journaled)


def test_sqlite_s_own_shell_is_journaled(journaled: Store, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "swarm.db")) as connection:
        connection.execute("INSERT INTO swarm_config (key, value, updated_at, version) VALUES ('k', '1', 1, 1)")
        connection.commit()
    assert agrees(journaled) == 1


# PostgreSQL


@pytest.fixture
def on_server(postgresql: Any) -> Iterator[tuple[Store, Any]]:
    """A journaled store on PostgreSQL, and a connection of one's own to its database."""
    address = postgresql.new(absent=False)
    with Store.open(address, journal=True) as store, postgresql.connect(address) as connection:
        yield store, connection
    postgresql.drop(address)


def test_postgresql_refuses_what_it_could_not_tell(on_server: tuple[Store, Any]) -> None:
    store, _ = on_server
    store.config.set("k", 1)
    with pytest.raises(Unsupported, match="journaled"):
        store.execute(text("TRUNCATE swarm_config"))
    assert agrees(store) == 1


@pytest.mark.parametrize("how", ["DISABLE TRIGGER USER", "DISABLE TRIGGER journal_updated", "ENABLE REPLICA TRIGGER journal_updated"])
def test_postgresql_s_triggers_that_are_off_are_no_journal(on_server: tuple[Store, Any], how: str) -> None:
    store, connection = on_server
    connection.execute(f"ALTER TABLE swarm_config {how}")
    store.config.set("k", 1)
    store.config.set("k", 2)
    assert store.journal.status() is None
    store.journal.start()
    store.config.set("k", 3)
    assert agrees(store) == 2
    connection.execute("ALTER TABLE swarm_config ENABLE ALWAYS TRIGGER journal_updated")
    assert store.journal.status() is not None


def test_postgresql_may_be_set_to_quote_every_name(on_server: tuple[Store, Any]) -> None:
    store, _ = on_server
    with Store.open(f"{store.address}&options=-cquote_all_identifiers%3Don", journal=True) as other:
        assert other.journal.status() == store.journal.status() is not None
        assert len(other.events.read("journal")) == 1


def test_postgresql_tells_of_strangers_wherever_they_look(on_server: tuple[Store, Any]) -> None:
    store, connection = on_server
    (where,) = connection.execute("SELECT current_schema()").fetchone()
    connection.execute("SET search_path TO pg_catalog")
    connection.execute(f"INSERT INTO \"{where}\".swarm_config (key, value, updated_at, version) VALUES ('k', '1', 1, 1)")
    with connection.transaction():
        connection.execute(f"UPDATE \"{where}\".swarm_config SET value = '2'")
        connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        connection.execute(f'DELETE FROM "{where}".swarm_config')
    assert agrees(store) == 3


def test_postgresql_takes_the_events_lock_at_commit_only(on_server: tuple[Store, Any]) -> None:
    store, connection = on_server
    with store.transaction() as work:
        work.config.set("k", 1)
        work.tasks.enqueue_many([("t", n) for n in range(3)])
        # Another commits an event meanwhile, which waits for nobody.
        connection.execute("SET lock_timeout = '2s'")
        connection.execute("INSERT INTO swarm_config (key, value, updated_at, version) VALUES ('other', '1', 1, 1)")
        assert work.events.count() == 2
    assert agrees(store) == 5


def test_postgresql_s_commit_that_fails_for_its_events_commits_nothing(on_server: tuple[Store, Any]) -> None:
    kept, connection = on_server
    kept.config.set("k", 0)
    (schema_name,) = connection.execute("SELECT current_schema()").fetchone()
    with Store.open(kept.address, timeout=0.2) as store:
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"{schema_name}.events",))
            with pytest.raises(Unavailable, match="locked"):
                store.config.set("k", 1)
            with pytest.raises(Unavailable, match="locked"), store.transaction() as work:
                work.config.set("k", 2)
                work.agents.register("w")
        assert (store.config.get("k"), store.agents.count(), agrees(store)) == (0, 0, 1)
        store.config.set("k", 3)
        assert agrees(store) == 2


def test_postgresql_s_writers_are_not_given_up_for_its_start(on_server: tuple[Store, Any]) -> None:
    store, _ = on_server
    store.journal.stop()
    starting = threading.Thread(target=store.journal.start)
    with store.transaction() as work:
        work.config.set("k", 1)
        starting.start()
        time.sleep(1.5)  # longer than the server waits before it looks who waits for whom
        work.agents.register("w")
        work.config.set("k", 2)
    starting.join()
    assert agrees(store) == 2


def test_postgresql_keeps_swarms_of_one_database_apart(postgresql: Any, request: pytest.FixtureRequest) -> None:
    address = postgresql.new(absent=False)
    if "schema=" in address:
        pytest.skip("the database that was named is divided by schemas already")
    request.addfinalizer(lambda: postgresql.drop(address))
    with Store.open(address, journal=True) as one, Store.open(f"{address}&schema=other") as two:
        two.config.set("k", 1)
        assert (two.journal.status(), two.events.count()) == (None, 0)
        two.journal.start()
        one.config.set("k", 1)
        one.journal.stop()
        two.config.set("k", 2)
        assert one.journal.status() is None
        assert agrees(two) == 2
