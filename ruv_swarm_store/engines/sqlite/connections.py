"""Driver connections that run statements: one that writes, and one that reads for each thread."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import sqlalchemy
from sqlalchemy import Connection, Dialect, Executable, Row, Select, Table
from sqlalchemy.pool import StaticPool

from ruv_swarm_store.engines import alchemy
from ruv_swarm_store.engines.changes import Changes
from ruv_swarm_store.engines.constructs import Insertion
from ruv_swarm_store.engines.engine import Options
from ruv_swarm_store.engines.executor import NONE, TIMES, Executor, Params, Prepared
from ruv_swarm_store.engines.sqlite.driver import JSON, Driver
from ruv_swarm_store.errors import StoreError, Unsupported

if TYPE_CHECKING:
    import sqlite3  # its types speak for every driver

log = logging.getLogger(__name__)

T = TypeVar("T")

BLOCKS = (64, 8)
"""How many rows a statement inserts, as long as there are so many: to begin and end one costs SQLite more than a row does."""


class SQLiteExecutor(Executor):
    """A driver connection that runs statements."""

    __slots__ = ("__weakref__", "_alchemy", "_driver", "_execute", "_refusal", "_statements", "_timeout", "_trace", "raw")

    def __init__(self, driver: Driver, raw: sqlite3.Connection, statements: dict[Executable, Prepared], options: Options) -> None:
        self._driver = driver
        self.raw = raw
        self._statements = statements
        self._alchemy: Connection | None = None
        self._refusal: StoreError | None = None
        self._timeout = options.timeout
        self._trace = options.trace
        self._execute: Callable[..., sqlite3.Cursor] = self._plain()

    @property
    def dialect(self) -> Dialect:
        return self._driver.dialect

    def _plain(self) -> Callable[..., sqlite3.Cursor]:
        return self.raw.execute if self._trace is None else self._traced

    def one(self, statement: Executable, params: Params = NONE) -> Sequence[Any] | None:
        prepared = self._statements.get(statement) or self._prepare(statement)
        values = prepared.bind(params)
        try:
            rows = self._execute(prepared.sql, values).fetchall()
        except self._driver.refused as error:
            rows = self._again(error, prepared, params).fetchall()
        return rows[0] if rows else None

    def all(self, statement: Executable, params: Params = NONE) -> Sequence[Sequence[Any]]:
        prepared = self._statements.get(statement) or self._prepare(statement)
        values = prepared.bind(params)
        try:
            return self._execute(prepared.sql, values).fetchall()
        except self._driver.refused as error:
            return self._again(error, prepared, params).fetchall()

    def run(self, statement: Executable, params: Params = NONE) -> int:
        prepared = self._statements.get(statement) or self._prepare(statement)
        values = prepared.bind(params)
        try:
            return self._execute(prepared.sql, values).rowcount
        except self._driver.refused as error:
            return self._again(error, prepared, params).rowcount

    def insert(self, insertion: Insertion, row: Sequence[Any]) -> int:
        prepared = self._statements.get(insertion.statement) or self._prepare(insertion.statement)
        try:
            return self._execute(prepared.sql, row).lastrowid or 0
        except self._driver.refused as error:
            return self._again(error, prepared, row).lastrowid or 0

    def insert_many(self, insertion: Insertion, rows: Sequence[Sequence[Any]]) -> Sequence[int]:
        prepared = self._statements.get(insertion.statement) or self._prepare(insertion.statement)
        started = time.perf_counter()
        if self._refusal is not None:
            raise self._refusal
        try:
            self._insert_all(prepared.sql, rows)
            last: int = self.raw.execute("SELECT last_insert_rowid()").fetchone()[0] if insertion.numbered else 0
        except self._driver.refused as error:
            raise self._failed(error) from error
        if self._trace is not None:
            self._tell(f"{prepared.sql} -- {len(rows)} rows", time.perf_counter() - started)
        return range(last - len(rows) + 1, last + 1) if insertion.numbered else ()

    def _insert_all(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        head, values, row = sql.rpartition(" VALUES ")
        done = 0
        for size in BLOCKS:
            if len(rows) - done < size:
                continue
            block = f"{head}{values}{', '.join([row] * size)}"
            while len(rows) - done >= size:
                self.raw.execute(block, list(chain.from_iterable(rows[done : done + size])))
                done += size
        if done < len(rows):
            self.raw.executemany(sql, rows[done:])

    # One transaction writes at a time: nothing has to be held.

    def hold(self, statement: Select[*tuple[Any, ...]], params: Params = NONE) -> None:
        pass

    def lock(self, name: str) -> None:
        pass

    def settle(self, table: Table) -> None:
        pass

    def execute(self, statement: Executable, params: Params = NONE) -> Sequence[Row[*tuple[Any, ...]]]:
        return alchemy.execute(self.alchemy(), statement, params, self._driver.refused, self._failed)

    def after_commit(self, hook: Callable[[], object]) -> None:
        raise Unsupported("nothing is committed here", hint="Register hooks inside a transaction")

    def alchemy(self) -> Connection:
        """SQLAlchemy's view of this connection: it runs statements and can end no transaction."""
        if self._refusal is not None:
            raise self._refusal
        connection = self._alchemy  # another thread may take it away, for one to be made anew
        if connection is None:
            engine = sqlalchemy.create_engine(
                self._driver.url,
                module=self._driver.module,
                creator=lambda raw=self.raw: alchemy.Lent(raw),  # SQLAlchemy keeps it: it must not keep this executor
                poolclass=StaticPool,
                isolation_level="AUTOCOMMIT",
                pool_reset_on_return=None,
                **JSON,
            )
            if self._trace is not None:
                alchemy.trace_engine(engine, self._tell)
            self._alchemy = connection = engine.connect()
        return connection

    def refuse(self, error: StoreError | None) -> None:
        """From now on every statement raises `error`; None lifts that."""
        self._refusal = error
        self._execute = self._plain() if error is None else self._refuse

    def abandon(self, error: StoreError) -> None:
        """Refuses every statement and never closes the connection: it belongs to the process this one was forked from."""
        leak(self.raw)
        self.refuse(error)

    def _refuse(self, *_: Any) -> NoReturn:
        assert self._refusal is not None
        raise self._refusal

    def _prepare(self, statement: Executable) -> Prepared:
        prepared = Prepared(statement, self._driver.dialect)
        self._statements[statement] = prepared
        return prepared

    def _traced(self, sql: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        started = time.perf_counter()
        try:
            return self.raw.execute(sql, values)
        finally:
            self._tell(sql, time.perf_counter() - started)

    def _tell(self, sql: str, seconds: float) -> None:
        assert self._trace is not None
        try:
            self._trace(sql, seconds)
        except Exception:
            log.exception("trace failed")

    def _again(self, error: Exception, prepared: Prepared, given: Params | Sequence[Any]) -> sqlite3.Cursor:
        """Runs a statement once more where that can help; raises what its failure means where not."""
        raise self._failed(error) from error

    def _failed(self, error: Exception) -> StoreError:
        """What to raise for a statement's failure."""
        return self._driver.translate(error, self._timeout)


class Reader(SQLiteExecutor):
    """A thread's read-only connection, of several threads' where there are very many. Entering it takes its lock."""

    __slots__ = ("_clock", "_connect", "_lock")

    def __init__(
        self,
        driver: Driver,
        raw: sqlite3.Connection,
        statements: dict[Executable, Prepared],
        options: Options,
        connect: Callable[[], sqlite3.Connection],
    ) -> None:
        super().__init__(driver, raw, statements, options)
        self._connect = connect
        self._lock = threading.RLock()
        self._clock = options.clock

    @property
    def now(self) -> int:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._clock()

    def __enter__(self) -> Reader:
        self._lock.acquire()
        return self

    def __exit__(self, kind: object = None, error: object = None, trace: object = None) -> None:
        self._lock.release()

    def enter(self, timeout: float) -> bool:
        """Takes the lock if that takes no more seconds; whether it did."""
        return self._lock.acquire(timeout=timeout)

    def suspend(self) -> None:
        """Closes the connection until the next statement; call it with the lock held."""
        self.raw.close()
        self._alchemy = None
        self._execute = self._resume

    def hold_still(self) -> None:
        """Sees the database as it is now until `let_go`; call it with the lock held."""
        self.let_go()
        self._say("BEGIN")
        self.ask("SELECT count(*) FROM sqlite_master")  # BEGIN alone holds nothing

    def let_go(self) -> None:
        """Ends what `hold_still` began, if it lasts."""
        if self.is_still():
            self._say("COMMIT")

    def is_still(self) -> bool:
        """Whether what `hold_still` began has lasted until now: closing the connection ends it, as before a fork."""
        try:
            return self._refusal is None and self.raw.in_transaction
        except self._driver.Error:
            return False

    def check_still(self) -> None:
        """Raises `StoreError` unless it `is_still`."""
        if not self.is_still():
            raise StoreError("a fork closed the connection that held a snapshot", hint="Fork before it or after it")

    def copy_log(self) -> int | None:
        """Copies from the log into the database what no transaction keeps there; tells the last frame in it that is committed.

        None while somebody else copies: then nothing is told. See `SQLiteEngine.copy_log`.
        """
        with self:
            frame = int(self.ask("PRAGMA wal_checkpoint(PASSIVE)", column=1))
        return frame if frame >= 0 else None

    def ask(self, sql: str, column: int = 0) -> Any:
        """A column of the first row that a statement of SQLite's own gives."""
        return self._say(sql).fetchone()[column]

    def _say(self, sql: str) -> sqlite3.Cursor:
        try:
            return self._execute(sql)
        except self._driver.Error as error:
            raise self._failed(error) from error

    def _resume(self, sql: str = "SELECT 1", values: Sequence[Any] = ()) -> sqlite3.Cursor:
        self.raw = self._connect()
        self._execute = self._plain()
        return self._execute(sql, values)

    def alchemy(self) -> Connection:
        if self._execute == self._resume:
            self._resume()
        return super().alchemy()

    def __del__(self) -> None:
        if self._refusal is None:
            self.raw.close()


class Writer(SQLiteExecutor):
    """The connection that writes. `depth` counts the open transaction and the savepoints in it."""

    __slots__ = ("_clock", "_hooks", "_marks", "_version", "changes", "depth", "now")

    changes: Changes
    """What is to be told to caches, while there are any."""

    def __init__(self, driver: Driver, raw: sqlite3.Connection, statements: dict[Executable, Prepared], options: Options) -> None:
        super().__init__(driver, raw, statements, options)
        self._clock = options.clock
        self.now = 0
        self.depth = 0
        self._hooks: list[Callable[[], object]] = []
        self._marks: list[int] = []
        self._version: int | None = None

    def others_committed(self) -> bool:
        """Whether anybody but this connection has committed since this was last asked, or may have: the first time."""
        before = self._version
        self._version = self.raw.execute("PRAGMA data_version").fetchone()[0]
        return self._version != before

    def begin(self) -> None:
        """Opens the transaction, or a savepoint in it."""
        if self.depth:
            self._execute(f"SAVEPOINT level_{self.depth}")
        else:
            try:
                self._execute("BEGIN IMMEDIATE")
            except self._driver.Error as error:
                self._patiently(error, lambda: self._execute("BEGIN IMMEDIATE"))
        self._marks.append(len(self._hooks))
        self.depth += 1

    def alone(self, seconds: float, step: Callable[[], T]) -> T | None:
        """What a step gives while nobody can write, without a change of this connection's own; None where that cannot be.

        So it is where others keep the right to write for longer than so many seconds, and where this connection is in use.
        """
        if not self.depth and self.raw.in_transaction:
            return None  # somebody is just beginning it, whom a signal handler has interrupted
        deadline = time.monotonic() + seconds
        try:
            while not self.depth:
                try:
                    self.raw.execute("BEGIN IMMEDIATE")
                    break
                except self._driver.Error as error:
                    if not self._driver.is_busy(error):
                        raise self._failed(error) from error
                    if time.monotonic() >= deadline:
                        return None
                    time.sleep(0.0005)
            return step() if self.raw.in_transaction else None  # a signal handler may have used this connection meanwhile
        finally:
            if not self.depth and self.raw.in_transaction:
                self.raw.execute("ROLLBACK")

    def commit(self) -> None:
        """Closes the innermost level."""
        try:
            self._execute("COMMIT" if self.depth == 1 else f"RELEASE level_{self.depth - 1}")
        except self._driver.Error as error:
            raise self._driver.translate(error, self._timeout) from error
        self._marks.pop()
        self.depth -= 1

    def unwind(self, level: int) -> None:
        """Undoes everything above `level`, however far it had got: the connection knows, the bookkeeping may not."""
        if len(self._marks) > level:
            del self._hooks[self._marks[level] :]
            del self._marks[level:]
        if self.raw.in_transaction:
            if level:
                with suppress(self._driver.module.OperationalError):  # the savepoint was not opened yet, or is released already
                    self.raw.execute(f"ROLLBACK TO level_{level}")
                    self.raw.execute(f"RELEASE level_{level}")
            else:
                self.raw.execute("ROLLBACK")
        self.depth = min(self.depth, level)
        if not self.depth:
            self.refuse(None)

    def execute(self, statement: Executable, params: Params = NONE) -> Sequence[Row[*tuple[Any, ...]]]:
        rows = super().execute(statement, params)
        if self.depth and not self.raw.in_transaction:
            error = alchemy.ended()
            self.refuse(error)
            raise error
        return rows

    def after_commit(self, hook: Callable[[], object]) -> None:
        self._hooks.append(hook)

    def committed(self) -> Sequence[Callable[[], object]]:
        """The hooks of what was just committed."""
        if not self._hooks:
            return ()
        hooks, self._hooks = self._hooks, []
        return hooks

    def _again(self, error: Exception, prepared: Prepared, given: Params | Sequence[Any]) -> sqlite3.Cursor:
        if self.depth:
            raise self._failed(error) from error
        began = self.now

        def attempt() -> sqlite3.Cursor:
            if not isinstance(given, Mapping):
                return self._execute(prepared.sql, given)
            # The wait must not be taken off a lease: times counted from now move with it.
            late = self._clock() - began
            self.now = began + late
            return self._execute(prepared.sql, prepared.bind({**given, **{key: given[key] + late for key in TIMES & given.keys()}}))

        return self._patiently(error, attempt)

    def _patiently(self, error: Exception, attempt: Callable[[], sqlite3.Cursor]) -> sqlite3.Cursor:
        """Tries what starts a transaction until the database is free.

        SQLite's own back-off starves some writers for seconds; short, jittered waits share the lock fairly.
        """
        deadline = time.monotonic() + self._timeout
        tries = 0
        while self._driver.is_busy(error) and time.monotonic() < deadline:
            tries += 1
            time.sleep(random.uniform(0.00005, 0.0003) * min(tries, 10))
            try:
                return attempt()
            except self._driver.Error as repeated:
                error = repeated
        raise self._failed(error) from error

    def _failed(self, error: Exception) -> StoreError:
        translated = self._driver.translate(error, self._timeout)
        if self.depth and not self.raw.in_transaction:
            # Some failures, a full disk for one, roll back on their own: what follows must not commit piecemeal.
            self.refuse(StoreError(f"the transaction was rolled back by an earlier failure: {translated.message}", hint="Begin it again"))
        return translated


def leak(raw: sqlite3.Connection) -> None:
    """Keeps a driver connection from ever being closed in this process."""
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(raw))
