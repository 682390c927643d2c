"""A backup of a database on a server: of one instant while processes write to it, and restorable into either engine."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from plenty import fill, rows
from sqlalchemy import delete
from typer.testing import CliRunner

from ruv_swarm_store import Conflict, Store, schema
from ruv_swarm_store.backup.backups import Backups
from ruv_swarm_store.cli.commands import app
from ruv_swarm_store.errors import Unsupported

if TYPE_CHECKING:
    from pg_server import Databases

ACCOUNTS, EACH = 4, 1_000
WRITER = """
import random, sys
from ruv_swarm_store import NewEvent, Store
chance = random.Random(sys.argv[2])
with Store.open(sys.argv[1]) as store:
    while True:
        number = chance.randrange(100)
        with store.transaction() as work:
            for account, amount in sorted(zip(chance.sample(range(4), 2), (-number, number))):
                work.config.set(f"account/{account}", work.config.get(f"account/{account}") + amount)
            task = work.tasks.enqueue("moved", number)
            work.events.append(task.id, [NewEvent("moved", number)], type="move")
            work.messages.publish("moved", task.id)
"""


@pytest.fixture
def new(postgresql: Databases) -> Iterator[Callable[[], str]]:
    """Makes addresses of databases without a schema."""
    with ExitStack() as made:

        def new() -> str:
            address = postgresql.new(absent=True)
            made.callback(postgresql.drop, address)
            return address

        yield new


@contextmanager
def writers(address: str, environment: dict[str, str], count: int) -> Iterator[None]:
    """Processes that write until they are killed."""
    command = [sys.executable, "-c", WRITER, address]
    processes = [subprocess.Popen([*command, str(seed)], env=environment, stderr=subprocess.PIPE) for seed in range(count)]
    try:
        yield
        assert [process.poll() for process in processes] == [None] * count
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def moved(store: Store) -> int:
    """How many moves a store knows of, the same wherever they are looked for; nothing got lost in any."""
    assert store.check() == []
    assert sum(store.config.prefix("account/").values()) == ACCOUNTS * EACH
    tasks = {task.id for task in store.tasks.find_all()}
    assert {message.content for message in store.messages.find_all()} == tasks == {event.aggregate_id for event in store.events.walk()}
    return len(tasks)


def test_backups_are_of_one_instant_while_processes_write(new: Callable[[], str], tmp_path: Path, environment: dict[str, str]) -> None:
    address = new()
    with Store.open(address) as store:
        for account in range(ACCOUNTS):
            store.config.set(f"account/{account}", EACH)
        backups = store.backup_to(tmp_path / "backups")
        with writers(address, environment, 3):
            while store.events.last_position() < 20:
                time.sleep(0.02)
            made, written = [], []
            for _ in range(4):
                before = store.events.last_position()
                made.append(backups.create())
                written.append((before, store.events.last_position()))
                time.sleep(0.1)
    assert written[0][0] < written[-1][1]
    counts = []
    for number, (backup, (before, after)) in enumerate(zip(made, written, strict=True)):
        assert (backup.format, backup.kind) == ("rows", "full")
        assert before <= backup.position <= after
        drill = backups.drill(backup)
        assert (drill.passed, drill.problems) == (True, [])
        into: Any = tmp_path / f"{number}.db" if number % 2 else new()
        restored = backups.restore(backup, into=into)
        with Store.open(into) as arrived:
            counts.append(moved(arrived))
            assert arrived.events.last_position() == backup.position == restored.position
        assert backup.rows["tasks"] == restored.rows["tasks"] == counts[-1]
    assert backups.verify().ok
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_the_rows_are_the_same_in_either_engine(new: Callable[[], str], tmp_path: Path) -> None:
    """From the server to a server and a file, and from the file back, all compared row by row, and by checksums."""
    address, copy, back, file = new(), new(), new(), tmp_path / "copy.db"
    with Store.open(address) as store:
        fill(store)
        store.execute(delete(schema.event_projections))  # these do not come along
        before = rows(store)
        backups = store.backup_to(tmp_path / "one")
        first = backups.create()
        for into in (copy, file):
            assert backups.restore(into=into).rows == first.rows
    with Store.open(file) as store:
        assert rows(store) == before
        backups = store.backup_to(tmp_path / "two")
        second = backups.create(format="rows")
        assert second.checksums == first.checksums
        backups.restore(into=back)
        paged = store.backups.create()
        assert paged.format == "pages"
    for address in (copy, back):
        with Store.open(address) as store:
            assert rows(store) == before
            assert store.backup_to(tmp_path / "three").create().checksums == first.checksums
    pages = Backups.of(f"{file}.backups")
    again = new()
    pages.restore(into=again)  # a file's pages, too
    with Store.open(again) as store:
        assert rows(store) == before


def test_what_a_server_cannot_do_is_said(new: Callable[[], str], tmp_path: Path) -> None:
    with Store.open(new()) as store:
        with pytest.raises(Unsupported, match="no place beside") as raised:
            _ = store.backups
        assert "backup_to" in raised.value.hint
        backups = store.backup_to(tmp_path / "backups")
        with pytest.raises(Unsupported):
            backups.create(format="pages")
        with pytest.raises(Unsupported):
            backups.continuous().start()
        assert backups.list() == []
        assert [backups.create("incremental").kind for _ in range(2)] == ["full", "full"]


def test_a_server_s_database_with_rows_is_left_as_it_is(new: Callable[[], str], tmp_path: Path) -> None:
    address = new()
    with Store.open(address) as store:
        store.config.set("mine", 1)
        backups = store.backup_to(tmp_path / "backups")
        backups.create()
        before = rows(store)
        with pytest.raises(Conflict, match="not empty"):
            backups.restore(into=address)
        with pytest.raises(Unsupported, match="overwritten"):
            backups.restore(into=address, overwrite=True)
        assert rows(store) == before


def test_from_the_command_line(new: Callable[[], str], tmp_path: Path) -> None:
    def ruv_swarm(*arguments: object) -> Any:
        done = CliRunner().invoke(app, [*map(str, arguments), "--json"], env={"RUV_SWARM_BACKUPS": str(tmp_path / "kept")})
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout)

    address, other = new(), new()
    with Store.open(address, journal=True) as store:
        store.tasks.enqueue_many([("crawl", number) for number in range(10)])
        before = rows(store)
    made = ruv_swarm("backup", "create", "-s", address)
    assert [backup["id"] for backup in ruv_swarm("backup", "list", "-s", address)] == [made["id"]]
    assert ruv_swarm("backup", "drill", "-s", address)["passed"]
    assert ruv_swarm("backup", "restore", "--into", other)["rows"]["tasks"] == 10
    with Store.open(other) as store:
        assert rows(store) == before
        store.tasks.enqueue("another")
    assert ruv_swarm("rebuild", "-s", other)["rows"]["tasks"] == 11
    assert ruv_swarm("events", "verify", "-s", other)["unsealed"] == 12
