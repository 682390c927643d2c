"""The plain verbs every noun has: read a row, insert, update with a version check, upsert, delete."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial, wraps
from typing import Any, ClassVar, Concatenate, Generic, ParamSpec, Protocol, TypeVar

import msgspec
from sqlalchemy import ColumnElement, Executable, Select, delete, func, select, true, update

from ruv_swarm_store import codec, schema
from ruv_swarm_store.cache import CachedRepository
from ruv_swarm_store.engines import Executor, Scope, number_items, parameter, text_items, upsert
from ruv_swarm_store.errors import Conflict, InvalidValue, NotFound, Unavailable
from ruv_swarm_store.query import Mapping, OnCorrupt, Query

E = TypeVar("E", bound=msgspec.Struct)
P = ParamSpec("P")
R = TypeVar("R")
N = TypeVar("N", bound="Scoped")

_EVERY_ROW = true()
REPETITIONS = 5
"""How often a verb is run again whose transaction met a deadlock or a serialisation failure."""
_REPEATABLE = frozenset({"deadlock", "serialization"})


class Scoped(Protocol):
    """What has verbs that run in a scope."""

    _scope: Scope


def repeatable(verb: Callable[Concatenate[N, P], R]) -> Callable[Concatenate[N, P], R]:
    """Runs a verb of several statements again when it was chosen to give way to others: nothing of it is left then.

    Not inside a unit of work, which was given up as a whole: that is for its owner to repeat. Iterators among the arguments
    become lists, so that they can be read again.
    """

    @wraps(verb)
    def run(repository: N, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if repository._scope.within:
            return verb(repository, *args, **kwargs)
        call: Callable[[], R] = partial(verb, repository, *map(_kept, args), **{name: _kept(value) for name, value in kwargs.items()})
        for repetition in range(REPETITIONS):
            try:
                return call()
            except Unavailable as error:
                if error.data.get("kind") not in _REPEATABLE:
                    raise
                time.sleep(random.uniform(0.001, 0.01) * (repetition + 1))
        return call()

    return run


def _kept(argument: Any) -> Any:
    return list(argument) if isinstance(argument, Iterator) else argument


class Statements:
    """The plain verbs' statements for one mapping, built once."""

    def __init__(self, mapping: Mapping[Any], managed: Sequence[str], there: ColumnElement[bool]) -> None:
        self.mapping = mapping
        self.timed = there is not _EVERY_ROW
        """Whether which rows there are depends on the time."""
        self._managed = {mapping.key.name, "version", mapping.generated, *managed}
        table, key = mapping.table, mapping.key
        self.mine = (key == parameter("key")) & there
        number = isinstance(key.type, schema.Int64)
        self.find: Select[*tuple[Any, ...]] = select(*mapping.columns).where(self.mine)
        self.find_and_hold: Executable = self.find.with_for_update(key_share=True)
        these = key.in_(number_items("keys") if number else text_items("keys")) & there
        self.find_many: Executable = select(*mapping.columns).where(these)
        self.these: Select[*tuple[Any, ...]] = select(key).where(these).order_by(key)
        self.find_all: Executable = (
            select(*mapping.columns).where(there).order_by(key if mapping.generated is None else table.c[mapping.generated])
        )
        self.delete: Executable = delete(table).where(self.mine)
        self.delete_many: Executable = delete(table).where(these)
        self.count: Executable = select(func.count()).select_from(table).where(there)

    def _new(self) -> dict[str, Any]:
        return {name: parameter(f"_{name}") for name in self.mapping.fields if name not in self._managed} | {
            "version": self.mapping.table.c.version + 1
        }

    @cached_property
    def replace(self) -> Executable:
        """UPDATE of a row whatever its version."""
        return update(self.mapping.table).where(self.mine).values(self._new()).returning(*self.mapping.columns)

    @cached_property
    def update(self) -> Executable:
        """UPDATE of a row at the version seen."""
        return (
            update(self.mapping.table)
            .where(self.mine, self.mapping.table.c.version == parameter("seen"))
            .values(self._new())
            .returning(*self.mapping.columns)
        )

    @cached_property
    def upsert(self) -> Executable:
        """INSERT, or `replace` of the row with the same key."""
        values = {name: parameter(f"_{name}") for name in self.mapping.fields if name != self.mapping.generated}
        return upsert(self.mapping.table, values, on=[self.mapping.key.name], update=self._new(), returning=self.mapping.columns)


