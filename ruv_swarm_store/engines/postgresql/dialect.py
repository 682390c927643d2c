"""What SQLAlchemy must spell differently for this schema on PostgreSQL."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql.base import PGTypeCompiler
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from ruv_swarm_store import schema


class _Types(PGTypeCompiler):
    """Text columns compare by code point, as everywhere else; and faster than by any language's rules."""

    def visit_TEXT(self, type_: Any, type_expression: Any = None, **kw: Any) -> str:  # noqa: N802 - the visitor's name
        text: str = super().visit_TEXT(type_, **kw)
        return f'{text} COLLATE "C"' if isinstance(type_expression, Column) else text


class _Jsonb(JSONB):
    """A parameter that holds JSON text."""

    render_bind_cast = True


class _Int64(schema.Int64):
    """A number's parameter; the dialect's own type for it would bind a datetime as one."""

    render_bind_cast = True


class SwarmDialect(PGDialect_psycopg):
    """psycopg's dialect, with this schema's types."""

    supports_statement_cache = True
    type_compiler_cls = _Types
    type_compiler = _Types
    colspecs = {**PGDialect_psycopg.colspecs, schema.Json: _Jsonb, schema.Int64: _Int64}  # noqa: RUF012 - as SQLAlchemy declares it


registry.register("postgresql.ruv_swarm", __name__, "SwarmDialect")
