"""SQL that dialects spell differently, behind one name each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Executable,
    Insert,
    Select,
    Subquery,
    Table,
    Text,
    bindparam,
    cast,
    column,
    insert,
    literal_column,
    select,
)
from sqlalchemy.dialects.postgresql import insert as insert_or_update
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import ScalarSelect, TableValuedAlias

from ruv_swarm_store import schema


def parameter(name: str, type_: Any = None) -> Any:
    """A value given each time the statement runs."""
    return bindparam(name, required=False, type_=type_)


def constant(column: ColumnElement[Any], value: Any) -> Any:
    """A value of this column that stands in the statement's text, so that it can decide which index serves."""
    return bindparam(None, value, type_=column.type, unique=True, literal_execute=True)


class Insertion:
    """An INSERT of rows: some columns are given row by row, the others are constants."""

    __slots__ = ("columns", "constants", "number", "numbered", "statement", "table")

    def __init__(self, table: Table, columns: Sequence[Column[Any]], constants: Mapping[str, Any], *, numbered: bool) -> None:
        self.table = table
        self.columns = columns
        self.constants = constants
        self.numbered = numbered
        """Whether numbers are to be told, should there be any."""
        counted = table.autoincrement_column
        self.number = None if not numbered or any(column is counted for column in columns) else counted
        """The column whose value the engine gives and tells, if it does."""
        fixed: dict[str, Any] = {name: constant(table.c[name], value) for name, value in constants.items()}
        given: dict[str, Any] = {column.name: bindparam(f"_{column.name}", required=False, type_=column.type) for column in columns}
        self.statement: Insert = insert(table).values({**given, **fixed})


def insert_into(table: Table, *columns: Column[Any], numbered: bool = True, **constants: Any) -> Insertion:
    """INSERT of a value for each of `columns`, which stand in the table's order, beside constants in others.

    Without `columns`, of every column but the number the engine gives. Who has no use for those numbers says so: to tell them takes time.
    """
    names = [column.name for column in columns]  # of columns themselves, `in` would make SQL expressions
    given = [column for column in table.c if (column.name in names if names else column is not table.autoincrement_column)]
    assert not names or names == [column.name for column in given], "columns are out of order"
    return Insertion(table, given, constants, numbered=numbered)


def upsert(
    table: Table,
    values: Mapping[str, Any],
    *,
    on: Sequence[str] = (),
    update: Mapping[str, Any] | None = None,
    where: ColumnElement[bool] | None = None,
    returning: Sequence[ColumnElement[Any]] = (),
) -> Executable:
    """INSERT, or UPDATE of the row whose `on` columns are taken; with nothing to update, that row is left as it is.

    Without `on`, whichever unique value is taken. Only what was inserted or updated is returned. SQLite and PostgreSQL share
    the clause, and SQLAlchemy renders one construct for both.
    """
    statement = insert_or_update(table).values(dict(values))
    if not update:
        nothing = statement.on_conflict_do_nothing(index_elements=on or None)
        return nothing.returning(*returning) if returning else nothing
    return statement.on_conflict_do_update(index_elements=on, set_=dict(update), where=where).returning(*returning)


def upsert_from(
    table: Table,
    columns: Sequence[str],
    rows: Select[*tuple[Any, ...]],
    *,
    on: Sequence[str],
    update: Mapping[str, Any] | None = None,
    returning: Sequence[ColumnElement[Any]] = (),
) -> Executable:
    """INSERT of the rows a SELECT finds, or UPDATE of those whose `on` columns are taken; with nothing to update, they stay.

    The SELECT needs a WHERE: without one SQLite takes the ON of ON CONFLICT for that of a join.
    """
    statement = insert_or_update(table).from_select(list(columns), rows)
    if not update:
        return statement.on_conflict_do_nothing(index_elements=on).returning(*returning)
    return statement.on_conflict_do_update(index_elements=on, set_=dict(update)).returning(*returning)


class Items(FunctionElement[Any]):
    """A JSON array, as a table of its items' text."""

    name = "items"
    inherit_cache = True


@compiles(Items)
def _json_each(element: Items, compiler: Any, **kw: Any) -> str:
    return f"json_each({compiler.process(element.clauses, **kw)})"


@compiles(Items, "postgresql")
def _array_elements(element: Items, compiler: Any, **kw: Any) -> str:
    # The planner takes an array for one of 10 items, but this function for one that gives 100 rows: for as many it would rather read
    # all of a table of some thousand rows than look each up.
    items = f"jsonb_array_elements_text({compiler.process(element.clauses, **kw)})"
    return f"(SELECT unnest(ARRAY(SELECT {items})) AS value)"


class _JsonText(FunctionElement[str]):
    """A JSON column's text."""

    name = "json_text"
    type = Text()
    inherit_cache = True


