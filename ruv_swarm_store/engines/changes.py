"""What statements change: which rows of which tables, told by their construct, their parameters and the rows they return.

Deleting a row changes those that refer to it, too (ON DELETE), and a change of what is journaled may add events (triggers). What
cannot be told is taken for everything.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cache
from typing import Any, TypeVar

from msgspec import Struct
from sqlalchemy import (
    BinaryExpression,
    BindParameter,
    BooleanClauseList,
    ClauseElement,
    Column,
    Delete,
    Executable,
    Insert,
    Label,
    SelectBase,
    Table,
    TextClause,
    Update,
)
from sqlalchemy.dialects.postgresql import Insert as InsertOrUpdate
from sqlalchemy.dialects.postgresql.dml import OnConflictDoNothing
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.selectable import TextualSelect

from ruv_swarm_store import codec, schema
from ruv_swarm_store.engines import journal
from ruv_swarm_store.engines.constructs import Insertion, Items
from ruv_swarm_store.engines.executor import NONE, Executor, Params
from ruv_swarm_store.errors import Conflict, InvalidValue

K = TypeVar("K", bound=Executor)
R = TypeVar("R")


class Changes:
    """What a transaction has changed so far."""

    __slots__ = ("_tell", "added", "everything", "keys", "tables")

    def __init__(self, tell: Callable[[Changes], object]) -> None:
        """`tell` is called with this whenever it was committed, before anything else is done in the same connection."""
        self._tell = tell
        self.forget()

    def forget(self) -> None:
        """Begins anew: it was told of, or rolled back."""
        self.everything = False
        self.tables: set[str] = set()
        """Those of which any row may be another now, or gone, or new."""
        self.added: set[str] = set()
        """Those that may have rows now under keys that had none."""
        self.keys: dict[str, set[Any]] = {}
        """The keys of rows that may be another now, or gone, or new, by table."""

    def settle(self) -> None:
        """It was committed, or may have been. Called again when an interrupt has kept it from ending, it tells all of it again."""
        if self.everything or self.tables or self.added or self.keys:
            self._tell(self)
            self.forget()

    def add(self, effect: Effect, keys: Collection[Any] | None) -> None:
        """Notes what a statement has done to rows with these keys, or to any."""
        if effect.table is None:
            self.everything = True
            return
        if keys is not None:
            if not keys:
                return
            self.keys.setdefault(effect.table, set()).update(keys)
        elif effect.only_adds:
            self.added.add(effect.table)
        else:
            self.tables.add(effect.table)
        self.tables |= effect.reaches
        self.added |= effect.adds_to


class Effect(Struct, frozen=True):
    """What a statement does to one table, and where it says to which rows."""

    table: str | None
    """None where anything may be done to anything."""
    only_adds: bool = False
    reaches: frozenset[str] = frozenset()
    """Tables whose rows refer to those, and change with them."""
    adds_to: frozenset[str] = frozenset()
    """Tables to which triggers add."""
    returned: int | None = None
    """Where in the rows returned the key stands; every row that was changed is returned then."""
    parameter: str | None = None
    """The parameter that is the key."""
    parameters: str | None = None
    """The parameter that is a JSON array of the keys."""

    def keys(self, params: Params, rows: Sequence[Sequence[Any]]) -> Collection[Any] | None:
        """The keys of the rows that were changed; None where that cannot be told."""
        if self.returned is not None:
            return [row[self.returned] for row in rows]
        if self.parameter is not None:
            return (params[self.parameter],)
        return codec.decode(params[self.parameters]) if self.parameters is not None else None


ANYTHING = Effect(None)


def key_of(table: Table) -> Column[Any] | None:
    """The column that names a row, where it is one."""
    columns = journal.key(table)
    return columns[0] if len(columns) == 1 else None


def effects(statement: Executable) -> Sequence[Effect]:
    """What a statement does, that is kept as a constant."""
    found = _known.get(statement)
    if found is None:
        found = _known[statement] = _effects(statement, exact=True)
    return found


_known: dict[Executable, Sequence[Effect]] = {}


def rough_effects(statement: Executable) -> Sequence[Effect]:
    """What a statement built on the fly does: to which tables, not to which rows."""
    return _effects(statement, exact=False)


def _effects(statement: Executable, *, exact: bool) -> Sequence[Effect]:
    if not isinstance(statement, (SelectBase, UpdateBase)):
        return (ANYTHING,)
    parts = list(visitors.iterate(statement))  # other statements may stand inside, as WITH allows
    if any(isinstance(part, (TextClause, TextualSelect)) for part in parts):
        return (ANYTHING,)
    return tuple(_effect(part, exact=exact, outermost=part is statement) for part in parts if isinstance(part, UpdateBase))


def _effect(statement: UpdateBase, *, exact: bool, outermost: bool) -> Effect:
    table = statement.table
    if not isinstance(statement, (Insert, Update, Delete)) or not isinstance(table, Table) or table.name not in schema.metadata.tables:
        return ANYTHING  # a view, perhaps, or a table with triggers of its own
    return _exact(statement, table, outermost) if exact else _whole(table)


def _whole(table: Table) -> Effect:
    reaches = _reached(table.name)  # OR REPLACE deletes
    return Effect(table.name, reaches=reaches, adds_to=_triggered({table.name, *reaches}))


def _exact(statement: Insert | Update | Delete, table: Table, outermost: bool) -> Effect:
    reaches = _reached(table.name) if isinstance(statement, Delete) else frozenset[str]()
    adds_to = _triggered({table.name, *reaches})
    only_adds = isinstance(statement, Insert) and (
        not isinstance(statement, InsertOrUpdate) or any(isinstance(part, OnConflictDoNothing) for part in visitors.iterate(statement))
    )
    made = Effect(table.name, only_adds, reaches, adds_to)
    if (key := key_of(table)) is None:
        return made
    for index, column in enumerate(statement.returning_column_descriptions if outermost else ()):
        expression = column["expr"]
        if (expression.element if isinstance(expression, Label) else expression) is key:
            return Effect(table.name, only_adds, reaches, adds_to, returned=index)
    where = statement.whereclause if isinstance(statement, (Update, Delete)) else None
    for criterion in _criteria(where):
        if criterion.left is not key:
            continue
        if criterion.operator is operators.eq and isinstance(criterion.right, BindParameter):
            return Effect(table.name, only_adds, reaches, adds_to, parameter=criterion.right.key)
        if criterion.operator is operators.in_op and (items := _items(criterion.right)) is not None:
            return Effect(table.name, only_adds, reaches, adds_to, parameters=items)
    return made


def _criteria(where: ClauseElement | None) -> Iterable[BinaryExpression[Any]]:
    """Comparisons that hold for every row a WHERE finds."""
    if isinstance(where, BinaryExpression):
        yield where
    elif isinstance(where, BooleanClauseList) and where.operator is operators.and_:
        for clause in where.clauses:
            yield from _criteria(clause)


def _items(values: ClauseElement) -> str | None:
    """The parameter whose items these are, some or all of them."""
    parts = list(visitors.iterate(values))
    arrays = [part for part in parts if isinstance(part, Items)]
    if len(arrays) != 1 or any(isinstance(part, Table) for part in parts):
        return None
    (array,) = arrays[0].clauses
    return array.key if isinstance(array, BindParameter) else None


@cache
def _reached(table: str) -> frozenset[str]:
    """The tables whose rows may change when a row of this one is deleted."""
    reached: set[str] = set()
    due = [table]
    while due:
        parent = due.pop()
        for child in schema.metadata.tables.values():
            for key in child.foreign_keys:
                if key.column.table.name == parent and (key.ondelete or "NO ACTION").upper() not in {"NO ACTION", "RESTRICT"}:
                    if child.name not in reached:
                        due.append(child.name)  # SET NULL goes no further; to take it for CASCADE does no harm
                    reached.add(child.name)
    return frozenset(reached)


def _triggered(tables: set[str]) -> frozenset[str]:
    """The tables that triggers add to when rows of these are changed: the journal may be on."""
    return frozenset({schema.events.name}) if any(table.name in tables for table in journal.TABLES) else frozenset()


@cache
def noting(kind: type[K]) -> type[K]:
    """The class of executors that do what `kind` does, and note in `changes` what of it is committed.

    `kind` has that attribute, `depth`, `begin`, `commit` and `unwind`. A statement outside a transaction is committed when it has run.
    """
    plain: Any = kind  # its methods are called by its name: the class may be taken away in the middle of a call

    class Noting(plain):  # type: ignore[misc]
        __slots__ = ()

        def one(self, statement: Executable, params: Params = NONE) -> Any:
            if not (does := effects(statement)):
                return plain.one(self, statement, params)
            rows = _rows(plain, self, does, statement, params)
            return rows[0] if rows else None

        def all(self, statement: Executable, params: Params = NONE) -> Any:
            if not (does := effects(statement)):
                return plain.all(self, statement, params)
            return _rows(plain, self, does, statement, params)

        def run(self, statement: Executable, params: Params = NONE) -> Any:
            if not (does := effects(statement)):
                return plain.run(self, statement, params)

            def keys(effect: Effect, count: int) -> Collection[Any] | None:
                if effect.returned is not None:
                    return None  # rows that it returns are not counted everywhere
                return effect.keys(params, ()) if count else ()

            return _noting(self, does, lambda: plain.run(self, statement, params), keys)

        def insert(self, insertion: Insertion, row: Sequence[Any]) -> Any:
            return _noting(
                self,
                (added(insertion),),
                lambda: plain.insert(self, insertion, row),
                lambda _, number: _keys_of(insertion, (row,), (number,)),
            )

        def insert_many(self, insertion: Insertion, rows: Sequence[Sequence[Any]]) -> Any:
            return _noting(
                self,
                (added(insertion),),
                lambda: plain.insert_many(self, insertion, rows),
                lambda _, numbers: _keys_of(insertion, rows, numbers),
            )

        def execute(self, statement: Executable, params: Params = NONE) -> Any:
            return _noting(self, rough_effects(statement), lambda: plain.execute(self, statement, params), lambda *_: None)

        def begin(self) -> None:
            if not self.depth:
                self.changes.settle()  # what an interrupt has left there
            plain.begin(self)

        def commit(self) -> None:
            last = self.depth == 1
            try:
                plain.commit(self)
            finally:
                if last:  # even if that failed: who knows what of it was done
                    try:
                        self.changes.settle()
                    finally:
                        self.changes.settle()  # an interrupt may have struck before the first had begun

        def unwind(self, level: int) -> None:
            plain.unwind(self, level)
            if not self.depth:
                self.changes.forget()

    Noting.__name__ = Noting.__qualname__ = f"Noting{plain.__name__}"
    made: type[K] = Noting
    return made


def _rows(plain: type[Executor], run: Any, does: Sequence[Effect], statement: Executable, params: Params) -> Sequence[Sequence[Any]]:
    return _noting(run, does, lambda: plain.all(run, statement, params), lambda effect, rows: effect.keys(params, rows))


def _noting(run: Any, does: Sequence[Effect], act: Callable[[], R], keys: Callable[[Effect, R], Collection[Any] | None]) -> R:
    """Runs a statement, and notes what it has done, or may have, to rows with these keys."""
    changes: Changes = run.changes
    try:
        result = act()
        for effect in does:
            changes.add(effect, keys(effect, result))
    except (Conflict, InvalidValue):  # that was refused
        raise
    except BaseException:  # an interrupt: all may be done
        for effect in does:
            changes.add(effect, None)
        raise
    finally:
        if not run.depth:
            try:
                changes.settle()
            finally:
                changes.settle()  # an interrupt may have struck before the first had begun
    return result


@cache
def added(insertion: Insertion) -> Effect:
    """What an INSERT of rows does."""
    return Effect(insertion.table.name, True, adds_to=_triggered({insertion.table.name}))


def _keys_of(insertion: Insertion, rows: Sequence[Sequence[Any]], numbers: Sequence[int]) -> Collection[Any] | None:
    if (key := key_of(insertion.table)) is None:
        return None
    if key is insertion.number:
        return numbers if len(numbers) == len(rows) else None
    for index, column in enumerate(insertion.columns):
        if column is key:
            return [row[index] for row in rows]
    return None
