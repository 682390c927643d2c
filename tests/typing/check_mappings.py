"""Type-checked, never run: a mapping whose entity has drifted from its table is an error, field by field."""

from typing import Any, assert_type

from msgspec import Struct
from sqlalchemy import Column, Integer, MetaData, Named, Table, Text, TypedColumns

from ruv_swarm_store.query import Mapping


class ThingColumns(TypedColumns):
    id: Named[str] = Column(Text, primary_key=True)
    size: Named[int] = Column(Integer, nullable=False)
    note: Named[str | None] = Column(Text)
    __row_pos__: tuple[str, int, str | None]


things = Table("things", MetaData(), ThingColumns)


class Thing(Struct, frozen=True):
    id: str
    size: int
    note: str | None = None


class WrongType(Struct, frozen=True):
    id: str
    size: str
    note: str | None = None


class WrongOrder(Struct, frozen=True):
    size: int
    id: str
    note: str | None = None


class NotNullable(Struct, frozen=True):
    id: str
    size: int
    note: str


class TooFew(Struct, frozen=True):
    id: str
    size: int


class TooMany(Struct, frozen=True):
    id: str
    size: int
    note: str | None
    more: Any


def mappings() -> None:
    assert_type(Mapping(things, Thing).load(["a", 1, None]), Thing)
    Mapping(things, WrongType)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Mapping(things, WrongOrder)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Mapping(things, NotNullable)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Mapping(things, TooFew)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Mapping(things, TooMany)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
