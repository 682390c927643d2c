"""Cursors: statements are executed and their rows fetched here."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Self

from sqljs_dbapi import adaptation
from sqljs_dbapi.adaptation import plain
from sqljs_dbapi.codes import SQLITE_DONE, SQLITE_ROW
from sqljs_dbapi.errors import OperationalError, ProgrammingError, from_code
from sqljs_dbapi.sql import is_blank
from sqljs_dbapi.statements import Description, Statement, prepare
from sqljs_dbapi.wire import Answer, pack

if TYPE_CHECKING:
    from sqljs_dbapi.connection import Connection

FIRST_ROWS = 16  # read by execute itself: most results end there, and their locks with them
MOST_ROWS = 4096  # read by one call
BATCH_ROWS = 2048  # sent by one call of executemany
PARSE_DECLTYPES = 1
PARSE_COLNAMES = 2

RowFactory = Callable[["Cursor", tuple[Any, ...]], Any]


_END = object()  # no further row


class Cursor:
    """Executes statements on a connection and fetches what they give. Made by `Connection.cursor`."""

    # What a cursor begins with is its class's: to make one is half of what a short query costs in Python.
    description: Description | None = None
    """Seven values for each column of the result: its name, its declared type if it is a table's, and five times None."""
    rowcount = -1
    """Rows changed by INSERT, UPDATE, DELETE or REPLACE; -1 for others."""
    lastrowid: int | None = None
    row_factory: RowFactory | None = None
    arraysize = 1
    """Rows that `fetchmany` fetches if not told."""
    _rows: list[Any] = []  # noqa: RUF012 - put in place of, never changed
    _next = 0
    _raw = False  # rows are turned into values when they are fetched: a text may be a tuple of its bytes
    _pending: "_Pending | None" = None  # the statement that has more rows to come
    _converters: list[Callable[[bytes], Any] | None] | None = None
    _closed = False
    _unusable = False  # for now or for ever: `_check` says why

    def __init__(self, connection: "Connection", /) -> None:
        if not isinstance(connection, connection_type):
            raise TypeError(f"Cursor() argument 1 must be sqljs_dbapi.Connection, not {type(connection).__name__}")
        if not connection._db:
            connection._check()
        self.connection = connection

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Nothing is set by a subclass that does not call `__init__`."""
            if name == "connection":
                raise ProgrammingError("Base Cursor.__init__ not called.")
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'", name=name, obj=self)

    # --- executing -------------------------------------------------------------------------------------------------------

    def execute(self, sql: str, parameters: Any = (), /) -> Self:
        """Execute one statement, with a sequence of parameters for question marks or a mapping for names."""
        connection = self.connection
        if self._unusable or not connection._db:
            self._check()
        if self._pending is not None:
            self._release()
        self._unusable = True
        statement: Statement | None = None
        try:
            statement = connection._idle.pop(sql, None) if type(sql) is str else None
            if statement is None and (statement := connection._prepare(sql)) is None:
                self._forget()
                return self
            if connection._path is not None:
                connection._guard(statement)
            if statement.is_dml and connection._begins is not None and not connection._in_transaction:
                connection._run_alone(connection._begins)
            if connection._trace is not None:
                connection._trace(statement, parameters)
            if connection._detect_types:
                self._find_converters(statement)
            if type(parameters) is not tuple or len(parameters) != statement.expects:
                parameters = self._values(statement, parameters)
            if not plain.issuperset(map(type, parameters)):
                parameters = adaptation.bindable(parameters, statement.names)
            answer = connection._run(statement.pointer, pack(parameters) if parameters else b"", connection._first_rows)
            self.lastrowid = self._take(sql, statement, answer)
        except BaseException:
            self._forget()
            if statement is not None and connection._db:
                connection._engine.reset(statement.pointer)
                connection._give_back(sql, statement)
            raise
        finally:
            self._unusable = False
        return self

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> Self:
        """Execute a statement that changes something once for each of the parameters. Rows that it gives are discarded."""
        if self._unusable or not self.connection._db:
            self._check()
        self._unusable = True
        try:
            if self._pending is not None:
                self._release()
            self._forget()
            rows = iter(parameters)
            statement = self.connection._prepare(sql)
            if statement is None:
                return self
            try:
                if not statement.modifies:
                    raise ProgrammingError("executemany() can only execute DML statements.")
                connection = self.connection
                if connection._path is not None:
                    connection._guard(statement)
                if connection._begins is not None and statement.is_dml and not connection._in_transaction:
                    connection._run_alone(connection._begins)
                total = self._execute_batches(statement, rows)
            except BaseException:
                if self.connection._db:
                    self.connection._engine.reset(statement.pointer)
                raise
            finally:
                self.connection._give_back(sql, statement)
            if statement.is_dml:
                self.rowcount = total
        finally:
            self._unusable = False
        return self

    def executescript(self, script: str, /) -> Self:
        """Execute several statements. A transaction that is open is committed first, unless `autocommit` is set."""
        if self._unusable or not self.connection._db:
            self._check()
        if not isinstance(script, str):
            raise TypeError(f"executescript() argument must be str, not {type(script).__name__}")
        if "\0" in script:
            raise ValueError("embedded null character")
        connection = self.connection
        if connection._in_transaction and connection._is_legacy:
            connection._run_alone("COMMIT")
        engine = self.connection._engine
        rest = script
        while rest and not is_blank(rest):
            statement, rest = prepare(engine, connection._db, rest)
            if statement is None:
                continue
            try:
                if connection._path is not None:
                    connection._guard(statement)
                if connection._trace is not None:
                    connection._trace(statement, ())
                while connection._settle(engine.run(statement.pointer, b"", MOST_ROWS), statement)[0] == SQLITE_ROW:
                    pass
            finally:
                engine.finalize(statement.pointer)
        return self

    def _forget(self) -> None:
        """Have no result any more."""
        self._rows = []
        self._next = 0
        self._raw = False
        self.description = None
        self.rowcount = -1

    def _packed(self, statement: Statement, parameters: Any) -> bytes:
        """The parameters as they are sent."""
        if type(parameters) is not tuple or len(parameters) != statement.count or statement.named:
            parameters = self._values(statement, parameters)
        if not plain.issuperset(map(type, parameters)):
            parameters = adaptation.bindable(parameters, statement.names)
        return pack(parameters)

    def _values(self, statement: Statement, parameters: Any) -> Sequence[Any]:
        """The parameters in the order of their numbers."""
        if type(parameters) is tuple or type(parameters) is list:
            values = parameters
        elif (
            isinstance(parameters, dict)
            or not (hasattr(parameters, "__getitem__") and hasattr(parameters, "__len__"))
            or hasattr(parameters, "keys")
        ):
            return self._named_values(statement, parameters)
        else:
            values = [parameters[index] for index in range(len(parameters))]
        if len(values) != statement.count:
            raise ProgrammingError(
                f"Incorrect number of bindings supplied. The current statement uses {statement.count}, "
                f"and there are {len(values)} supplied."
            )
        if statement.named:
            raise_for_names(statement)
        return values

    def _named_values(self, statement: Statement, parameters: Any) -> Sequence[Any]:
        if not hasattr(parameters, "__getitem__"):
            raise ProgrammingError("parameters are of unsupported type")
        values = []
        for number, name in enumerate(statement.names, 1):
            if name is None:
                raise ProgrammingError(f"Binding {number} has no name, but you supplied a dictionary (which has only names).")
            try:
                values.append(parameters[name[1:]])
            except LookupError:
                raise ProgrammingError(f"You did not supply a value for binding parameter :{name[1:]}.") from None
        return values

    def _execute_batches(self, statement: Statement, rows: Iterator[Any]) -> int:
        total = 0
        while True:
            batch, stopped = _some(rows)
            if batch:
                total += self._execute_batch(statement, batch)
            if stopped is not None:
                raise stopped
            if len(batch) < BATCH_ROWS:
                return total

    def _execute_batch(self, statement: Statement, batch: list[Any]) -> int:
        engine = self.connection._engine
        connection = self.connection
        count = statement.count
        refused: Exception | None = None
        if count == 0 or connection._trace is not None:
            return sum(self._execute_one(statement, parameters) for parameters in batch)
        tuples = not statement.named and all(type(row) is tuple and len(row) == count for row in batch)
        if not (tuples and plain.issuperset(map(type, chain.from_iterable(batch)))):
            ordered: list[Sequence[Any]] = []
            try:
                for row in batch:
                    values = self._values(statement, row)
                    ordered.append(values if plain.issuperset(map(type, values)) else adaptation.bindable(values, statement.names))
            except Exception as error:
                refused = error
            batch = ordered
        done = 0
        if batch:
            try:
                packed = pack(batch)
            except BufferError:
                return sum(self._execute_one(statement, parameters) for parameters in batch)
            done = connection._settle(engine.batch(statement.pointer, packed), statement)[1]
        if refused is not None:
            raise refused
        return done

    def _execute_one(self, statement: Statement, parameters: Any) -> int:
        """Execute once and discard the rows."""
        connection = self.connection
        engine = self.connection._engine
        packed = self._packed(statement, parameters) if statement.count or parameters else b""
        answer = engine.run(statement.pointer, packed, MOST_ROWS)
        if connection._trace is not None:
            connection._trace(statement, parameters)
        while (settled := connection._settle(answer, statement))[0] == SQLITE_ROW:
            answer = engine.run(statement.pointer, b"", MOST_ROWS)
        return settled[1]

    # --- results ---------------------------------------------------------------------------------------------------------

    def _take(self, sql: str, statement: Statement, answer: Answer) -> int:
        """Take the answer of the engine: rows, and whether there are more to come. Gives the row id inserted last."""
        connection = self.connection
        self._rows, code, changes, connection._in_transaction, rowid, self._raw, message, changed = answer
        if changed:
            self._describe_again(statement)
        self._next = 0
        self.description = statement.description
        if code == SQLITE_DONE:
            self.rowcount = changes if statement.is_dml else -1
            if connection._idle.setdefault(sql, statement) is not statement:
                connection._give_back(sql, statement)
            if connection._path is not None and not connection._in_transaction:
                connection._committed(statement)
        elif code == SQLITE_ROW:
            self._pending = _Pending(connection, sql, statement)
            self.rowcount = 0 if statement.is_dml else -1
        else:
            self._fail(sql, statement, code, message or "")
        return rowid

    def _describe_again(self, statement: Statement) -> None:
        """Ask for the columns anew: SQLite has prepared the statement again, for the schema was changed."""
        connection = self.connection
        statement.describe(*connection._engine.describe(statement.pointer))
        if connection._detect_types & PARSE_COLNAMES:
            statement.strip_types()
        if connection._detect_types:
            self._find_converters(statement)

    def _fail(self, sql: str, statement: Statement, code: int, message: str) -> None:
        """A statement ended with an error, maybe after rows that it gave.

        Like sqlite3, which is always one row ahead, the last of them is lost.
        """
        self.connection._give_back(sql, statement)
        error = from_code(code, message)
        if len(self._rows) < 2:
            self._rows = []
            raise error
        self._rows = [*self._rows[:-1], error]
        self._raw = True

    def _value(self, row: Any) -> tuple[Any, ...]:
        """A row whose texts and converted columns are still bytes."""
        if isinstance(row, Exception):
            self._rows = []
            self._next = 0
            raise row
        converters = self._converters or [None] * len(row)
        factory = self.connection.text_factory
        values = []
        for index, value in enumerate(row):
            if (converter := converters[index]) is not None:
                values.append(converter(_plain_bytes(value)) if value else None)
            elif type(value) is tuple:
                values.append(self._text_of(value[0], index) if factory is str else factory(value[0]))
            else:
                values.append(factory(value.encode()) if type(value) is str and factory is not str else value)
        return tuple(values)

    def _text_of(self, value: bytes, index: int) -> str:
        try:
            return value.decode()
        except UnicodeDecodeError:
            name = self.description[index][0] if self.description else ""
            shown = value.split(b"\0")[0].decode("ascii", errors="replace")
            raise OperationalError(f"Could not decode to UTF-8 column '{name}' with text '{shown}'"[:199]) from None

    def _find_converters(self, statement: Statement) -> None:
        """Which columns are given to a converter, by what they are called or declared as."""
        found: list[Callable[[bytes], Any] | None] = []
        detect = self.connection._detect_types
        for name, declared in zip(statement.columns, statement.types, strict=True):
            converter = None
            if detect & PARSE_COLNAMES and "[" in name and "]" in (kind := name[name.rindex("[") + 1 :]):
                converter = adaptation.converters.get(kind.split("]")[0].upper())
            if converter is None and detect & PARSE_DECLTYPES and declared:
                converter = adaptation.converters.get(declared.split(" ")[0].split("(")[0].upper())
            found.append(converter)
        self._converters = found if any(found) else None
        converted = tuple(index for index, converter in enumerate(found) if converter is not None)
        if converted != statement.converted:
            from pyodide.ffi import to_js

            statement.converted = converted
            self.connection._engine.convert(statement.pointer, to_js(converted))

    def _more(self) -> bool:
        """Fetch the next rows; whether there are any."""
        if self._pending is None:
            return False
        self._take_more(self._pending, min(4 * max(len(self._rows), FIRST_ROWS), MOST_ROWS))
        return bool(self._rows)

    def _take_more(self, pending: "_Pending", limit: int) -> None:
        left, raw = self._rows[self._next :], self._raw
        connection = self.connection
        self._unusable = True
        try:
            answer = connection._run(pending.statement.pointer, b"", limit if connection._plain else -limit)
            self._pending = None
            self._take(pending.sql, pending.take(), answer)
        except Exception:
            self._rows = left[:-1]
            self._raw = raw
            raise
        finally:
            self._unusable = False
        if left:
            self._rows = [*left, *self._rows]
            self._raw = self._raw or raw

    def fetchone(self) -> Any:
        """The next row, or None."""
        index = self._next
        if index < len(self._rows) and self._pending is None and self.row_factory is None and not (self._raw or self._unusable):
            if not self.connection._db:
                self._check()
            self._next = index + 1
            return self._rows[index]
        row = self._fetch()
        return None if row is _END else row

    def _fetch(self) -> Any:
        if self._unusable or not self.connection._db:
            self._check()
        index = self._next
        rows = self._rows
        if index + 1 >= len(rows) and self._pending is not None:
            # the step after a row belongs to its fetching, as in sqlite3
            self._more()
            index, rows = self._next, self._rows
        if index >= len(rows):
            if self.description is None:
                raise ProgrammingError("there is no result: nothing was executed, or a statement that gives none")
            return _END
        row: Any = rows[index]
        if self._raw:
            row = self._value(row)  # the row stays where it is if it has no value
        self._next = index + 1
        return row if self.row_factory is None else self.row_factory(self, row)

    def fetchmany(self, size: int | None = None) -> list[Any]:
        """The next rows, at most `size`."""
        wanted = self.arraysize if size is None else size
        if wanted < 0:
            return self.fetchall()
        found: list[Any] = []
        while len(found) < wanted and (row := self._fetch()) is not _END:
            found.append(row)
        return found

    def fetchall(self) -> list[Any]:
        """All rows that are left."""
        if self._unusable or not self.connection._db:
            self._check()
        if self.description is None:
            return [self._fetch()]  # which refuses
        while self._pending is not None:
            self._take_more(self._pending, MOST_ROWS)
        if self._raw:
            return list(self)
        rows: list[Any] = self._rows[self._next :] if self._next else self._rows
        self._rows = []
        self._next = 0
        factory = self.row_factory
        return rows if factory is None else [factory(self, row) for row in rows]

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        if self._unusable or not self.connection._db:
            self._check()
        if self.description is None:  # iterating over nothing is no mistake
            raise StopIteration
        row = self._fetch()
        if row is _END:
            raise StopIteration
        return row

    # --- the rest --------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the cursor; it cannot be used any more."""
        if self._unusable and not self._closed:
            self._check()
        if not self.connection._db:
            self.connection._check()
        if self._pending is not None:
            self._release()
        self._rows = []
        self._closed = self._unusable = True

    def setinputsizes(self, sizes: Any, /) -> None:
        """Nothing: SQLite does not need it."""

    def setoutputsize(self, size: Any, column: Any = None, /) -> None:
        """Nothing: SQLite does not need it."""

    def _release(self) -> None:
        """Give up the rows still to come."""
        if self._pending is not None:
            self._pending.end()
        self._pending = None
        self._rows = []
        self._next = 0

    def _check(self) -> None:
        if self._closed:
            raise ProgrammingError("Cannot operate on a closed cursor.")
        if self._unusable:
            raise ProgrammingError("Recursive use of cursors not allowed.")
        self.connection._check()


