"""Databases that outlive their connections: in IndexedDB in a browser, in a file on Node; the same tests for both."""

import asyncio
import contextlib
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

pytest.importorskip("pyodide", reason="runs inside Pyodide")

import sqljs_dbapi
from pyodide.code import run_js
from pyodide.ffi import can_run_sync, to_js
from sqljs_dbapi import storage
from sqljs_dbapi.storage import StorageError

ON_NODE: bool = run_js("globalThis.process?.release?.name === 'node'")
browser_only = pytest.mark.skipif(ON_NODE, reason="files are not encrypted")


@pytest.fixture
def name() -> Iterator[str]:
    """Of a database that does not exist yet."""
    if not ON_NODE:
        yield f"test-{run_js('crypto.randomUUID()')}"
        return
    fs, path = (run_js(f"process.getBuiltinModule('{module}')") for module in ("fs", "path"))
    directory = fs.mkdtempSync(path.join(run_js("process.getBuiltinModule('os')").tmpdir(), "storage-"))
    yield path.join(directory, "test.db")
    fs.rmSync(directory, storage._object(recursive=True, force=True))


async def filled(name: str, rows: int = 1, **options: Any) -> tuple[storage.Database, sqljs_dbapi.Connection]:
    database = await sqljs_dbapi.open(name, **options)
    connection = sqljs_dbapi.connect(name)
    connection.execute("CREATE TABLE t(i INTEGER PRIMARY KEY)")
    connection.executemany("INSERT INTO t VALUES (?)", [(i,) for i in range(rows)])
    connection.commit()
    return database, connection


async def count(name: str, **options: Any) -> int:
    database = await sqljs_dbapi.open(name, **options)
    try:
        (rows,) = sqljs_dbapi.connect(name).execute("SELECT count(*) FROM t").fetchone()
        return int(rows)
    finally:
        await database.close()


async def writer_elsewhere(name: str, mode: str = "wait") -> Any:
    """The store of another tab or process, as far as locks and fences can tell."""
    await storage.prepare()
    return await storage._modules["store"].openStore(name, storage._object(mode=mode))


def spoil(database: storage.Database) -> None:
    """From now on nothing of it can be stored."""
    fail = run_js("() => { throw Object.assign(new Error('made to fail: no room'), { code: 'quota' }); }")
    store = database._keeper.store
    store.commit = run_js("(fail) => async () => fail()")(fail)
    if ON_NODE:
        store.commitSync = fail


def mend(database: storage.Database) -> None:
    run_js("(store) => { delete store.commit; delete store.commitSync; }")(database._keeper.store)


def image(rows: int) -> bytes:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE t(i INTEGER PRIMARY KEY)")
        connection.executemany("INSERT INTO t VALUES (?)", [(i,) for i in range(rows)])
        connection.commit()
        return connection.serialize()


def native_count(found: bytes) -> int:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.deserialize(found)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        (rows,) = connection.execute("SELECT count(*) FROM t").fetchone()
        return int(rows)


async def test_what_was_committed_is_there_again(name: str) -> None:
    database, connection = await filled(name, 5)
    connection.execute("INSERT INTO t VALUES (99)")  # not committed
    connection.close()
    await database.close()
    assert await count(name) == 5
    assert await count(name) == 5


async def test_the_interval_stores_by_itself_and_status_tells(name: str) -> None:
    database, connection = await filled(name, sync_interval=0.2)
    status = database.status()
    assert (status.pending_commits > 0, status.mode, status.capture) == (True, "writer", "capture")
    await asyncio.sleep(0.4)
    status = database.status()
    assert (status.pending_commits, status.lag, status.failure) == (0, 0, None)
    assert status.last_flush is not None
    assert status.generation > 0
    assert status.size > 0
    connection.close()
    await database.close()
    assert database.status().mode == "closed"


async def test_flush_waits_for_everything_before_it(name: str) -> None:
    database, connection = await filled(name, sync_interval=60)
    for i in range(100, 120):
        connection.execute("INSERT INTO t VALUES (?)", (i,))
        connection.commit()
        await database.flush()
        assert database.status().pending_commits == 0
    await database.close()


async def test_durability_commit_returns_when_it_is_stored(name: str) -> None:
    if not (can_run_sync() or ON_NODE):
        pytest.skip("Python cannot wait for JavaScript here")
    database, connection = await filled(name, durability="commit")
    for i in range(100, 120):
        connection.execute("INSERT INTO t VALUES (?)", (i,))
        connection.commit()
        assert database.status().pending_commits == 0
    await database.close()
    assert await count(name) == 21


