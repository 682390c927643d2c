"""Driver connections that run statements, alone or in a transaction."""

from __future__ import annotations

import logging
import random
import select
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.types.numeric import Int8Dumper
from sqlalchemy import Connection, Dialect, Executable, Row, Select, Table

from ruv_swarm_store import schema
from ruv_swarm_store.engines import alchemy
from ruv_swarm_store.engines.changes import Changes
from ruv_swarm_store.engines.constructs import Insertion
from ruv_swarm_store.engines.engine import Options
from ruv_swarm_store.engines.executor import NONE, TIMES, Executor, Params, Prepared
from ruv_swarm_store.engines.postgresql.codes import REFUSED, REPEATABLE, translate
from ruv_swarm_store.engines.postgresql.dialect import SwarmDialect
from ruv_swarm_store.errors import StoreError, Unsupported

if TYPE_CHECKING:
    from ruv_swarm_store.engines.postgresql.others import Others

log = logging.getLogger(__name__)

ATTEMPTS = 5
"""How often a statement of its own is tried that meets a deadlock or a serialisation failure."""

_LOCKS = {name: f"SELECT pg_advisory_xact_lock(hashtextextended(current_schema() || '.{name}', 0))" for name in schema.metadata.tables}
LOCK = "SELECT pg_advisory_xact_lock(hashtextextended(current_schema() || '.' || %s::text, 0))"

_DIALECT = SwarmDialect(paramstyle="format")  # type: ignore[no-untyped-call]


class Session(psycopg.Connection[tuple[Any, ...]]):
    """A driver connection with the executor that runs statements on it."""

    executor: PostgreSQLExecutor
    others: Others
    poll: select.poll

    def check(self) -> None:
        """Raises when the connection was lost while it was idle: what the server said last, its farewell, lies unread then."""
        if self.poll.poll(0):
            self.execute("")


