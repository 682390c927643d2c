"""A store is copied whole or not at all, and arrives as it was, whatever is in it."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from plenty import AWKWARD, fill, rows_to_copy
from plenty import rows as all_rows
from sqlalchemy import text
from typer.testing import CliRunner

from ruv_swarm_store import Conflict, Event, InvalidValue, NewEvent, Store, StoreError, UnitOfWork, codec, migrations, schema, transfer
from ruv_swarm_store.cli.commands import app
from ruv_swarm_store.config import Config
from ruv_swarm_store.engines import Engine, Options, connect
from ruv_swarm_store.errors import CorruptRow
from ruv_swarm_store.transfer import copy, copy_between

pytestmark = pytest.mark.long


def on_postgresql(request: pytest.FixtureRequest, directory: Path) -> str:
    databases = request.getfixturevalue("postgresql")
    address: str = databases.new(absent=True)
    request.addfinalizer(lambda: databases.drop(address))
    return address


Place = Callable[[pytest.FixtureRequest, Path], str]
PLACES: dict[str, Place] = {"file": lambda request, directory: str(directory / "store.db"), "postgresql": on_postgresql}
"""Where a store can be put that outlives its closing: an address of nothing yet, for an empty directory."""


@pytest.fixture(params=["memory", *PLACES])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A store with rows in every table."""
    directory = tmp_path / "source"
    directory.mkdir()
    with opened(None if request.param == "memory" else PLACES[request.param](request, directory)) as engine, Store(engine) as store:
        fill(store)
        yield store