class _Pending:
    """A statement that has more rows to come. It is given up with the cursor that would fetch them."""

    def __init__(self, connection: "Connection", sql: str, statement: Statement) -> None:
        self.connection = connection
        self.sql = sql
        self.statement = statement
        self.taken = False

    def take(self) -> Statement:
        """The statement, which is somebody else's now."""
        self.taken = True
        return self.statement

    def end(self) -> None:
        """Give up the rows still to come."""
        if not self.taken and self.connection._db:
            statement = self.take()
            self.connection._engine.reset(statement.pointer)
            self.connection._give_back(self.sql, statement)

    def __del__(self) -> None:
        self.end()


connection_type: type = object
"""What a cursor can be made for: `Connection`, which is made of cursors itself."""


def raise_for_names(statement: Statement) -> None:
    """Refuse a sequence for parameters that have names."""
    for number, name in enumerate(statement.names, 1):
        if name is not None and name[0] != "?":
            raise ProgrammingError(
                f"Binding {number} ('{name}') is a named parameter, "
                "but you supplied a sequence which requires nameless (qmark) placeholders."
            )


def _plain_bytes(value: Any) -> bytes:
    """What a converter is given; not read as such yet if its column had none when the statement began."""
    if type(value) is tuple:
        value = value[0]
    return value if type(value) is bytes else str(value).encode()


def _some(rows: Iterator[Any]) -> tuple[list[Any], Exception | None]:
    """The next rows, and what their iterator raised after them."""
    batch: list[Any] = []
    try:
        for row in rows:
            batch.append(row)
            if len(batch) >= BATCH_ROWS:
                break
    except Exception as error:
        return batch, error
    return batch, None