class PostgreSQLExecutor(Executor):
    """A driver connection that runs statements. `depth` counts the open transaction and the savepoints in it.

    BEGIN and SAVEPOINT are sent when the first statement inside is, in one message with what else is due.
    """

    __slots__ = (
        "_alchemy",
        "_clock",
        "_connect",
        "_cursor",
        "_execute",
        "_hooks",
        "_marks",
        "_opened",
        "_refusal",
        "_released",
        "_statements",
        "_timeout",
        "_trace",
        "changes",
        "depth",
        "now",
        "raw",
    )

    changes: Changes
    """What is to be told to caches, while there are any."""

    def __init__(
        self,
        raw: psycopg.Connection[Any],
        statements: dict[Any, Prepared],
        options: Options,
        connect: Callable[[psycopg.Connection[Any]], Connection],
    ) -> None:
        raw.adapters.register_dumper(int, Int8Dumper)  # one type for all numbers: one prepared statement
        self.raw = raw
        self._cursor: Any = raw.cursor()  # its own type takes literal text only; this text comes from Core and the schema
        self._statements = statements
        self._connect = connect
        self._alchemy: Connection | None = None
        self._clock = options.clock
        self._timeout = options.timeout
        self._trace = options.trace
        self._refusal: StoreError | None = None
        self._execute: Callable[..., Any] = self._plain()
        self.now = 0
        self.depth = 0
        self._opened = 0
        """How many of the levels the server knows of."""
        self._released: list[int] = []
        """Savepoints that have ended here and not yet there."""
        self._hooks: list[Callable[[], object]] = []
        self._marks: list[int] = []

    @property
    def dialect(self) -> Dialect:
        return _DIALECT

    @property
    def holding(self) -> bool:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.depth > 0

    # Statements

    def one(self, statement: Executable, params: Params = NONE) -> Sequence[Any] | None:
        prepared = self._statements.get(statement) or self._prepare(statement, statement)
        values = prepared.bind(params)
        try:
            row: Sequence[Any] | None = self._execute(prepared.sql, values).fetchone()
        except REFUSED as error:
            row = self._again(error, prepared, params).fetchone()
        return row

    def all(self, statement: Executable, params: Params = NONE) -> Sequence[Sequence[Any]]:
        prepared = self._statements.get(statement) or self._prepare(statement, statement)
        values = prepared.bind(params)
        try:
            rows: Sequence[Sequence[Any]] = self._execute(prepared.sql, values).fetchall()
        except REFUSED as error:
            rows = self._again(error, prepared, params).fetchall()
        return rows

    def run(self, statement: Executable, params: Params = NONE) -> int:
        prepared = self._statements.get(statement) or self._prepare(statement, statement)
        values = prepared.bind(params)
        try:
            count: int = self._execute(prepared.sql, values).rowcount
        except REFUSED as error:
            count = self._again(error, prepared, params).rowcount
        return count

    def insert(self, insertion: Insertion, row: Sequence[Any]) -> int:
        statement = insertion.statement
        prepared = self._statements.get(statement) or self._prepare(statement, statement)
        try:
            done = self._execute(prepared.sql, row)
        except REFUSED as error:
            done = self._again(error, prepared, row)
        if insertion.number is None:
            return 0
        number: int = done.fetchone()[0]  # SQLAlchemy has the engine's number returned
        return number

    def insert_many(self, insertion: Insertion, rows: Sequence[Sequence[Any]]) -> Sequence[int]:
        table, number = insertion.table, insertion.number
        if len(rows) == 1:
            return [PostgreSQLExecutor.insert(self, insertion, rows[0])]
        started = time.perf_counter()
        constants = tuple(insertion.constants.values())
        names = [column.name for column in insertion.columns] + list(insertion.constants)
        numbers: Sequence[int] = range(1, len(rows) + 1)
        if number is not None:
            if table.info.get("in_order"):
                self.lock(table.name)  # before the first number is drawn
            elif table.info.get("never_reuse_positions"):
                # Nor may `settle` come between: it waits for those who hold the table, which a number drawn does not.
                try:
                    self._execute(f"LOCK TABLE {table.name} IN ROW EXCLUSIVE MODE")
                except REFUSED as error:
                    raise self._failed(error) from error
            draw = f"SELECT nextval('{table.name}_{number.name}_seq') FROM generate_series(1, %s)"  # noqa: S608 - the schema's names
            try:
                numbers = [drawn for (drawn,) in self._execute(draw, (len(rows),)).fetchall()]
            except REFUSED as error:
                raise self._failed(error) from error
            rows = [(*row, *constants, drawn) for row, drawn in zip(rows, numbers, strict=True)]
            names.append(number.name)
        elif constants:
            rows = [(*row, *constants) for row in rows]
        quoted = ", ".join(f'"{name}"' for name in names)
        sql = f"COPY {table.name} ({quoted}) FROM STDIN"
        try:
            self._ready()
            with self._cursor.copy(sql) as copy:
                for row in rows:
                    copy.write_row(row)
        except REFUSED as error:
            raise self._failed(error) from error
        if self._trace is not None:
            self._tell(f"{sql} -- {len(rows)} rows", time.perf_counter() - started)
        return numbers

    def hold(self, statement: Select[*tuple[Any, ...]], params: Params = NONE) -> None:
        prepared = self._statements.get((statement, "hold"))
        if prepared is None:
            prepared = self._prepare((statement, "hold"), statement.with_for_update(key_share=True))
        try:
            self._execute(prepared.sql, prepared.bind(params))
        except REFUSED as error:
            raise self._failed(error) from error

    def lock(self, name: str) -> None:
        try:
            if name in _LOCKS and self._opened < self.depth:
                return self._ready(_LOCKS[name])  # one round trip for both
            self._execute(LOCK, (name,))
        except REFUSED as error:
            raise self._failed(error) from error

    def settle(self, table: Table) -> None:
        try:
            self._execute(f"LOCK TABLE {table.name} IN SHARE MODE")
        except REFUSED as error:
            raise self._failed(error) from error

    def execute(self, statement: Executable, params: Params = NONE) -> Sequence[Row[*tuple[Any, ...]]]:
        rows = alchemy.execute(self.alchemy(), statement, params, REFUSED, self._failed)
        if self._opened and self.raw.pgconn.transaction_status == TransactionStatus.IDLE:
            error = alchemy.ended()
            self.refuse(error)
            raise error
        return rows

    def alchemy(self) -> Connection:
        """SQLAlchemy's view of this connection: it runs statements and can end no transaction."""
        try:
            self._ready()
        except REFUSED as error:
            raise self._failed(error) from error
        connection = self._alchemy  # another thread may take it away, for one to be made anew
        if connection is None:
            self._alchemy = connection = self._connect(self.raw)
        return connection

    def after_commit(self, hook: Callable[[], object]) -> None:
        if not self.depth:
            raise Unsupported("nothing is committed here", hint="Register hooks inside a transaction")
        self._hooks.append(hook)

    # Transactions

    def begin(self) -> None:
        """Opens the transaction, or a savepoint in it."""
        self._marks.append(len(self._hooks))
        self.depth += 1

    def commit(self) -> None:
        """Closes the innermost level."""
        level = self.depth - 1
        if self._refusal is not None:
            raise self._refusal
        if self._opened > level:
            if self.raw.pgconn.transaction_status == TransactionStatus.INERROR:  # COMMIT would roll back and not say so
                raise StoreError("the transaction was rolled back by an earlier failure", hint="Begin it again")
            if level:
                self._released.append(level)
            else:
                self._released.clear()
                try:
                    self._plain()("COMMIT")
                except REFUSED as error:
                    raise self._failed(error) from error
            self._opened = level
        self._marks.pop()
        self.depth = level

    def unwind(self, level: int) -> None:
        """Undoes everything above `level`, however far it had got."""
        if len(self._marks) > level:
            del self._hooks[self._marks[level] :]
            del self._marks[level:]
        self._released = [released for released in self._released if released < level]
        if self._opened > level:
            undo = f"ROLLBACK TO level_{level}; RELEASE level_{level}" if level else "ROLLBACK"
            with suppress(psycopg.Error):  # on a lost connection the server does it
                self.raw.execute(undo.encode())
            self._opened = level
        self.depth = min(self.depth, level)
        if not self.depth:
            self.refuse(None)

    def committed(self) -> Sequence[Callable[[], object]]:
        """The hooks of what was just committed."""
        if not self._hooks:
            return ()
        hooks, self._hooks = self._hooks, []
        return hooks

    def refuse(self, error: StoreError | None) -> None:
        """From now on every statement raises `error`; None lifts that."""
        self._refusal = error
        self._execute = self._plain() if error is None else self._refuse

    # Inside

    def _refuse(self, *_: Any) -> NoReturn:
        assert self._refusal is not None
        raise self._refusal

    def _prepare(self, key: Any, statement: Executable) -> Prepared:
        prepared = Prepared(statement, _DIALECT)
        self._statements[key] = prepared
        return prepared

    def _plain(self) -> Callable[..., Any]:
        return self._send if self._trace is None else self._traced

    def _send(self, sql: str, values: Sequence[Any] | None = None) -> Any:
        if self._opened != self.depth or self._released:
            self._ready()
        return self._cursor.execute(sql, values)

    def _traced(self, sql: str, values: Sequence[Any] | None = None) -> Any:
        started = time.perf_counter()
        try:
            return self._send(sql, values)
        finally:
            self._tell(sql, time.perf_counter() - started)

    def _tell(self, sql: str, seconds: float) -> None:
        assert self._trace is not None
        try:
            self._trace(sql, seconds)
        except Exception:
            log.exception("trace failed")

    def _ready(self, first: str | None = None) -> None:
        """Brings the server to the level this executor is at, and runs the `first` statement there."""
        if self._refusal is not None:
            raise self._refusal
        due = [f"RELEASE level_{level}" for level in self._released]
        due += [f"SAVEPOINT level_{level}" if level else "BEGIN" for level in range(self._opened, self.depth)]
        if first is not None:
            due.append(first)
        if due:
            started = time.perf_counter()
            try:
                self.raw.execute("; ".join(due).encode())
            except BaseException:
                if first is not None:
                    self._opened = self.depth  # it was the first that failed: there is something to roll back
                raise
            if self._trace is not None:
                for command in due:
                    self._tell(command, (time.perf_counter() - started) / len(due))
            self._released.clear()
            self._opened = self.depth

    def _again(self, error: Exception, prepared: Prepared, given: Params | Sequence[Any]) -> Any:
        """Runs a statement of its own once more where that can help; raises what its failure means where not."""
        began = self.now
        for attempt in range(1, ATTEMPTS):
            if self.depth or getattr(error, "sqlstate", None) not in REPEATABLE:
                break
            time.sleep(random.uniform(0.001, 0.01) * attempt)
            # The wait must not be taken off a lease: times counted from now move with it.
            late = self._clock() - began
            self.now = began + late
            values = given
            if isinstance(given, Mapping):
                values = prepared.bind({**given, **{key: given[key] + late for key in TIMES & given.keys()}})
            try:
                return self._execute(prepared.sql, values)
            except REFUSED as repeated:
                error = repeated
        raise self._failed(error) from error

    def _failed(self, error: Exception) -> StoreError:
        """What to raise for a statement's failure."""
        translated = translate(error, self._timeout)
        if self._opened == self.depth == 1:
            # The server takes no more statements of this transaction: what follows must not seem to be part of it.
            self.refuse(StoreError(f"the transaction was rolled back by an earlier failure: {translated.message}", hint="Begin it again"))
        return translated
