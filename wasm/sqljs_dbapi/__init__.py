"""SQLite for Python in a browser: a PEP 249 driver over sql.js, as close to the standard library's sqlite3 as that allows.

    import sqljs_dbapi
    await sqljs_dbapi.load()            # where Python cannot wait for JavaScript by itself
    connection = sqljs_dbapi.connect(":memory:")

With SQLAlchemy: `create_engine("sqlite+sqljs://")`.
"""

from typing import Any

from sqljs_dbapi._engine import load
from sqljs_dbapi.adaptation import (
    Binary,
    Date,
    DateFromTicks,
    PrepareProtocol,
    Time,
    TimeFromTicks,
    Timestamp,
    TimestampFromTicks,
    adapt,
    adapters,
    converters,
    register_adapter,
    register_converter,
)
from sqljs_dbapi.blob import Blob
from sqljs_dbapi.codes import *  # noqa: F403 - its `__all__` is what sqlite3 has too
from sqljs_dbapi.codes import CODES
from sqljs_dbapi.connection import LEGACY_TRANSACTION_CONTROL, Connection, connect
from sqljs_dbapi.cursor import PARSE_COLNAMES, PARSE_DECLTYPES, Cursor
from sqljs_dbapi.errors import (
    DatabaseError,
    DataError,
    Error,
    IntegrityError,
    InterfaceError,
    InternalError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    Warning,
)
from sqljs_dbapi.row import Row
from sqljs_dbapi.sql import complete_statement
from sqljs_dbapi.type_objects import BINARY, DATETIME, NUMBER, ROWID, STRING

__all__ = [
    "BINARY",
    "DATETIME",
    "LEGACY_TRANSACTION_CONTROL",
    "NUMBER",
    "PARSE_COLNAMES",
    "PARSE_DECLTYPES",
    "ROWID",
    "STRING",
    "Binary",
    "Blob",
    "Connection",
    "Cursor",
    "DataError",
    "DatabaseError",
    "Date",
    "DateFromTicks",
    "Error",
    "IntegrityError",
    "InterfaceError",
    "InternalError",
    "NotSupportedError",
    "OperationalError",
    "PrepareProtocol",
    "ProgrammingError",
    "Row",
    "Time",
    "TimeFromTicks",
    "Timestamp",
    "TimestampFromTicks",
    "Warning",
    "adapt",
    "adapters",
    "apilevel",
    "complete_statement",
    "connect",
    "converters",
    "enable_callback_tracebacks",
    "load",
    "paramstyle",
    "register_adapter",
    "register_converter",
    "threadsafety",
]
__all__ += list(CODES)

apilevel = "2.0"
threadsafety = 0
paramstyle = "qmark"
"""`:name` is understood as well."""


def enable_callback_tracebacks(enable: bool, /) -> None:
    """Have what functions written in Python raise reported by `sys.unraisablehook`."""
    from sqljs_dbapi._engine import engine

    engine().callbacks.tracebacks = enable


def __getattr__(name: str) -> Any:
    if name in {"sqlite_version", "sqlite_version_info"}:
        connection = connect(":memory:")
        (version,) = connection.execute("SELECT sqlite_version()").fetchone()
        connection.close()
        globals().update(sqlite_version=version, sqlite_version_info=tuple(map(int, version.split("."))))
        return globals()[name]
    if name in {"open", "Database", "Status"}:
        from sqljs_dbapi import storage

        return getattr(storage, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
