"""SQLite through the standard library's driver: a file shared by threads and processes, or a database in memory.

One writer connection, guarded by a lock and opened with BEGIN IMMEDIATE; a read-only connection for each thread.
"""

from __future__ import annotations

import logging
import os
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import sqlalchemy
from sqlalchemy import Connection, Executable, Insert, Row, event
from sqlalchemy.dialects.sqlite.pysqlite import dialect as sqlite_dialect
from sqlalchemy.exc import DBAPIError, StatementError
from sqlalchemy.pool import StaticPool

from ruv_swarm_store import codec
from ruv_swarm_store.engines.engine import Capabilities, Engine, Options
from ruv_swarm_store.engines.executor import NONE, Executor, Params, Prepared, Trace
from ruv_swarm_store.errors import Closed, Conflict, CorruptDatabase, InvalidValue, StoreError, Unavailable, Unsupported

log = logging.getLogger(__name__)

_DIALECT = sqlite_dialect(json_serializer=codec.encode, json_deserializer=codec.decode)
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
_REFUSED = (sqlite3.Error, UnicodeEncodeError, OverflowError)
"""What the driver raises: its own errors, and Python's for text and numbers that it cannot hand over."""
_POLL = 0.002
"""Seconds between two looks at other processes' commits while somebody waits."""


