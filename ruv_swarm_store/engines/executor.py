"""The seam between repositories and engines: a scope lends an executor, an executor runs statements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from operator import itemgetter
from typing import Any, Protocol, TypeVar

from sqlalchemy import Dialect, Executable, Row, Select, Table
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ClauseElement

from ruv_swarm_store.clock import Clock
from ruv_swarm_store.engines.constructs import Insertion

T = TypeVar("T")
Params = Mapping[str, Any]
Trace = Callable[[str, float], object]
"""Called with every statement's SQL and its time in seconds; `print` will do."""
NONE: Params = {}
TIMES = frozenset({"now", "expires"})
"""Parameters that are the transaction's time, or counted from it."""


class Executor(ABC):
    """A database connection inside a scope.

    Statements of `one`, `all` and `run` are module constants: compiled at first use, then kept for good. Values go
    in and rows come out as the driver has them; `query.Mapping` turns rows into entities. `execute` is for statements
    built on the fly: it goes through SQLAlchemy, in the same transaction.
    """

    __slots__ = ()

    now: int
    """The transaction's time, read once when it began, in milliseconds since the epoch."""
    holding: bool = False
    """Whether a row read by its key should be held until the transaction ends: others may write beside it, and this one may go on
    to change what it read."""

    @property
    @abstractmethod
    def dialect(self) -> Dialect:
        """What the statements are compiled for."""

    @abstractmethod
    def one(self, statement: Executable, params: Params = NONE) -> Sequence[Any] | None:
        """The first row, or None."""

    @abstractmethod
    def all(self, statement: Executable, params: Params = NONE) -> Sequence[Sequence[Any]]:
        """Every row."""

    @abstractmethod
    def run(self, statement: Executable, params: Params = NONE) -> int:
        """Runs the statement; the number of rows it changed."""

    @abstractmethod
    def insert(self, insertion: Insertion, row: Sequence[Any]) -> int:
        """Inserts one row, its values in the order of the insertion's columns; returns the number the engine gave it."""

    @abstractmethod
    def insert_many(self, insertion: Insertion, rows: Sequence[Sequence[Any]]) -> Sequence[int]:
        """Inserts rows in order; returns the ascending numbers the engine gave them, unless the insertion is not `numbered`."""

    # Where several transactions write at once, one that decides by what it reads has to keep the others from changing it.
    # Where one writes at a time these have nothing to do.

    @abstractmethod
    def hold(self, statement: Select[*tuple[Any, ...]], params: Params = NONE) -> None:
        """Keeps other transactions from changing the rows a SELECT finds, until this one ends.

        Give it an ORDER BY: those who hold several rows must take them in the same order.
        """

    @abstractmethod
    def lock(self, name: str) -> None:
        """Keeps other transactions that lock the same name waiting until this one ends.

        The name of a table whose numbers ascend in order of commit (`in_order`) keeps others from adding to that.
        """

    @abstractmethod
    def settle(self, table: Table) -> None:
        """Waits until nobody else is adding to a table, and keeps everybody from it until this transaction ends."""

    @abstractmethod
    def execute(self, statement: Executable, params: Params = NONE) -> Sequence[Row[*tuple[Any, ...]]]:
        """Runs any SQLAlchemy statement with its bind and result types; the rows it returns."""

    @abstractmethod
    def after_commit(self, hook: Callable[[], object]) -> None:
        """Calls `hook` once this transaction, and every one around it, has committed."""


class Interest(Protocol):
    """What a coroutine waits for, and others perhaps with it: one look is enough for all of them."""

    @property
    def key(self) -> Hashable:
        """Equal for those for whom one look is enough."""
        ...

    @property
    def seconds(self) -> float | None:
        """How long at most it is to sleep while it is looked for; None for ever."""
        ...

    def look(self, group: Sequence[Any], tick: bool) -> tuple[Iterable[int], float]:
        """Looks for a group with the same key: the places in it of those to wake, and in how many seconds to look though nothing changes.

        Those who have waited longest come first in it. `tick` is true once a second. It is called in a thread of its own.
        """
        ...


class Scope(Protocol):
    """Where a repository works: a store (each call its own transaction) or a unit of work (all in one)."""

    clock: Clock
    """Tells the time that a transaction would have."""

    def read(self) -> AbstractContextManager[Executor]:
        """An executor for SELECTs."""
        ...

    def write(self, step: Callable[[Executor], T]) -> T:
        """What `step` returns, which runs exactly one statement: a transaction of its own unless one is open."""
        ...

    def transaction(self) -> AbstractContextManager[Executor]:
        """An executor for several statements, all or none: a transaction, or a savepoint in the open one."""
        ...

    @property
    def within(self) -> bool:
        """Whether this thread has a transaction open here, which `transaction` would only put a savepoint into."""
        ...

    def changes(self) -> int:
        """A number that differs whenever something was committed, here or elsewhere, since an earlier call."""
        ...

    def wait(self, seen: int, seconds: float) -> bool:
        """Blocks until `changes()` differs from `seen`, at most `seconds`; whether it does."""
        ...

    async def wait_async(self, seen: int, seconds: float, interest: Interest | None = None) -> bool:
        """`wait`, while the event loop goes on. With an interest it may go on for as long as there is nothing for that."""
        ...


class Prepared:
    """A Core statement compiled for one dialect, with its parameters in the order the driver wants them."""

    __slots__ = ("bind", "sql")

    bind: Callable[[Params], Sequence[Any]]
    """Gives the driver's positional parameters. Raises KeyError when one was not given."""

    def __init__(self, statement: Executable, dialect: Dialect) -> None:
        assert isinstance(statement, ClauseElement)
        compiled = statement.compile(dialect=dialect, compile_kwargs={"render_postcompile": True})
        assert isinstance(compiled, SQLCompiler)
        self.sql = str(compiled)
        names: Sequence[str] = compiled.positiontup or ()
        # Values Core binds itself, such as LIMIT's, are already known; the caller's are still None.
        fixed = {name: value for name, value in compiled.params.items() if value is not None}
        if fixed or len(names) < 2:
            self.bind = _written_out(names, fixed)
        else:
            self.bind = itemgetter(*names)


def _written_out(names: Sequence[str], fixed: Params) -> Callable[[Params], Sequence[Any]]:
    """What `itemgetter` would be if it could give constants, too; merging them with what is given takes three times as long."""
    values = [f"fixed{index}" if name in fixed else f"params[{name!r}]" for index, name in enumerate(names)]
    known = {f"fixed{index}": fixed[name] for index, name in enumerate(names) if name in fixed}
    bind: Callable[[Params], Sequence[Any]] = eval(f"lambda params: ({''.join(f'{value}, ' for value in values)})", known)
    return bind
