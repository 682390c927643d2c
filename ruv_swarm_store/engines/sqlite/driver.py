"""The driver below: the standard library's, or a module that speaks as it does; and what its errors mean, told by their codes."""

from __future__ import annotations

from functools import cache, cached_property
from typing import Any

import sqlalchemy
from sqlalchemy import Dialect
from sqlalchemy.exc import NoSuchModuleError

from ruv_swarm_store import codec
from ruv_swarm_store.errors import Conflict, CorruptDatabase, InvalidValue, StoreError, Unavailable, Unsupported


class Driver:
    """A PEP 249 driver for SQLite, as SQLAlchemy's dialect of that name brings it."""

    def __init__(self, name: str) -> None:
        self.url = f"sqlite+{name}://"
        try:
            self._dialect: Any = sqlalchemy.make_url(self.url).get_dialect()
            self.module: Any = self._dialect.import_dbapi()
        except (NoSuchModuleError, ImportError) as error:
            raise Unsupported(f"the driver of {self.url} is not installed", hint="Install what brings it to SQLAlchemy") from error
        self.Error: type[Exception] = self.module.Error
        self.refused = (self.Error, UnicodeEncodeError, OverflowError)
        """What it raises: its own errors, and Python's for text and numbers that it cannot hand over."""
        self._busy = {self.module.SQLITE_BUSY, self.module.SQLITE_LOCKED, self.module.SQLITE_PROTOCOL}

    @cached_property
    def dialect(self) -> Dialect:
        """What statements are compiled for: SQLite of the version that the driver brings, once it is loaded."""
        dialect = self._dialect(dbapi=self.module, **JSON)
        dialect.cte_follows_insert = True  # `sqlite3` counts the rows that a statement inserts only if INSERT comes first
        return dialect  # type: ignore[no-any-return]

    @cached_property
    def loses_commits(self) -> bool:
        """Whether a checkpoint during which somebody begins the log anew may take commits for copied that are not.

        So it is with every SQLite before 3.51.3: https://www.sqlite.org/wal.html#walresetbug
        """
        version: tuple[int, ...] = self.module.sqlite_version_info
        return version < (3, 51, 3) and not (3, 50, 7) <= version < (3, 51)

    def is_busy(self, error: BaseException) -> bool:
        """Whether the database was locked by somebody else, and may be free soon."""
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in self._busy

    def translate(self, error: Exception, timeout: float, where: str = "the database") -> StoreError:
        """This package's error for one of the driver's."""
        if not isinstance(error, self.Error):
            return InvalidValue(f"the database cannot hold a value ({error})", hint="Give text that UTF-8 can hold, and 64-bit numbers")
        name: str = getattr(error, "sqlite_errorname", "")
        code: int = getattr(error, "sqlite_errorcode", 0) & 0xFF
        match name:
            case "SQLITE_CONSTRAINT_UNIQUE" | "SQLITE_CONSTRAINT_PRIMARYKEY" | "SQLITE_CONSTRAINT_ROWID":
                return Conflict(
                    f"a row with this key exists already ({error})",
                    hint="Give it another, or change that row with update or upsert",
                    kind="unique",
                )
            case "SQLITE_CONSTRAINT_FOREIGNKEY":
                return Conflict(
                    "a row refers to one that does not exist, or is still referred to",
                    hint="Add first what a row refers to; delete first what refers to it",
                    kind="reference",
                )
            case "SQLITE_CONSTRAINT_TRIGGER":
                return Unsupported(str(error), hint="Append a new event instead")
        of = self.module
        match code:
            case of.SQLITE_CONSTRAINT | of.SQLITE_MISMATCH | of.SQLITE_TOOBIG:
                return InvalidValue(f"the database refused a value ({error})", hint="Nothing was written")
            case of.SQLITE_BUSY | of.SQLITE_LOCKED | of.SQLITE_PROTOCOL:
                return Unavailable(
                    f"{where} was locked by other transactions for {timeout:g} s", hint="Keep transactions short, or raise the timeout"
                )
            case of.SQLITE_NOTADB | of.SQLITE_CORRUPT:
                return CorruptDatabase(f"{where} is not a database or is damaged ({error})", hint="Check the path, or restore a backup")
            case of.SQLITE_CANTOPEN:
                return Unavailable(
                    f"{where} cannot be opened ({error})",
                    hint="Check that the file, or for a new one its directory, exists and may be written",
                )
            case of.SQLITE_READONLY | of.SQLITE_PERM | of.SQLITE_AUTH:
                return Unavailable(f"{where} cannot be written ({error})", hint="Check the file's and its directory's permissions")
            case of.SQLITE_FULL | of.SQLITE_IOERR | of.SQLITE_NOMEM:
                return Unavailable(f"{where} could not be written ({error})", hint="Free some space; nothing half-written was kept")
        return StoreError(f"the database refused a statement ({error})")


JSON = {"json_serializer": codec.encode, "json_deserializer": codec.decode}
"""How SQLAlchemy is to write and read JSON."""


@cache
def driver(name: str) -> Driver:
    """The driver of that name in SQLAlchemy's URLs. Raises `Unsupported` where it is not installed."""
    return Driver(name)
