"""What is special to the store in a browser: storing, one thread, and being suspended."""

import asyncio
import gc
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from ruv_swarm_store import Store
from ruv_swarm_store.engines import IN_BROWSER
from ruv_swarm_store.errors import Conflict, InvalidValue, StoreError, Unavailable, Unsupported
from ruv_swarm_store.worker import Worker

if IN_BROWSER:
    import sqljs_dbapi
    from pyodide.code import run_js
    from pyodide.ffi import run_sync
    from realm import scratch, without_suspension
    from sqljs_dbapi import storage

browser = pytest.mark.skipif(not IN_BROWSER, reason="sql.js runs in a browser only")


@pytest.fixture
def name() -> Iterator[str]:
    """The name of a database that does not exist yet."""
    name = f"{scratch()}sqljs-{uuid4()}"
    yield name
    run_sync(storage.remove(name))


# Addresses


@pytest.mark.skipif(IN_BROWSER, reason="this is what other platforms say")
def test_elsewhere_its_address_is_refused() -> None:
    with pytest.raises(Unsupported, match="browser"):
        Store.open("sqlite+sqljs:///swarm")
    with pytest.raises(Unsupported, match="browser"):
        asyncio.run(Store.open_async("sqlite+sqljs://"))


@browser
def test_a_name_or_none_is_all_it_takes(name: str) -> None:
    with Store.open() as store:
        assert store.address == "sqlite+sqljs://"
        assert (store.capabilities.persistent, store.capabilities.threads, store.capabilities.processes) == (False, False, False)
    for address in (name, f"sqlite:///{name}", f"sqlite+sqljs:///{name}?sync_interval=0.5"):
        with Store.open(address) as store:
            assert store.address == f"sqlite+sqljs:///{name}"
            assert store.capabilities.persistent


@browser
@pytest.mark.parametrize("options", ["durability=commit", "nonsense=1", "isolation_level=IMMEDIATE", "mode=follow"])
def test_an_address_may_say_only_what_the_store_leaves_to_it(options: str) -> None:
    with pytest.raises(InvalidValue):
        Store.open(f"sqlite+sqljs:///never-made?{options}")


@browser
def test_there_are_no_files_and_no_read_only_memory() -> None:
    with pytest.raises(Unsupported):
        Store.open("sqlite+pysqlite:///swarm.db")
    with pytest.raises(Unsupported):
        Store.open(read_only=True)


# Storing


def stored(name: str) -> bytes:
    """The image that would be loaded after a crash at this moment."""
    image: bytes = run_sync(storage.export_image(name))
    return image


def value_in(image: bytes) -> Any:
    """What a stored image says of the key "k"."""
    with sqljs_dbapi.connect(":memory:") as connection:
        connection.deserialize(image)
        row = connection.execute("SELECT value FROM swarm_config WHERE key = 'k'").fetchone()
    connection.close()
    return None if row is None else row[0]


@browser
def test_what_full_durability_acknowledges_is_stored(name: str) -> None:
    with Store.open(name, durability="full") as store:
        for number in range(5):
            store.config.set("k", number)
            assert value_in(stored(name)) == str(number)
            assert store.storing().pending == 0
        with store.transaction() as work:
            work.config.set("k", "inside")
            assert value_in(stored(name)) == "4"
        assert value_in(stored(name)) == '"inside"'


@browser
def test_flush_stores_what_normal_durability_puts_off(name: str) -> None:
    store = Store.open(f"sqlite+sqljs:///{name}?sync_interval=1000")
    run_sync(store.flush())
    store.config.set("k", 1)
    assert value_in(stored(name)) is None
    assert store.storing().pending == 1
    run_sync(store.flush())
    assert value_in(stored(name)) == "1"
    assert store.storing().pending == 0
    assert store.storing().stored_at is not None
    store.close()


@browser
def test_closing_stores_the_rest(name: str) -> None:
    for number, close in enumerate([lambda store: store.close(), lambda store: run_sync(store.close_async())]):
        store = Store.open(f"sqlite+sqljs:///{name}?sync_interval=1000")
        store.config.set("k", number)
        close(store)
        assert value_in(stored(name)) == str(number)


@browser
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_dropped_store_is_stored_in_the_background(name: str) -> None:
    store = Store.open(f"sqlite+sqljs:///{name}?sync_interval=1000")
    store.config.set("k", 1)
    del store
    gc.collect()
    with Store.open(name) as again:
        assert again.config.get("k") == 1


@browser
def test_others_go_on_while_a_commit_is_stored_and_nothing_gets_mixed_up(name: str) -> None:
    """Coroutines that are suspended in the middle of `full` verbs, units of work, savepoints and failures, all on one store."""

    async def work(store: Store, who: int) -> None:
        for number in range(8):
            await asyncio.sleep(0)
            store.config.set(f"{who}", number)
            with store.transaction() as unit:
                unit.config.set("sum", unit.config.get("sum", 0) + 1)
                with unit.transaction() as inner:
                    inner.config.set(f"{who}-inner", number)
            with pytest.raises(Conflict), store.transaction() as unit:
                unit.config.set("sum", 1_000)
                unit.agents.register("worker", name="taken")
            assert store.config.get(f"{who}-inner") == number

    async def play() -> None:
        async with await Store.open_async(name, durability="full") as store:
            store.agents.register("worker", name="taken")
            await asyncio.gather(*(work(store, who) for who in range(6)))
            assert store.config.get("sum") == 48
            assert store.check() == []
            assert store.storing().pending == 0

    run_sync(play())


