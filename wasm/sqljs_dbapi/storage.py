"""Databases that outlive the page: kept in IndexedDB in a browser, in a plain SQLite file on Node.

    database = await sqljs_dbapi.open("swarm")
    connection = sqljs_dbapi.connect("swarm")
    ...
    await database.flush()
    await database.close()

SQLite works in memory; commits are stored behind it. `durability="interval"`: a commit is stored before it is `sync_interval` seconds
old, as far as the event loop runs and two storings after one another fit into that (README: exactly); `sync_interval=0` starts at once.
`durability="commit"`: `commit()` returns when it is stored, where Python can wait for JavaScript (JSPI) and on Node; elsewhere storing
starts at once and `await database.flush()` waits for it. Nothing can be promised for the moment in which a browser quits: what the last
flush stored is what opens again.

One tab or worker writes a database. `mode` says what another one does: "wait" (up to `timeout` seconds), "fail", "follow" (read-only,
refreshed with every commit of the writer; `await database.promote()` takes over when that closes or crashes) or "steal" (at once: the
other one's next flush fails, and nothing is mixed).
"""

import asyncio
import contextlib
import warnings
from dataclasses import dataclass
from typing import Any, Literal, Self

from sqljs_dbapi import codes
from sqljs_dbapi._engine import engine, import_module, load
from sqljs_dbapi.errors import NotSupportedError, OperationalError, ProgrammingError, with_code
from sqljs_dbapi.suspending import run_sync

Durability = Literal["interval", "commit"]
Mode = Literal["wait", "fail", "follow", "steal"]

_CODES = {
    "locked": codes.SQLITE_BUSY,
    "busy": codes.SQLITE_BUSY,
    "fenced": codes.SQLITE_READONLY,
    "readonly": codes.SQLITE_READONLY,
    "quota": codes.SQLITE_FULL,
    "corrupt": codes.SQLITE_CORRUPT,
    "key": codes.SQLITE_AUTH,
    "invalid": codes.SQLITE_NOTADB,
    "missing": codes.SQLITE_CANTOPEN,
    "exists": codes.SQLITE_CANTOPEN,
    "unavailable": codes.SQLITE_CANTOPEN,
}


class StorageError(OperationalError):
    """A database could not be opened or stored.

    `reason`: locked, fenced, readonly, quota, corrupt, key, invalid, missing, exists, unavailable, busy, gone, failed. What could not be
    stored is still in memory, and is tried again unless another writer took over (fenced) or the browser cleared the site's data (gone).
    """

    def __init__(self, message: str, reason: str = "failed") -> None:
        super().__init__(message)
        self.reason = reason
        with_code(self, _CODES.get(reason, codes.SQLITE_IOERR))


class DamageWarning(UserWarning):
    """A database was found damaged when it was opened; `Status.recovered` tells what was done."""


@dataclass(frozen=True)
class Recovered:
    """What was found bad when the database was opened."""

    reason: str
    generation: int
    """The generation that opened instead."""
    lost: int | None
    """How many later ones could not be read; None: the browser had deleted everything, and does not say what it was."""
    quarantined: str | None
    """The name under which the bad image was set aside."""


@dataclass(frozen=True)
class Status:
    """Where a database stands. Sizes in bytes, times in milliseconds; None: the browser does not say."""

    name: str
    kind: Literal["indexeddb", "file"]
    mode: Literal["writer", "follower", "closed"]
    capture: Literal["capture", "diff"]
    """How changed pages are found: read off SQLite's writes, or by comparing (slower; `capture_reason` says why)."""
    capture_reason: str | None
    generation: int
    """Number of the last stored commit; on Node, since opening."""
    size: int
    last_flush: int | None
    """When, since the epoch."""
    lag: int
    """Age of the oldest commit that is not stored; 0: all are."""
    pending_commits: int
    pending_bytes: int
    flushes: int
    failures: int
    failure: str | None
    lock: Literal["held", "other", "none", "unsupported"]
    """Who holds the writer's lock; unsupported: no Web Locks here, the last one to open writes."""
    encrypted: bool
    strict: bool
    persisted: bool | None
    """Whether the browser promised not to evict it."""
    usage: int | None
    quota: int | None
    log_records: int
    log_bytes: int
    recovered: Recovered | None


def _error(error: Any) -> StorageError | ProgrammingError:
    """The exception for what JavaScript raised."""
    reason = getattr(error, "code", None)
    message = str(getattr(error, "message", error))
    if reason == "closed":
        return ProgrammingError(message)
    if reason is None and message == "busy":
        reason, message = "busy", "a write transaction is open"
    return StorageError(message, reason if isinstance(reason, str) else "failed")


async def _awaited(promise: Any) -> Any:
    from pyodide.ffi import JsException

    try:
        return await promise
    except JsException as error:
        raise _error(error) from error


