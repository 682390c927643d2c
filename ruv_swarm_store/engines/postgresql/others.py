"""Tells whether others have committed, by the numbers of the transactions that have ended between two looks.

A transaction has a number from its first change on. `pg_current_snapshot` says which numbers have been given and which of those are
still running, of the whole server: while it says the same nobody has committed. Its own transactions' numbers a store learns as it
commits them, but not those that savepoints have beside: a unit of work that changes something inside one counts as others'.

A standby does not list in its snapshots what runs on the primary. There it is told by how much of the log has been replayed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy import Executable, func, literal_column
from sqlalchemy.sql.dml import UpdateBase

from ruv_swarm_store.engines.constructs import Insertion
from ruv_swarm_store.engines.executor import NONE, Params
from ruv_swarm_store.engines.postgresql.codes import REFUSED
from ruv_swarm_store.engines.postgresql.connections import PostgreSQLExecutor, Session

MANY = 10_000
"""As many transactions between two looks are taken for others' without looking at each."""
_LOOK = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()::text ELSE txid_current_snapshot()::text END"


class Others:
    """Looks for others' commits, on a connection of its own that is made when first needed."""

    def __init__(self, connect: Callable[[], psycopg.Connection[Any]]) -> None:
        self._connect = connect
        self._connection: psycopg.Connection[Any] | None = None
        self._closed = False
        self._looking = threading.RLock()
        self._seen = ""
        self._own: set[int] = set()

    def own(self, number: int) -> None:
        """A transaction is this store's, and has committed: the caches are told by who committed it."""
        if len(self._own) >= MANY:
            self._own.clear()  # nobody looks; those forgotten will be taken for others'
        self._own.add(number)

    def committed(self) -> bool:
        """Whether others have committed since this was last asked, or may have. Raises what the driver does."""
        with self._looking:
            if self._closed:
                return True
            before, self._seen = self._seen, ""  # should this fail, they may have
            if self._connection is None or self._connection.closed:
                self._connection = self._connect()
                before = ""
            ((self._seen,),) = self._connection.execute(_LOOK).fetchall()
            if self._seen == before:
                return False
            ended = _ended(before, self._seen)
            if ended is None:
                return True
            known = frozenset(self._own)
            oldest, _, _ = _parts(self._seen)
            for number in known:
                if number < oldest:
                    self._own.discard(number)
            return not ended <= known

    def close(self) -> None:
        """Ends the connection."""
        with self._looking:
            self._closed = True
            if self._connection is not None:
                self._connection.close()


def _ended(before: str, after: str) -> set[int] | None:
    """The transactions that have ended between two snapshots; None where that is not told, time went back, or there are very many."""
    if ":" not in before or ":" not in after:
        return None
    _, next_, running = _parts(before)
    _, next_now, running_now = _parts(after)
    if not 0 <= next_now - next_ < MANY:
        return None
    return (running | set(range(next_, next_now))) - running_now


def _parts(snapshot: str) -> tuple[int, int, set[int]]:
    """The oldest transaction that runs, the next number to be given, and those that run."""
    oldest, next_, running = snapshot.split(":")
    return int(oldest), int(next_), {int(number) for number in running.split(",") if number}


class TellingExecutor(PostgreSQLExecutor):
    """An executor that tells the numbers of the transactions it commits."""

    # Methods are called by their class's name: this class may be taken away in the middle of a call.

    __slots__ = ()
    raw: Session

    def all(self, statement: Executable, params: Params = NONE) -> Sequence[Sequence[Any]]:
        if self.depth or (numbered := _numbered(statement)) is None:
            return PostgreSQLExecutor.all(self, statement, params)
        rows = PostgreSQLExecutor.all(self, numbered, params)
        if rows:
            self.raw.others.own(rows[0][-1])
        return [row[:-1] for row in rows]

    def run(self, statement: Executable, params: Params = NONE) -> int:
        if self.depth or (numbered := _numbered(statement)) is None:
            return PostgreSQLExecutor.run(self, statement, params)
        if (row := PostgreSQLExecutor.one(self, numbered, params)) is None:
            return 0
        self.raw.others.own(row[-1])
        return int(self._cursor.rowcount)

    def insert(self, insertion: Insertion, row: Sequence[Any]) -> int:
        if self.depth:
            return PostgreSQLExecutor.insert(self, insertion, row)
        statement = _numbered_insert(insertion)
        prepared = self._statements.get(statement) or self._prepare(statement, statement)
        try:
            done = self._execute(prepared.sql, row)
        except REFUSED as error:
            done = self._again(error, prepared, row)
        number, transaction = done.fetchone()
        self.raw.others.own(transaction)
        return number or 0

    def commit(self) -> None:
        number = None
        if self.depth == self._opened == 1 and self.raw.pgconn.transaction_status == TransactionStatus.INTRANS:
            try:
                (number,) = self._cursor.execute("SELECT txid_current_if_assigned()").fetchone()
            except REFUSED as error:
                raise self._failed(error) from error
        PostgreSQLExecutor.commit(self)
        if number is not None:
            self.raw.others.own(number)


_NUMBER = func.txid_current().label("transaction_number")


@cache
def _numbered(statement: Executable) -> Executable | None:
    """The statement that also returns the number of its transaction, in the last column."""
    return statement.returning(_NUMBER) if isinstance(statement, UpdateBase) else None


@cache
def _numbered_insert(insertion: Insertion) -> Executable:
    number = insertion.number
    return insertion.statement.returning(literal_column("NULL") if number is None else number, _NUMBER)
