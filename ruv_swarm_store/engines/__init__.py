"""The only room that knows dialects: opens a database by its URL and hands out executors."""

from __future__ import annotations

import os
from pathlib import Path

import sqlalchemy
from sqlalchemy.exc import ArgumentError

from ruv_swarm_store.engines import ddl as ddl
from ruv_swarm_store.engines.constructs import (
    Insertion,
    constant,
    insert_into,
    json_has,
    json_member,
    json_text,
    number_items,
    parameter,
    records,
    text_items,
    text_rows,
    upsert,
    upsert_from,
)
from ruv_swarm_store.engines.engine import Capabilities, Durability, Engine, Options
from ruv_swarm_store.engines.executor import Executor, Scope, Trace
from ruv_swarm_store.engines.sqlite import MemoryEngine, SQLiteEngine
from ruv_swarm_store.errors import InvalidValue, Unsupported

__all__ = [
    "Capabilities",
    "Durability",
    "Engine",
    "Executor",
    "Insertion",
    "Options",
    "Scope",
    "Trace",
    "connect",
    "constant",
    "insert_into",
    "json_has",
    "json_member",
    "json_text",
    "number_items",
    "parameter",
    "records",
    "text_items",
    "text_rows",
    "upsert",
    "upsert_from",
]


def connect(address: str | os.PathLike[str] | None, options: Options) -> Engine:
    """Opens the database at a path or SQLAlchemy URL; in memory when there is none.

    Raises `InvalidValue` for an address that is neither, `Unsupported` for an engine this release does not have, and
    `Unavailable` or `CorruptDatabase` when the database cannot be opened.
    """
    if address is None or address == ":memory:":
        return MemoryEngine(options)
    if isinstance(address, os.PathLike):
        return SQLiteEngine(Path(address), options)
    if not isinstance(address, str) or not address:
        raise InvalidValue(f"{address!r} is no address of a store", hint="Give a path, a URL like sqlite:///swarm.db, or nothing")
    if "://" not in address:
        return SQLiteEngine(address, options)
    try:
        url = sqlalchemy.make_url(address)
    except ArgumentError as error:
        raise InvalidValue(f"{address!r} is not a URL", hint="A URL looks like sqlite:///swarm.db") from error
    if url.get_backend_name() == "postgresql" and url.get_driver_name() in ("psycopg2", "psycopg"):  # psycopg2 stands for no name
        return _postgresql(url, options)
    if url.get_backend_name() != "sqlite" or url.get_driver_name() != "pysqlite":
        raise Unsupported(f"there is no engine for {url.drivername}", hint="Use a path, sqlite:///path or postgresql://…")
    if url.query:
        raise InvalidValue(f"{address!r} carries options", hint="Give options to Store.open instead")
    if not url.database or url.database == ":memory:":
        return MemoryEngine(options)
    return SQLiteEngine(url.database, options)


def _postgresql(url: sqlalchemy.URL, options: Options) -> Engine:
    try:
        from ruv_swarm_store.engines.postgresql import PostgreSQLEngine
    except ImportError as error:
        raise Unsupported("the PostgreSQL driver is not installed", hint="pip install 'ruv-swarm-store[postgres]'") from error
    return PostgreSQLEngine(url, options)