@pytest.fixture(params=PLACES)
def target(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a copy may go."""
    directory = tmp_path / "target"
    directory.mkdir()
    return PLACES[request.param](request, directory)


@contextmanager
def opened(address: str | None) -> Iterator[Engine]:
    engine = connect(address, Options())
    try:
        migrations.prepare(engine, migrate=True)
        yield engine
    finally:
        engine.close()


def is_empty(address: str) -> bool:
    with Store.open(address) as store:
        assert store.check() == []
        return not any(all_rows(store).values())


def engine_of(store: Store) -> Engine:
    return store._engine


def test_every_table_is_filled(source: Store) -> None:
    assert [name for name, found in all_rows(source).items() if not found] == []


def test_a_copy_is_what_was_copied(source: Store, target: str) -> None:
    before = rows_to_copy(source)
    with opened(target) as engine:
        contents = copy_between(engine_of(source), engine)
    with Store.open(target) as arrived:
        assert rows_to_copy(arrived) == before == rows_to_copy(source)
        assert arrived.check() == []
    assert {name: content.rows for name, content in contents.items()} == {name: len(found) for name, found in before.items()}


@pytest.mark.skipif(sys.platform == "win32", reason="there are no modes")
def test_a_file_that_a_copy_makes_is_for_its_owner_only(tmp_path: Path) -> None:
    Store.open(tmp_path / "source.db").close()
    copy(tmp_path / "source.db", tmp_path / "new.db")
    assert (tmp_path / "new.db").stat().st_mode & 0o777 == 0o600
    Store.open(tmp_path / "ours.db").close()
    (tmp_path / "ours.db").chmod(0o664)
    copy(tmp_path / "source.db", tmp_path / "ours.db")
    assert (tmp_path / "ours.db").stat().st_mode & 0o777 == 0o664


class Counted:
    """How many events there are, in a table of its own."""

    name, version = "counted", 1

    def apply(self, work: UnitOfWork, event: Event, slot: str) -> None:
        work.execute(text(f"UPDATE counted_{slot} SET number = number + 1"))

    def clear(self, work: UnitOfWork, slot: str) -> None:
        work.execute(text(f"CREATE TABLE IF NOT EXISTS counted_{slot} (number INTEGER)"))
        work.execute(text(f"DELETE FROM counted_{slot}"))
        work.execute(text(f"INSERT INTO counted_{slot} VALUES (0)"))


def test_projections_are_built_again_and_other_consumers_go_on(source: Store, target: str, caplog: pytest.LogCaptureFixture) -> None:
    source.events.project(Counted()).run(timeout=0)
    source.events.subscribe("counting").handle(lambda work, event: None, limit=5)
    before = source.events.consumers()
    with opened(target) as engine:
        contents = copy_between(engine_of(source), engine)
    assert "not counted_a" in caplog.text
    assert contents["event_consumers"].rows == len(before) - 1
    with Store.open(target) as arrived:
        assert all_rows(arrived)["event_projections"] == []
        assert arrived.events.consumers() == [consumer for consumer in before if consumer.kind != "projection"]
        projector = arrived.events.project(Counted())
        assert (projector.live, projector.due) == (None, True)
        projector.run(timeout=0)
        assert arrived.execute(text("SELECT number FROM counted_a")) == [(arrived.events.count(),)]


def test_pages_may_be_as_small_as_one_row(source: Store, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "WEIGHT", 1)
    monkeypatch.setattr(transfer, "PAGE", 3)
    sizes, before = [], 0

    def report(step: str, table: str, done: int, total: int) -> None:
        nonlocal before
        sizes.append(done - before)
        before = done % total

    with opened(target) as engine:
        copy_between(engine_of(source), engine, report)
    assert max(sizes) <= 3
    assert sizes.count(1) > len(sizes) / 2
    with Store.open(target) as arrived:
        assert rows_to_copy(arrived) == rows_to_copy(source)


def test_there_and_back(source: Store, target: str, tmp_path: Path) -> None:
    with opened(target) as engine:
        there = copy_between(engine_of(source), engine)
    back = copy(target, tmp_path / "back.db")
    assert back == there
    with Store.open(tmp_path / "back.db") as arrived:
        assert rows_to_copy(arrived) == rows_to_copy(source)


def test_what_is_added_later_has_new_numbers(source: Store, target: str) -> None:
    newest = source.messages.publish("newest", 0)
    source.messages.delete(newest)  # inboxes may have seen it: its number must not come again
    with opened(target) as engine:
        copy_between(engine_of(source), engine)
    with Store.open(target) as arrived:
        assert arrived.messages.publish("t", 0).position > newest.position
        assert arrived.tasks.enqueue("t").position > max(task.position for task in source.tasks.find_all())
        assert arrived.events.append("new", [NewEvent("t")], type="") == 1
        assert arrived.events.last_position() > source.events.last_position()
        assert arrived.metrics.record("m", 1.0).id > max(metric.id for metric in source.metrics.find_all())


def test_the_copy_goes_on_working(source: Store, target: str) -> None:
    with opened(target) as engine:
        copy_between(engine_of(source), engine)
    with Store.open(target) as arrived:
        held = arrived.tasks.where(schema.tasks.c.agent_id == "' OR 1=1 --").one()
        assert arrived.tasks.complete(held, {"ok": 1}).status == "completed"
        scout = arrived.agents.where(schema.agents.c.name == AWKWARD).one()
        assert arrived.messages.receive(scout) == []  # the source handed them all out, and waits for their acknowledgement
        arrived.messages.publish("new", 1)
        assert [message.topic for message in arrived.messages.receive(scout)] == ["new"]
        assert arrived.tasks.claim(scout) is not None
        with pytest.raises(StoreError, match="append-only"):
            arrived.execute(text("DELETE FROM events"))


def test_a_target_with_a_row_is_refused(source: Store, target: str) -> None:
    with opened(target) as engine:
        Config(engine).set("mine", 1)
        with pytest.raises(Conflict, match=r"is not empty.*swarm_config"):
            copy_between(engine_of(source), engine)
    with Store.open(target) as store:
        assert [entry.key for entry in store.config.find_all()] == ["mine"]
        assert store.agents.count() == 0


@pytest.mark.parametrize("source", PLACES, indirect=True)  # beside one in memory there is nobody
def test_it_is_a_copy_of_one_instant(source: Store, target: str) -> None:
    before = rows_to_copy(source)

    def report(step: str, table: str, done: int, total: int) -> None:
        late.config.set(f"late {step} {done}", 1)
        late.tasks.enqueue("late")

    with Store.open(source.address) as late, opened(target) as engine:
        copy_between(engine_of(source), engine, report)
    with Store.open(target) as arrived:
        assert rows_to_copy(arrived) == before
    assert source.tasks.where(schema.tasks.c.type == "late").exists()


@pytest.mark.parametrize("damage", ["changed", "lost", "twice"])
def test_what_arrives_otherwise_is_noticed_and_not_kept(source: Store, target: str, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    insertable = transfer.Plan.insertable

    def damaged(plan: Any, page: Any) -> Any:
        page = [list(row) for row in insertable(plan, page)]
        if plan.table.name == "metrics":
            if damage == "lost":
                page.pop()
            elif damage == "changed":
                page[0][1] += 1e-9
            else:
                page.append([*page[0][:-1], 10**9])
        return page

    monkeypatch.setattr(transfer.Plan, "insertable", damaged)
    with opened(target) as engine, pytest.raises(StoreError, match=r"metrics in .* is not what was sent"):
        copy_between(engine_of(source), engine)
    assert is_empty(target)


def test_a_checksum_tells_what_differs() -> None:
    def checksum(value: Any) -> str:
        digest = transfer.Digest(transfer.plan_of(schema.swarm_config))
        digest.add([[codec.encode(value) if isinstance(column.type, schema.Json) else 0 for column in schema.swarm_config.c]])
        return digest.content().checksum

    same = [({"a": 1, "b": 2.5}, {"b": 2.5, "a": 1}), ([0.0], [-0.0])]
    different = [
        ("", " "),
        (1, 1.0),
        (None, [None]),
        (None, "null"),
        ([], {}),
        (True, 1),
        (10**16, 1e16),
        (10**23, 1e23),
        (0, 0.0),
        ([1, 2], [2, 1]),
        ("a", "á"),
    ]
    for one, other in same:
        assert checksum(one) == checksum(other), (one, other)
    for one, other in different:
        assert checksum(one) != checksum(other), (one, other)


def test_numbers_of_earlier_releases_stay_what_they_are(tmp_path: Path, target: str) -> None:
    path = tmp_path / "early.db"
    with Store.open(path) as store:
        store.config.set("k", 1)
        store.execute(text("""UPDATE swarm_config SET value = '[1e16, 1E5, {"a 1e5": -2.5e+20}, 1e-9]'"""))
    copy(path, target)
    with Store.open(target) as arrived:
        assert repr(arrived.config.get("k")) == "[1e+16, 100000.0, {'a 1e5': -2.5e+20}, 1e-09]"


def test_a_row_that_cannot_be_read_is_named(tmp_path: Path, target: str) -> None:
    path = tmp_path / "damaged.db"
    with Store.open(path) as store:
        store.config.set("good", 1)
        store.config.set("bad", 1)
        with store.transaction() as work:
            work.execute(text("PRAGMA ignore_check_constraints=ON"))
            work.execute(text("UPDATE swarm_config SET value = '{' WHERE key = 'bad'"))
            work.execute(text("PRAGMA ignore_check_constraints=OFF"))
    with pytest.raises(CorruptRow, match="swarm_config 'bad' cannot be read: value") as caught:
        copy(path, target)
    assert caught.value.data == {"table": "swarm_config", "id": "bad", "column": "value"}
    assert is_empty(target)


@pytest.mark.parametrize("where", ["half", "all"])
def test_a_killed_copy_leaves_nothing(tmp_path: Path, target: str, environment: dict[str, str], where: str) -> None:
    path = tmp_path / "large.db"
    with Store.open(path) as store:
        store.tasks.enqueue_many([("t", {"n": n, "text": "x" * 1000}) for n in range(5_000)])
    program = Path(__file__).parent / "programs" / "stuck.py"
    command = [sys.executable, str(program), str(path), target, where]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{where}\n"
        process.kill()
    assert is_empty(target)
    assert copy(path, target)["tasks"].rows == 5_000


# The command


def ruv_swarm(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="ruv-swarm")


def test_the_command_says_what_was_copied(tmp_path: Path, target: str) -> None:
    path = tmp_path / "some.db"
    with Store.open(path) as store:
        store.tasks.enqueue_many([("t", n) for n in range(3)])
        store.config.set("k", 1)
    printed = ruv_swarm("copy", path, target)
    assert printed.exit_code == 0, printed.output
    lines = [line.split() for line in printed.stdout.splitlines()]
    assert lines[0] == ["table", "rows", "checksum"]
    assert [line[:2] for line in lines[1:3]] == [["swarm_config", "1"], ["tasks", "3"]]
    assert printed.stdout.splitlines()[-1] == "4 rows copied, and verified in the target"
    again = ruv_swarm("copy", path, target)
    assert again.exit_code == 1
    assert "is not empty" in again.stderr
    assert again.stdout == ""
    found = json.loads(ruv_swarm("copy", target, tmp_path / "back.db", "--json").stdout)
    assert found["tasks"]["rows"] == 3
    assert found["tasks"]["checksum"].startswith(lines[2][2])


def test_the_command_refuses_an_absent_source_and_makes_no_target(tmp_path: Path) -> None:
    printed = ruv_swarm("copy", tmp_path / "absent.db", tmp_path / "new.db")
    assert printed.exit_code == 1
    assert "there is no store at" in printed.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_older_source_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    Store.open(path).close()
    assert ruv_swarm("downgrade", "-1", "-s", path).exit_code == 0
    printed = ruv_swarm("copy", path, tmp_path / "new.db")
    assert printed.exit_code == 1
    assert "ruv-swarm upgrade" in printed.stderr


def test_a_copy_that_nobody_could_find_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.db"
    Store.open(path).close()
    with pytest.raises(InvalidValue, match="would be gone"):
        copy(path, ":memory:")
