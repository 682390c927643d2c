"""SQL that dialects spell differently, behind one name each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Column, ColumnElement, Executable, Insert, Table, Text, bindparam, column, insert, select
from sqlalchemy.dialects.postgresql import insert as insert_or_update
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import ScalarSelect


def parameter(name: str, type_: Any = None) -> Any:
    """A value given each time the statement runs."""
    return bindparam(name, required=False, type_=type_)


def constant(column: ColumnElement[Any], value: Any) -> Any:
    """A value of this column that stands in the statement's text, so that it can decide which index serves."""
    return bindparam(None, value, type_=column.type, unique=True, literal_execute=True)


def insert_into(table: Table, *columns: Column[Any], **constants: Any) -> Insert:
    """INSERT of a value for each of `columns`, which stand in the table's order, beside constants in others.

    Without `columns`, of every column but the number the engine gives.
    """
    given = [column for column in table.c if (column in columns if columns else column is not table.autoincrement_column)]
    assert not columns or [column.name for column in columns] == [column.name for column in given], "columns are out of order"
    fixed: dict[str, Any] = {name: constant(table.c[name], value) for name, value in constants.items()}
    return insert(table).values({**{column.name: bindparam(f"_{column.name}", required=False) for column in given}, **fixed})


def upsert(
    table: Table,
    values: Mapping[str, Any],
    *,
    on: Sequence[str],
    update: Mapping[str, Any] | None = None,
    where: ColumnElement[bool] | None = None,
    returning: Sequence[ColumnElement[Any]] = (),
) -> Executable:
    """INSERT, or UPDATE of the row whose `on` columns are taken; with nothing to update, that row is left as it is.

    SQLite and PostgreSQL share the clause, and SQLAlchemy renders one construct for both.
    """
    statement = insert_or_update(table).values(dict(values))
    if not update:
        return statement.on_conflict_do_nothing(index_elements=on)
    return statement.on_conflict_do_update(index_elements=on, set_=dict(update), where=where).returning(*returning)


class _Items(FunctionElement[Any]):
    """A JSON array of strings, as a table."""

    name = "items"
    inherit_cache = True


@compiles(_Items, "sqlite")
def _json_each(element: _Items, compiler: Any, **kw: Any) -> str:
    return f"json_each({compiler.process(element.clauses, **kw)})"


class _Member(FunctionElement[Any]):
    """The value under one key of a JSON object, where it is no list or object itself."""

    name = "member"
    inherit_cache = True


@compiles(_Member, "sqlite")
def _atom(element: _Member, compiler: Any, **kw: Any) -> str:
    # A path would do, but in it a key can hold no quotation mark.
    json, key = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"(SELECT atom FROM json_each({json}) WHERE key = {key})"  # noqa: S608 - both are SQL already compiled


def json_member(json: ColumnElement[Any], key: str) -> ColumnElement[Any]:
    """The string, number or boolean under a key of a JSON object; compare it with one of those."""
    return _Member(json, bindparam(None, key, type_=Text(), unique=True))


def text_items(array: ColumnElement[Any]) -> ScalarSelect[Any]:
    """The strings of a JSON array given as one parameter, for `IN`: one statement whatever their number."""
    items = _Items(array).table_valued(column("value", Text), name="items")
    return select(items.c.value).scalar_subquery()