class SQLiteExecutor(Executor):
    """A driver connection that runs statements."""

    __slots__ = ("__weakref__", "_alchemy", "_execute", "_refusal", "_statements", "_timeout", "_trace", "raw")

    def __init__(self, raw: sqlite3.Connection, statements: dict[Executable, Prepared], options: Options) -> None:
        self.raw = raw
        self._statements = statements
        self._alchemy: Connection | None = None
        self._refusal: StoreError | None = None
        self._timeout = options.timeout
        self._trace = options.trace
        self._execute: Callable[..., sqlite3.Cursor] = self._plain()

    def _plain(self) -> Callable[..., sqlite3.Cursor]:
        return self.raw.execute if self._trace is None else self._traced

    def one(self, statement: Executable, params: Params = NONE) -> Sequence[Any] | None:
        prepared = self._statements.get(statement) or self._prepare(statement)
        values = prepared.bind(params)
        try:
            rows = self._execute(prepared.sql, values).fetchall()
        except _REFUSED as error:
            rows = self._again(error, prepared.sql, values).fetchall()
        return rows[0] if rows else None

    def all(self, statement: Executable, params: Params = NONE) -> Sequence[Sequence[Any]]:
        prepared = self._statements.get(statement) or self._prepare(statement)
        values = prepared.bind(params)
        try:
            return self._execute(prepared.sql, values).fetchall()
        except _REFUSED as error:
            return self._again(error, prepared.sql, values).fetchall()

    def run(self, statement: Executable, params: Params = NONE) -> int:
        prepared = self._statements.get(statement) or self._prepare(statement)
        values = prepared.bind(params)
        try:
            return self._execute(prepared.sql, values).rowcount
        except _REFUSED as error:
            return self._again(error, prepared.sql, values).rowcount

    def insert(self, statement: Insert, row: Sequence[Any]) -> int:
        prepared = self._statements.get(statement) or self._prepare(statement)
        try:
            return self._execute(prepared.sql, row).lastrowid or 0
        except _REFUSED as error:
            return self._again(error, prepared.sql, row).lastrowid or 0

    def insert_many(self, statement: Insert, rows: Sequence[Sequence[Any]]) -> int:
        prepared = self._statements.get(statement) or self._prepare(statement)
        started = time.perf_counter()
        if self._refusal is not None:
            raise self._refusal
        try:
            self.raw.executemany(prepared.sql, rows)
            last: int = self.raw.execute("SELECT last_insert_rowid()").fetchone()[0]
        except _REFUSED as error:
            raise self._failed(error) from error
        if self._trace is not None:
            self._trace(f"{prepared.sql} -- {len(rows)} rows", time.perf_counter() - started)
        return last - len(rows) + 1

    def execute(self, statement: Executable, params: Params = NONE) -> Sequence[Row[*tuple[Any, ...]]]:
        try:
            result = self.alchemy().execute(statement, dict(params))
            return result.all() if result.returns_rows else []
        except DBAPIError as error:
            if isinstance(error.orig, sqlite3.Error):
                raise self._failed(error.orig) from error.orig
            raise
        except _REFUSED as error:
            raise self._failed(error) from error
        except StatementError as error:
            if isinstance(error.orig, StoreError):
                raise error.orig from None
            raise InvalidValue(str(error.orig), hint="Check the statement's parameters") from error

    def after_commit(self, hook: Callable[[], object]) -> None:
        raise Unsupported("nothing is committed here", hint="Register hooks inside a transaction")

    def alchemy(self) -> Connection:
        """SQLAlchemy's view of this connection: it runs statements and can end no transaction."""
        if self._refusal is not None:
            raise self._refusal
        if self._alchemy is None:
            engine = sqlalchemy.create_engine(
                "sqlite://",
                creator=lambda: _Lent(self.raw),
                poolclass=StaticPool,
                isolation_level="AUTOCOMMIT",
                pool_reset_on_return=None,
                json_serializer=codec.encode,
                json_deserializer=codec.decode,
            )
            if self._trace is not None:
                _trace_engine(engine, self._trace)
            self._alchemy = engine.connect()
        return self._alchemy

    def refuse(self, error: StoreError | None) -> None:
        """From now on every statement raises `error`; None lifts that."""
        self._refusal = error
        self._execute = self._plain() if error is None else self._refuse

    def abandon(self, error: StoreError) -> None:
        """Refuses every statement and never closes the connection: it belongs to the process this one was forked from."""
        import ctypes

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.raw))
        self.refuse(error)

    def _refuse(self, *_: Any) -> NoReturn:
        assert self._refusal is not None
        raise self._refusal

    def _prepare(self, statement: Executable) -> Prepared:
        prepared = Prepared(statement, _DIALECT)
        self._statements[statement] = prepared
        return prepared

    def _traced(self, sql: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        started = time.perf_counter()
        try:
            return self.raw.execute(sql, values)
        finally:
            assert self._trace is not None
            self._trace(sql, time.perf_counter() - started)

    def _again(self, error: Exception, sql: str, values: Sequence[Any]) -> sqlite3.Cursor:
        """Runs a statement once more where that can help; raises what its failure means where not."""
        raise self._failed(error) from error

    def _failed(self, error: Exception) -> StoreError:
        """What to raise for a statement's failure."""
        return translate(error, self._timeout)


class Reader(SQLiteExecutor):
    """A thread's read-only connection; entering it takes its lock, which only `close` ever contends for."""

    __slots__ = ("_clock", "_lock")

    def __init__(self, raw: sqlite3.Connection, statements: dict[Executable, Prepared], options: Options) -> None:
        super().__init__(raw, statements, options)
        self._lock = threading.RLock()
        self._clock = options.clock

    @property
    def now(self) -> int:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._clock()

    def __enter__(self) -> Reader:
        self._lock.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __del__(self) -> None:
        if self._refusal is None:
            self.raw.close()


class Writer(SQLiteExecutor):
    """The connection that writes. `depth` counts the open transaction and the savepoints in it."""

    __slots__ = ("_hooks", "_marks", "depth", "now")

    def __init__(self, raw: sqlite3.Connection, statements: dict[Executable, Prepared], options: Options) -> None:
        super().__init__(raw, statements, options)
        self.now = 0
        self.depth = 0
        self._hooks: list[Callable[[], object]] = []
        self._marks: list[int] = []

    def begin(self) -> None:
        """Opens the transaction, or a savepoint in it."""
        if self.depth:
            self._execute(f"SAVEPOINT level_{self.depth}")
        else:
            try:
                self._execute("BEGIN IMMEDIATE")
            except sqlite3.Error as error:
                self._again(error, "BEGIN IMMEDIATE", ())
        self._marks.append(len(self._hooks))
        self.depth += 1

    def commit(self) -> None:
        """Closes the innermost level. If that fails the level is undone and the error raised."""
        try:
            self._execute("COMMIT" if self.depth == 1 else f"RELEASE level_{self.depth - 1}")
        except BaseException as error:
            self.rollback()
            if isinstance(error, sqlite3.Error):
                raise translate(error, self._timeout) from error
            raise
        self._marks.pop()
        self.depth -= 1

    def rollback(self) -> None:
        """Undoes the innermost level."""
        self.depth -= 1
        del self._hooks[self._marks.pop() :]
        if self.depth:
            if self.raw.in_transaction:
                self.raw.execute(f"ROLLBACK TO level_{self.depth}")
                self.raw.execute(f"RELEASE level_{self.depth}")
        else:
            if self.raw.in_transaction:
                self.raw.execute("ROLLBACK")
            self.refuse(None)

    def after_commit(self, hook: Callable[[], object]) -> None:
        self._hooks.append(hook)

    def committed(self) -> Sequence[Callable[[], object]]:
        """The hooks of what was just committed."""
        if not self._hooks:
            return ()
        hooks, self._hooks = self._hooks, []
        return hooks

    def _again(self, error: Exception, sql: str, values: Sequence[Any]) -> sqlite3.Cursor:
        """Runs a statement that starts a transaction until the database is free.

        SQLite's own back-off starves some writers for seconds; short, jittered waits share the lock fairly.
        """
        if self.depth:
            raise self._failed(error) from error
        deadline = time.monotonic() + self._timeout
        attempt = 0
        while _is_busy(error) and time.monotonic() < deadline:
            attempt += 1
            time.sleep(random.uniform(0.00005, 0.0003) * min(attempt, 10))
            try:
                return self._execute(sql, values)
            except sqlite3.Error as repeated:
                error = repeated
        raise self._failed(error) from error

    def _failed(self, error: Exception) -> StoreError:
        translated = translate(error, self._timeout)
        if self.depth and not self.raw.in_transaction:
            # Some failures, a full disk for one, roll back on their own: what follows must not commit piecemeal.
            self.refuse(StoreError(f"the transaction was rolled back by an earlier failure: {translated.message}", hint="Begin it again"))
        return translated


class SQLiteEngine(Engine):
    """A database file in WAL mode."""

    capabilities = Capabilities()
    _writer: Writer | None

    def __init__(self, path: str | Path, options: Options) -> None:
        self.path = str(Path(path).resolve())
        self.name = f"sqlite:///{self.path}"
        self.clock = options.clock
        self._options = options
        self._statements: dict[Executable, Prepared] = {}
        self._closed = False
        self._start()
        if options.read_only:
            with self.read():
                pass
        else:
            self._writer = self._open_writer()
        _engines.add(self)

    def _start(self) -> None:
        """Makes what must be new in a new process."""
        self._lock = threading.RLock()
        self._owner = 0
        self._writer = None
        self._local = threading.local()
        self._readers: weakref.WeakSet[Reader] = weakref.WeakSet()
        self._watch = _Watch(self)
        self._read_scope = _Read(self)
        self._write_scope = _Write(self)
        self._transaction_scope = _Transaction(self)

    # Scopes

    def read(self) -> AbstractContextManager[Executor]:
        if self._owner == threading.get_ident():
            return self._read_scope  # inside this thread's transaction its own changes are seen
        try:
            return self._local.reader  # type: ignore[no-any-return]
        except AttributeError:
            return self._open_reader()

    def write(self) -> AbstractContextManager[Executor]:
        return self._write_scope

    def transaction(self) -> AbstractContextManager[Executor]:
        return self._transaction_scope

    # Connections

    def _connect(self, *, writing: bool) -> sqlite3.Connection:
        if self._closed:
            raise Closed(f"the store at {self.name} is closed", hint="Open it again with Store.open")
        mode = "ro" if self._options.read_only else "rwc" if writing else "rw"
        raw = None
        try:
            raw = sqlite3.connect(
                f"{Path(self.path).as_uri()}?mode={mode}",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=512,
                timeout=self._options.timeout,
            )
            if writing:
                self._enter_wal(raw)
            return self._configure(raw, writing=writing)
        except sqlite3.Error as error:
            if raw is not None:
                raw.close()
            raise translate(error, self._options.timeout, self.path) from error

    def _enter_wal(self, raw: sqlite3.Connection) -> None:
        # Switching to WAL does not wait for other openers: ask only when needed, and again when busy.
        deadline = time.monotonic() + self._options.timeout
        while True:
            try:
                if raw.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                    raw.execute("PRAGMA journal_mode=WAL").fetchone()
                return
            except sqlite3.OperationalError as error:
                if not _is_busy(error) or time.monotonic() > deadline:
                    raise
                time.sleep(random.uniform(0.001, 0.01))

    def _configure(self, raw: sqlite3.Connection, *, writing: bool) -> sqlite3.Connection:
        pragmas = {
            "foreign_keys": "ON",
            "recursive_triggers": "ON",  # so that INSERT OR REPLACE deletes no event either
            "synchronous": "FULL" if self._options.durability == "full" else "NORMAL",
            "temp_store": "MEMORY",
        }
        if writing:
            pragmas |= {"busy_timeout": "0", "cache_size": "-65536", "wal_autocheckpoint": "4000", "journal_size_limit": "67108864"}
        else:
            pragmas |= {"cache_size": "-16384", "query_only": "ON"}
        for name, value in pragmas.items():
            raw.execute(f"PRAGMA {name}={value}")
        return raw

    def _open_writer(self) -> Writer:
        if self._options.read_only:
            raise Unsupported(f"the store at {self.name} was opened read-only", hint="Open it without read_only=True to write")
        return Writer(self._connect(writing=True), self._statements, self._options)

    def _open_reader(self) -> Reader:
        reader = Reader(self._connect(writing=False), self._statements, self._options)
        self._local.reader = reader
        self._readers.add(reader)
        return reader

    def writer(self) -> Writer:
        """The writer; call it with the lock held."""
        if self._writer is None:
            self._writer = self._open_writer()
        return self._writer

    # The rest of the contract

    def tables(self) -> frozenset[str]:
        with self.read() as run:
            assert isinstance(run, SQLiteExecutor)
            try:
                return frozenset(name for (name,) in run._execute("SELECT name FROM sqlite_master WHERE type = 'table'"))
            except sqlite3.Error as error:
                raise translate(error, self._options.timeout, self.name) from error

    @contextmanager
    def migration(self) -> Iterator[Connection]:
        if self._owner == threading.get_ident():
            raise StoreError("a migration cannot run inside a transaction", hint="Leave the with block first")
        with self._lock:
            raw = self._migration_connection()
            run = Writer(raw, {}, self._options)
            try:
                # Rebuilding a parent table with references enforced would delete its children.
                raw.execute("PRAGMA foreign_keys=OFF")
                run.begin()
                try:
                    yield run.alchemy()
                    if broken := raw.execute("PRAGMA foreign_key_check").fetchall():
                        raise Conflict(f"the migration would leave {len(broken)} dangling references, the first in {broken[0][0]}")
                except BaseException:
                    run.rollback()
                    raise
                run.commit()
            finally:
                raw.execute("PRAGMA foreign_keys=ON")
                self._release_migration_connection(raw)
        self._watch.changed()

    def _migration_connection(self) -> sqlite3.Connection:
        return self._connect(writing=True)

    def _release_migration_connection(self, raw: sqlite3.Connection) -> None:
        raw.close()

    def changes(self) -> int:
        return self._watch.look()

    def wait(self, seen: int, seconds: float) -> bool:
        if self._owner == threading.get_ident():
            raise StoreError("waiting inside a transaction would keep everybody else out", hint="Wait outside the with block")
        return self._watch.wait(seen, seconds)

    def check(self) -> list[str]:
        with self.read() as run:
            assert isinstance(run, SQLiteExecutor)
            try:
                found = [line for (line,) in run._execute("PRAGMA integrity_check") if line != "ok"]
                found += [
                    f"{table} row {row} refers to a missing {parent}"
                    for table, row, parent, _ in run._execute("PRAGMA foreign_key_check")
                ]
            except sqlite3.Error as error:
                raise translate(error, self._options.timeout, self.name) from error
            return found

    def probe(self) -> sqlite3.Connection:
        """A connection of its own for watching other connections' commits."""
        return self._connect(writing=False)

    def close(self) -> None:
        if self._closed:
            return
        if self._owner == threading.get_ident():
            raise StoreError("a store cannot be closed inside its own transaction", hint="Leave the with block first")
        error = Closed(f"the store at {self.name} is closed", hint="Open it again with Store.open")
        with self._lock:
            self._closed = True
            _engines.discard(self)
            for reader in list(self._readers):
                with reader:
                    reader.refuse(error)
                    reader.raw.close()
            self._watch.close()
            if self._writer is not None:
                self._writer.refuse(error)
                self._writer.raw.close()

    def forked(self) -> None:
        """In a forked child: abandons the parent's connections, which must be neither used nor closed here."""
        error = StoreError("this connection belongs to the parent process", hint="Begin a transaction of the child's own")
        for executor in [self._writer, *self._readers]:
            if executor is not None:
                executor.abandon(error)
        self._watch.abandon()
        self._start()


class MemoryEngine(SQLiteEngine):
    """A database in memory: one connection that threads take in turn, gone when the store closes."""

    capabilities = Capabilities(processes=False, persistent=False)

    def __init__(self, options: Options) -> None:
        if options.read_only:
            raise Unsupported("a database in memory starts empty, so it cannot be read-only", hint="Give the path of a file")
        super().__init__(":memory:", options)
        self.name = "sqlite://"

    def read(self) -> AbstractContextManager[Executor]:
        return self._read_scope

    def _connect(self, *, writing: bool) -> sqlite3.Connection:
        if self._closed:
            raise Closed("the store in memory is closed", hint="Open a new one with Store.open")
        raw = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False, cached_statements=512)
        return self._configure(raw, writing=True)

    def _migration_connection(self) -> sqlite3.Connection:
        return self.writer().raw

    def _release_migration_connection(self, raw: sqlite3.Connection) -> None:
        pass

    def forked(self) -> None:
        super().forked()
        self._closed = True