def _called(function: Any, *arguments: Any) -> Any:
    from pyodide.ffi import JsException

    try:
        return function(*arguments)
    except JsException as error:
        raise _error(error) from error


def _object(**values: Any) -> Any:
    from js import Object
    from pyodide.ffi import to_js

    return to_js(values, dict_converter=Object.fromEntries)


class Database:
    """A database that is open here; get it from `open()`. Connections are made with `sqljs_dbapi.connect(name)`."""

    def __init__(self, name: str, store: Any, options: "_Options") -> None:
        from pyodide.ffi import create_proxy

        self.name = name
        self._opens = 1
        self._blocking = options.durability == "commit"
        interval = 0 if self._blocking else options.sync_interval * 1000
        running = engine()
        if running.capture.mode == "diff" and running.capture.reason == "not calibrated":
            running.capture.calibrate(running.js)
        self._on_failure = create_proxy(self._guard)
        timing = _object(interval=interval, onFailure=self._on_failure)
        self._keeper = _called(_modules["keeper"].createKeeper, running.js, running.capture, store, timing)
        self._path: str = self._keeper.path
        self._closed = False
        if self.read_only:
            self._guard()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}{' closed' if self._closed else ' read-only' if self.read_only else ''}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    @property
    def read_only(self) -> bool:
        """Whether it follows the commits of another tab or worker."""
        return bool(self._keeper.readOnly)

    def status(self) -> Status:
        """Where it stands."""
        found = self._keeper.status().to_py()
        recovered = found["recovered"]
        return Status(
            name=self.name,
            kind=found["kind"],
            mode="closed" if self._closed else "follower" if found["readOnly"] else "writer",
            capture=found["capture"],
            capture_reason=_value(found["captureReason"]),
            generation=found["generation"],
            size=found["size"],
            last_flush=_value(found["lastFlush"]),
            lag=round(found["lag"]),
            pending_commits=found["pendingCommits"],
            pending_bytes=found["pendingBytes"],
            flushes=found["flushes"],
            failures=found["failures"],
            failure=_value(found["failure"]),
            lock=found["lock"],
            encrypted=found["encrypted"],
            strict=found["strict"],
            persisted=_value(found["persisted"]),
            usage=_value(found["usage"]),
            quota=_value(found["quota"]),
            log_records=found["logRecords"],
            log_bytes=found["logBytes"],
            recovered=Recovered(**{key: _value(value) for key, value in recovered.items()}) if isinstance(recovered, dict) else None,
        )

    async def flush(self) -> None:
        """Wait until everything committed before this call is stored. Raises StorageError."""
        self._check_open()
        await _awaited(self._keeper.flush())

    def flush_now(self) -> None:
        """`flush()` without `await`: on Node, and where Python can wait for JavaScript (JSPI).

        Raises StorageError, and NotSupportedError where it cannot wait.
        """
        from pyodide.ffi import can_run_sync

        self._check_open()
        if _called(self._keeper.flushNow):
            return
        if not can_run_sync():
            raise NotSupportedError("Python cannot wait for JavaScript here: `await database.flush()`")
        run_sync(self.flush())

    async def close(self, *, discard: bool = False) -> None:
        """Store what is open, and let the next writer in. Of several `open()`, the last one's close counts.

        Raises StorageError. Unless another writer took over, the database is then still open, for another try or an export; `discard`
        closes it all the same.
        """
        if self._closed or self._opens == 0:
            return
        if self._opens > 1:
            self._opens -= 1  # before anything is awaited: another close() meanwhile is the last one
            try:
                await self.flush()
            except BaseException:
                self._opens += 1
                raise
            return
        self._opens = 0
        self._guard()
        _closing[self.name] = ended = asyncio.Event()
        await asyncio.shield(asyncio.ensure_future(self._end(discard, ended)))  # what has begun goes on, also if nobody waits any more

    async def _end(self, discard: bool, ended: asyncio.Event) -> None:
        failure = None
        try:
            await _awaited(self._keeper.close(_object(discard=discard)))
        except StorageError as error:
            if error.reason not in {"fenced", "gone"}:
                self._opens += 1
                raise
            failure = error
        finally:
            del _closing[self.name]
            ended.set()
        self._closed = True
        self._guard()
        _databases.pop(self.name, None)
        self._on_failure.destroy()
        _remove_left()
        if failure is not None:
            raise failure

    def export(self) -> bytes:
        """The last committed state, as the bytes of a plain SQLite file. Raises StorageError inside an open write transaction."""
        self._check_open()
        return bytes(_called(self._keeper.export).to_bytes())

    async def replace(self, image: bytes) -> None:
        """Put the SQLite file `image` in the place of this database, and store it. Idle connections see it at once."""
        from pyodide.ffi import to_js

        self._check_open()
        await _awaited(self._keeper.replace(to_js(image)))

    async def promote(self, *, mode: Literal["wait", "fail", "steal"] = "wait", timeout: float | None = None) -> None:
        """Make a follower the writer.

        When the present one closes or crashes (within `timeout` seconds), at once if there is none ("fail"), or by force ("steal").
        """
        from js import AbortController

        self._check_open()
        waiting = AbortController.new()
        options = _object(mode=mode, timeout=None if timeout is None else timeout * 1000, signal=waiting.signal)
        try:
            await _awaited(self._keeper.promote(options))
        finally:
            waiting.abort()  # if this was cancelled, it must not take over any more
        self._release()

    def _check_open(self) -> None:
        if self._closed or self.name in _closing:
            raise ProgrammingError(f"the database {self.name!r} is closed")

    def _guard(self, *_: Any) -> None:
        guarded[self._path] = self

    def _release(self) -> None:
        if not self._closed and not self.read_only:
            guarded.pop(self._path, None)

    def _check(self, writes: bool) -> None:
        self._check_open()
        failure = self._keeper.takeFailure()
        self._release()
        if failure:
            if getattr(failure, "code", None) in {"fenced", "gone"}:
                self._guard()
            raise _error(failure)
        if writes and self.read_only:
            raise StorageError(f"the database {self.name!r} is followed read-only: another tab or worker writes it", "readonly")

    def _committed(self) -> None:
        if not self._blocking or not self._keeper.pending:
            return
        from pyodide.ffi import can_run_sync

        if not _called(self._keeper.flushNow) and can_run_sync():
            run_sync(self.flush())


