"""Tells of commits where everything runs in one thread: who waits lets the event loop go on, and the commit itself wakes it."""

from __future__ import annotations

import asyncio
import importlib
import weakref
from collections.abc import Callable
from typing import Any

from ruv_swarm_store.engines.sqlite.connections import Writer
from ruv_swarm_store.engines.sqlite.driver import Driver
from ruv_swarm_store.engines.sqlite.watch import Watch
from ruv_swarm_store.errors import Unsupported


def run_sync(awaitable: Any) -> Any:
    """What an awaitable gives, the calling Python suspended meanwhile while the event loop goes on."""
    return importlib.import_module("sqljs_dbapi.suspending").run_sync(awaitable)


def can_run_sync() -> bool:
    """Whether Python can be suspended here: where WebAssembly offers that, and Python was entered asynchronously."""
    return bool(importlib.import_module("pyodide.ffi").can_run_sync())


class Bell(Watch):
    """Counts the commits of every store on one database."""

    def __init__(self, driver: Driver, writer: Callable[[], Writer | None], probe: Callable[[], Any] | None, database: str | None) -> None:
        """`probe` is as for a `Watch`; `database` the name that several stores may open, None when it is this store's alone."""
        super().__init__(driver, writer, probe)
        self.waiting = 1  # in another store, perhaps
        self._database = database
        self._sleepers: set[asyncio.Future[None]] = set()
        _bells.add(self)

    def changed(self) -> None:
        self.ring()
        if self._database is not None:
            for bell in list(_bells):
                if bell._database == self._database and bell is not self:
                    bell.ring()

    def ring(self) -> None:
        """Wakes who waits at this store."""
        self._count += 1
        for sleeper in self._sleepers:
            if not sleeper.done():
                sleeper.set_result(None)

    def wait(self, seen: int, seconds: float) -> bool:
        if not can_run_sync():
            raise Unsupported(
                "waiting here would keep the event loop from bringing what is waited for", hint="Await wait_async or request_async instead"
            )
        return bool(run_sync(self.wait_async(seen, seconds)))

    async def wait_async(self, seen: int, seconds: float) -> bool:
        """`wait`, for coroutines."""
        sleeper = asyncio.get_running_loop().create_future()
        self._sleepers.add(sleeper)
        try:
            if self.look() == seen:
                await asyncio.wait([sleeper], timeout=seconds)
            return self._count != seen
        finally:
            self._sleepers.discard(sleeper)


_bells: weakref.WeakSet[Bell] = weakref.WeakSet()
