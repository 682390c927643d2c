"""Continuous backup: what was shipped is there whatever happens, and each moment of it can be restored."""

import errno
import io
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import churn
import crew
import fleet
import msgspec
import pytest
from crew import fork
from sqlalchemy import select

from ruv_swarm_store import NewEvent, Store, StoreError, schema
from ruv_swarm_store.backup import continuous, retrying, segments
from ruv_swarm_store.backup.backups import Backups
from ruv_swarm_store.backup.storage import DirectoryStorage, MemoryStorage
from ruv_swarm_store.engines.log import Discontinuity
from ruv_swarm_store.engines.sqlite import engine as engine_module
from ruv_swarm_store.engines.sqlite import wal
from ruv_swarm_store.engines.sqlite.log import SQLiteLog
from ruv_swarm_store.errors import CorruptBackup, InvalidValue, SchemaMismatch, Unavailable, Unsupported

pytestmark = [pytest.mark.long, pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")]


ENOUGH = 20
"""How many acknowledged changes are to be in the storage, at least, when a fleet is sunk."""


class Harbour:
    """Starts fleets, one after another."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, fleet.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(self, directory: Path) -> int:
        assert self._process.stdin is not None
        print(directory, file=self._process.stdin, flush=True)
        return int(self._answer())

    def sink(self, leader: int) -> int:
        """Kills a fleet; how its leader has ended, as `Popen.returncode` tells."""
        os.killpg(leader, signal.SIGKILL)
        return int(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()


@pytest.fixture
def harbour(environment: dict[str, str]) -> Iterator[Harbour]:
    harbour = Harbour(environment)
    yield harbour
    harbour.close()


def lines(path: Path) -> list[list[str]]:
    return [line.split() for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] if path.exists() else []


def test_fleets_killed_at_any_time_lose_nothing_shipped(tmp_path: Path, harbour: Harbour) -> None:
    for round in range(20):
        directory = tmp_path / str(round)
        directory.mkdir()
        sail_and_sink(directory, harbour, seconds=0.1 + round / 40)


def instants(directory: Path) -> list[int]:
    """When what is in the storage was committed, as those who ship were told each time, in order."""
    return sorted(int(words[1]) for words in lines(directory / "shipped") if words[0] == "shipped")


def acknowledged(directory: Path, before: int) -> list[list[str]]:
    """What writers were told was committed, before an instant."""
    told = [words for number in range(fleet.WRITERS) for words in lines(directory / f"acks.{number}")]
    return [words[:3] for words in told if int(words[3]) < before]


def sail_and_sink(tmp_path: Path, harbour: Harbour, seconds: float) -> None:
    leader = harbour.start(tmp_path)
    deadline = time.monotonic() + 30
    try:
        while (len(told := instants(tmp_path)) < 3 or len(acknowledged(tmp_path, told[-1])) <= ENOUGH) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(seconds)
    finally:
        end = harbour.sink(leader)
    assert not (ended := [file.read_text() for file in tmp_path.glob("ended.*")]), "\n".join(ended)
    assert end == -signal.SIGKILL, "it has ended by itself"
    told = instants(tmp_path)
    assert told, (tmp_path / "shipped").read_text()
    backups = Backups.of(DirectoryStorage(tmp_path / "swarm.db.backups"))
    restored = backups.restore(into=tmp_path / "restored.db")
    with Store.open(tmp_path / "restored.db") as store, Store.open(tmp_path / "swarm.db") as survivor:
        events = store.events.read_all(limit=100_000)
        assert events == survivor.events.read_all(limit=len(events))
        counts: dict[str, int] = {}
        for event in events:
            counts[event.aggregate_id] = counts.get(event.aggregate_id, 0) + 1
        done = {task.id for task in store.tasks.query().all() if task.status == "completed"}
        # Where nothing was committed meanwhile, shipping tells a later instant than what it has stored bears: the promise is the same.
        kept = acknowledged(tmp_path, max(restored.instant, told[-1]))
        for kind, name, what in kept:
            assert counts.get(name, 0) >= int(what) if kind == "event" else name in done
        assert len(kept) > ENOUGH
        assert store.check() == []
    assert backups.drill().passed
    assert not backups.verify(integrity=False).problems


# Points in time


def rows(on: Any) -> dict[str, list[Any]]:
    """All of a store, row for row."""
    return {table.name: sorted(map(repr, on.execute(select(table)))) for table in schema.metadata.sorted_tables}


@contextmanager
def working(store: Store, threads: int = 3) -> Iterator[None]:
    """Others change the store meanwhile, each change with its event."""
    ending = threading.Event()
    errors: list[BaseException] = []

    def work(number: int) -> None:
        chance = random.Random(number)
        try:
            agent = store.agents.register("worker", name=f"w-{number}")
            while not ending.is_set():
                with store.transaction() as unit:
                    unit.tasks.enqueue("work", {"size": "x" * chance.randrange(300)})
                    if chance.random() < 0.7 and (task := unit.tasks.claim(agent)) is not None:
                        unit.tasks.complete(task)
                    unit.config.set(f"key-{chance.randrange(20)}", chance.random())
                    unit.events.append(f"w-{number}", [NewEvent("done", {})], type="worker")
                time.sleep(chance.random() / 200)
        except BaseException as error:
            errors.append(error)

    running = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        ending.set()
        for thread in running:
            thread.join()
    assert not errors, errors[0]


@pytest.mark.parametrize("compression", ["zlib", None])
def test_five_instants_under_load_are_restored_row_for_row(path: Path, compression: Any) -> None:
    recorded: list[tuple[int, int, dict[str, list[Any]]]] = []
    with Store.open(path, journal=True) as store:
        storage = MemoryStorage()
        backups = Backups(storage, store._engine, compression=compression)
        with backups.continuous(0.03) as shipping, working(store, threads=2):
            shipping.ship()
            position = 0
            for _ in range(5):
                time.sleep(0.1)
                until(lambda: store.events.last_position() > position)
                with store.transaction() as unit:  # now nobody else writes
                    time.sleep(0.003)
                    instant = store._engine.clock()
                    position = unit.events.read_all(backward=True, limit=1)[0].position
                    recorded.append((instant, position, rows(unit)))
                    time.sleep(0.003)
            for later in range(2):  # what is known of the last segment's newest event is a look old
                store.config.set("later", later)
                shipping.ship()
    assert len({position for _, position, _ in recorded}) == 5
    lost = Backups.of(storage)
    for number, (instant, position, state) in enumerate(recorded):
        for given in [{"at": instant}, {"position": position}][: 1 + number % 2]:
            planned = lost.restore(into=path.with_name("planned.db"), dry_run=True, **given)
            assert planned.exact
            into = path.with_name(f"{number}-{next(iter(given))}.db")
            restored = lost.restore(into=into, **given)
            assert (restored.exact, restored.position) == (True, position)
            with Store.open(into) as old:
                assert rows(old) == state


def test_without_a_journal_an_instant_is_the_last_look_before_it(path: Path) -> None:
    with Store.open(path) as store, store.backup_to(MemoryStorage()).continuous(60) as shipping:
        shipping.ship()
        told = []
        for number in range(6):
            store.config.set("number", number)
            told.append((shipping.ship().instant, store._engine.clock()))
            time.sleep(0.003)
        for number, (began, ended) in enumerate(told):
            restored = shipping.backups.restore(into=path.with_name(f"{number}.db"), at=ended + 1)
            assert (restored.exact, restored.instant) == (False, began)
            with Store.open(path.with_name(f"{number}.db")) as old:
                assert old.config.get("number") == number


def test_what_leaves_no_event_comes_along_within_one_look(path: Path) -> None:
    with Store.open(path, journal=True) as store, store.backup_to(MemoryStorage()).continuous(60) as shipping:
        shipping.ship()
        store.config.set("key", 1)
        shipping.ship()
        instant = store._engine.clock()
        for number in range(4):
            time.sleep(0.003)
            store.messages.publish("later", number)
            shipping.ship()
        store.config.set("key", 2)
        shipping.ship()
        found = shipping.backups.restore(into=path.with_name("old.db"), at=instant)
        assert found.exact
        with Store.open(path.with_name("old.db")) as old:
            assert old.config.get("key") == 1
            assert old.messages.count() <= 1


def test_what_was_begun_before_an_instant_and_committed_after_is_not_restored(path: Path) -> None:
    with Store.open(path, journal=True) as store, store.backup_to(MemoryStorage()).continuous(60) as shipping:
        backups = shipping.backups
        shipping.ship()
        wanted = []
        for number in range(2):  # behind the backup, and behind a segment
            with store.transaction() as unit:
                unit.config.set("key", number)
                time.sleep(0.003)
                wanted.append((store._engine.clock(), number - 1 if number else None))
                time.sleep(0.003)
                looked = threading.Thread(target=shipping.ship)  # finds nothing
                looked.start()
                looked.join()
            shipping.ship()
        store.config.set("key", 2)
        shipping.ship()
        for number, (instant, value) in enumerate(wanted):
            found = backups.restore(into=path.with_name(f"{number}.db"), at=instant)
            assert found.exact
            with Store.open(path.with_name(f"{number}.db")) as old:
                assert old.config.get("key") == value
        assert restored(backups, path) == rows(store)


def test_without_a_journal_nothing_committed_after_an_instant_is_restored(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look = SQLiteLog._look
    with Store.open(path) as store, store.backup_to(MemoryStorage()).continuous(60) as shipping:
        shipping.ship()
        store.config.set("key", 1)
        shipping.ship()

        def late(log: SQLiteLog) -> Any:
            time.sleep(0.02)
            store.config.set("key", 2)
            return look(log)

        monkeypatch.setattr(SQLiteLog, "_look", late)
        began = shipping.ship().instant
        monkeypatch.setattr(SQLiteLog, "_look", look)
        shipping.backups.restore(into=path.with_name("old.db"), at=began + 5)
        with Store.open(path.with_name("old.db")) as old:
            assert old.config.get("key") == 1


def test_what_is_too_much_for_single_commits_is_shipped_as_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuous, "MOST", 30)
    with Store.open(path, journal=True) as store, store.backup_to(MemoryStorage()).continuous(60) as shipping:
        before = shipping.ship()
        instants = []
        for number in range(40):
            store.config.set("key", number)
            time.sleep(0.002)
            instants.append((store._engine.clock(), store.events.last_position()))
            time.sleep(0.002)
        shipping.ship()
        backups = shipping.backups
        assert restored(backups, path) == rows(store)
        middle, position = instants[20]
        for number, given in enumerate(({"at": middle}, {"position": position})):
            found = backups.restore(into=path.with_name(f"{number}.db"), **given)
            assert (found.exact, found.position) == (False, before.position)
            with Store.open(path.with_name(f"{number}.db")) as old:
                assert old.config.get("key") is None


def test_what_is_committed_in_the_middle_of_a_look_is_found_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look = SQLiteLog._look
    with Store.open(path, journal=True) as store, store.backup_to(MemoryStorage()).continuous(60) as shipping:
        shipping.ship()
        store.config.set("key", 1)
        position = store.events.last_position()

        def late(log: SQLiteLog) -> Any:
            store.config.set("key", 2)
            return look(log)

        monkeypatch.setattr(SQLiteLog, "_look", late)
        assert shipping.ship().position == position, "what is told is what is in it for certain"
        monkeypatch.setattr(SQLiteLog, "_look", look)
        store.config.set("key", 3)
        shipping.ship()
        for number, wanted in enumerate((position, position + 1, position + 2), 1):
            found = shipping.backups.restore(into=path.with_name(f"{number}.db"), position=wanted)
            assert (found.exact, found.position) == (True, wanted)
            with Store.open(path.with_name(f"{number}.db")) as old:
                assert old.config.get("key") == number


# Logs that are restarted, cut off, grown and shared with others


def test_a_log_begun_anew_after_its_header_was_read_goes_on_from_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuous, "SHORTEN", 0)
    frame_checksum, begun = wal.frame_checksum, []
    with Store.open(path) as store, store.backup_to(MemoryStorage()).continuous(60) as shipping:
        shipping.ship()
        store.config.set("key", 1)
        shipping.ship()  # all is copied: who commits next begins the log anew

        def late(*arguments: Any) -> Any:
            if not begun:
                begun.append(1)
                for number in range(10):  # over what was read of it last
                    store.config.set("key", number)
            return frame_checksum(*arguments)

        monkeypatch.setattr(wal, "frame_checksum", late)
        shipping.ship()
        assert begun
        assert shipping.status().backups == 1
        assert restored(shipping.backups, path) == rows(store)


def test_nothing_is_missed_whatever_others_do_to_the_log(path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuous, "SHORTEN", 300_000)
    Store.open(path).close()
    churn.add_tables(str(path))
    seconds = os.environ.get("CHURN", "2")
    with Store.open(path) as store, store.backup_to(path.with_name("backups")).continuous(0.02) as shipping:
        others = [
            subprocess.Popen([sys.executable, churn.__file__, str(path), str(seed), seconds], env=environment, stdout=subprocess.DEVNULL)
            for seed in range(3)
        ]
        seen = []
        while any(other.poll() is None for other in others):
            with closing(sqlite3.connect(path)) as raw:
                before = churn.number(raw)
            shipping.ship()
            seen.append(before)
            if len(seen) % 5 == 0:
                check_churned(shipping.backups, path.with_name(f"{len(seen)}.db"), before)
        assert [other.wait() for other in others] == [0, 0, 0]
        shipping.ship()
        with closing(sqlite3.connect(path)) as raw:
            before = churn.number(raw)
        check_churned(shipping.backups, path.with_name("final.db"), before)
        assert shipping.status().backups == 1, "continuity was always certain"
        assert shipping.status().failures == 0
    assert before > 100


def test_a_log_begun_anew_while_shipping_begins_goes_on_from_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame_checksum, resume, resuming = wal.frame_checksum, SQLiteLog.resume, []

    def late(*arguments: Any) -> Any:
        if resuming == [1]:
            resuming.append(2)
            for number in range(100):  # over the frame that is looked at
                store.config.set("key", number)
        return frame_checksum(*arguments)

    def noting(*arguments: Any, **options: Any) -> bool:
        resuming.append(1)
        return resume(*arguments, **options)

    with Store.open(path) as store, store.backup_to(MemoryStorage()).continuous(60) as shipping:
        store.config.set("key", -1)
        with closing(sqlite3.connect(path)) as raw:
            raw.execute("PRAGMA wal_checkpoint").fetchall()  # all is copied: who commits next begins the log anew
        monkeypatch.setattr(wal, "frame_checksum", late)
        monkeypatch.setattr(SQLiteLog, "resume", noting)
        shipping.ship()
        assert 2 in resuming
        assert shipping.status().backups == 1
        assert restored(shipping.backups, path) == rows(store)


@pytest.mark.parametrize("interval", [0.01, 60.0])
def test_the_log_is_kept_short(path: Path, interval: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuous, "SHORTEN", 300_000)
    monkeypatch.setattr(continuous, "BETWEEN", 0.0)
    with Store.open(path) as store, store.backup_to(path.with_name("backups")).continuous(interval) as shipping:
        for number in range(400):
            store.config.set(f"key-{number % 7}", os.urandom(5_000).hex())
            if number % 10 == 0:
                shipping.ship()
        assert shipping.status().log_bytes < 2_000_000, "without it, 400 commits take 7 MB"
        assert shipping.status().backups == 1
        shipping.ship()
        assert restored(shipping.backups, path) == rows(store)


def test_what_fails_while_the_log_is_shortened_leaves_no_gap(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuous, "SHORTEN", 100_000)
    monkeypatch.setattr(continuous, "BETWEEN", 0.0)
    with Store.open(path, timeout=0.05) as store, store.backup_to(MemoryStorage()).continuous(60) as shipping:
        shipping.ship()
        store.config.set("key", 0)
        shipping.ship()
        store.config.set("large", os.urandom(100_000).hex())
        with closing(sqlite3.connect(path, isolation_level=None)) as raw:
            raw.execute("BEGIN IMMEDIATE")
            with pytest.raises(Unavailable, match="locked"):
                shipping.ship()
            raw.execute("ROLLBACK")
        for number in range(3):
            store.config.set("key", number)
            shipping.ship()
        assert restored(shipping.backups, path) == rows(store)
        assert not shipping.backups.verify().problems
        assert shipping.status().backups == 1


def test_what_interrupts_between_storing_and_its_note_leaves_no_gap(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with Store.open(path) as store, store.backup_to(MemoryStorage()).continuous(60) as shipping:
        shipping.ship()
        store.config.set("key", 1)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(SQLiteLog, "stored", interrupt)
            shipping.ship()
        store.config.set("key", 2)
        shipping.ship()
        assert restored(shipping.backups, path) == rows(store)
        assert shipping.status().backups == 1


def test_a_large_transaction_is_shipped_from_the_log_and_the_log_shortened_later(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuous, "IN_MEMORY", 4 << 20)
    monkeypatch.setattr(continuous, "SHORTEN", 8 << 20)
    monkeypatch.setattr(continuous, "BETWEEN", 0.0)
    with Store.open(path) as store:
        backups = Backups(DirectoryStorage(path.with_name("backups")), store._engine, compression="zlib")
        with backups.continuous(60) as shipping, closing(sqlite3.connect(path)) as raw:
            shipping.ship()
            raw.execute("CREATE TABLE large AS SELECT zeroblob(16000000) AS data")
            raw.commit()
            tracemalloc.start()
            try:
                shipping.ship()
                assert tracemalloc.get_traced_memory()[1] < 10_000_000
            finally:
                tracemalloc.stop()
            for number in range(3):
                store.config.set("key", number)
                shipping.ship()
            log = shipping._log
            assert log is not None
            assert log.used < 1_000_000, "it was begun anew"
            assert shipping.status().backups == 1
        assert restored(backups, path) == rows(store)


def test_threads_that_share_readers_are_lent_none_that_keeps_the_log(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "MOST_READERS", 1)
    with Store.open(path) as store, store.backup_to(MemoryStorage()).continuous(60) as shipping:
        store.config.set("key", 0)
        shipping.ship()
        store.config.set("key", 1)
        assert crew.in_threads(40, lambda number, barrier: store.config.get("key")) == [1] * 40


def check_churned(backups: Backups, into: Path, least: int) -> None:
    backups.restore(into=into)
    with closing(sqlite3.connect(into)) as raw:
        assert churn.broken(raw) == []
        assert churn.number(raw) >= least


# Storages that fail


class Faulty:
    """A storage whose writes raise while it is told to."""

    def __init__(self) -> None:
        self.whole = MemoryStorage()
        self.error: OSError | None = None
        self.refused = 0

    def write(self, name: str, chunks: Iterable[bytes]) -> None:
        data = list(chunks)
        if self.error is not None:
            self.refused += 1
            raise self.error
        self.whole.write(name, data)

    def read(self, name: str) -> Iterator[bytes]:
        return self.whole.read(name)

    def names(self, prefix: str = "") -> Sequence[str]:
        return self.whole.names(prefix)

    def size(self, name: str) -> int:
        return self.whole.size(name)

    def delete(self, name: str) -> None:
        self.whole.delete(name)


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Faulty:
    monkeypatch.setattr(retrying, "FIRST_WAIT", 0.0001)
    monkeypatch.setattr(continuous, "LONGEST_WAIT", 0.02)
    return Faulty()


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def restored(backups: Backups, path: Path) -> dict[str, list[Any]]:
    into = path.with_name(f"restored-{time.monotonic_ns()}.db")
    backups.restore(into=into)
    with Store.open(into) as store:
        assert store.check() == []
        return rows(store)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), OSError(errno.ENOSPC, "full"), ConnectionError("gone")])
def test_while_a_storage_fails_the_log_keeps_everything(path: Path, faulty: Faulty, error: OSError) -> None:
    with Store.open(path) as store, store.backup_to(faulty).continuous(0.01) as shipping:
        before = shipping.ship()
        faulty.error = error
        for number in range(50):
            store.config.set(f"key-{number}", "x" * 1000)
            with pytest.raises(Unavailable) if number == 7 else nullcontext():
                if number == 7:
                    shipping.ship()
        until(lambda: faulty.refused > 20 and shipping.status().failure is not None)
        with closing(sqlite3.connect(path, timeout=0.02)) as raw:
            assert raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 1, "the log is held"
        failing = shipping.status()
        assert failing.shipped is not None
        assert failing.shipped.name == before.name
        assert failing.lag > 0
        assert failing.failures > 0
        faulty.error = None
        until(lambda: shipping.status().failure is None)
        store.config.set("after", 1)
        shipping.ship()
        assert shipping.status().backups == 1
        assert restored(shipping.backups, path) == rows(store)


def test_a_log_that_would_grow_too_much_is_let_go_and_an_increment_makes_it_good(
    path: Path, faulty: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(continuous, "GIVE_UP", 200_000)
    with Store.open(path) as store, store.backup_to(faulty).continuous(0.01) as shipping:
        shipping.ship()
        faulty.error = OSError(errno.ENOSPC, "full")
        until(lambda: store.config.set("key", os.urandom(10_000).hex()) and shipping._base is None)
        with closing(sqlite3.connect(path, timeout=0.001)) as raw:
            until(lambda: raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0))  # nobody holds it for long
        faulty.error = None
        until(lambda: shipping.status().failure is None)
        store.config.set("after", 1)
        shipping.ship()
        assert shipping.status().backups == 2
        assert [backup.kind for backup in shipping.backups.list()] == ["full", "incremental"]
        assert restored(shipping.backups, path) == rows(store)


def test_what_fails_at_the_end_is_raised_unless_something_else_was(path: Path, faulty: Faulty) -> None:
    with Store.open(path) as store:
        backups = store.backup_to(faulty)
        with pytest.raises(Unavailable, match="could not write"), backups.continuous(60) as shipping:
            shipping.ship()
            store.config.set("key", 1)
            faulty.error = OSError(errno.ENOSPC, "full")
        shipping.stop()
        with pytest.raises(StoreError, match="ended"):
            shipping.ship()
        faulty.error = None
        with pytest.raises(ZeroDivisionError), backups.continuous(60) as shipping:
            shipping.ship()
            store.config.set("key", 2)
            faulty.error = OSError(errno.ENOSPC, "full")
            raise ZeroDivisionError


# Going on


def test_who_ships_later_goes_on_where_a_killed_one_stopped(path: Path) -> None:
    storage = DirectoryStorage(path.with_name("backups"))
    for number in range(3):

        def job() -> None:
            with Store.open(path) as store, store.backup_to(storage).continuous(60) as shipping:
                store.config.set(f"early-{number}", number)
                shipping.ship()
                store.config.set(f"key-{number}", number)
                shipping.ship()
                store.config.set(f"late-{number}", number)
                os.kill(os.getpid(), signal.SIGKILL)

        child = os.fork()
        if not child:
            job()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    with Store.open(path) as store:
        backups = store.backup_to(storage)
        with backups.continuous(60) as shipping:
            shipping.ship()
        assert shipping.status().backups == 0
        assert len(backups.list()) == 1
        assert restored(backups, path) == rows(store)
        # Somebody cuts the log off while nobody ships: what was in it is found by comparing pages.
        store.config.set("cut off", 1)
        with closing(sqlite3.connect(path)) as raw:
            assert raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)
        store.config.set("and on", 1)
        with backups.continuous(60) as shipping:
            pass
        assert shipping.status().backups == 1
        assert restored(backups, path) == rows(store)


def test_a_newer_full_backup_takes_over_and_old_segments_go_with_the_old_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuous, "LOOK_AROUND", 0.0)
    with Store.open(path) as store, store.backup_to(MemoryStorage()).continuous(60) as shipping:
        backups = shipping.backups
        shipping.ship()
        store.config.set("old", 1)
        old = shipping.ship()
        full = backups.create("full")
        store.config.set("new", 1)
        shipping.ship()
        shipping.ship()
        store.config.set("newest", 1)
        new = shipping.ship()
        backups.prune(1)
        assert old.name not in backups.storage.names()
        assert new.name in backups.storage.names()
        assert backups.list()[0].id == full.id
        assert restored(backups, path) == rows(store)
        assert not backups.verify().problems


@pytest.mark.parametrize("begun_anew", [False, True])
def test_an_increment_takes_over_so_that_less_is_to_be_applied(path: Path, begun_anew: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuous, "BETWEEN", 0.0)
    with Store.open(path, journal=True) as store, store.backup_to(MemoryStorage()).continuous(60) as shipping:
        backups = shipping.backups
        base = shipping.ship().name.partition(".")[0]
        for number in range(5):
            store.config.set("old", number)
            shipping.ship()
        time.sleep(0.003)
        instant = store._engine.clock()
        time.sleep(0.003)
        store.config.set("old", 5)
        shipping.ship()
        increment = backups.create("incremental")
        for number in range(3 * begun_anew):  # and the log does not go back to the increment
            monkeypatch.setattr(continuous, "SHORTEN", 0)
            store.config.set("old", number)
            shipping.ship()
        monkeypatch.setattr(continuous, "LOOK_AROUND", 0.0)
        for number in range(3):
            store.config.set("new", number)
            told = shipping.ship()
        assert told.name.partition(".")[0] == (base if begun_anew else increment.id)
        assert shipping.status().backups == 1
        point = backups.restore(into=path.with_name("planned.db"), dry_run=True)
        assert len(point.segments) == (12 if begun_anew else 3)
        assert restored(backups, path) == rows(store)
        assert backups.restore(into=path.with_name("old.db"), at=instant).exact
        with Store.open(path.with_name("old.db")) as old:
            assert old.config.get("old") == 4
        assert not backups.verify().problems


def test_at_its_end_shipping_has_changed_over_to_a_newer_full_backup(path: Path) -> None:
    with Store.open(path) as store:
        backups = store.backup_to(MemoryStorage())
        with backups.continuous(60) as shipping:
            shipping.ship()
            full = backups.create("full")
            store.config.set("key", 1)
        last = shipping.status().shipped
        assert last is not None
        assert backups.chain(last.name.partition(".")[0])[0].id == full.id
        backups.prune(1)
        assert restored(backups, path) == rows(store)


def test_what_is_told_to_be_shipped_is_so_behind_a_newer_full_backup_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(path) as store, store.backup_to(MemoryStorage()).continuous(60) as shipping:
        shipping.ship()
        store.config.set("key", 0)
        shipping.ship()
        backups = shipping.backups
        full = backups.create("full")
        time.sleep(0.003)
        store.config.set("key", 1)
        instant = store._engine.clock()
        monkeypatch.setattr(continuous, "LOOK_AROUND", 0.0)
        told = shipping.ship()
        assert backups.chain(told.name.partition(".")[0])[0].id == full.id
        assert told.instant >= instant
        backups.prune(1)
        assert restored(backups, path) == rows(store)


@pytest.mark.parametrize("shortening", [False, True])
def test_nothing_is_told_to_be_shipped_behind_a_backup_that_was_pruned(
    path: Path, shortening: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(path) as store, store.backup_to(MemoryStorage()).continuous(60) as shipping:
        shipping.ship()
        store.config.set("key", 1)
        shipping.ship()
        backups = shipping.backups
        time.sleep(0.003)
        full = backups.create("full")
        assert len(backups.prune(1).removed) == 1
        assert restored(backups, path) == rows(store)
        store.config.set("key", 2)
        if shortening:
            monkeypatch.setattr(continuous, "SHORTEN", 0)
            monkeypatch.setattr(continuous, "BETWEEN", 0.0)
        told = shipping.ship()
        assert backups.chain(told.name.partition(".")[0])[0].id == full.id
        assert restored(backups, path) == rows(store)
        assert shipping.status().failures == 0


@pytest.mark.parametrize("times", [1, continuous.OVERTAKEN, continuous.OVERTAKEN + 1])
def test_who_makes_a_newer_backup_and_prunes_at_once_does_not_stop_shipping(path: Path, times: int) -> None:
    class Overtaking(MemoryStorage):
        left = times

        def write(self, name: str, chunks: Iterable[bytes]) -> None:
            if name.endswith(".manifest") and self.left and not others.is_set():
                self.left -= 1
                others.set()
                store.backup_to(self).create("full")
                others.clear()
                for mine in self.names():  # as who prunes does with files that belong to no backup, of a day ago by its clock
                    if mine.startswith(name.partition(".")[0]):
                        self.delete(mine)
                if self.left or times > continuous.OVERTAKEN:  # what has overtaken is soon overtaken
                    for other in self.names():
                        self.delete(other)
            super().write(name, chunks)

    others = threading.Event()
    storage = Overtaking()
    with Store.open(path) as store, store.backup_to(storage).continuous(60) as shipping:
        store.config.set("key", 1)
        if times > continuous.OVERTAKEN:
            with pytest.raises(Unavailable, match="removed while it was made"):
                shipping.ship()
        shipping.ship()
        assert restored(shipping.backups, path) == rows(store)


def test_who_prunes_while_something_is_shipped_keeps_what_it_continues(path: Path) -> None:
    class Pruning(MemoryStorage):
        """A segment comes after the last look before the removal of what it continues, and its writer's look just before the removal."""

        late: Callable[[], object] | None = None

        def delete(self, name: str) -> None:
            if self.late is not None:
                late, self.late = self.late, None
                late()
            super().delete(name)

    storage = Pruning()
    with Store.open(path) as store, store.backup_to(storage).continuous(60) as shipping:
        shipping.ship()
        backups = shipping.backups
        backups.create("full")
        time.sleep(0.003)
        store.config.set("key", 1)
        storage.late = shipping.ship
        assert backups.prune(1).removed == ()
        assert restored(backups, path) == rows(store)


def test_whatever_the_clock_says_the_latest_state_is_the_last_one(path: Path) -> None:
    now = 1_800_000_000_000

    def clock() -> int:
        nonlocal now
        now += 1
        return now

    with Store.open(path, clock=clock) as store, store.backup_to(MemoryStorage()).continuous(60) as shipping:
        backups = shipping.backups
        shipping.ship()
        now += 60_000
        store.config.set("key", 1)
        shipping.ship()
        now -= 3_600_000
        store.config.set("key", 2)
        backups.create()
        assert restored(backups, path) == rows(store)
        for number in range(3, 9):  # behind the older backup still
            store.config.set("key", number)
            shipping.ship()
            assert restored(backups, path) == rows(store)
        backups.create()
        now -= 3_600_000
        store.config.set("key", 9)
        shipping.ship()
        assert restored(backups, path) == rows(store)


@pytest.mark.parametrize("other", [None, bytes(32)])
def test_shipping_never_goes_on_behind_a_backup_with_another_key_or_none(
    path: Path, other: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cryptography")
    monkeypatch.setattr(continuous, "LOOK_AROUND", 0.0)
    key = bytes(range(32))
    storage = MemoryStorage()
    with Store.open(path) as store:
        backups = store.backup_to(storage, key=key, compression="none")
        others = store.backup_to(storage, key=other, compression="none")
        for number in range(2):
            backups.create()
            others.create()
            with backups.continuous(60) as shipping:
                for _ in range(2):
                    store.config.set("secret", f"in plain sight {number}")
                    shipping.ship()
                    others.create()
                    store.config.set("secret", f"in plain sight {number} again")
                    shipping.ship()
                shipped = shipping.ship()
            base = backups.get(shipped.name.partition(".")[0])
            assert base.encryption is not None
            assert shipping.status().failures == 0
        sent = [name for name in storage.names() if ".log." in name]
        assert sent
        assert not [name for name in sent if b"in plain sight" in b"".join(storage.read(name))]
        backups.restore(into=path.with_name("restored.db"))
        with Store.open(path.with_name("restored.db")) as copy:
            assert rows(copy) == rows(store)


@pytest.mark.parametrize("asking", [True, False])
def test_what_a_power_failure_has_cut_off_is_not_taken_for_committed(path: Path, asking: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not asking:
        monkeypatch.setattr(SQLiteLog, "_copy", lambda log: None)  # as while somebody else copies
    storage = MemoryStorage()
    log = Path(f"{path}-wal")
    with Store.open(path) as store, store.backup_to(storage).continuous(60) as shipping:
        shipping.ship()
        for number in range(20):
            store.config.set(f"key-{number}", number)
        shipping.ship()
        file, frames = path.read_bytes(), bytearray(log.read_bytes())
        place = shipping._sent[1]
    assert place is not None
    size = 4096 + 24
    lost = 32 + (int(place.split("-")[1]) - 12) * size
    frames[lost + 24 : lost + size] = bytes(4096)  # what did not reach the disk, though later frames did
    path.write_bytes(file)
    log.write_bytes(frames)
    with Store.open(path) as store:
        assert 0 < len(store.config.prefix("key-")) < 20
        with store.backup_to(storage).continuous(60) as shipping:
            for number in range(40):  # the log grows beyond what it was before
                store.config.set("after", number)
                shipping.ship()
                if number in (0, 39):
                    assert restored(shipping.backups, path) == rows(store)
        assert shipping.status().backups == 1


def test_a_log_begun_anew_before_the_first_look_is_not_taken_for_what_follows_its_place(path: Path) -> None:
    with Store.open(path) as store, closing(sqlite3.connect(path, isolation_level=None)) as raw:
        raw.execute("BEGIN")
        raw.execute("SELECT count(*) FROM sqlite_master").fetchone()
        store.config.set("key", 1)
        with store._engine.image() as image:
            place = image.place
        store.config.set("key", 2)
        raw.execute("COMMIT")
        _, in_log, copied = raw.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        assert in_log == copied > 0
        with closing(store._engine.log()) as log:
            log.hold()
            assert log.resume(place)
            store.config.set("key", 3)
            with pytest.raises(Discontinuity):
                log.read()


def test_two_who_ship_the_same_store_do_not_disturb_each_other(path: Path) -> None:
    with Store.open(path) as store:
        storage = MemoryStorage()
        with store.backup_to(storage).continuous(0.01) as one, store.backup_to(storage).continuous(0.01) as other, working(store):
            for _ in range(5):
                one.ship()
                other.ship()
        assert restored(Backups.of(storage), path) == rows(store)
        assert not Backups.of(storage).verify().problems


@pytest.mark.parametrize("noting", [False, True])
def test_of_two_who_ship_to_one_storage_who_has_looked_last_leads_furthest(
    path: Path, noting: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = MemoryStorage()
    with Store.open(path) as store, store.backup_to(storage).continuous(60) as one, store.backup_to(storage).continuous(60) as other:
        for key, shipping in enumerate((one, other, one, other)):
            store.config.set("key", key)
            shipping.ship()
            time.sleep(0.003)
        send = other._send

        def late(look: Any) -> None:
            time.sleep(0.003)
            store.config.set("key", 5)
            one.ship()
            if noting:
                other._look_around()
            send(look)

        store.config.set("key", 4)
        with monkeypatch.context() as patch:
            patch.setattr(other, "_send", late)
            other._ship_changes(other._running())
        assert restored(one.backups, path) == rows(store)
        assert not one.backups.verify().problems


def test_two_who_ship_elsewhere_keep_the_log_short_all_the_same(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SHORTEN": 300_000, "CROWDED": 1_000_000, "BETWEEN": 0.0, "ASIDE": 0.2}.items():
        monkeypatch.setattr(continuous, name, value)
    with Store.open(path) as store:
        storages = MemoryStorage(), MemoryStorage()
        with store.backup_to(storages[0]).continuous(0.02) as one, store.backup_to(storages[1]).continuous(0.02) as other:
            one.ship()
            other.ship()
            longest = 0
            for number in range(4_000):
                store.config.set(f"key-{number % 7}", os.urandom(5_000).hex())
                longest = max(longest, one.status().log_bytes)
            assert longest < 35_000_000, "without it, 4 000 commits take 55 MB"
            assert one.status().failures == other.status().failures == 0
        for storage in storages:
            assert restored(Backups.of(storage), path) == rows(store)
            assert not Backups.of(storage).verify(integrity=False).problems


def test_who_reads_for_long_costs_no_increment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SHORTEN": 50_000, "CROWDED": 100_000, "BETWEEN": 0.0, "ASIDE": 0.0}.items():
        monkeypatch.setattr(continuous, name, value)
    with Store.open(path) as store, store.backup_to(MemoryStorage()).continuous(60) as shipping:
        shipping.ship()
        aside: list[int] = []
        step_aside = shipping._step_aside
        monkeypatch.setattr(shipping, "_step_aside", lambda log: aside.append(1) or step_aside(log))
        with store._engine.snapshot():
            for _ in range(30):
                store.config.set("key", os.urandom(5_000).hex())
                shipping.ship()
        assert aside
        assert shipping.status().backups == 1
        assert restored(shipping.backups, path) == rows(store)


def test_a_fork_neither_ships_nor_stops_what_its_parent_ships(path: Path) -> None:
    with Store.open(path) as store, store.backup_to(path.with_name("backups")).continuous(0.01) as shipping:
        shipping.ship()
        store.config.set("before", 1)

        def job() -> str:
            store.config.set("child", 1)
            try:
                shipping.ship()
            except StoreError as error:
                shipping.stop()
                return error.message
            return ""

        joins = [fork(job) for _ in range(3)]
        store.config.set("after", 1)
        assert [join() for join in joins] == [repr("the parent process ships")] * 3
        shipping.ship()
        assert restored(shipping.backups, path) == rows(store)


def test_what_a_log_has_lost_while_a_fork_had_closed_all_connections_is_made_good(path: Path) -> None:
    with Store.open(path) as store, store.backup_to(MemoryStorage()).continuous(60) as shipping:
        shipping.ship()
        assert fork(lambda: None)() == "None"
        for _ in range(2):
            store.config.set("lost", 1)
            with closing(sqlite3.connect(path)) as raw:
                assert raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)
        store.config.set("after", 1)
        shipping.ship()
        assert shipping.status().backups == 2
        assert restored(shipping.backups, path) == rows(store)


def test_where_there_is_no_log_of_a_file_nothing_is_shipped(path: Path) -> None:
    with Store.open() as store, pytest.raises(Unsupported, match="log"):
        store.backup_to(MemoryStorage()).continuous().start()
    with Store.open(path) as store, pytest.raises(InvalidValue):
        store.backups.continuous(0)
    with Store.open(path, read_only=True) as store, pytest.raises(Unsupported, match="read-only"):
        store.backups.continuous().start()


def test_shipping_ends_with_its_store(path: Path) -> None:
    with Store.open(path) as store:
        shipping = store.backup_to(MemoryStorage()).continuous(0.01).start()
        shipping.ship()
        store.close()
        until(lambda: shipping.status().failure is not None)
        with pytest.raises(StoreError, match="closed"):
            shipping.stop()


# Damage


@pytest.fixture
def shipped(path: Path) -> Iterator[tuple[Backups, list[str]]]:
    with Store.open(path) as store:
        backups = store.backup_to(path.with_name("backups"))
        with backups.continuous(60) as shipping:
            shipping.ship()
            names = []
            for number in range(4):
                store.config.set(f"key-{number}", "x" * 500)
                names.append(shipping.ship().name)
        yield backups, names


def test_any_byte_changed_in_a_segment_is_told_with_its_name_and_nothing_is_restored(
    path: Path, shipped: tuple[Backups, list[str]]
) -> None:
    backups, names = shipped
    file = path.with_name("backups") / names[2]
    data = file.read_bytes()
    chance = random.Random(7)
    for at in {0, 11, len(data) - 1, *(chance.randrange(len(data)) for _ in range(25))}:
        changed = bytearray(data)
        changed[at] ^= 1 << chance.randrange(8)
        file.write_bytes(changed)
        assert names[2] in {problem.file for problem in backups.verify(integrity=False).problems}, at
        with pytest.raises(CorruptBackup):
            backups.restore(into=path.with_name("restored.db"))
        assert not path.with_name("restored.db").exists()
    file.write_bytes(data)
    assert not backups.verify(integrity=False).problems


@pytest.mark.parametrize(
    "nonsense",
    [{"pages": (-1,)}, {"pages": (2**40,)}, {"page_size": 0}, {"page_size": -4096}, {"commits": ((-1, 1),)}, {"commits": ((9, -1),)}],
)
def test_a_segment_whose_head_makes_no_sense_is_damaged(path: Path, shipped: tuple[Backups, list[str]], nonsense: Any) -> None:
    backups, names = shipped
    catalog, base = backups._catalog, backups.list()[0]
    reading = segments.Reading(catalog, base, names[3])
    pages = list(reading.pages())[:1]
    strange = msgspec.structs.replace(reading.segment, **{"pages": (1,), "commits": ((9, 1),), **nonsense})
    catalog.write_frames(names[3], lambda: [msgspec.json.encode(strange), b"".join(pages)], "none", None)
    assert [problem.file for problem in backups.verify(integrity=False).problems] == [names[3]]
    with pytest.raises(CorruptBackup, match="contradicts itself"):
        backups.restore(into=path.with_name("restored.db"))


def test_a_damaged_segment_that_says_it_is_of_a_later_form_is_damaged(path: Path, shipped: tuple[Backups, list[str]]) -> None:
    backups, names = shipped
    catalog, base = backups._catalog, backups.list()[0]
    reading = segments.Reading(catalog, base, names[3])
    pages = list(reading.pages())
    later = msgspec.structs.replace(reading.segment, format_version=9)
    catalog.write_frames(names[3], lambda: [msgspec.json.encode(later), b"".join(pages)], "none", None)
    with pytest.raises(SchemaMismatch):
        backups.restore(into=path.with_name("restored.db"))
    file = path.with_name("backups") / names[3]
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptBackup):
        backups.restore(into=path.with_name("restored.db"))


class Nowhere(io.BytesIO):
    """A file that cannot be as long as it would have to be."""

    def seek(self, place: int, whence: int = 0, /) -> int:
        raise OSError(errno.EFBIG, "File too large")


def test_what_a_damaged_segment_makes_the_system_refuse_is_told_as_damage(path: Path, shipped: tuple[Backups, list[str]]) -> None:
    backups, names = shipped
    catalog, base = backups._catalog, backups.list()[0]
    with pytest.raises(OSError, match="too large"):
        segments.Reading(catalog, base, names[3]).apply(Nowhere())
    file = path.with_name("backups") / names[3]
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptBackup):
        segments.Reading(catalog, base, names[3]).apply(Nowhere())


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_segment_that_is_missing_is_told_and_what_is_before_it_can_be_restored(
    path: Path, shipped: tuple[Backups, list[str]], number: int
) -> None:
    backups, names = shipped
    (path.with_name("backups") / names[number]).unlink()
    problems = backups.verify(integrity=False).problems
    assert [problem.file for problem in problems] == [names[number + 1]]
    assert names[number] in problems[0].what
    with pytest.raises(CorruptBackup, match="missing"):
        backups.restore(into=path.with_name("restored.db"))
    backups.restore(backups.list()[0].id, into=path.with_name("restored.db"))


def test_a_segment_that_continues_another_state_is_not_applied(path: Path, shipped: tuple[Backups, list[str]]) -> None:
    backups, names = shipped
    catalog, base = backups._catalog, backups.list()[0]
    reading = segments.Reading(catalog, base, names[3])
    pages = list(reading.pages())
    strange = msgspec.structs.replace(reading.segment, start="0-1-2")
    catalog.write_frames(names[3], lambda: [msgspec.json.encode(strange), b"".join(pages)], "none", None)
    assert [problem.file for problem in backups.verify(integrity=False).problems] == [names[3]]
    with pytest.raises(CorruptBackup, match="does not continue"):
        backups.restore(into=path.with_name("restored.db"))