@browser
def test_two_stores_on_one_database(name: str) -> None:
    with Store.open(name, timeout=0.5) as one, Store.open(name) as other:
        one.config.set("k", 1)
        assert other.config.get("k") == 1
        with one.transaction() as work:
            work.config.set("k", 2)
            assert other.config.get("k") == 1
            with pytest.raises(Unavailable):
                other.config.set("k", 3)
        assert other.config.get("k") == 2


@browser
def test_what_cannot_be_stored_is_told_kept_and_stored_later(name: str) -> None:
    if not scratch():
        pytest.skip("a browser's storage cannot be made to fail from here; wasm/js-tests does")
    obstacle = f"{name}-new-{run_js('process.pid')}"  # where a file is written before it takes the old one's place
    files = run_js("process.getBuiltinModule('fs')")
    store = Store.open(name, durability="full")
    store.config.set("k", 1)
    files.mkdirSync(obstacle)
    with pytest.raises(Unavailable):
        store.config.set("k", 2)
    with pytest.raises(Unavailable):
        run_sync(store.flush())
    assert store.storing().pending >= 1
    assert value_in(stored(name)) == "1"
    files.rmdirSync(obstacle)
    run_sync(store.flush())
    assert value_in(stored(name)) == "2"
    assert store.storing().pending == 0
    store.config.set("k", 3)
    assert value_in(stored(name)) == "3"
    store.close()


# Where Python cannot be suspended


@browser
def test_without_suspension_what_would_block_says_so(name: str) -> None:
    with pytest.raises(Unsupported, match="open_async"):
        without_suspension(lambda: Store.open(name))
    with Store.open(name) as store:
        agent = store.agents.register("worker")
        with pytest.raises(Unsupported, match="wait_async"):
            without_suspension(lambda: store.tasks.wait(agent, timeout=5))
        with pytest.raises(Unsupported, match="request_async"):
            without_suspension(lambda: store.messages.request("t", sender=agent, timeout=5))
        assert without_suspension(lambda: store.tasks.wait(agent, timeout=0)) is None
        store.tasks.enqueue("t")
        assert without_suspension(lambda: store.tasks.wait(agent, timeout=5)) is not None  # one is there


@browser
def test_without_suspension_a_store_in_memory_opens_and_works() -> None:
    run_sync(sqljs_dbapi.load())

    def use() -> Any:
        with Store.open() as store:
            assert not store.capabilities.blocking
            store.config.set("k", 1)
            return store.config.get("k")

    assert without_suspension(use) == 1


@browser
def test_without_suspension_full_verbs_return_and_flush_waits(name: str) -> None:
    store = Store.open(name, durability="full")
    without_suspension(lambda: store.config.set("k", 1))
    run_sync(store.flush())
    assert value_in(stored(name)) == "1"
    without_suspension(lambda: store.config.set("k", 2))
    without_suspension(store.close)
    run_sync(store.close_async())
    assert value_in(stored(name)) == "2"


@browser
def test_a_worker_says_that_it_needs_threads(name: str) -> None:
    with Store.open(name) as store, pytest.raises(Unsupported, match="threads"):
        Worker(store, print)


@browser
def test_a_buffer_is_written_by_the_event_loop() -> None:
    with Store.open() as store, store.metrics.buffer(size=100, seconds=0.05) as buffer:
        buffer.record("n", 1)
        assert store.metrics.count() == 0
        run_sync(asyncio.sleep(0.3))
        assert store.metrics.count() == 1


@browser
def test_a_buffer_that_is_being_written_is_not_waited_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(name, durability="full")
    buffer = store.metrics.buffer(size=100, seconds=None)
    flush = store._engine.flush

    async def slowly() -> None:
        await asyncio.sleep(0.05)
        await flush()

    async def first() -> None:
        buffer.record("n", 1)
        buffer.flush()  # suspended until it is stored

    async def second() -> None:
        buffer.record("n", 2)
        with pytest.raises(Unavailable, match="coroutine"):
            buffer.flush()

    async def play() -> None:
        await asyncio.gather(first(), second())

    with monkeypatch.context() as slow:
        slow.setattr(store._engine, "flush", slowly)
        run_sync(play())
    assert store.metrics.count() == 2  # the first took both along
    buffer.close()
    store.close()


@browser
def test_an_image_that_is_no_database_is_refused(name: str) -> None:
    with Store.open(name) as store:
        store.config.set("k", 1)
    image = bytearray(stored(name))
    image[100:4096] = b"x" * 3996  # the page that says which tables there are
    run_sync(storage.import_image(name, bytes(image), overwrite=True))
    with pytest.raises(StoreError):
        Store.open(name).close()