class _Read:
    """A scope for SELECTs on the writer."""

    __slots__ = ("_engine",)

    def __init__(self, engine: SQLiteEngine) -> None:
        self._engine = engine

    def __enter__(self) -> Writer:
        engine = self._engine
        engine._lock.acquire()
        try:
            writer = engine.writer() if engine._writer is None else engine._writer
            if not writer.depth:
                writer.now = engine.clock()
            return writer
        except BaseException:
            engine._lock.release()
            raise

    def __exit__(self, *_: object) -> None:
        self._engine._lock.release()


class _Write(_Read):
    """A scope for one statement on the writer."""

    __slots__ = ()

    def __exit__(self, *_: object) -> None:
        engine = self._engine
        if engine._watch.waiting:
            engine._watch.note(engine._writer)
        engine._lock.release()


class _Transaction:
    """A scope for a transaction on the writer, or a savepoint in this thread's open one."""

    __slots__ = ("_engine",)

    def __init__(self, engine: SQLiteEngine) -> None:
        self._engine = engine

    def __enter__(self) -> Writer:
        engine = self._engine
        engine._lock.acquire()
        try:
            writer = engine.writer() if engine._writer is None else engine._writer
            writer.begin()
            try:
                if writer.depth == 1:
                    writer.now = engine.clock()
                    engine._owner = threading.get_ident()
            except BaseException:
                writer.rollback()
                raise
            return writer
        except BaseException:
            engine._lock.release()
            raise

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        engine = self._engine
        writer = engine._writer
        assert writer is not None
        hooks: Sequence[Callable[[], object]] = ()
        try:
            if kind is None:
                writer.commit()
                if not writer.depth:
                    hooks = writer.committed()
            else:
                writer.rollback()
        finally:
            if not writer.depth:
                engine._owner = 0
                if engine._watch.waiting:
                    engine._watch.note(writer)
            engine._lock.release()
        for hook in hooks:
            try:
                hook()
            except Exception:
                log.exception("a hook failed after its transaction had committed")


