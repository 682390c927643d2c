"""How to read: `Mapping` ties a table to its entity, `Query` is an immutable, typed SELECT over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import attrgetter
from string import ascii_letters
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeVar, TypeVarTuple, cast

import msgspec
from sqlalchemy import Column, ColumnElement, Select, Table, func, literal_column, select

from ruv_swarm_store import codec, schema
from ruv_swarm_store.engines import Scope, insert_into, json_text
from ruv_swarm_store.errors import Conflict, CorruptRow, InvalidValue, NotFound

if TYPE_CHECKING:
    from sqlalchemy.sql._annotated_cols import HasRowPos

E = TypeVar("E", bound=msgspec.Struct)
Ts = TypeVarTuple("Ts")
OnCorrupt = Literal["raise", "skip"] | Callable[[CorruptRow], object]
"""What to do with a row that cannot be read: raise, leave it out, or leave it out and hand its error to a callable."""
_UNREADABLE = (ValueError, KeyError, TypeError, RecursionError)
"""What loading a value raises that is not what it should be."""


class Mapping(Generic[E]):
    """A table and the entity its rows become; type checkers compare the two field by field.

    `load` and `dump` are the only way between a row as the driver has it and an entity.
    """

    __slots__ = (
        "_check_key",
        "_checks",
        "_encoders",
        "_key_name",
        "_kind",
        "_loaders",
        "_make",
        "_number",
        "columns",
        "fields",
        "generated",
        "given",
        "insertion",
        "key",
        "load",
        "named",
        "table",
    )

    load: Callable[[Sequence[Any]], E]
    """The entity of one row of this table. Raises `CorruptRow` when a column does not hold what it should."""

    def __init__(
        self,
        table: Table[HasRowPos[*Ts]],  # type: ignore[type-var]  # pyright: ignore[reportInvalidTypeArguments]
        entity: Callable[[*Ts], E],
        *,
        key: str = "id",
    ) -> None:
        self.table: Table[Any] = table
        self._make: Callable[..., E] = entity
        self._kind: type[Any] = entity if isinstance(entity, type) else msgspec.Struct
        columns: list[Column[Any]] = list(cast("Table[Any]", table).c)
        self.key = next(column for column in columns if column.name == key)
        self.fields: Sequence[str] = [column.name for column in columns]
        generated = self.table.autoincrement_column
        self.generated: str | None = None if generated is None else generated.name
        self._number = None if self.generated is None else self.fields.index(self.generated)
        self.given: Sequence[str] = [name for name in self.fields if name != self.generated]
        self.insertion = insert_into(cast("Table[Any]", table))
        self.named: Sequence[ColumnElement[Any]] = [
            json_text(column) if isinstance(column.type, schema.Json) else column for column in columns
        ]
        """The columns as a SELECT of the table's has them."""
        self.columns: Sequence[ColumnElement[Any]] = [column.label(name) for column, name in zip(self.named, ascii_letters, strict=False)]
        """The same under names of one letter: drivers make a string of each name every time, a tenth of the time to find a row."""
        self._loaders: dict[int, Callable[[Any], Any]] = {}
        self._encoders: list[tuple[int, Callable[[Any], Any]]] = []
        self._checks: list[tuple[str, bool, Callable[[Any, str], Any]]] = []
        for index, column in enumerate(columns):
            if isinstance(column.type, schema.Json):
                self._loaders[index] = codec.decode
                self._encoders.append((index, _encode_or_null if column.type.none_as_null else codec.encode))
            elif isinstance(column.type, schema.Choice):
                self._loaders[index] = {member.value: member for member in column.type.members}.__getitem__
                # Drivers bind a plain string faster than a subclass of it.
                self._encoders.append((index, attrgetter("value")))
            nullable = bool(column.nullable) or isinstance(column.type, schema.Json)
            self._checks.append((column.name, nullable, _check_for(column)))
        self._check_key = _check_for(self.key)
        self._key_name = self.key.name
        self.load = self._written_out()

    def _written_out(self) -> Callable[[Sequence[Any]], E]:
        """`load` for this table, each value through its loader unless it is NULL; a loop over them takes half as long again."""
        names = [f"v{index}" for index in range(len(self.fields))]
        values = [
            f"None if {name} is None else load{index}({name})" if index in self._loaders else name for index, name in enumerate(names)
        ]
        source = f"""
def load(row):
    try:
        ({", ".join(names)},) = row
        return make({", ".join(values)})
    except unreadable as error:
        raise corrupt(row) from error
"""
        module: dict[str, Any] = {"make": self._make, "unreadable": _UNREADABLE, "corrupt": self._corrupt}
        module |= {f"load{index}": load for index, load in self._loaders.items()}
        exec(source, module)  # nothing but numbers was put into it
        return cast("Callable[[Sequence[Any]], E]", module["load"])

    def _corrupt(self, row: Sequence[Any]) -> CorruptRow:
        """What to raise for a row that cannot be read."""
        identity = row[self.fields.index(self.key.name)]
        column = next((self.fields[index] for index, load in self._loaders.items() if not _reads(load, row[index])), "a column")
        return CorruptRow(
            f"{self.table.name} {identity!r} cannot be read: {column} does not hold what it should",
            hint="The row was changed from outside: repair it, or read on with on_corrupt='skip'",
            table=self.table.name,
            id=identity,
            column=column,
        )

    def load_all(self, rows: Sequence[Sequence[Any]], on_corrupt: OnCorrupt = "raise") -> list[E]:
        """The entities of many rows."""
        load = self.load
        if on_corrupt == "raise":
            return list(map(load, rows))
        if on_corrupt != "skip" and not callable(on_corrupt):
            raise InvalidValue(f"on_corrupt is {on_corrupt!r}", hint="Use 'raise', 'skip', or a function that is called with each error")
        entities = []
        for row in rows:
            try:
                entities.append(load(row))
            except CorruptRow as error:
                if on_corrupt != "skip":
                    on_corrupt(error)
        return entities

    def dump(self, entity: E) -> list[Any]:
        """The row of an entity that `seal` has accepted, without the number the engine assigns."""
        values = list(msgspec.structs.astuple(entity))
        for index, encode in self._encoders:
            values[index] = encode(values[index])
        if self._number is not None:
            del values[self._number]
        return values

    def seal(self, entity: E) -> E:
        """An own copy of an entity, as reading it back will give it. Raises `InvalidValue` for what cannot be stored."""
        if not isinstance(entity, msgspec.Struct) or tuple(entity.__struct_fields__) != tuple(self.fields):
            raise InvalidValue(f"{entity!r} is no row of {self.table.name}", hint=f"Give a {getattr(self._make, '__name__', 'entity')}")
        values = msgspec.structs.astuple(entity)
        return self._make(
            *(
                None if value is None and nullable else check(value, f"{self.table.name}.{name}")
                for value, (name, nullable, check) in zip(values, self._checks, strict=True)
            )
        )

    def identity(self, entity: E | str | int) -> Any:
        """The key of an entity, or the key itself if that is what was given. Raises `InvalidValue` for what can be neither."""
        if isinstance(entity, self._kind):
            return self._check_key(getattr(entity, self._key_name), self._key_name)
        if isinstance(entity, msgspec.Struct):
            raise InvalidValue(
                f"a {type(entity).__name__} is no row of {self.table.name}", hint=f"Give a {self._kind.__name__}, or its key"
            )
        return self._check_key(entity, self._key_name)

    def __repr__(self) -> str:
        return f"Mapping({self.table.name})"