async def test_what_was_committed_is_stored_before_a_vacuum(name: str) -> None:
    """For nothing can be stored while it runs."""
    if ON_NODE or not can_run_sync():
        pytest.skip("a file is stored at once; elsewhere Python cannot wait for JavaScript here")
    database, connection = await filled(name, 20, sync_interval=60)
    connection.isolation_level = None
    assert database.status().flushes == 0
    connection.execute("VACUUM")
    assert (database.status().flushes, database.status().pending_commits) == (1, 1)
    with closing(sqlite3.connect(":memory:")) as stored:
        stored.deserialize(await storage.export_image(name))
        assert stored.execute("SELECT count(*) FROM t").fetchone() == (20,)
    connection.close()
    await database.close()


async def test_flush_now(name: str) -> None:
    database, _ = await filled(name, sync_interval=60)
    if can_run_sync() or ON_NODE:
        database.flush_now()
        assert database.status().pending_commits == 0
    else:
        with pytest.raises(sqljs_dbapi.NotSupportedError, match="await"):
            database.flush_now()
    await database.close()


async def test_opened_twice_is_one_database_that_the_last_close_ends(name: str) -> None:
    first, second = await asyncio.gather(sqljs_dbapi.open(name), sqljs_dbapi.open(name))
    assert first is second
    await first.close()
    connection = sqljs_dbapi.connect(name)
    connection.execute("CREATE TABLE t(i)")
    await second.close()
    with pytest.raises(sqljs_dbapi.ProgrammingError, match="closed"):
        connection.execute("SELECT * FROM t")
    with pytest.raises(sqljs_dbapi.ProgrammingError, match="closed"):
        await second.flush()
    assert await count(name) == 0


async def test_open_waits_for_a_close_that_is_under_way(name: str) -> None:
    for _ in range(5):
        database = await sqljs_dbapi.open(name, sync_interval=60)
        sqljs_dbapi.connect(name).execute("CREATE TABLE IF NOT EXISTS t(i)")
        closing = asyncio.ensure_future(database.close())
        await asyncio.sleep(0)
        again = await sqljs_dbapi.open(name)
        assert sqljs_dbapi.connect(name).execute("SELECT count(*) FROM t").fetchone() == (0,)
        await closing
        await again.close()


async def test_connect_opens_what_it_can(name: str) -> None:
    if can_run_sync() or ON_NODE:
        connection = sqljs_dbapi.connect(name)
        connection.execute("CREATE TABLE t(i)")
        database = await sqljs_dbapi.open(name)
        await database.close()
        await database.close()
        assert await count(name) == 0
    else:
        with pytest.raises(sqljs_dbapi.OperationalError, match=r"await sqljs_dbapi\.open"):
            sqljs_dbapi.connect(name)


async def test_a_fenced_writer_is_told_before_its_next_statement(name: str) -> None:
    database, connection = await filled(name, sync_interval=60)
    await database.flush()
    other = await writer_elsewhere(name, "steal")
    connection.execute("INSERT INTO t VALUES (100)")
    connection.commit()
    with pytest.raises(StorageError) as raised:
        await database.flush()
    assert (raised.value.reason, raised.value.sqlite_errorname) == ("fenced", "SQLITE_READONLY")
    for _ in range(2):
        with pytest.raises(StorageError, match="another"):
            connection.execute("INSERT INTO t VALUES (101)")
    with pytest.raises(StorageError):
        await database.close()
    await other.close()
    assert await count(name) == 1


async def test_a_failure_that_waits_to_be_told_does_not_keep_from_undoing(name: str) -> None:
    """Who rolls back does not want to store anything; and what is not undone is committed by the next one."""
    database, connection = await filled(name, sync_interval=0.05)
    await database.flush()
    connection.isolation_level = None
    for begin, undo in (("BEGIN", "ROLLBACK"), ("SAVEPOINT s", "ROLLBACK TO s")):
        spoil(database)
        connection.execute("UPDATE t SET i = i")
        connection.execute(begin)
        if not ON_NODE:  # a file is not stored while that is open
            connection.execute("INSERT INTO t VALUES (99)")
        await asyncio.sleep(0.3)
        assert database.status().failure is not None
        connection.execute(undo)
        with pytest.raises(StorageError, match="no room"):
            connection.execute("SELECT 1")
        assert connection.execute("SELECT count(*) FROM t WHERE i = 99").fetchone() == (0,)
        if connection.in_transaction:
            connection.execute("RELEASE s")
        mend(database)
        await database.flush()
    await database.close()


