"""Connections: transactions, functions written in Python, and copies of databases."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Literal, NoReturn, Self

from sqljs_dbapi import cursor as cursors
from sqljs_dbapi import errors
from sqljs_dbapi._engine import engine
from sqljs_dbapi.blob import Blob
from sqljs_dbapi.codes import SQLITE_BUSY, SQLITE_DONE, SQLITE_LOCKED, SQLITE_OK, SQLITE_ROW
from sqljs_dbapi.cursor import Cursor, RowFactory
from sqljs_dbapi.dump import identifier
from sqljs_dbapi.dump import statements as dumped
from sqljs_dbapi.functions import aggregate, scalar
from sqljs_dbapi.names import Name, locate, release
from sqljs_dbapi.statements import Statement, StatementCache, prepare_only
from sqljs_dbapi.tracing import expanded
from sqljs_dbapi.wire import Answer

LEGACY_TRANSACTION_CONTROL = -1
ISOLATION_LEVELS = ("", "DEFERRED", "IMMEDIATE", "EXCLUSIVE")
UTF8 = 1
DETERMINISTIC = 0x800
_new = object.__new__


class Connection:
    """A connection to a database; as sqlite3.Connection, except for what sql.js does not have.

    `timeout`: how many seconds to wait for another tab that writes a kept database, which this opens; None: as long as it does. A lock
    of SQLite's own is an error at once, for in a browser nothing else can run while one waits. `check_same_thread` has no meaning.
    """

    Warning = errors.Warning
    Error = errors.Error
    InterfaceError = errors.InterfaceError
    DatabaseError = errors.DatabaseError
    DataError = errors.DataError
    OperationalError = errors.OperationalError
    IntegrityError = errors.IntegrityError
    InternalError = errors.InternalError
    ProgrammingError = errors.ProgrammingError
    NotSupportedError = errors.NotSupportedError

    row_factory: RowFactory | None = None
    """Makes what a cursor made from now on fetches from the cursor and the tuple of a row."""
    _db = 0  # the address of the connection; 0 when it is closed
    _initialized = False

    def __init__(
        self,
        database: Name,
        timeout: float | None = None,
        detect_types: int = 0,
        isolation_level: str | None = "",
        check_same_thread: bool = True,
        factory: type["Connection"] | None = None,
        cached_statements: int = 128,
        uri: bool = False,
        *,
        autocommit: bool | int = LEGACY_TRANSACTION_CONTROL,
        **options: Any,
    ) -> None:
        if self._db:
            self.close()
        self._engine = engine()
        path, kept = locate(self._engine, database, uri, {"timeout": timeout, **options})
        try:
            self._db = self._engine.js.open(path)
        except Exception as error:
            code, _, message = str(error).removeprefix("Error: ").partition(":")
            errors.raise_code(int(code) if code.isdigit() else 14, message or "unable to open database file")
        self._file = path
        self._path = path if kept else None
        self._run = self._engine.run
        self._cache = StatementCache(self._engine, cached_statements)
        self._idle = self._cache.idle
        self._give_back = self._cache.give_back
        self._in_transaction: bool = False
        self._trace: Callable[[Statement, Any], None] | None = None
        self._functions: dict[tuple[str, int], range] = {}  # numbers of callbacks, by name and count of arguments
        self._begins: str | None = None  # the statement that begins a transaction before one that changes something
        self._is_legacy = True
        self._autocommit: bool | int = LEGACY_TRANSACTION_CONTROL
        self._detect_types = detect_types
        self.text_factory = str
        self._initialized = True
        self.isolation_level = isolation_level
        self.autocommit = autocommit

    # --- statements ------------------------------------------------------------------------------------------------------

    def cursor(self, factory: Callable[["Connection"], Cursor] = Cursor) -> Cursor:
        """A new cursor."""
        if not self._db:
            self._check()
        if factory is Cursor:
            cursor = _new(Cursor)
            cursor.connection = self
        else:
            cursor = factory(self)
            if not isinstance(cursor, Cursor):
                raise TypeError(f"factory must return a cursor, not {type(cursor).__name__}")
        if self.row_factory is not None:
            cursor.row_factory = self.row_factory
        return cursor

    def execute(self, sql: str, parameters: Any = (), /) -> Cursor:
        """A new cursor that has executed this; see `Cursor.execute`."""
        return self.cursor().execute(sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> Cursor:
        """A new cursor that has executed this; see `Cursor.executemany`."""
        return self.cursor().executemany(sql, parameters)

    def executescript(self, script: str, /) -> Cursor:
        """A new cursor that has executed this; see `Cursor.executescript`."""
        return self.cursor().executescript(script)

    def __call__(self, sql: str, /) -> Statement | None:
        """Prepare a statement, and keep it for when it is executed."""
        self._check()
        statement = self._prepare(sql)
        if statement is not None:
            self._give_back(sql, statement)
        return statement

    def _prepare(self, sql: str) -> Statement | None:
        """Take a statement out of the cache, or prepare it; None if the text has none."""
        if not isinstance(sql, str):
            raise TypeError(f"execute() argument 1 must be str, not {'None' if sql is None else type(sql).__name__}")
        statement = self._idle.pop(sql, None)
        if statement is None:
            self._cache.make_room()
            statement = prepare_only(self._engine, self._db, sql)
            if statement is not None and self._detect_types & cursors.PARSE_COLNAMES:
                statement.strip_types()
        return statement

    def _settle(self, answer: Answer, statement: Statement, waits: bool = True) -> tuple[int, int]:
        """Result code and changes of a statement's answer whose rows do not matter. Raises what went wrong."""
        _, code, changes, self._in_transaction, _, _, message, _ = answer
        if code not in {SQLITE_ROW, SQLITE_DONE}:
            errors.raise_code(code, message or "")
        if waits and self._path is not None and not self._in_transaction and code == SQLITE_DONE:
            self._committed(statement)
        return code, changes

    def _run_alone(self, sql: str, waits: bool = True) -> None:
        """Run a statement without parameters and rows; `waits`: until what it committed is stored, where that is asked for."""
        statement = self._prepare(sql)
        assert statement is not None
        if self._trace is not None:
            self._trace(statement, ())
        try:
            self._settle(self._run(statement.pointer, b"", 1), statement, waits)
        finally:
            self._give_back(sql, statement)

    def _guard(self, statement: Statement) -> None:
        """Refuse a statement that the storage of a kept database does not allow now; before a long one, see to what was committed."""
        storage = sys.modules["sqljs_dbapi.storage"]
        if self._path in storage.guarded and statement.verb != "ROLLBACK":  # what is undone, no failure keeps
            storage.check(self._path, statement.modifies)
        if statement.verb == "VACUUM":
            storage.store_first(self._path)
        elif statement.verb == "PRAGMA" and all(word in statement.sql.lower() for word in ("locking_mode", "exclusive")):
            normal = prepare_only(self._engine, self._db, "PRAGMA locking_mode=NORMAL")  # SQLite sets it as soon as it is prepared
            assert normal is not None
            self._engine.finalize(normal.pointer)
            raise errors.NotSupportedError("a kept database has no exclusive locking mode: nothing of it could be stored meanwhile")

    def _committed(self, statement: Statement) -> None:
        """Tell the storage of a kept database that a statement ended outside a transaction, and so may have committed."""
        if statement.modifies or statement.verb in {"COMMIT", "END", "RELEASE", "PRAGMA"}:
            sys.modules["sqljs_dbapi.storage"].committed(self._path)

    def _check_writable(self) -> None:
        """Refuse what changes a kept database by other means than a statement, when its storage does not allow it."""
        storage = sys.modules["sqljs_dbapi.storage"]
        if self._path in storage.guarded:
            storage.check(self._path, True)

    def _replaced(self) -> None:
        """Tell the storage of a kept database that its content was replaced, by other means than a statement."""
        if self._path is not None:
            sys.modules["sqljs_dbapi.storage"].committed(self._path)

    @property
    def text_factory(self) -> Callable[[bytes], Any]:
        """Makes the value of a text from its bytes; str unless it is set."""
        return self._text_factory

    @text_factory.setter
    def text_factory(self, factory: Callable[[bytes], Any]) -> None:
        self._text_factory = factory
        self._plain = factory is str and not self._detect_types  # rows are what the engine gave
        self._first_rows = cursors.FIRST_ROWS if self._plain else -cursors.FIRST_ROWS

    # --- transactions ----------------------------------------------------------------------------------------------------

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        self._check()
        return self._engine.in_transaction(self._db)  # also right in what SQLite calls before a statement has ended

    @property
    def total_changes(self) -> int:
        """Rows changed since the connection was opened."""
        self._check()
        return self._engine.total_changes(self._db)

    @property
    def isolation_level(self) -> str | None:
        """How a transaction begins before INSERT, UPDATE, DELETE and REPLACE; None if only by BEGIN. See also `autocommit`."""
        self._check()
        return self._isolation_level

    @isolation_level.setter
    def isolation_level(self, level: str | None) -> None:
        if level is not None:
            if not isinstance(level, str):
                raise TypeError("isolation_level must be str or None")
            if level.upper() not in ISOLATION_LEVELS:
                raise ValueError("isolation_level string must be '', 'DEFERRED', 'IMMEDIATE', or 'EXCLUSIVE'")
        self._isolation_level = None if level is None else level.upper()
        self._set_begins()
        if level is None and self._in_transaction and self._is_legacy:
            self._run_alone("COMMIT")

    @property
    def autocommit(self) -> bool | int:
        """True: nothing begins by itself. False: a transaction is always open (PEP 249). -1: as `isolation_level` says."""
        self._check()
        return self._autocommit

    @autocommit.setter
    def autocommit(self, value: bool | int) -> None:
        self._check()
        if value is not True and value is not False and value != LEGACY_TRANSACTION_CONTROL:
            raise ValueError("autocommit must be True, False, or sqlite3.LEGACY_TRANSACTION_CONTROL")
        if value is True and self._in_transaction:
            self._run_alone("COMMIT")
        if value is False and not self._in_transaction:
            self._run_alone("BEGIN")
        self._autocommit = value
        self._is_legacy = value is not True and value is not False
        self._set_begins()

    def _set_begins(self) -> None:
        self._begins = f"BEGIN {self._isolation_level}" if self._is_legacy and self._isolation_level is not None else None

    def commit(self) -> None:
        """Commit the open transaction, if there is one."""
        self._end("COMMIT")

    def rollback(self) -> None:
        """Roll back the open transaction, if there is one."""
        self._end("ROLLBACK")

    def _end(self, sql: str) -> None:
        self._check()
        if self._autocommit is True:
            return
        if self._autocommit is False:
            self._run_alone(sql, waits=False)
            self._run_alone("BEGIN")  # before anything is waited for: other coroutines may go on with this connection meanwhile
            if self._path is not None and sql == "COMMIT":
                sys.modules["sqljs_dbapi.storage"].committed(self._path)
        elif self._in_transaction:
            self._run_alone(sql)

    def close(self) -> None:
        """Close the connection. An open transaction is rolled back."""
        self._check_initialized()
        if not self._db:
            return
        db, self._db = self._db, 0
        self._cache.idle.clear()
        self._engine.js.close(db)
        for numbers in self._functions.values():
            self._engine.callbacks.remove(numbers)
        self._functions.clear()
        if self._path is None and self._file not in {"", ":memory:"}:
            release(self._engine, self._file)

    def __enter__(self) -> Self:
        self._check()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> Literal[False]:
        """Commit if all went well, else roll back; the connection stays open."""
        if kind is not None:
            self.rollback()
            return False
        try:
            self.commit()
        except BaseException:
            self.rollback()
            raise
        return False

    def __del__(self) -> None:
        if self._db:
            self.close()

    # --- functions written in Python ---------------------------------------------------------------------------------------

    def create_function(self, name: str, narg: int, func: Callable[..., Any] | None, /, *, deterministic: bool = False) -> None:
        """Have SQL call `func` by this name; None removes it. `narg` of -1 takes any number of arguments."""
        calls = [scalar(func)] if func is not None else []
        self._create(name, narg, calls, False, UTF8 | (DETERMINISTIC if deterministic else 0), "Error creating function")

    def create_aggregate(self, name: str, n_arg: int, aggregate_class: Callable[[], Any] | None, /) -> None:
        """Have SQL aggregate by the methods `step` and `finalize` of objects of this class; None removes it."""
        calls = list(aggregate(aggregate_class)) if aggregate_class is not None else []
        self._create(name, n_arg, calls, True, UTF8, "Error creating aggregate")

    def _create(self, name: str, count: int, calls: list[Any], is_aggregate: bool, flags: int, failed: str) -> None:
        self._check()
        number = self._engine.callbacks.add(*calls)
        code = self._engine.js.createFunction(self._db, name, count, flags, number, is_aggregate, not calls)
        numbers = range(number, number + len(calls))
        if code != SQLITE_OK:
            self._engine.callbacks.remove(numbers)
            raise errors.OperationalError(failed)
        self._engine.callbacks.remove(self._functions.pop((name.lower(), count), range(0)))
        if calls:
            self._functions[name.lower(), count] = numbers

    def create_window_function(self, name: str, num_params: int, aggregate_class: Any, /) -> NoReturn:
        """Not in sql.js."""
        _refuse("create_window_function", "sqlite3_create_window_function")

    def create_collation(self, name: str, callback: Callable[[str, str], int] | None, /) -> None:
        """Not in sql.js."""
        _refuse("create_collation", "sqlite3_create_collation")

    def set_authorizer(self, authorizer_callback: Any) -> None:
        """Not in sql.js. None is accepted."""
        if authorizer_callback is not None:
            _refuse("set_authorizer", "sqlite3_set_authorizer")

    def set_progress_handler(self, progress_handler: Any, n: int) -> None:
        """Not in sql.js. None is accepted."""
        if progress_handler is not None:
            _refuse("set_progress_handler", "sqlite3_progress_handler")

    def enable_load_extension(self, enable: bool, /) -> None:
        """Not in sql.js. False is accepted."""
        if enable:
            _refuse("enable_load_extension", "sqlite3_enable_load_extension")

    def load_extension(self, name: str, /, *, entrypoint: str | None = None) -> NoReturn:
        """Not in sql.js."""
        _refuse("load_extension", "sqlite3_load_extension")

    def getlimit(self, category: int, /) -> NoReturn:
        """Not in sql.js."""
        _refuse("getlimit", "sqlite3_limit")

    def setlimit(self, category: int, limit: int, /) -> NoReturn:
        """Not in sql.js."""
        _refuse("setlimit", "sqlite3_limit")

    def getconfig(self, op: int, /) -> NoReturn:
        """Not in sql.js."""
        _refuse("getconfig", "sqlite3_db_config")

    def setconfig(self, op: int, enable: bool = True, /) -> NoReturn:
        """Not in sql.js."""
        _refuse("setconfig", "sqlite3_db_config")

    def set_trace_callback(self, trace_callback: Callable[[str], object] | None) -> None:
        """Have this called with each statement that is executed here, its parameters written into it. None ends it.

        Statements of triggers are not seen.
        """
        self._check()

        def trace(statement: Statement, parameters: Any) -> None:
            if isinstance(parameters, dict):
                parameters = [parameters.get((name or "?")[1:]) for name in statement.names]
            if trace_callback is not None:
                trace_callback(expanded(statement, parameters))

        self._trace = trace if trace_callback is not None else None

    def interrupt(self) -> None:
        """Have the running statement fail, when it next calls a function written in Python: nothing else could call this."""
        self._check()
        self._engine.js.interrupt(self._db)

    # --- copies ----------------------------------------------------------------------------------------------------------

    def backup(
        self,
        target: "Connection",
        *,
        pages: int = -1,
        progress: Callable[[int, int, int], object] | None = None,
        name: str = "main",
        sleep: float = 0.250,
    ) -> None:
        """Copy the database `name` into another connection's main one, `pages` at a time (-1: all at once).

        `progress(status, remaining, total)` is called after each step. Unlike sqlite3 this does not wait for a lock: nobody could
        release it meanwhile.
        """
        self._check()
        if not isinstance(target, Connection):
            raise TypeError(f"backup() argument 1 must be sqljs_dbapi.Connection, not {type(target).__name__}")
        if target is self:
            raise ValueError("target cannot be the same connection instance")
        if progress is not None and not callable(progress):
            raise TypeError("progress argument must be a callable")
        target._check()
        target._check_writable()
        js = self._engine.js
        if not (begun := js.backupBegin(target._db, "main", self._db, name)):
            target._raise_last()
        total = done = 0
        try:
            while True:
                code = js.backupStep(begun, pages or -1)
                if progress is not None:
                    total = self._number(f"PRAGMA {identifier(name)}.page_count")
                    done = total if pages <= 0 or code == SQLITE_DONE else min(done + pages, total)
                    progress(code, total - done, total)
                if code != SQLITE_OK:
                    break
                time.sleep(0)
        finally:
            ended = js.backupEnd(begun)
        if code in {SQLITE_BUSY, SQLITE_LOCKED}:
            errors.raise_code(code, "database is locked")
        if ended != SQLITE_OK:
            target._raise_last()
        target._replaced()

    def serialize(self, *, name: str = "main") -> bytes:
        """The database as the bytes of a SQLite file; not inside a transaction that has changed it."""
        self._check()
        if not self._number(f"PRAGMA {identifier(name)}.page_count"):
            return b""
        js = self._engine.js
        path = js.createFile(None)
        copy = Connection._of_file(path)
        try:
            self.backup(copy, name=name)
            copy.close()
            return bytes(js.exportFile(path).to_bytes())
        finally:
            copy.close()
            js.removeFile(path)

    def deserialize(self, data: Any, /, *, name: str = "main") -> None:
        """Replace the database by that in the bytes of a SQLite file. One in memory keeps its page size, which must be the file's."""
        self._check()
        self._check_writable()
        from pyodide.ffi import to_js

        js = self._engine.js
        path = js.createFile(to_js(bytes(data)))
        copy = Connection._of_file(path)
        try:
            begun = js.backupBegin(self._db, name, copy._db, "main")
            if not begun:
                self._raise_last()
            code = js.backupStep(begun, -1)
            if js.backupEnd(begun) != SQLITE_OK or code != SQLITE_DONE:
                (self if js.errorCode(self._db) & 0xFF == code & 0xFF else copy)._raise_last()
        finally:
            copy.close()
            js.removeFile(path)
        self._replaced()

    def iterdump(self, *, filter: str | None = None) -> Iterator[str]:
        """The SQL that makes this database, line by line; `filter` is a LIKE pattern of names."""
        self._check()
        return dumped(self, filter)

    def blobopen(self, table: str, column: str, row: int, /, *, readonly: bool = False, name: str = "main") -> Blob:
        """A blob to read and write in pieces. Each piece written is an UPDATE of the whole value: sql.js has no `sqlite3_blob_open`."""
        self._check()
        return Blob(self, table, column, row, readonly, name)

    @classmethod
    def _of_file(cls, path: str) -> "Connection":
        """A plain connection to a file of the engine."""
        connection = Connection(":memory:", isolation_level=None)
        connection._engine.js.close(connection._db)
        connection._db = connection._engine.js.open(path)
        return connection

    def _number(self, sql: str) -> int:
        cursor = Cursor(self)
        cursor.execute(sql)
        row = cursor.fetchone()
        return int(row[0]) if row else 0

    def _raise_last(self) -> NoReturn:
        js = self._engine.js
        errors.raise_code(js.errorCode(self._db), js.errorMessage(self._db))

    def _check_initialized(self) -> None:
        if not self._initialized:
            raise errors.ProgrammingError("Base Connection.__init__ not called.")

    def _check(self) -> None:
        self._check_initialized()
        if not self._db:
            raise errors.ProgrammingError("Cannot operate on a closed database.")


cursors.connection_type = Connection


def _refuse(method: str, missing: str) -> NoReturn:
    raise errors.NotSupportedError(f"{method}() cannot work here: sql.js does not export {missing}")


def connect(database: Name, *arguments: Any, factory: type[Connection] | None = None, **options: Any) -> Connection:
    """Open a connection. `:memory:` is a database of its own; any other name one that `sqljs_dbapi.open` keeps.

    Takes what sqlite3.connect takes, and the options of `sqljs_dbapi.open` for a named database that is not open yet.

    Raises OperationalError where SQLite is not loaded, or the named database not open, and Python cannot wait for it: then
    `await sqljs_dbapi.load()`, or `await sqljs_dbapi.open(name)`, comes first.
    """
    return (factory or Connection)(database, *arguments, **options)