@dataclass(frozen=True)
class _Options:
    durability: Durability = "interval"
    sync_interval: float = 1.0
    strict: bool = False
    mode: Mode = "wait"
    timeout: float | None = None
    key: str | bytes | None = None
    persist: bool = True

    def __post_init__(self) -> None:
        if self.durability not in {"interval", "commit"}:
            raise ProgrammingError(f"durability is 'interval' or 'commit', not {self.durability!r}")
        if self.mode not in {"wait", "fail", "follow", "steal"}:
            raise ProgrammingError(f"mode is 'wait', 'fail', 'follow' or 'steal', not {self.mode!r}")
        if self.key is not None and not self.key:
            raise ProgrammingError("the key is empty: None is for a database that is not encrypted")
        if not 0 <= self.sync_interval < float("inf"):
            raise ProgrammingError(f"sync_interval is a number of seconds, not {self.sync_interval!r}")

    def for_store(self) -> Any:
        timeout = None if self.timeout is None else self.timeout * 1000
        return _object(mode=self.mode, timeout=timeout, strict=self.strict, key=self.key, persist=self.persist)


_modules: dict[str, Any] = {}
_databases: dict[str, Database] = {}
_opening: dict[str, "asyncio.Task[Database]"] = {}
_closing: dict[str, asyncio.Event] = {}
guarded: dict[str, Database] = {}
"""Databases whose connections have to ask `check()` before a statement, by path: followed, failed or closed ones."""


def _value(value: Any) -> Any:
    """JavaScript's null and undefined as None."""
    return value if isinstance(value, (bool, int, float, str)) else None


async def prepare() -> None:
    """Import the JavaScript that databases are kept with. Part of loading."""
    from pyodide.code import run_js

    if not _modules:
        on_node = run_js("globalThis.process?.release?.name === 'node'")
        keeper, store = await asyncio.gather(import_module("keeper.mjs"), import_module("filestore.mjs" if on_node else "pagestore.mjs"))
        _modules.update(keeper=keeper, store=store)


async def open(
    name: str,
    *,
    durability: Durability = "interval",
    sync_interval: float = 1.0,
    strict: bool = False,
    mode: Mode = "wait",
    timeout: float | None = None,
    key: str | bytes | None = None,
    persist: bool = True,
) -> Database:
    """Open the database `name`; on Node, a path.

    `sync_interval` and `timeout` are in seconds. `strict` has every flush reach the disk, not only the system. `key` encrypts all that is
    stored. `persist` asks the browser never to evict it. While the database is open here, further calls give the same Database, with the
    options of the first, and each is to be closed. Raises StorageError.
    """
    options = _Options(durability, sync_interval, strict, mode, timeout, key, persist)
    while name in _opening or name in _closing:
        await (_closing[name].wait() if name in _closing else asyncio.wait({_opening[name]}))
    if (database := _databases.get(name)) is not None:
        database._opens += 1
        return database
    _opening[name] = opening = asyncio.ensure_future(_open(name, options))
    try:
        return await opening
    except asyncio.CancelledError:
        if opening.done() and not opening.cancelled() and opening.exception() is None:
            await opening.result().close()  # it came too late to be given to anybody
        raise
    finally:
        _opening.pop(name, None)


