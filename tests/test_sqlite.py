"""The SQLite engine: files shared by threads and processes, killed, forked, filled, damaged; and statements along their indexes."""

import contextlib
import gc
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import crew
import pytest
from sqlalchemy import literal_column, select, text, union_all

from ruv_swarm_store import Conflict, InvalidValue, NewEvent, Store, StoreError, engines, schema
from ruv_swarm_store.backup import continuous
from ruv_swarm_store.backup.storage import MemoryStorage
from ruv_swarm_store.engines.sqlite.connections import BLOCKS, Reader
from ruv_swarm_store.engines.sqlite.driver import driver
from ruv_swarm_store.engines.sqlite.engine import MOST_READERS
from ruv_swarm_store.errors import Closed, CorruptDatabase, Unavailable, Unsupported
from ruv_swarm_store.schema import tasks

SCRIBBLE = Path(__file__).parent / "programs" / "scribble.py"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store.open(path) as store:
        yield store


def pragma(store: Store, name: str) -> Any:
    """A pragma of the connection that writes."""
    return store.execute(text(f"PRAGMA {name}"))[0][0]


def reading_pragma(store: Store, name: str) -> Any:
    """A pragma of the connection this thread reads by."""
    return store.execute(select(literal_column(name)).select_from(text(f"pragma_{name}")))[0][0]


# Opening


AWKWARD = [
    "a b.db",
    "50%.db",
    "q?mode=ro.db",
    "h#ash.db",
    "%41.db",
    "100%25.db",
    "+.db",
    "\U0001f41d.db",
    "it's.db",
    'a"b.db',
    "file:x.db",
    "-x.db",
]


@pytest.mark.parametrize("name", AWKWARD)
def test_a_path_may_have_any_characters(tmp_path: Path, name: str) -> None:
    for address in (tmp_path / name, str(tmp_path / name)):
        with Store.open(address) as store:
            store.config.set("k", 1)
        with Store.open(address) as store:
            assert store.config.get("k") == 1
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", AWKWARD)
def test_a_store_s_address_leads_to_it(tmp_path: Path, name: str) -> None:
    with Store.open(tmp_path / name) as store:
        backup = store.backups.create()
        with Store.open(store.address) as again:
            assert again.address == store.address
            again.config.set("k", 1)
        assert store.config.get("k") == 1
        assert engines.file_of(store.address) == tmp_path / name
        assert backup.origin == engines.name_of(tmp_path / name) == store.address
    assert sorted(file.name for file in tmp_path.iterdir()) == [name, f"{name}.backups"]


def test_a_relative_path_means_the_directory_at_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    with Store.open("swarm.db") as store:
        monkeypatch.chdir(tmp_path / "other")
        assert crew.in_threads(1, lambda number, barrier: store.agents.register("worker").type) == ["worker"]
        assert store.address == f"sqlite:///{tmp_path / 'swarm.db'}"
    assert (tmp_path / "swarm.db").exists()
    assert not (tmp_path / "other" / "swarm.db").exists()


def test_an_address_is_a_path_a_url_or_nothing(path: Path) -> None:
    for address in (f"sqlite:///{path}", f"sqlite+pysqlite:///{path}"):
        with Store.open(address) as store:
            assert store.address == f"sqlite:///{path}"
            assert store.capabilities.persistent
    for address in (None, ":memory:", "sqlite://", "sqlite:///:memory:"):
        with Store.open(address) as store:
            assert store.address == "sqlite://"
            assert not store.capabilities.persistent
    for wrong, error in (
        ("", InvalidValue), (5, InvalidValue), (b"swarm.db", InvalidValue), ("sqlite:///x.db?mode=ro", InvalidValue), ("://", InvalidValue),
        ("mysql://localhost/x", Unsupported), ("sqlite+aiosqlite:///x.db", Unsupported),
    ):  # fmt: skip
        with pytest.raises(error):
            Store.open(wrong)  # type: ignore[arg-type]
    assert not Path("x.db").exists()