async def test_nothing_is_taken_while_it_closes_and_a_commit_after_it_says_so(name: str) -> None:
    database, connection = await filled(name, sync_interval=60)
    other = sqljs_dbapi.connect(name)
    connection.execute("INSERT INTO t VALUES (98)")  # open when the closing begins
    closing = asyncio.ensure_future(database.close())
    await asyncio.sleep(0)
    with pytest.raises(sqljs_dbapi.ProgrammingError, match="closed"):
        other.execute("INSERT INTO t VALUES (99)")
    with contextlib.suppress(StorageError):  # a file cannot be stored with a transaction open: then it stays open
        await closing
    if not ON_NODE:
        with pytest.raises(sqljs_dbapi.ProgrammingError, match="closed"):
            connection.commit()
        connection.rollback()
    else:
        connection.rollback()
        await database.close()
    assert await count(name) == 1


async def test_a_close_that_is_cancelled_goes_on(name: str) -> None:
    database, _ = await filled(name, 3, sync_interval=60)
    closing = asyncio.ensure_future(database.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    again = await sqljs_dbapi.open(name, timeout=1)
    assert again is not database
    assert sqljs_dbapi.connect(name).execute("SELECT count(*) FROM t").fetchone() == (3,)
    await again.close()


async def test_an_open_that_is_cancelled_leaves_no_lock(name: str) -> None:
    other = await writer_elsewhere(name)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(sqljs_dbapi.open(name), 0.1)
    await other.close()
    await asyncio.sleep(0.2)
    database, _ = await filled(name, timeout=1)
    await database.close()


async def test_a_promote_that_is_cancelled_does_not_take_over(name: str) -> None:
    other = await writer_elsewhere(name)
    await other.commit(storage._object(full=to_js(image(3))))
    database = await sqljs_dbapi.open(name, mode="follow")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(database.promote(), 0.1)
    await other.close()
    await asyncio.sleep(0.2)
    assert database.read_only
    await (await writer_elsewhere(name, "fail")).close()
    await database.promote(mode="fail")
    assert not database.read_only
    await database.close()


async def test_two_closes_at_once_of_what_was_opened_twice(name: str) -> None:
    first, second = await asyncio.gather(sqljs_dbapi.open(name), sqljs_dbapi.open(name))
    await asyncio.gather(first.close(), second.close())
    assert first.status().mode == "closed"
    await (await writer_elsewhere(name, "fail")).close()


async def test_a_database_found_damaged_is_told_and_lets_go_of_its_lock_where_that_is_an_error(name: str) -> None:
    await storage.prepare()
    damaged = run_js("""(store) => {
        const recovered = { reason: 'a bad record', generation: 1, lost: 2, quarantined: null };
        return { ...store, openStore: async (...words) => Object.assign(await store.openStore(...words), { recovered }) };
    }""")
    real = storage._modules["store"]
    storage._modules["store"] = damaged(real)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(storage.DamageWarning, match="a bad record"):
                await sqljs_dbapi.open(name)
        with pytest.warns(storage.DamageWarning):
            database = await sqljs_dbapi.open(name, timeout=1)
        assert database.status().recovered == storage.Recovered("a bad record", 1, 2, None)
        await database.close()
    finally:
        storage._modules["store"] = real


async def test_connect_waits_for_a_writer_elsewhere_as_long_as_it_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy import create_engine

    asked: list[Any] = []
    monkeypatch.setattr(storage, "open_for_connect", lambda _, **options: asked.append(options.get("timeout")) or "")
    sqljs_dbapi.connect(name, timeout=0.05).close()
    sqljs_dbapi.connect(name, 2).close()
    sqljs_dbapi.connect(name).close()
    create_engine(f"sqlite+sqljs:///{name}?timeout=3").raw_connection().close()
    assert asked == [0.05, 2, None, 3.0]


async def test_an_exclusive_locking_mode_is_refused(name: str) -> None:
    """Nothing of it would be stored: who stores could not even see that something was committed."""
    database, connection = await filled(name, sync_interval=60)
    for how in ("PRAGMA locking_mode=EXCLUSIVE", "pragma main.locking_mode ( 'exclusive' )"):
        with pytest.raises(sqljs_dbapi.NotSupportedError, match="exclusive"):
            connection.execute(how)
        with pytest.raises(sqljs_dbapi.NotSupportedError, match="exclusive"):
            connection.executescript(how)
    assert connection.execute("PRAGMA locking_mode").fetchone() == ("normal",)
    connection.execute("INSERT INTO t VALUES (99)")
    connection.commit()
    await database.close()
    assert await count(name) == 2


async def test_the_next_transaction_is_open_before_a_commit_waits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For another coroutine may go on with the connection meanwhile, and what it inserts it must be able to roll back."""
    database, _ = await filled(name, durability="commit")
    connection = sqljs_dbapi.connect(name, autocommit=False)
    connection.execute("INSERT INTO t VALUES (98)")
    waits = []

    def committed(path: str) -> None:
        waits.append(connection.in_transaction)
        connection.execute("INSERT INTO t VALUES (99)")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "committed", committed)
        connection.commit()
    assert waits == [True]
    connection.rollback()
    assert connection.execute("SELECT max(i) FROM t").fetchone() == (98,)
    connection.close()
    await database.close()


async def test_whole_images_pass_no_guard_either(name: str) -> None:
    other = await writer_elsewhere(name)
    await other.commit(storage._object(full=to_js(image(3))))
    database = await sqljs_dbapi.open(name, mode="follow", durability="commit")
    connection = sqljs_dbapi.connect(name)
    source = sqljs_dbapi.connect(":memory:")
    source.deserialize(image(5))
    for refused in (lambda: source.backup(connection), lambda: connection.deserialize(image(5))):
        with pytest.raises(StorageError, match="read-only"):
            refused()
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (3,)
    await other.close()
    await database.promote()
    source.backup(connection)
    if ON_NODE or can_run_sync():
        assert database.status().pending_commits == 0
    connection.close()
    await database.close()
    assert await count(name) == 5


async def test_an_empty_key_is_refused(name: str) -> None:
    for key in ("", b""):
        with pytest.raises(sqljs_dbapi.ProgrammingError, match="empty"):
            await sqljs_dbapi.open(name, key=key)


async def test_followers_read_and_take_over(name: str) -> None:
    other = await writer_elsewhere(name)
    await other.commit(storage._object(full=to_js(image(3))))
    with pytest.raises(StorageError) as raised:
        await sqljs_dbapi.open(name, mode="fail")
    assert (raised.value.reason, raised.value.sqlite_errorname) == ("locked", "SQLITE_BUSY")
    with pytest.raises(StorageError) as raised:
        await sqljs_dbapi.open(name, timeout=0.05)
    assert raised.value.reason == "locked"
    database = await sqljs_dbapi.open(name, mode="follow")
    connection = sqljs_dbapi.connect(name)
    assert database.read_only
    with pytest.raises(sqljs_dbapi.OperationalError) as refused:
        connection.execute("INSERT INTO t VALUES (100)")
    assert refused.value.sqlite_errorname == "SQLITE_READONLY"
    await other.commit(storage._object(full=to_js(image(4))))
    for _ in range(100):
        if connection.execute("SELECT count(*) FROM t").fetchone() == (4,):
            break
        await asyncio.sleep(0.02)
    else:
        pytest.fail("the follower did not follow")
    taking_over = asyncio.ensure_future(database.promote())
    await asyncio.sleep(0.05)
    assert database.read_only
    await other.close()
    await taking_over
    assert not database.read_only
    connection.execute("INSERT INTO t VALUES (100)")
    connection.commit()
    await database.close()
    assert await count(name) == 5


async def test_images_in_and_out(name: str) -> None:
    await storage.import_image(name, image(7))
    with pytest.raises(StorageError) as raised:
        await storage.import_image(name, image(7))
    assert raised.value.reason == "exists"
    assert await count(name) == 7
    assert native_count(await storage.export_image(name)) == 7
    database = await sqljs_dbapi.open(name)
    connection = sqljs_dbapi.connect(name)
    await database.replace(image(9))
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (9,)
    assert native_count(database.export()) == 9
    with pytest.raises(StorageError):
        await database.replace(b"no database")
    connection.close()
    await database.close()
    assert await count(name) == 9
    await storage.remove(name)
    with pytest.raises(StorageError) as raised:
        await storage.export_image(name)
    assert raised.value.reason == "missing"


@browser_only
async def test_encryption(name: str) -> None:
    database, _ = await filled(name, 2, key="open sesame")
    assert database.status().encrypted
    await database.close()
    for key in ("wrong", None):
        with pytest.raises(StorageError) as raised:
            await sqljs_dbapi.open(name, key=key)
        assert raised.value.reason == "key"
    assert await count(name, key="open sesame") == 2


async def test_what_open_does_not_understand(name: str) -> None:
    for wrong in ({"durability": "full"}, {"mode": "share"}, {"sync_interval": -1}):
        with pytest.raises(sqljs_dbapi.ProgrammingError):
            await sqljs_dbapi.open(name, **wrong)
