"""The plain verbs every noun has: read a row, insert, update with a version check, upsert, delete."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, ClassVar, Generic, TypeVar

import msgspec
from sqlalchemy import ColumnElement, Executable, delete, func, select, update

from ruv_swarm_store import codec
from ruv_swarm_store.engines import Executor, Scope, parameter, text_items, upsert
from ruv_swarm_store.errors import Conflict, InvalidValue, NotFound
from ruv_swarm_store.query import Mapping, OnCorrupt, Query

E = TypeVar("E", bound=msgspec.Struct)


class Statements:
    """The plain verbs' statements for one mapping, built once."""

    def __init__(self, mapping: Mapping[Any], managed: Sequence[str]) -> None:
        self.mapping = mapping
        self._managed = {mapping.key.name, "version", mapping.generated, *managed}
        table, key = mapping.table, mapping.key
        self.mine = key == parameter("key")
        self.find: Executable = select(*mapping.columns).where(self.mine)
        self.find_many: Executable = select(*mapping.columns).where(key.in_(text_items("keys")))
        self.find_all: Executable = select(*mapping.columns).order_by(key if mapping.generated is None else table.c[mapping.generated])
        self.delete: Executable = delete(table).where(self.mine)
        self.count: Executable = select(func.count()).select_from(table)

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

    mapping: ClassVar[Mapping[Any]]
    managed: ClassVar[Sequence[str]] = ()
    """Columns that only the noun's own verbs change; the plain verbs neither write nor accept a changed one."""
    statements: ClassVar[Statements]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.statements = Statements(cls.mapping, cls.managed)

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
        """The row with that key, or None. Raises `CorruptRow` when it cannot be read."""
        with self._scope.read() as run:
            row = run.one(self.statements.find, {"key": self.mapping.identity(id)})
        return None if row is None else self.mapping.load(row)

    def get(self, id: Any) -> E:
        """The row with that key. Raises `NotFound` when there is none."""
        with self._scope.read() as run:
            row = run.one(self.statements.find, {"key": self.mapping.identity(id)})
        if row is None:
            raise self._missing(id)
        entity: E = self.mapping.load(row)
        return entity

    def find_many(self, ids: Iterable[str]) -> list[E]:
        """The rows with those keys, in no particular order; absent ones are left out."""
        with self._scope.read() as run:
            rows = run.all(self.statements.find_many, {"keys": codec.seal([self.mapping.identity(id) for id in ids], "ids")[1]})
        return self.mapping.load_all(rows)

    def find_all(self, *, on_corrupt: OnCorrupt = "raise") -> list[E]:
        """Every row, by position where there is one, else by key."""
        with self._scope.read() as run:
            rows = run.all(self.statements.find_all)
        return self.mapping.load_all(rows, on_corrupt)

    def count(self) -> int:
        """How many rows there are."""
        with self._scope.read() as run:
            row = run.one(self.statements.count)
        return 0 if row is None else int(row[0])

    def exists(self, id: Any) -> bool:
        """Whether there is a row with that key."""
        with self._scope.read() as run:
            return run.one(self.statements.find, {"key": self.mapping.identity(id)}) is not None

    def pages(self, size: int = 100) -> Iterator[list[E]]:
        """Every row, in lists of up to `size`; see `Query.pages`."""
        return self.query().pages(size)

    # Writing

    def insert(self, entity: E) -> E:
        """Adds a row; returns it as stored. Raises `Conflict` when its key or another unique value is taken."""
        return self.insert_many([entity])[0]

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

    def update_many(self, entities: Iterable[E]) -> list[E]:
        """Stores changed copies of rows, all or none."""
        sealed = [self.mapping.seal(entity) for entity in entities]
        with self._scope.transaction() as run:
            return [self._update(run, entity) for entity in sealed]

    def _update(self, run: Executor, entity: Any) -> E:
        key = self.mapping.identity(entity)
        row = run.one(self.statements.update, {"seen": entity.version, "key": key, **self._params(entity)})
        if row is None:
            found = run.one(self.statements.find, {"key": key})
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
        """Stores a copy over a row whatever its version: the last write wins. Raises `NotFound` when it is gone."""
        sealed: Any = self.mapping.seal(entity)
        key = self.mapping.identity(sealed)
        with self._scope.transaction() as run:
            row = run.one(self.statements.replace, {"key": key, **self._params(sealed)})
            if row is None:
                raise self._missing(key)
            stored: E = self.mapping.load(row)
            return stored

    def upsert(self, entity: E) -> E:
        """Adds a row, or stores the copy over the one with the same key whatever its version."""
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
        with self._scope.write() as run:
            return run.run(self.statements.delete, {"key": self.mapping.identity(id)}) > 0

    def delete_many(self, ids: Iterable[E | str | int]) -> int:
        """Removes rows, all or none; how many there were."""
        with self._scope.transaction() as run:
            return sum(run.run(self.statements.delete, {"key": self.mapping.identity(id)}) for id in ids)

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


_LIVENESS = frozenset({"last_heartbeat", "lease_expires_at"})
"""Columns a heartbeat moves without a new version: a copy may hold an older value."""
