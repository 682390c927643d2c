"""What each dialect needs said about the schema beyond its tables: types, strictness, guards, partial indexes.

Importing this module dresses `schema.metadata`, so that `create_all`, Alembic and the stores all see one DDL.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import DDL, CheckConstraint, Table, event
from sqlalchemy.ext.compiler import compiles

from ruv_swarm_store import schema


@compiles(schema.Int64, "sqlite")
def _integer(type_: schema.Int64, compiler: Any, **_: Any) -> str:
    return "INTEGER"


@compiles(schema.Json, "sqlite")
def _text(type_: schema.Json, compiler: Any, **_: Any) -> str:
    return "TEXT"  # a declared type JSON has NUMERIC affinity and turns 1.0 into 1


@compiles(schema.Real, "sqlite")
def _real(type_: schema.Real, compiler: Any, **_: Any) -> str:
    return "REAL"


def _dress(table: Table) -> None:
    for index in table.indexes:
        if (where := index.info.get("where")) is not None:
            index.dialect_kwargs["sqlite_where"] = index.dialect_kwargs["postgresql_where"] = where
    table.dialect_kwargs["sqlite_strict"] = True
    if table.info.get("never_reuse_positions"):
        table.dialect_kwargs["sqlite_autoincrement"] = True
    for column in table.columns:
        if isinstance(column.type, schema.Json):
            # Before 3.42 json_valid(NULL) is 0, not NULL.
            valid = f"{column.name} IS NULL OR json_valid({column.name})" if column.nullable else f"json_valid({column.name})"
            guard = CheckConstraint(valid, name=column.name, info={"dialect": "sqlite"})
            table.append_constraint(guard.ddl_if(dialect="sqlite"))
    if table.info.get("append_only"):
        for verb in ("UPDATE", "DELETE"):
            statement = f"""\
CREATE TRIGGER {table.name}_no_{verb.lower()} BEFORE {verb} ON {table.name}
BEGIN SELECT RAISE(ABORT, '{table.name} is append-only'); END"""
            event.listen(table, "after_create", DDL(statement).execute_if(dialect="sqlite"))  # type: ignore[no-untyped-call]


for _table in schema.metadata.tables.values():
    _dress(_table)