async def _open(name: str, options: _Options) -> Database:
    await load()
    await prepare()
    from js import AbortController

    waiting = AbortController.new()
    for_store = options.for_store()
    for_store.signal = waiting.signal
    opening = _called(_modules["store"].openStore, name, for_store)
    try:
        store = await _awaited(asyncio.shield(opening))
    except asyncio.CancelledError:
        waiting.abort()
        opening.add_done_callback(lambda opened: opened.exception() or opened.result().close())  # or it would hold the lock for ever
        raise
    database = _attach(name, store, options)
    if (recovered := database.status().recovered) is not None:
        try:
            warnings.warn(f"the database {name!r} was found damaged: {recovered}", DamageWarning, stacklevel=2)
        except DamageWarning:  # made an error: nobody gets the database, so nobody would close it
            await database.close()
            raise
    return database


def _attach(name: str, store: Any, options: _Options) -> Database:
    _remove_left()
    _databases[name] = database = Database(name, store, options)
    return database


def open_for_connect(name: str, **options: Any) -> str:
    """The engine's path of the database `name`, which is opened with `options` if it is not open and Python can wait for that.

    Raises StorageError, and OperationalError where it cannot wait.
    """
    from pyodide.ffi import can_run_sync

    database = _databases.get(name)
    if database is None or name in _closing:
        if name not in _closing and _modules and hasattr(_modules["store"], "openStoreSync"):
            checked = _Options(**options)
            if checked.mode == "wait":
                checked = _Options(**{**options, "mode": "fail"})
            database = _attach(name, _called(_modules["store"].openStoreSync, name, checked.for_store()), checked)
        elif can_run_sync():
            database = run_sync(open(name, **options))
        else:
            raise OperationalError(f"Python cannot wait for JavaScript here: `await sqljs_dbapi.open({name!r})` before you connect to it")
    return database._path


def check(path: str, writes: bool) -> None:
    """Raise what keeps a connection to `path` from going on; to be asked before a statement if `path` is in `guarded`."""
    guarded[path]._check(writes)


def store_first(path: str) -> None:
    """To be called before a statement for which the event loop may stand still longer than an interval: a VACUUM.

    What was committed is stored before it, where Python can wait for that. A failure is no reason against it: it may be what makes room.
    """
    from pyodide.ffi import can_run_sync

    for database in _databases.values():
        if database._path == path and database._keeper.pending and can_run_sync():
            with contextlib.suppress(StorageError):
                run_sync(database.flush())
            return


def committed(path: str) -> None:
    """To be called after a commit: with durability="commit", waits until it is stored. Raises StorageError when that failed."""
    if path in guarded:
        guarded[path]._check_open()  # a transaction that began before close(): its commit is not stored any more
    for database in _databases.values():
        if database._path == path:
            database._committed()
            return


def _remove_left() -> None:
    """Give back the memory of closed databases that have no connection any more."""
    running = engine().js
    for path, database in list(guarded.items()):
        if database._closed and running.connectionCount(path) == 0:
            running.removeFile(path)
            del guarded[path]


async def _administer(function: str, *arguments: Any) -> Any:
    await load()
    await prepare()
    return await _awaited(getattr(_modules["store"], function)(*arguments))


async def names() -> list[str]:
    """The databases kept here; on Node, the SQLite files of the current directory."""
    return list((await _administer("listStores")).to_py())


async def quarantined() -> list[str]:
    """The names under which bad images were set aside; `export_image` and `remove` take them like any other."""
    return list((await _administer("listQuarantined")).to_py())


async def remove(name: str) -> None:
    """Delete a database. Raises StorageError while it is open for writing anywhere."""
    if name in _databases:
        raise StorageError(f"the database {name!r} is open here: close it before", "locked")
    await _administer("removeStore", name)


async def quarantine(name: str) -> str:
    """Set a database aside under another name, which is returned, so that a new one can be started."""
    if name in _databases:
        raise StorageError(f"the database {name!r} is open here: close it before", "locked")
    return str(await _administer("quarantineStore", name))


async def export_image(name: str, *, key: str | bytes | None = None) -> bytes:
    """What is stored of a database, as the bytes of a plain SQLite file; also while another tab writes it."""
    return bytes((await _administer("exportStore", name, _object(key=key))).to_bytes())


async def import_image(name: str, image: bytes, *, key: str | bytes | None = None, overwrite: bool = False) -> None:
    """Make a database of the bytes of a SQLite file; an existing one is replaced only with `overwrite`."""
    from pyodide.ffi import to_js

    if name in _databases:
        raise StorageError(f"the database {name!r} is open here: use its replace()", "locked")
    await _administer("importStore", name, to_js(image), _object(key=key, overwrite=overwrite))
