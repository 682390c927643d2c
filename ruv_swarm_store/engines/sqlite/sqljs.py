"""SQLite inside a browser: one connection in one thread, its database in memory and stored by the driver in the background."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from typing import Any, TypeVar

from msgspec.structs import replace
from sqlalchemy import URL
from sqlalchemy.exc import ArgumentError

from ruv_swarm_store.engines.engine import Capabilities, Options, Storing
from ruv_swarm_store.engines.executor import Executor, Interest
from ruv_swarm_store.engines.sqlite.bell import Bell, can_run_sync, run_sync
from ruv_swarm_store.engines.sqlite.driver import driver
from ruv_swarm_store.engines.sqlite.engine import MemoryEngine, SQLiteEngine, url_of
from ruv_swarm_store.errors import InvalidValue, Unavailable, Unsupported

log = logging.getLogger(__name__)

T = TypeVar("T")


class SqljsEngine(MemoryEngine):
    """A database that one page or worker uses, whose commits reach the driver's storage after they were made.

    No statement waits for the storage. With `durability="full"` the storing begins with each commit, and where Python can be suspended
    a verb returns when it is done; elsewhere, and with `normal`, whoever has to be sure awaits `flush`.
    """

    driver = "sqljs"

    def __init__(self, path: str, options: Options, database: Any) -> None:
        """`database` is the driver's stored database of that name, opened for this engine; None for one in memory."""
        self.capabilities = Capabilities(threads=False, processes=False, persistent=database is not None, blocking=can_run_sync())
        self._database = database
        self._closing: asyncio.Future[None] | None = None
        self._stored = 0
        """How many changes the connection had made when all of them were last known to be stored."""
        # Nothing else runs while a statement waits, so whoever keeps the database locked could never let it go.
        super().__init__(replace(options, timeout=0.0), path, "sqlite+sqljs://" if database is None else url_of(path, "sqlite+sqljs"))

    def _new_watch(self) -> Bell:
        probe = self._open_reading if self._options.read_only else None
        return Bell(self._driver, lambda: self._writer, probe, None if self._database is None else self.path)

    def _pragmas(self, *, writing: bool) -> dict[str, str]:
        # What SQLite calls its disk is memory, where there is nothing to wait for, and nothing left to recover from.
        return super()._pragmas(writing=writing and not self._options.read_only) | {"synchronous": "OFF", "journal_mode": "MEMORY"}

    def others_committed(self) -> bool:
        return self._database is not None and SQLiteEngine.others_committed(self)

    # Scopes. What is to be stored is waited for when everything is in order again, for other coroutines go on meanwhile.

    def read(self) -> AbstractContextManager[Executor]:
        return SQLiteEngine.read(self) if self._options.read_only else super().read()

    def snapshot(self) -> AbstractContextManager[Executor]:
        return SQLiteEngine.snapshot(self) if self._options.read_only else super().snapshot()

    def write(self, step: Callable[[Executor], T]) -> T:
        found = super().write(step)
        self._store()
        return found

    @contextmanager
    def transaction(self) -> Iterator[Executor]:
        with super().transaction() as run:
            yield run
        self._store()

    def _store(self) -> None:
        """Waits until what was just committed is stored, if that was promised and waiting is possible."""
        if self._options.durability != "full" or self._database is None or self._writer is None or self.within:
            return
        if (changes := self._writer.raw.total_changes) != self._stored and self._flush_now():
            self._stored = max(self._stored, changes)

    async def wait_async(self, seen: int, seconds: float, interest: Interest | None = None) -> bool:
        if self.within:
            return self.wait(seen, seconds)  # which says why not
        assert isinstance(self._watch, Bell)
        return await self._watch.wait_async(seen, seconds)

    # Storing

    async def flush(self) -> None:
        if self._database is not None:
            with self._translating():
                await self._database.flush()

    def _flush_now(self) -> bool:
        """Waits until everything committed is stored; False where that cannot be waited for."""
        if can_run_sync():
            run_sync(self.flush())
            return True
        try:
            self._database.flush_now()  # files can be
        except self._driver.Error as error:
            if isinstance(error, self._driver.module.NotSupportedError) or self._driver.is_busy(error):
                return False  # or a flush is under way
            raise self._driver.translate(error, self._options.timeout, self.name) from error
        return True

    def storing(self) -> Storing:
        if self._database is None:
            return super().storing()
        status = self._database.status()
        return Storing(
            lag=status.lag, pending=status.pending_commits, stored_at=status.last_flush, failure=status.failure, details=asdict(status)
        )

    def close(self) -> None:
        """Ends the connection; what is not stored yet is stored before this returns, or, where that cannot be waited for, soon after."""
        if self._database is not None and not self._closed:
            self._flush_now()
        closing = self._begin_close()
        if closing is not None and can_run_sync():
            run_sync(self._end_close(closing))

    async def close_async(self) -> None:
        closing = self._begin_close()
        if closing is not None:
            await self._end_close(closing)

    def drop(self) -> None:
        closing = self._begin_close()
        if closing is not None:
            closing.add_done_callback(_report)

    def _begin_close(self) -> asyncio.Future[None] | None:
        """Ends the connection and begins to close the stored database, again if that has failed before."""
        super().close()
        if self._database is not None and (self._closing is None or (self._closing.done() and self._closing.exception() is not None)):
            self._closing = asyncio.ensure_future(self._database.close())
        return self._closing

    async def _end_close(self, closing: asyncio.Future[None]) -> None:
        with self._translating():
            await asyncio.shield(closing)

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except self._driver.Error as error:
            raise self._driver.translate(error, self._options.timeout, self.name) from error