def _reads(load: Callable[[Any], Any], value: Any) -> bool:
    try:
        if value is not None:
            load(value)
    except _UNREADABLE:
        return False
    return True


def _encode_or_null(value: Any) -> str | None:
    return None if value is None else codec.encode(value)


def _check_for(column: Column[Any]) -> Callable[[Any, str], Any]:
    kind = column.type
    if isinstance(kind, schema.Json):
        return lambda value, what: codec.seal(value, what)[0]
    if isinstance(kind, schema.Choice):
        members = kind.members

        def choose(value: Any, what: str) -> Any:
            try:
                return members(value)
            except ValueError:
                raise InvalidValue(f"{what} is {value!r}", hint=f"Use one of {', '.join(members)}") from None

        return choose
    if isinstance(kind, schema.Int64):
        for constraint in column.table.constraints:  # the database checks the same, and tells less of it
            name, low, high = constraint.info.get("range", (None, 0, 0))
            if name == column.name:
                return partial(codec.integer, low=low, high=high)
        return codec.integer
    return codec.real if isinstance(kind, schema.Real) else codec.text


class Query(Generic[E]):
    """An immutable SELECT whose rows come back as entities; `str(query)` is its SQL.

    Nothing runs until `all`, `first`, `one`, `count`, `exists`, `pages` or iteration.
    """

    __slots__ = ("_limit", "_mapping", "_scope", "statement")

    statement: Select[*tuple[Any, ...]]
    """The SELECT as SQLAlchemy has it: the way on to joins, aggregates and the rest."""

    def __init__(
        self, scope: Scope, mapping: Mapping[E], statement: Select[*tuple[Any, ...]] | None = None, limit: int | None = None
    ) -> None:
        self._scope = scope
        self._mapping = mapping
        self._limit = limit
        self.statement = select(*mapping.named) if statement is None else statement

    def _replace(self, statement: Select[*tuple[Any, ...]]) -> Self:
        return type(self)(self._scope, self._mapping, statement, self._limit)

    def _at_most(self, count: int) -> Select[*tuple[Any, ...]]:
        return self.statement.limit(count if self._limit is None else min(count, self._limit))

    def where(self, *criteria: ColumnElement[bool]) -> Self:
        """Only rows for which every criterion holds. Raises `InvalidValue` for what is not a column expression."""
        if not all(isinstance(criterion, ColumnElement) for criterion in criteria):
            raise InvalidValue(f"where takes column expressions, not {criteria!r}", hint="Write e.g. tasks.c.priority >= 7")
        return self._replace(self.statement.where(*criteria))

    def order_by(self, *columns: ColumnElement[Any]) -> Self:
        """Sorted by these columns, after any order given before."""
        if not all(isinstance(column, ColumnElement) for column in columns):
            raise InvalidValue(f"order_by takes columns, not {columns!r}", hint="Write e.g. tasks.c.created_at.desc()")
        return self._replace(self.statement.order_by(*columns))

    def limit(self, count: int, offset: int = 0) -> Self:
        """At most `count` rows, after leaving out `offset`."""
        codec.integer(count, "limit", 0)
        codec.integer(offset, "offset", 0)
        return type(self)(self._scope, self._mapping, self.statement.limit(count).offset(offset), count)

    def all(self, *, on_corrupt: OnCorrupt = "raise") -> list[E]:
        """Every row. Raises `CorruptRow` for one that cannot be read, unless `on_corrupt` says otherwise."""
        with self._scope.read() as run:
            rows = run.execute(self.statement)
        return self._mapping.load_all(rows, on_corrupt)

    def first(self) -> E | None:
        """The first row, or None."""
        return next(iter(self._replace(self._at_most(1))), None)

    def one(self) -> E:
        """The only row. Raises `NotFound` when there is none and `Conflict` when there are several."""
        found = self._replace(self._at_most(2)).all()
        if len(found) == 1:
            return found[0]
        if found:
            raise Conflict(f"more than one row in {self._mapping.table.name} matches", hint="Narrow the query, or use first()")
        raise NotFound(f"no row in {self._mapping.table.name} matches", hint="Use first() if none is fine")

    def count(self) -> int:
        """How many rows there are."""
        with self._scope.read() as run:
            return int(run.execute(select(func.count()).select_from(self.statement.order_by(None).subquery()))[0][0])

    def exists(self) -> bool:
        """Whether there is any row."""
        with self._scope.read() as run:
            return bool(run.execute(self._at_most(1).order_by(None).with_only_columns(literal_column("1"), maintain_column_froms=True)))

    def pages(self, size: int = 100) -> Iterator[list[E]]:
        """The rows in lists of up to `size`, by ascending key, each page read on its own.

        Rows are found by the key of the last one, so neither depth nor concurrent writes disturb the walk: each row that
        stays in the result is seen once. Raises `InvalidValue` for a query with a limit.
        """
        codec.integer(size, "page size", 1)
        if self._limit is not None:
            raise InvalidValue("a query with a limit has no pages", hint="Leave the limit out, or use all()")
        key = self._mapping.key if self._mapping.generated is None else self._mapping.table.c[self._mapping.generated]
        page = self._replace(self.statement.order_by(None).order_by(key).limit(size))
        while found := page.all():
            yield found
            if len(found) < size:
                return
            last = getattr(found[-1], key.name)
            page = self._replace(self.statement.where(key > last).order_by(None).order_by(key).limit(size))

    def __iter__(self) -> Iterator[E]:
        return iter(self.all())

    def __str__(self) -> str:
        return str(self.statement.compile(compile_kwargs={"render_postcompile": True}))

    def __repr__(self) -> str:
        return f"<Query {' '.join(str(self).split())}>"