@compiles(_JsonText)
def _as_it_is(element: _JsonText, compiler: Any, **kw: Any) -> str:
    return str(compiler.process(element.clauses, **kw))


@compiles(_JsonText, "postgresql")
def _as_text(element: _JsonText, compiler: Any, **kw: Any) -> str:
    return f"{compiler.process(element.clauses, **kw)}::text"


def json_text(column: ColumnElement[Any]) -> ColumnElement[str]:
    """A JSON column's text, as `codec.decode` takes it, under the column's name."""
    return _JsonText(column).label(column.key)


class _HasMember(FunctionElement[bool]):
    """Whether a JSON object has a key with a value that is no list or object itself."""

    name = "has_member"
    inherit_cache = True


@compiles(_HasMember)
def _atom(element: _HasMember, compiler: Any, **kw: Any) -> str:
    # A path would do, but in it a key can hold no quotation mark. 1 is no truth here, though SQLite's atom of true is 1.
    json, key, value = (compiler.process(clause, **kw) for clause in element.clauses)
    return (
        f"EXISTS (SELECT 1 FROM json_each({json}) AS member, json_each(json_array(json({value}))) AS wanted "  # noqa: S608 - compiled SQL
        f"WHERE member.key = {key} AND member.atom = wanted.atom "
        "AND (member.type IN ('true', 'false')) = (wanted.type IN ('true', 'false')))"
    )


@compiles(_HasMember, "postgresql")
def _contained(element: _HasMember, compiler: Any, **kw: Any) -> str:
    json, key, value = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"({json} -> {key} = {value})"


def json_has(json: ColumnElement[Any], key: str, value: str | float | bool) -> ColumnElement[bool]:
    """Whether a JSON object has this string, number or boolean under this key."""
    return _HasMember(json, bindparam(None, key, type_=Text(), unique=True), bindparam(None, value, type_=schema.Json(), unique=True))


def text_rows(name: str) -> TableValuedAlias:
    """The strings of the JSON array given as parameter `name`, as a table with the column `value`."""
    return Items(parameter(name, schema.Json())).table_valued(column("value", Text), name="items")


class _AtomText(FunctionElement[str]):
    """The JSON text of what a JSON object has under a key, if it is a string, number or boolean."""

    name = "atom_text"
    type = Text()
    inherit_cache = True


@compiles(_AtomText)
def _each_atom(element: _AtomText, compiler: Any, **kw: Any) -> str:
    json, key = (compiler.process(clause, **kw) for clause in element.clauses)
    return (
        "(SELECT CASE WHEN member.type IN ('true', 'false') THEN member.type ELSE json_quote(member.atom) END "  # noqa: S608 - compiled SQL
        f"FROM json_each({json}) AS member WHERE member.key = {key} AND member.type NOT IN ('array', 'object', 'null'))"
    )


@compiles(_AtomText, "postgresql")
def _member_text(element: _AtomText, compiler: Any, **kw: Any) -> str:
    json, key = (compiler.process(clause, **kw) for clause in element.clauses)
    member = f"({json} -> {key})"
    return f"(CASE WHEN jsonb_typeof{member} IN ('string', 'number', 'boolean') THEN {member}::text END)"


def json_member(json: ColumnElement[Any], key: str) -> ColumnElement[str]:
    """The JSON text of the string, number or boolean a JSON object has under this key; NULL where it has none."""
    return _AtomText(json, bindparam(None, key, type_=Text(), unique=True))


def text_items(name: str) -> ScalarSelect[Any]:
    """The strings of the JSON array given as parameter `name`, for `IN`: one statement whatever their number."""
    return select(text_rows(name).c.value).scalar_subquery()


def number_items(name: str) -> ScalarSelect[Any]:
    """The whole numbers of the JSON array given as parameter `name`, for `IN`."""
    items = Items(parameter(name, schema.Json())).table_valued(column("value", Text), name="items")
    return select(cast(items.c.value, schema.Int64)).scalar_subquery()


class _Nth(FunctionElement[Any]):
    """The n-th item of a JSON array given as text."""

    name = "nth"
    inherit_cache = True


@compiles(_Nth)
def _extract(element: _Nth, compiler: Any, **kw: Any) -> str:
    array, index = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"json_extract({array}, '$[{index}]')"


@compiles(_Nth, "postgresql")
def _arrow(element: _Nth, compiler: Any, **kw: Any) -> str:
    array, index = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"(({array})::jsonb ->> {index})"


def records(name: str, **columns: Any) -> Subquery:
    """The JSON array of arrays given as parameter `name`, as a table with these columns, in this order, of these types."""
    items = Items(parameter(name, schema.Json())).table_valued(column("value", Text), name="items")
    fields = [
        cast(_Nth(items.c.value, literal_column(str(index))), type_).label(name) for index, (name, type_) in enumerate(columns.items())
    ]
    return select(*fields).subquery()