class Repository(Generic[E]):
    """A noun's rows as entities, over a scope: a store's or a unit of work's."""

    mapping: Mapping[Any]
    managed: ClassVar[Sequence[str]] = ()
    """Columns that only the noun's own verbs change: `update` refuses a changed one, `replace` and `upsert` leave what is stored."""
    there: ClassVar[ColumnElement[bool]] = _EVERY_ROW
    """Which of the table's rows exist as far as anybody can tell; it may use the parameter `now`."""
    statements: ClassVar[Statements]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if {"mapping", "managed", "there"} & vars(cls).keys():
            cls.statements = Statements(cls.mapping, cls.managed, cls.there)

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    # Reading

    def query(self) -> Query[E]:
        """All rows, as a query to narrow down."""
        return Query(self._scope, self.mapping)

    def where(self, *criteria: ColumnElement[bool]) -> Query[E]:
        """The rows for which every criterion holds."""
        return self.query().where(*criteria)

    def find_by_id(self, id: Any) -> E | None:
        """The row with that key, or None. Raises `CorruptRow` when it cannot be read.

        Inside a unit of work nobody else changes it, or adds it, until that ends: what is decided by it stays right.
        """
        row = self._find(id)
        return None if row is None else self.mapping.load(row)

    def get(self, id: Any) -> E:
        """The row with that key, as `find_by_id` finds it. Raises `NotFound` when there is none."""
        row = self._find(id)
        if row is None:
            raise self._missing(id)
        entity: E = self.mapping.load(row)
        return entity

    def _find(self, id: Any) -> Sequence[Any] | None:
        key = id if type(id) is str and id.isascii() and "\0" not in id else self.mapping.identity(id)
        statements = self.statements
        with self._scope.read() as run:
            params = {"key": key, "now": run.now} if statements.timed else {"key": key}
            if not run.holding:
                return run.one(statements.find, params)
            row = run.one(self.statements.find_and_hold, params)
            if row is None:
                # There is nothing to hold: whoever else finds nothing under this key waits here, and then looks again.
                run.lock(f"{self.mapping.table.name}:{key}")
                row = run.one(self.statements.find_and_hold, params)
            return row

    def find_many(self, ids: Iterable[E | str | int]) -> list[E]:
        """The rows with those keys, in no particular order; absent ones are left out."""
        keys = self._keys(ids)
        with self._scope.read() as run:
            rows = run.all(self.statements.find_many, {"keys": keys, "now": run.now})
        return self.mapping.load_all(rows)

    def find_all(self, *, on_corrupt: OnCorrupt = "raise") -> list[E]:
        """Every row, by position where there is one, else by key."""
        with self._scope.read() as run:
            rows = run.all(self.statements.find_all, {"now": run.now})
        return self.mapping.load_all(rows, on_corrupt)

    def count(self) -> int:
        """How many rows there are."""
        with self._scope.read() as run:
            row = run.one(self.statements.count, {"now": run.now})
        return 0 if row is None else int(row[0])

    def exists(self, id: Any) -> bool:
        """Whether there is a row with that key."""
        key = self.mapping.identity(id)
        with self._scope.read() as run:
            return run.one(self.statements.find, {"key": key, "now": run.now}) is not None

    def pages(self, size: int = 100) -> Iterator[list[E]]:
        """Every row, in lists of up to `size`; see `Query.pages`."""
        return self.query().pages(size)

    def cached(self, ttl: float = 2.0, size: int = 1024, probe: float = 0.01) -> CachedRepository[E]:
        """Rows by key, kept in memory while nobody changes them, at most `size` of them for at most `ttl` seconds. Keep it, and share it.

        It shows what this store commits at once, and what others commit no later than `probe` seconds after. Inside a transaction it
        reads what that sees. Raises `Unsupported` for a unit of work's.
        """
        return CachedRepository(self, self._scope, ttl=ttl, size=size, probe=probe)

    # Writing

    def insert(self, entity: E) -> E:
        """Adds a row; returns it as stored. Raises `Conflict` when its key or another unique value is taken."""
        return self.insert_many([entity])[0]

    @repeatable
    def insert_many(self, entities: Iterable[E]) -> list[E]:
        """Adds rows, all or none; returns them as stored."""
        sealed = [self.mapping.seal(entity) for entity in entities]
        with self._scope.transaction() as run:
            return self._insert(run, sealed)

    def _insert(self, run: Executor, entities: Sequence[E]) -> list[E]:
        if not entities:
            return []
        numbers = run.insert_many(self.mapping.insertion, [self.mapping.dump(entity) for entity in entities])
        return [self._numbered(entity, number) for entity, number in zip(entities, numbers, strict=True)]

    def _numbered(self, entity: E, number: int) -> E:
        name = self.mapping.generated
        return entity if name is None else msgspec.structs.replace(entity, **{name: number})

    def update(self, entity: E) -> E:
        """Stores a changed copy of a row; returns it with its new version.

        Raises `Conflict` when the row has changed since it was read, `NotFound` when it is gone and `InvalidValue` when
        the copy changes what only this noun's own verbs may.
        """
        return self.update_many([entity])[0]

    @repeatable
    def update_many(self, entities: Iterable[E]) -> list[E]:
        """Stores changed copies of rows, all or none."""
        sealed = [self.mapping.seal(entity) for entity in entities]
        stored: list[Any] = [None] * len(sealed)
        with self._scope.transaction() as run:
            # In the order of their keys, for who else changes several rows at once.
            for index in sorted(range(len(sealed)), key=lambda index: self.mapping.identity(sealed[index])):
                stored[index] = self._update(run, sealed[index])
        return stored

    def _update(self, run: Executor, entity: Any) -> E:
        key = self.mapping.identity(entity)
        row = run.one(self.statements.update, {"seen": entity.version, "key": key, "now": run.now, **self._params(entity)})
        if row is None:
            found = run.one(self.statements.find, {"key": key, "now": run.now})
            if found is None:
                raise self._missing(key)
            actual = self.mapping.load(found).version
            raise Conflict(
                f"{self.mapping.table.name} {key!r} is at version {actual}, not {entity.version}",
                hint="Somebody changed it: read it again, then change that",
                expected=entity.version,
                actual=actual,
            )
        return self._accept(entity, row)

    def replace(self, entity: E) -> E:
        """Stores a copy over a row whatever its version: the last write wins. Raises `NotFound` when it is gone.

        What only this noun's own verbs may change stays as it is stored.
        """
        sealed: Any = self.mapping.seal(entity)
        key = self.mapping.identity(sealed)
        params = {"key": key, **self._params(sealed)}
        row = self._scope.write(lambda run: run.one(self.statements.replace, {**params, "now": run.now}))
        if row is None:
            raise self._missing(key)
        stored: E = self.mapping.load(row)
        return stored

    @repeatable
    def upsert(self, entity: E) -> E:
        """Adds a row, or stores the copy over the one with the same key whatever its version; see `replace`."""
        sealed = self.mapping.seal(entity)
        params = self._params(sealed)
        with self._scope.transaction() as run:
            if self.mapping.generated == self.mapping.key.name:  # no row is inserted under a number of the caller's
                row = run.one(self.statements.replace, {"key": self.mapping.identity(sealed), **params})
                if row is None:
                    return self._insert(run, [sealed])[0]
            else:
                row = run.one(self.statements.upsert, params)
            assert row is not None
            stored: E = self.mapping.load(row)
            return stored

    def delete(self, id: E | str | int) -> bool:
        """Removes a row; whether there was one. Raises `Conflict` when others still refer to it."""
        key = self.mapping.identity(id)
        return self._scope.write(lambda run: run.run(self.statements.delete, {"key": key, "now": run.now})) > 0

    @repeatable
    def delete_many(self, ids: Iterable[E | str | int]) -> int:
        """Removes rows, all or none; how many there were."""
        keys = self._keys(ids)
        with self._scope.transaction() as run:
            run.hold(self.statements.these, {"keys": keys, "now": run.now})
            return run.run(self.statements.delete_many, {"keys": keys, "now": run.now})

    def _keys(self, ids: Iterable[E | str | int]) -> str:
        """Keys as `text_items` and `number_items` take them."""
        return codec.encode([self.mapping.identity(id) for id in codec.listed(ids, "ids")])

    def _params(self, entity: E) -> dict[str, Any]:
        return {f"_{name}": value for name, value in zip(self.mapping.given, self.mapping.dump(entity), strict=True)}

    def _accept(self, entity: Any, row: Sequence[Any]) -> E:
        stored: E = self.mapping.load(row)
        for name in self.managed:
            if name not in _LIVENESS and getattr(stored, name) != getattr(entity, name):
                raise InvalidValue(
                    f"{name} of {self.mapping.table.name} {self.mapping.identity(entity)!r} cannot be changed by update",
                    hint="Use the verb for it",
                )
        return stored

    def _missing(self, id: Any) -> NotFound:
        return NotFound(f"no row {self.mapping.identity(id)!r} in {self.mapping.table.name}", id=self.mapping.identity(id))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._scope!r}>"


_LIVENESS = frozenset({"last_heartbeat", "lease_expires_at", "awaited", "unmet"})
"""Columns that a heartbeat, or another task, moves without a new version: a copy may hold an older value."""