@pytest.mark.parametrize(
    "address",
    ["sqlite://swarm.db", "sqlite://localhost/swarm.db", "sqlite://user:hush@h/swarm.db", "sqlite://:5/swarm.db", "sqlite+sqljs://swarm"],
)
def test_a_url_with_a_host_is_no_file_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.chdir(tmp_path)
    for use in (Store.open, engines.file_of):
        with pytest.raises(InvalidValue, match=r"names a host.*sqlite:///swarm\.db") as caught:
            use(address)
        assert "hush" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "address",
    ["sqlite://:memory:", "postgresql://me:hush@h:port/db", "postgresql://me:so@hush:@h/db", "postgresql://me:so@hush@h/db", "?hush://"],
)
def test_a_url_that_is_none_is_told_without_its_password(address: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        Store.open(address)
    assert "hush" not in "".join(traceback.format_exception(caught.value))


def test_nothing_but_the_database_is_left_after_closing(path: Path) -> None:
    with Store.open(path) as store:
        crew.in_threads(5, crew.register, store)
        store.tasks.find_all()
        store.tasks.wait(store.agents.register("worker"), timeout=0.01)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(("durability", "synchronous"), [("normal", 1), ("full", 2)])
def test_every_connection_is_set_up(path: Path, durability: Any, synchronous: int) -> None:
    with Store.open(path, durability=durability) as store:
        assert pragma(store, "journal_mode") == "wal"
        assert (pragma(store, "synchronous"), pragma(store, "foreign_keys")) == (synchronous, 1)
        assert pragma(store, "recursive_triggers") == 1
        for seen in crew.in_threads(
            3, lambda number, barrier: (reading_pragma(store, "query_only"), reading_pragma(store, "foreign_keys"))
        ):
            assert seen == (1, 1)


def test_a_missing_directory_is_no_place(tmp_path: Path) -> None:
    for options in ({}, {"read_only": True}):
        with pytest.raises(Unavailable, match="missing") as caught:
            Store.open(tmp_path / "missing" / "swarm.db", **options)
        assert isinstance(caught.value.__cause__, sqlite3.Error)
        assert "directory" in caught.value.hint


def test_a_directory_is_told_from_a_file(tmp_path: Path) -> None:
    for options in ({}, {"read_only": True}, {"migrate": False}):
        with pytest.raises(InvalidValue, match="is a directory"):
            Store.open(tmp_path, **options)


@pytest.mark.parametrize("name", ["a\0b.db", "a\ud800.db"])
def test_what_no_file_can_be_called_is_no_path(tmp_path: Path, name: str) -> None:
    for address in (tmp_path / name, str(tmp_path / name), f"sqlite:///{tmp_path / name}"):
        for use in (Store.open, engines.file_of):
            with pytest.raises(InvalidValue, match="is no path"):
                use(address)
    with pytest.raises(InvalidValue, match="is no path"):
        Store.open("sqlite:///a%00b.db")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names of files are text")
def test_a_file_s_name_need_not_be_text(tmp_path: Path) -> None:
    path = os.fsdecode(bytes(tmp_path) + b"/caf\xe9.db")
    with Store.open(path) as store:
        store.config.set("k", 1)
        backup = store.backups.create()
        assert store.backups.newest() == backup
        with Store.open(store.address) as again:
            assert again.config.get("k") == 1
        store.backups.restore(backup, into=tmp_path / "restored.db")
    assert sorted(os.fsencode(file.name) for file in tmp_path.iterdir()) == [b"caf\xe9.db", b"caf\xe9.db.backups", b"restored.db"]


@pytest.mark.parametrize(
    "content", [b"this is not a database, however long it may be. " * 100, os.urandom(8192), b"SQLite format 3\0" + b"x" * 5000]
)
def test_a_file_that_is_no_database_is_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    for options in ({}, {"read_only": True}, {"migrate": False}):
        with pytest.raises(CorruptDatabase, match=re.escape(path.name)) as caught:
            Store.open(path, **options)
        assert isinstance(caught.value.__cause__, sqlite3.Error)
    assert path.read_bytes() == content
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_an_empty_file_becomes_a_store(path: Path) -> None:
    path.touch()
    with Store.open(path) as store:
        assert store.check() == []


def filled(path: Path) -> None:
    with Store.open(path) as store:
        store.tasks.enqueue_many([("t", "x" * 500)] * 2_000)


def test_a_truncated_file_is_noticed(path: Path) -> None:
    filled(path)
    whole = path.read_bytes()
    for size in (len(whole) // 2, len(whole) - 4096, 8192, 4096, 1000, 50):
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptDatabase), Store.open(path) as store:
            store.tasks.find_all()
            if found := store.check():
                raise CorruptDatabase(found[0])


def test_damage_inside_the_file_is_reported(path: Path) -> None:
    filled(path)
    content = bytearray(path.read_bytes())
    for start in range(len(content) // 2, len(content) - 4096, 16_384):
        content[start : start + 64] = os.urandom(64)
    path.write_bytes(content)
    with Store.open(path) as store:
        try:
            assert store.check()
        except CorruptDatabase:
            pass
        with pytest.raises((CorruptDatabase, StoreError)):
            store.tasks.find_all()


def test_read_only_reads_and_refuses_to_write(path: Path) -> None:
    with pytest.raises(Unavailable):
        Store.open(path, read_only=True)
    assert not path.exists()
    with Store.open(path) as store:
        task = store.tasks.enqueue("t", 1)
        with Store.open(path, read_only=True) as reader:
            assert reader.tasks.get(task) == task
            assert reader.execute(select(tasks.c.id)) == [(task.id,)]
            assert reader.execute(union_all(select(tasks.c.id), select(tasks.c.id))) == [(task.id,)] * 2
            assert reader.tasks.stats().total() == 1
            assert reader.check() == []
            for write in (
                lambda: reader.tasks.enqueue("t"),
                lambda: reader.tasks.enqueue_many([("t", 1)]),
                lambda: reader.agents.register("worker"),
                lambda: reader.execute(tasks.delete()),
                lambda: reader.transaction().__enter__(),
            ):
                with pytest.raises(Unsupported, match="read-only"):
                    write()
            store.tasks.enqueue("t", 2)
            assert reader.tasks.count() == 2
    with pytest.raises(Unsupported, match="memory"):
        Store.open(read_only=True)


UNPRIVILEGED = """
import os, sys
from pathlib import Path
from ruv_swarm_store import Store
from ruv_swarm_store.errors import Unavailable
import alembic.command, alembic.config, alembic.runtime.migration, alembic.script, alembic.autogenerate
directory = Path(sys.argv[1])
store = Store.open(directory / "old.db"); store.config.set("k", 1); store.close()
(directory / "old.db").chmod(0o444); directory.chmod(0o555)
if os.geteuid() == 0:
    os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
for name in ("new.db", "old.db"):
    try:
        store = Store.open(directory / name)
        store.config.set("k", 2)
    except Unavailable as error:
        print(type(error.__cause__).__name__, error.hint)
    else:
        print("stored")
"""


@pytest.mark.skipif(not hasattr(os, "setresuid"), reason="needs POSIX users")
def test_files_and_directories_that_may_not_be_written(python: Callable[..., str]) -> None:
    import shutil
    import tempfile

    directory = Path(tempfile.mkdtemp())  # pytest's own directories are closed to other users
    try:
        directory.chmod(0o755)
        first, second = python(UNPRIVILEGED, directory).splitlines()
        assert first.startswith("OperationalError")
        assert second.startswith("OperationalError")
        assert "permissions" in second
    finally:
        directory.chmod(0o755)
        shutil.rmtree(directory)


# Several at once


def test_who_waits_too_long_for_a_busy_database_is_told_so(path: Path) -> None:
    with Store.open(path, timeout=0.3) as store:
        agent = store.agents.register("worker")
        task = store.tasks.enqueue("t")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        for write in (
            lambda: store.config.set("k", 1),
            lambda: store.tasks.claim(agent),
            lambda: store.tasks.enqueue_many([("t", 1)]),
            lambda: store.transaction().__enter__(),
            lambda: store.execute(tasks.delete()),
        ):
            started = time.monotonic()
            with pytest.raises(Unavailable, match=r"0\.3 s") as caught:
                write()
            assert 0.29 < time.monotonic() - started < 3
            assert caught.value.retryable
            assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
        assert store.tasks.get(task) == task  # reading goes on
        assert store.config.get("k") is None
        other.execute("ROLLBACK")
        other.close()
        store.config.set("k", 1)
        assert store.config.get("k") == 1


def test_a_write_waits_for_a_busy_database(path: Path) -> None:
    with Store.open(path) as store:
        other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        release = threading.Timer(0.2, lambda: other.execute("COMMIT"))
        release.start()
        store.config.set("k", 1)
        release.join()
        other.close()
        assert store.config.get("k") == 1


def log_size(path: Path) -> int:
    return Path(f"{path}-wal").stat().st_size


def fill(store: Store, count: int) -> None:
    for number in range(count):
        store.config.set(f"key-{number % 50}", os.urandom(50_000).hex())


def test_the_log_stays_short_whoever_writes(path: Path) -> None:
    with Store.open(path) as one, Store.open(path) as two:
        for _ in range(4):
            fill(one, 70)
            with two.transaction():
                fill(two, 70)
        assert log_size(path) < 16_400_000 + 2 * 70 * 110_000
        assert one.check() == []


def test_a_log_that_could_not_be_copied_is_copied_after_the_next_commit(path: Path) -> None:
    with Store.open(path) as store:
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM tasks").fetchone()
            fill(store, 300)
            assert log_size(path) > 25_000_000
        fill(store, 70)
        before = log_size(path)
        fill(store, 300)
        assert log_size(path) <= before, "it was not begun anew"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_the_log_stays_short_after_a_fork(path: Path) -> None:
    with Store.open(path) as store, Store.open(path) as other:
        other.config.get("k")  # or else closing all connections would remove the log
        with store.transaction():
            for number in range(3_000):
                store.config.set("count", number)
        if (child := os.fork()) == 0:
            os._exit(0)
        os.waitpid(child, 0)
        fill(store, 600)  # fewer changes than before, for the connection that counts them is a new one
        assert log_size(path) < 16_400_000 + 2 * 70 * 110_000


def test_what_a_trace_writes_in_the_middle_of_a_write_takes_nothing_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace, a finaliser or a signal handler may use the store while a statement is under way: the log is not copied then."""
    monkeypatch.setattr("ruv_swarm_store.engines.sqlite.engine.LONGEST_LOG", 20)
    monkeypatch.setattr("ruv_swarm_store.engines.sqlite.engine._LOOK_EVERY", 1)
    noted = 0

    def trace(sql: str, seconds: float) -> None:
        nonlocal noted, tracing
        if tracing:
            tracing = False
            noted += 1
            store.config.set("noted", noted)
            tracing = True

    tracing = False
    with Store.open(path, trace=trace) as store, Store.open(path) as other:
        for number in range(300):
            tracing = True
            if number % 2:
                store.config.set("written", [number, "x" * 1_500])
            else:
                with store.transaction() as work:
                    work.config.set("written", [number, "x" * 1_500])
            tracing = False
            assert other.config.get("written")[0] == number
            assert other.config.get("noted") == noted


def test_an_interrupted_copy_of_the_log_leaves_the_right_to_write_to_others(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ruv_swarm_store.engines.sqlite.engine.LONGEST_LOG", 20)
    interrupted = 0

    def interrupt(reader: Reader) -> int:
        nonlocal interrupted
        interrupted += 1
        raise KeyboardInterrupt

    with Store.open(path) as store, closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as other:
        monkeypatch.setattr(Reader, "copy_log", interrupt)
        for number in range(200):
            try:
                store.config.set("k", [number, "x" * 5_000])
            except KeyboardInterrupt:
                other.execute("BEGIN IMMEDIATE")
                other.execute("ROLLBACK")
            assert store.config.get("k")[0] == number
    assert interrupted or not driver("pysqlite").loses_commits


@pytest.mark.skipif(not driver("pysqlite").loses_commits, reason=f"SQLite {sqlite3.sqlite_version} copies its log safely by itself")
def test_the_log_is_copied_only_while_nobody_can_write(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # sqlite.org/wal.html#walresetbug: a checkpoint during which somebody begins the log anew loses commits.
    copied: list[str] = []
    copy_log = Reader.copy_log

    def watched(reader: Reader) -> int | None:
        with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as other:
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute("BEGIN IMMEDIATE")
            copied.append(doing)
        return copy_log(reader)

    monkeypatch.setattr(Reader, "copy_log", watched)
    monkeypatch.setattr(continuous, "BETWEEN", 0.0)
    with Store.open(path) as store, store.backup_to(MemoryStorage()).continuous(60) as shipping:
        assert pragma(store, "wal_autocheckpoint") == 0
        doing = "committing"
        fill(store, 300)
        doing = "an image"
        with store._engine.image() as image:
            assert image.count
        doing = "shipping"
        for _ in range(3):
            fill(store, 50)
            shipping.ship()
        assert store.check() == []
    assert set(copied) == {"committing", "an image", "shipping"}


@pytest.mark.parametrize("inside", [True, False])
def test_shipping_does_not_wait_for_who_writes(path: Path, inside: bool) -> None:
    with Store.open(path) as store, store.backup_to(MemoryStorage()).continuous(60) as shipping:
        first = shipping.ship()
        fill(store, 20)  # more than is proven by checksums
        with ExitStack() as until:
            if inside:
                until.enter_context(store.transaction())
            else:
                until.enter_context(closing(sqlite3.connect(path, isolation_level=None))).execute("BEGIN IMMEDIATE")
            (second,) = crew.in_threads(1, lambda number, barrier: shipping.ship())
        assert second.name != first.name
        restored = shipping.backups.restore(into=path.with_name("restored.db"))
        assert restored.instant == second.instant
        with Store.open(path.with_name("restored.db")) as copy:
            assert len(copy.config.get("key-19")) == 100_000


def test_readers_and_the_writer_do_not_wait_for_each_other(store: Store) -> None:
    store.config.set("n", 0)
    inside, done = threading.Event(), threading.Event()

    def read(number: int, barrier: Any) -> Any:
        if number:
            with store.transaction() as work:
                work.config.set("n", 1)
                inside.set()
                assert done.wait(10)
            return None
        assert inside.wait(10)
        seen = store.config.get("n")
        done.set()
        return seen

    assert crew.in_threads(2, read)[0] == 0
    assert store.config.get("n") == 1


def test_threads_that_have_ended_leave_no_connection_open(store: Store) -> None:
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("this system does not list open files")
    for _ in range(3):
        crew.in_threads(10, lambda number, barrier: store.tasks.count())
    gc.collect()
    before = len(list(descriptors.iterdir()))
    for _ in range(10):
        crew.in_threads(10, lambda number, barrier: store.tasks.count())
    gc.collect()
    assert len(list(descriptors.iterdir())) <= before + 4


def test_two_stores_of_one_process_share_a_file(path: Path) -> None:
    with Store.open(path) as one, Store.open(path) as other:
        agents = [store.agents.register("worker") for store in (one, other)]
        one.tasks.enqueue_many([("t", n) for n in range(20)])
        with one.transaction() as work:
            task = work.tasks.claim(agents[0])
            assert other.tasks.get(task).agent_id is None
        taken = crew.in_threads(2, lambda number, barrier: [t.id for t in (one, other)[number].tasks.claim_many(agents[number], 10)])
        assert len(set(taken[0] + taken[1])) == 19
        with pytest.raises(Unavailable), one.transaction(), Store.open(path, timeout=0.2) as third:
            third.config.set("k", 1)


def test_a_commit_through_another_store_wakes_who_waits(path: Path) -> None:
    with Store.open(path) as one, Store.open(path) as other:
        agent = one.agents.register("worker")
        later = threading.Timer(0.1, lambda: other.tasks.enqueue("t"))
        later.start()
        started = time.monotonic()
        assert one.tasks.wait(agent, timeout=10) is not None
        assert time.monotonic() - started < 0.9
        later.join()


def test_closed_is_closed_for_every_thread(store: Store) -> None:
    barrier = threading.Barrier(2)
    errors = []

    def read(number: int, _: Any) -> None:
        store.tasks.count()
        barrier.wait()
        barrier.wait()
        with pytest.raises(Closed):
            store.tasks.count()
        errors.append(number)

    thread = threading.Thread(target=read, args=(0, None))
    thread.start()
    barrier.wait()
    store.close()
    barrier.wait()
    thread.join()
    assert errors == [0]


# Killed


@pytest.mark.parametrize("durability", ["normal", "full"])
def test_what_a_killed_process_was_told_is_stored_is_there(path: Path, environment: dict[str, str], durability: str) -> None:
    acknowledged: list[list[str]] = []
    for seconds in (0.3, 0.5):
        process = subprocess.Popen(
            [sys.executable, str(SCRIBBLE), str(path), durability],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first, process.stderr and process.stderr.read()
        time.sleep(seconds)
        process.kill()
        output, errors = process.communicate()
        assert not errors
        assert process.returncode == -signal.SIGKILL
        acknowledged += [line.split() for line in (first + output).splitlines(keepends=True) if line.endswith("\n")]
    assert len(acknowledged) > 30
    with Store.open(path) as store:
        assert store.check() == []
        for what, *facts in acknowledged:
            if what == "task":
                assert store.tasks.exists(facts[0])
            elif what == "version":
                assert store.events.version(facts[0], type="writer") >= int(facts[1])
        for agent in store.agents.find_all():
            events = store.events.read(agent.id)
            assert [event.sequence_number for event in events] == list(range(1, len(events) + 1))
            assert len(events) % 3 == 0
        assert store.config.get("first") == store.config.get("second")


def test_a_killed_transaction_leaves_nothing(path: Path, python: Callable[..., str]) -> None:
    Store.open(path).close()
    code = """
import os, signal, sys
from ruv_swarm_store import Store
store = Store.open(sys.argv[1])
store.config.set("committed", 1)
with store.transaction() as work:
    work.tasks.enqueue_many([("t", "x" * 1000)] * 20_000)
    work.config.set("uncommitted", 1)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    python(code, path, code_expected=-signal.SIGKILL)
    with Store.open(path) as store:
        assert store.config.prefix("") == {"committed": 1}
        assert store.tasks.count() == 0
        assert store.check() == []


# Full


def test_a_full_disk_rolls_the_transaction_back_whole(store: Store) -> None:
    few_and_large = [("t", "x" * 20_000)] * (
        BLOCKS[-1] - 1
    )  # each a statement of its own: one that SQLite can only undo with all before it
    store.config.set("before", 1)
    pages = pragma(store, "page_count")
    pragma(store, f"max_page_count={pages + 20}")
    with pytest.raises(Unavailable, match="full") as caught, store.transaction() as work:
        work.config.set("inside", 1)
        try:
            work.tasks.enqueue_many(few_and_large)
        except Unavailable as error:
            assert isinstance(error.__cause__, sqlite3.OperationalError)
            refused = 0
            for attempt in (
                lambda: work.config.set("after", 1),
                lambda: work.tasks.enqueue_many([("t", 1)]),
                lambda: work.config.get("before"),
                lambda: work.tasks.query().all(),
                lambda: store.config.set("after", 1),
            ):
                with pytest.raises(StoreError, match="rolled back"):
                    attempt()
                refused += 1
            assert refused == 5
            raise
    assert caught.value.retryable
    assert store.config.prefix("") == {"before": 1}
    with pytest.raises(Unavailable):
        store.tasks.enqueue_many([("t", "x" * 1_000)] * 1_000)
    with pytest.raises(Unavailable):
        store.config.set("k", "x" * 500_000)
    assert (store.tasks.count(), store.check()) == (0, [])
    pragma(store, "max_page_count=1000000")
    store.tasks.enqueue_many([("t", "x" * 1_000)] * 1_000)
    assert store.tasks.count() == 1_000


def test_a_batch_that_filled_the_disk_leaves_no_row_of_it(store: Store) -> None:
    pragma(store, f"max_page_count={pragma(store, 'page_count') + 20}")
    with store.transaction() as work:
        work.config.set("inside", 1)
        with pytest.raises(Unavailable, match="full"):
            work.tasks.enqueue_many([("t", "x" * 500)] * BLOCKS[0] * 10)  # SQLite undoes a statement of several rows by itself
        work.config.set("after", 2)
    assert store.config.prefix("") == {"after": 2, "inside": 1}
    assert (store.tasks.count(), store.check()) == (0, [])


def test_a_full_disk_swallowed_inside_the_block_still_fails_it(store: Store) -> None:
    pragma(store, f"max_page_count={pragma(store, 'page_count') + 20}")
    with pytest.raises(StoreError), store.transaction() as work:
        work.config.set("inside", 1)
        try:
            work.tasks.enqueue_many([("t", "x" * 100_000)])
        except Unavailable:
            pass
    assert store.config.prefix("") == {}
    store.config.set("k", 1)
    assert store.config.get("k") == 1


FILE_TOO_LARGE = """
import resource, sys
from ruv_swarm_store import Store
from ruv_swarm_store.errors import Unavailable
store = Store.open(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))
stored = 0
try:
    while True:
        with store.transaction() as work:
            work.tasks.enqueue_many([("t", "x" * 1_000)] * 10)
            work.config.set("n", stored + 10)
        stored += 10
except Unavailable as error:
    print(stored, store.tasks.count(), store.config.get("n"), type(error.__cause__).__name__)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits on file sizes")
def test_a_file_that_cannot_grow_loses_nothing_acknowledged(path: Path, python: Callable[..., str]) -> None:
    stored, count, noted, cause = python(f"{FILE_TOO_LARGE}\nimport os; sys.stdout.flush(); os._exit(0)", path).split()
    assert int(stored) == int(count) == int(noted) > 0
    assert cause == "OperationalError"
    with Store.open(path) as store:
        assert (store.tasks.count(), store.config.get("n")) == (int(stored), int(stored))
        assert store.check() == []


# Transactions


def test_a_commit_that_fails_leaves_nothing_open(store: Store) -> None:
    seen: list[int] = []
    with pytest.raises(Conflict) as caught, store.transaction() as work:
        work.execute(text("PRAGMA defer_foreign_keys=ON"))
        work.config.set("k", 1)
        work.execute(schema.agent_group_members.insert().values(group_id="none", agent_id="none", joined_at=0))
        work.after_commit(lambda: seen.append(1))
    assert caught.value.data["kind"] == "reference"
    assert seen == []
    assert store.config.get("k") is None
    store.config.set("k", 2)
    with store.transaction() as work:
        work.config.set("k", 3)
    assert store.config.get("k") == 3


@pytest.mark.parametrize("statement", ["COMMIT", "ROLLBACK"])
def test_ending_the_transaction_by_hand_is_an_error(store: Store, statement: str) -> None:
    with pytest.raises(StoreError), store.transaction() as work:
        work.config.set("k", 1)
        work.execute(text(statement))
    store.config.set("k", 2)
    with store.transaction() as work:
        work.config.set("k", 3)
    assert store.config.get("k") == 3


def test_no_way_of_inserting_replaces_an_event(store: Store) -> None:
    store.events.append("a", [NewEvent("t", 1, id="e")], type="x")
    before = store.events.find_all()
    for statement in (
        "INSERT OR REPLACE INTO events SELECT * FROM events",
        "REPLACE INTO events SELECT * FROM events",
        "UPDATE OR REPLACE events SET event_type = 'changed'",
        "INSERT INTO events SELECT * FROM events WHERE true ON CONFLICT DO UPDATE SET event_type = 'changed'",
    ):
        with pytest.raises(StoreError):
            store.execute(text(statement))
    assert store.events.find_all() == before


@pytest.mark.parametrize(
    "change",
    [
        "priority = 101", "priority = -1", "priority = 'high'", "status = 'sleeping'", "status = 'assigned'", "status = 'completed'",
        "status = 'scheduled'", "lease_expires_at = 5", "completed_at = 5", "parent_task_id = id", "parent_task_id = 'nobody'",
        "agent_id = 'nobody'", "payload = '{not'", "payload = NULL", "result = '{not'", "type = NULL", "created_at = 1.5", "fence = -1",
        "retry_count = -1", "max_retries = -1", "version = 0", "on_dependency_failure = 'x'",
    ],
)  # fmt: skip
def test_the_database_itself_keeps_tasks_sound(store: Store, change: str) -> None:
    task = store.tasks.enqueue("t")
    with pytest.raises(StoreError):
        store.execute(text(f"UPDATE tasks SET {change}"))
    assert store.tasks.find_all() == [task]


# Tracing


def test_printing_is_a_trace(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store.open(path, trace=print) as store:
        store.config.set("k", 1)
    assert re.search(r"INSERT INTO swarm_config .* \d", capsys.readouterr().out)


def test_a_trace_hears_failures_too(path: Path) -> None:
    heard: list[str] = []
    with Store.open(path, trace=lambda sql, seconds: heard.append(sql)) as store:
        store.groups.create("g")
        heard.clear()
        with pytest.raises(Conflict):
            store.groups.create("g")
        assert [sql.split()[0] for sql in heard] == ["INSERT"]


def test_a_trace_that_fails_harms_nothing(path):
    calls = []

    def trace(sql, seconds):
        calls.append(sql)
        raise BrokenPipeError("nobody listens")

    with Store.open(path) as _:
        pass
    with Store.open(path, trace=trace) as store:
        for n in range(3):
            store.tasks.enqueue("t", n)
        with store.transaction() as work:
            work.tasks.enqueue("t", 3)
    assert calls
    with Store.open(path) as store:
        assert store.tasks.count() == 4


def test_transactions_that_end_out_of_order_are_rolled_back_and_told(path):
    with Store.open(path) as store:
        outer, inner = store.transaction(), store.transaction()
        outer.__enter__().config.set("a", 1)
        work = inner.__enter__()
        with pytest.raises(StoreError, match="out of order"):
            outer.__exit__(None, None, None)
        with pytest.raises(StoreError):
            work.config.set("b", 1)
        with pytest.raises(StoreError):
            inner.__exit__(None, None, None)
        assert store.config.prefix("") == {}
        store.config.set("c", 1)
        assert store.config.prefix("") == {"c": 1}


class Interrupt(BaseException):
    """What Ctrl-C is, without its power over the test run."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no interval timer")
def test_an_interrupt_leaves_no_transaction_open(path):
    armed = False
    acknowledged = 0

    def strike(*_: Any) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise Interrupt

    def work_until_struck(store: Store) -> None:
        """In a call of its own: a `with` block does not hold between its last statement and its end whatever is raised there."""
        nonlocal armed, acknowledged
        armed = True
        while armed:  # or it struck where Python lets nothing out, in a finalizer
            with store.transaction() as work:
                work.config.set("n", acknowledged + 1)
            acknowledged += 1

    before = signal.signal(signal.SIGALRM, strike)
    try:
        with Store.open(path) as store:
            for _ in range(100):
                acknowledged = store.config.get("n", 0)
                signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)  # strikes again until it hits
                with contextlib.suppress(Interrupt):
                    work_until_struck(store)
                with Store.open(path, timeout=1) as other:  # neither the lock nor the transaction was left behind
                    assert other.config.get("n", 0) >= acknowledged
                    store.config.set("mine", 1)
                    other.config.set("other", 1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_very_many_threads_share_readers(path: Path) -> None:
    with Store.open(path) as store:
        store.config.set("key", "value")
        files = Path("/proc/self/fd")
        handles = len(list(files.iterdir())) if files.is_dir() else 0
        together, found = threading.Barrier(201), []

        def read() -> None:
            together.wait()
            found.append([store.config.get("key") for _ in range(20)])
            together.wait()
            together.wait()

        threads = [threading.Thread(target=read) for _ in range(200)]
        for thread in threads:
            thread.start()
        together.wait()
        together.wait()
        opened = len(list(files.iterdir())) - handles if handles else 0
        together.wait()
        for thread in threads:
            thread.join()
        assert found == [["value"] * 20] * 200
        assert opened <= 3 * MOST_READERS + 3


def test_a_link_that_is_no_text_is_a_fault_of_the_chain(store: Store) -> None:
    store.events.append("a", [NewEvent("t")], type="thing")
    store.events.seal()
    store.events.append("a", [NewEvent("t")], type="thing")
    store.execute(text("DROP TRIGGER event_seals_no_update"))
    store.execute(text("UPDATE event_seals SET hash = CAST(x'ff' AS TEXT)"))
    audit = store.events.verify()
    assert audit.fault is not None
    assert "cannot be read" in audit.fault.what
    assert (audit.links, audit.unsealed) == (0, 1)


@pytest.mark.parametrize("position", [1, 2, -5])
def test_what_another_program_puts_in_place_of_an_event_or_between_is_told_by_the_chain(path: Path, position: int):
    with Store.open(path) as store:
        store.events.append("a", [NewEvent("x"), NewEvent("y"), NewEvent("z")], type="t")
        store.events.seal()
        assert store.events.verify().intact
    columns = "position, id, aggregate_id, aggregate_type, event_type, event_data, timestamp, sequence_number"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:  # which has recursive_triggers off
        other.execute(f"INSERT OR REPLACE INTO events ({columns}) VALUES (?, 'forged', 'a', 't', 'x', '1', 1, 9)", (position,))
    with Store.open(path) as store:
        assert not store.events.verify().intact
