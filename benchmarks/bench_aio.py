"""A thousand coroutines at once: the store for coroutines beside threads over the plain driver, and beside aiosqlite."""

from __future__ import annotations

import asyncio
import importlib
import sqlite3
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

import pytest
from conftest import Rival
from floor import PRAGMAS, Floor
from peers import PAYLOAD
from places import Place

from ruv_swarm_store import AsyncStore, Store

AT_ONCE = 1_000
"""Coroutines that run side by side, each with one operation."""
ROWS = 10_000
"""Tasks there are to be read."""

pytestmark = pytest.mark.only("sqlite")


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """One event loop for both sides."""
    with asyncio.Runner() as runner:
        yield runner.get_loop()


class Threads:
    """`asyncio.to_thread` over the plain driver: one connection that writes, behind a lock, and one that reads for each thread."""

    def __init__(self, path: str, *, full: bool) -> None:
        self._path = path
        self._full = full
        self._lock = threading.Lock()
        self._local = threading.local()
        self._all: list[sqlite3.Connection] = []
        self._writer = self._connect()

    def _connect(self) -> sqlite3.Connection:
        raw = sqlite3.connect(self._path, isolation_level=None, cached_statements=512, check_same_thread=False)
        for pragma in (f"synchronous={'FULL' if self._full else 'NORMAL'}", *PRAGMAS):
            raw.execute(f"PRAGMA {pragma}")
        self._all.append(raw)
        return raw

    def enqueue(self, row: Sequence[Any]) -> None:
        with self._lock:
            self._writer.execute(Floor.ENQUEUE, row)

    def get(self, id: str) -> Any:
        if not hasattr(self._local, "reader"):
            self._local.reader = self._connect()
        return self._local.reader.execute(Floor.GET, (id,)).fetchone()

    def close(self) -> None:
        for raw in self._all:
            raw.close()


class Aiosqlite:
    """aiosqlite as its documentation uses it, and `execute_fetchall`, its one hop for a whole SELECT."""

    def __init__(self, loop: asyncio.AbstractEventLoop, path: str, *, full: bool) -> None:
        self._loop = loop
        self._raw: Any = loop.run_until_complete(self._open(importlib.import_module("aiosqlite"), path, full))

    async def _open(self, aiosqlite: Any, path: str, full: bool) -> Any:
        raw = await aiosqlite.connect(path, isolation_level=None, cached_statements=512)
        for pragma in (f"synchronous={'FULL' if full else 'NORMAL'}", *PRAGMAS):
            await raw.execute(f"PRAGMA {pragma}")
        return raw

    async def enqueue(self, row: Sequence[Any]) -> None:
        await self._raw.execute(Floor.ENQUEUE, row)

    async def get(self, id: str) -> Any:
        async with self._raw.execute(Floor.GET, (id,)) as cursor:
            return await cursor.fetchone()

    async def get_in_one_hop(self, id: str) -> Any:
        return await self._raw.execute_fetchall(Floor.GET, (id,))

    def close(self) -> None:
        self._loop.run_until_complete(self._raw.close())


async def opened(address: str, **options: Any) -> AsyncStore:
    return await AsyncStore.open(address, **options)


def job(loop: asyncio.AbstractEventLoop, calls: Callable[[], Sequence[Coroutine[Any, Any, Any]]]) -> Callable[[], object]:
    """Runs coroutines side by side until all have ended."""

    async def gather() -> None:
        await asyncio.gather(*calls())

    return lambda: loop.run_until_complete(gather())


@pytest.mark.durable
def bench_enqueue_by_1000_coroutines(
    place: Place, loop: asyncio.AbstractEventLoop, floor: Floor, compare: Callable[..., float], rounds: int
) -> None:
    full = place.durability == "full"
    count = AT_ONCE if not full else place.round
    store = loop.run_until_complete(opened(place.new(), durability=place.durability))
    others = []
    for _ in range(2):
        others.append(place.new())
        with Store.open(others[-1]) as made:  # the schema, nothing else
            made.agents.register("bench", id="worker")
    threads, peer = Threads(others[0], full=full), Aiosqlite(loop, others[1], full=full)
    batches = [floor.rows([PAYLOAD] * count) for _ in range(rounds + 1)]
    theirs = [floor.rows([PAYLOAD] * count) for _ in range(rounds + 1)]
    compare(
        job(loop, lambda: [store.tasks.enqueue("crawl", PAYLOAD) for _ in range(count)]),
        job(loop, lambda: [asyncio.to_thread(threads.enqueue, row) for row in batches.pop()]),
        operations=count,
        floor_is="asyncio.to_thread: INSERT in autocommit on one connection behind a lock, rows and JSON made before",
        rivals=[Rival("aiosqlite", job(loop, lambda: [peer.enqueue(row) for row in theirs.pop()]), count, "rows and JSON made before", "")],
    )
    threads.close()
    peer.close()
    loop.run_until_complete(store.close())


def bench_get_by_1000_coroutines(place: Place, loop: asyncio.AbstractEventLoop, compare: Callable[..., float]) -> None:
    address = place.new()
    store = loop.run_until_complete(opened(address))
    added = loop.run_until_complete(store.tasks.enqueue_many(("crawl", PAYLOAD) for _ in range(ROWS)))
    ids = [task.id for task in added[:: ROWS // AT_ONCE]]
    threads, peer = Threads(address, full=False), Aiosqlite(loop, address, full=False)
    compare(
        job(loop, lambda: [store.tasks.get(id) for id in ids]),
        job(loop, lambda: [asyncio.to_thread(threads.get, id) for id in ids]),
        operations=AT_ONCE,
        floor_is="asyncio.to_thread: SELECT by id on a connection of the thread's, a tuple without decoding",
        rivals=[
            Rival("aiosqlite", job(loop, lambda: [peer.get(id) for id in ids]), AT_ONCE, "execute, fetchone: a tuple without decoding", ""),
            Rival(
                "aiosqlite in one hop",
                job(loop, lambda: [peer.get_in_one_hop(id) for id in ids]),
                AT_ONCE,
                "execute_fetchall: tuples without decoding",
                "",
            ),
        ],
    )
    threads.close()
    peer.close()
    loop.run_until_complete(store.close())