class _Watch:
    """Counts commits. Of all who wait, one leads: it looks for other processes' commits and wakes the rest."""

    def __init__(self, engine: SQLiteEngine) -> None:
        self.waiting = 0
        self._engine = engine
        self._changed = threading.Condition()
        self._leading = threading.Lock()
        self._looking = threading.Lock()
        self._probe: sqlite3.Connection | None = None
        self._version = 0
        self._count = 0
        self._noted = 0

    def note(self, writer: Writer | None) -> None:
        """Wakes who waits, if this writer has changed anything since it was last noted."""
        if writer is not None and (total := writer.raw.total_changes) != self._noted:
            self._noted = total
            self.changed()

    def changed(self) -> None:
        with self._changed:
            self._count += 1
            self._changed.notify_all()

    def look(self) -> int:
        if self._engine.capabilities.processes:
            with self._looking:
                if self._probe is None:
                    self._probe = self._engine.probe()
                version: int = self._probe.execute("PRAGMA data_version").fetchone()[0]
                if version != self._version:
                    self._version = version
                    self.changed()
        else:
            with suppress(sqlite3.ProgrammingError):  # closed just now: whoever waits learns it from its next statement
                self.note(self._engine._writer)
        return self._count

    def wait(self, seen: int, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        with self._changed:
            self.waiting += 1
        try:
            while self._count == seen and (left := deadline - time.monotonic()) > 0:
                if self._leading.acquire(blocking=False):
                    try:
                        self._lead(seen, deadline)
                    finally:
                        self._leading.release()
                        with self._changed:
                            self._changed.notify_all()
                else:
                    with self._changed:
                        if self._count == seen:
                            self._changed.wait(left)
            return self._count != seen
        finally:
            with self._changed:
                self.waiting -= 1

    def _lead(self, seen: int, deadline: float) -> None:
        while self.look() == seen and (left := deadline - time.monotonic()) > 0:
            with self._changed:
                if self._count == seen:
                    self._changed.wait(min(left, _POLL))

    def close(self) -> None:
        with self._looking:
            if self._probe is not None:
                self._probe.close()
                self._probe = None
        self.changed()

    def abandon(self) -> None:
        """Leaves the parent process's connection alone."""
        if self._probe is not None:
            SQLiteExecutor(self._probe, {}, Options()).abandon(Closed("forked"))


class _Lent:
    """A driver connection lent to SQLAlchemy: whoever lent it ends its transactions and closes it."""

    def __init__(self, raw: sqlite3.Connection) -> None:
        self._raw = raw

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def commit(self) -> None:
        pass

    def rollback(self) -> None:
        pass

    def close(self) -> None:
        pass


def _trace_engine(engine: sqlalchemy.Engine, trace: Trace) -> None:
    started = threading.local()

    @event.listens_for(engine, "before_cursor_execute")
    def before(*_: Any) -> None:
        started.at = time.perf_counter()

    @event.listens_for(engine, "after_cursor_execute")
    def after(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        trace(statement, time.perf_counter() - started.at)


def _is_busy(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _BUSY


def translate(error: Exception, timeout: float, where: str = "the database") -> StoreError:
    """This package's error for one of the driver's, told by its code."""
    if not isinstance(error, sqlite3.Error):
        return InvalidValue(f"the database cannot hold a value ({error})", hint="Give text that UTF-8 can hold, and 64-bit numbers")
    name: str = getattr(error, "sqlite_errorname", "")
    code: int = getattr(error, "sqlite_errorcode", 0) & 0xFF
    match name:
        case "SQLITE_CONSTRAINT_UNIQUE" | "SQLITE_CONSTRAINT_PRIMARYKEY" | "SQLITE_CONSTRAINT_ROWID":
            return Conflict(f"a row with this key exists already ({error})", kind="unique")
        case "SQLITE_CONSTRAINT_FOREIGNKEY":
            return Conflict("a row refers to one that does not exist, or is still referred to", kind="reference")
        case "SQLITE_CONSTRAINT_TRIGGER":
            return Unsupported(str(error), hint="Append a new event instead")
    match code:
        case sqlite3.SQLITE_CONSTRAINT | sqlite3.SQLITE_MISMATCH | sqlite3.SQLITE_TOOBIG:
            return InvalidValue(f"the database refused a value ({error})", hint="Nothing was written")
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED | sqlite3.SQLITE_PROTOCOL:
            return Unavailable(
                f"{where} was locked by other transactions for {timeout:g} s", hint="Keep transactions short, or raise the timeout"
            )
        case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
            return CorruptDatabase(f"{where} is not a database or is damaged ({error})", hint="Check the path, or restore a backup")
        case sqlite3.SQLITE_CANTOPEN:
            return Unavailable(f"{where} cannot be opened ({error})", hint="Check that the directory exists and may be written")
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
            return Unavailable(f"{where} cannot be written ({error})", hint="Check the file's and its directory's permissions")
        case sqlite3.SQLITE_FULL | sqlite3.SQLITE_IOERR | sqlite3.SQLITE_NOMEM:
            return Unavailable(f"{where} could not be written ({error})", hint="Free some space; nothing half-written was kept")
    return StoreError(f"the database refused a statement ({error})")


_engines: weakref.WeakSet[SQLiteEngine] = weakref.WeakSet()


def _after_fork() -> None:
    for engine in list(_engines):
        engine.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