def _report(closing: asyncio.Future[None]) -> None:
    if not closing.cancelled() and (error := closing.exception()) is not None:
        log.error("what a store had left could not be stored: %s", error)


async def load(url: URL, options: Options) -> SqljsEngine:
    """Opens what a URL names: awaits the driver's code, the lock that keeps other tabs out, and the stored database."""
    of = driver(SqljsEngine.driver)
    name = str(url.set(query={}))
    database = None
    try:
        await of.module.load()
        path, storing = _instructions(url, options)
        if path != ":memory:":
            database = await of.module.open(path, **storing)
        return SqljsEngine(path, options, database)
    except BaseException as error:
        if database is not None:
            await database.close()
        if of.is_busy(error):
            raise Unavailable(f"{name} is in use by another tab or worker", hint="Close it there, or follow it: read_only=True") from error
        if isinstance(error, of.Error):
            raise of.translate(error, options.timeout, name) from error
        raise


def open(url: URL, options: Options) -> SqljsEngine:
    """`load`, where Python can be suspended; elsewhere only a database in memory can be opened, after the driver was loaded."""
    if can_run_sync():
        return run_sync(load(url, options))  # type: ignore[no-any-return]
    unloaded = Unsupported(
        f"{url.set(query={})} has to be loaded first, which cannot be waited for here", hint="Use: await Store.open_async(…)"
    )
    if url.database not in (None, "", ":memory:"):
        raise unloaded
    try:
        return SqljsEngine(":memory:", options, None)
    except driver(SqljsEngine.driver).Error as error:
        raise unloaded from error


def _instructions(url: URL, options: Options) -> tuple[str, dict[str, Any]]:
    """The name of a URL's database, and how the driver is to store it."""
    try:
        (path, *_), given = driver(SqljsEngine.driver).dialect.create_connect_args(url)
    except ArgumentError as error:
        raise InvalidValue(str(error), hint=f"An address may say {', '.join(_OPTIONS)}") from error
    if unknown := given.keys() - {*_OPTIONS}:
        raise InvalidValue(f"the address says {', '.join(sorted(unknown))}", hint=f"It may say {', '.join(_OPTIONS)}")
    if options.durability == "full" and "sync_interval" in given:
        raise InvalidValue("sync_interval is for durability='normal'", hint="With 'full', everything is stored at once")
    if not options.read_only and given.get("mode") == "follow":
        raise InvalidValue("who follows another tab's store cannot write", hint="Open it with read_only=True")
    storing: dict[str, Any] = {"timeout": options.timeout}
    if options.durability == "full":
        storing["sync_interval"] = 0.0  # as soon as there is something
    if options.read_only:
        storing["mode"] = "follow"
    return path, {**storing, **given}


_OPTIONS = ("sync_interval", "strict", "mode", "timeout", "key")
"""What an address may tell the driver after its question mark."""
