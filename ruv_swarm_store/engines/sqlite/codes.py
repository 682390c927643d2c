"""What the driver's errors mean, told by their codes."""

from __future__ import annotations

import sqlite3

from ruv_swarm_store.errors import Conflict, CorruptDatabase, InvalidValue, StoreError, Unavailable, Unsupported

REFUSED = (sqlite3.Error, UnicodeEncodeError, OverflowError)
"""What the driver raises: its own errors, and Python's for text and numbers that it cannot hand over."""
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}


def is_busy(error: Exception) -> bool:
    """Whether the database was locked by somebody else, and may be free soon."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _BUSY


def translate(error: Exception, timeout: float, where: str = "the database") -> StoreError:
    """This package's error for one of the driver's, told by its code."""
    if not isinstance(error, sqlite3.Error):
        return InvalidValue(f"the database cannot hold a value ({error})", hint="Give text that UTF-8 can hold, and 64-bit numbers")
    name: str = getattr(error, "sqlite_errorname", "")
    code: int = getattr(error, "sqlite_errorcode", 0) & 0xFF
    match name:
        case "SQLITE_CONSTRAINT_UNIQUE" | "SQLITE_CONSTRAINT_PRIMARYKEY" | "SQLITE_CONSTRAINT_ROWID":
            return Conflict(f"a row with this key exists already ({error})", kind="unique")
        case "SQLITE_CONSTRAINT_FOREIGNKEY":
            return Conflict("a row refers to one that does not exist, or is still referred to", kind="reference")
        case "SQLITE_CONSTRAINT_TRIGGER":
            return Unsupported(str(error), hint="Append a new event instead")
    match code:
        case sqlite3.SQLITE_CONSTRAINT | sqlite3.SQLITE_MISMATCH | sqlite3.SQLITE_TOOBIG:
            return InvalidValue(f"the database refused a value ({error})", hint="Nothing was written")
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED | sqlite3.SQLITE_PROTOCOL:
            return Unavailable(
                f"{where} was locked by other transactions for {timeout:g} s", hint="Keep transactions short, or raise the timeout"
            )
        case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
            return CorruptDatabase(f"{where} is not a database or is damaged ({error})", hint="Check the path, or restore a backup")
        case sqlite3.SQLITE_CANTOPEN:
            return Unavailable(f"{where} cannot be opened ({error})", hint="Check that the directory exists and may be written")
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
            return Unavailable(f"{where} cannot be written ({error})", hint="Check the file's and its directory's permissions")
        case sqlite3.SQLITE_FULL | sqlite3.SQLITE_IOERR | sqlite3.SQLITE_NOMEM:
            return Unavailable(f"{where} could not be written ({error})", hint="Free some space; nothing half-written was kept")
    return StoreError(f"the database refused a statement ({error})")
