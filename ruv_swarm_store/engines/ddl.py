"""What each dialect needs said about the schema beyond its tables: types, strictness, guards, partial indexes.

Importing this module dresses `schema.metadata`, so that `create_all`, Alembic and the stores all see one DDL.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import DDL, CheckConstraint, Table, event
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.util import OrderedSet

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


@compiles(schema.Json, "postgresql")
def _jsonb(type_: schema.Json, compiler: Any, **_: Any) -> str:
    return "JSONB"


def guards(table: str, *, append_only: bool, in_order: bool) -> dict[str, Sequence[str]]:
    """What each dialect's database itself makes sure of about a table: the statements, by dialect."""
    sqlite = [
        f"""\
CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table}
BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"""
        for verb in ("UPDATE", "DELETE")
        if append_only
    ]
    postgresql = []
    if append_only:
        postgresql += [
            f"""\
CREATE FUNCTION {table}_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION '{table} is append-only' USING ERRCODE = 'feature_not_supported'; END $$""",
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} EXECUTE FUNCTION {table}_refuse()",
        ]
    if in_order:
        # Numbers are given before the commit. Who adds waits for whoever is adding, so that they become visible in order.
        postgresql += [
            f"""\
CREATE FUNCTION {table}_wait() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_advisory_xact_lock(hashtextextended(TG_TABLE_SCHEMA || '.{table}', 0)); RETURN NULL; END $$""",
            f"CREATE TRIGGER {table}_in_order BEFORE INSERT ON {table} EXECUTE FUNCTION {table}_wait()",
        ]
    return {"sqlite": sqlite, "postgresql": postgresql}


def _dress(table: Table) -> None:
    # Made in the same order in every process: of two indexes that look alike to it SQLite takes the later one.
    table.indexes = OrderedSet(sorted(table.indexes, key=lambda index: str(index.name)))
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
    append_only, in_order = bool(table.info.get("append_only")), bool(table.info.get("in_order"))
    for dialect, statements in guards(table.name, append_only=append_only, in_order=in_order).items():
        for statement in statements:
            event.listen(table, "after_create", DDL(statement).execute_if(dialect=dialect))  # type: ignore[no-untyped-call]
    if append_only or in_order:
        for name in ("refuse", "wait"):
            drop = DDL(f"DROP FUNCTION IF EXISTS {table.name}_{name}()")  # type: ignore[no-untyped-call]
            event.listen(table, "after_drop", drop.execute_if(dialect="postgresql"))


for _table in schema.metadata.tables.values():
    _dress(_table)
