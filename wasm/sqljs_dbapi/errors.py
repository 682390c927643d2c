"""The exceptions of PEP 249, and which of them a result code of SQLite becomes: as in the standard library's sqlite3."""

from collections.abc import Mapping
from typing import NoReturn

from sqljs_dbapi import codes
from sqljs_dbapi.wire import NOT_TEXT, TOO_LARGE


class Warning(Exception):
    """Something important happened, and nothing went wrong."""


class Error(Exception):
    """Any error of this driver. Those that SQLite reported have its result code and that code's name."""

    sqlite_errorcode: int
    sqlite_errorname: str


class InterfaceError(Error):
    """The driver was used wrongly, not the database."""


class DatabaseError(Error):
    """An error of the database."""


class DataError(DatabaseError):
    """A value is too large or cannot be processed."""


class OperationalError(DatabaseError):
    """The database could not do it: a lock, a missing table, no space."""


class IntegrityError(DatabaseError):
    """A constraint does not hold."""


class InternalError(DatabaseError):
    """SQLite found itself in a state that should not be."""


class ProgrammingError(DatabaseError):
    """The calls made were wrong: a closed connection, a wrong number of parameters."""


class NotSupportedError(DatabaseError):
    """What was asked for, sql.js cannot do."""


CLASSES: Mapping[int, type[Exception]] = {
    codes.SQLITE_INTERNAL: InternalError,
    codes.SQLITE_NOTFOUND: InternalError,
    codes.SQLITE_NOMEM: MemoryError,
    codes.SQLITE_CORRUPT: DatabaseError,
    codes.SQLITE_TOOBIG: DataError,
    codes.SQLITE_CONSTRAINT: IntegrityError,
    codes.SQLITE_MISMATCH: IntegrityError,
    codes.SQLITE_MISUSE: InterfaceError,
    codes.SQLITE_RANGE: InterfaceError,
} | dict.fromkeys(
    (
        codes.SQLITE_ERROR,
        codes.SQLITE_PERM,
        codes.SQLITE_ABORT,
        codes.SQLITE_BUSY,
        codes.SQLITE_LOCKED,
        codes.SQLITE_READONLY,
        codes.SQLITE_INTERRUPT,
        codes.SQLITE_IOERR,
        codes.SQLITE_FULL,
        codes.SQLITE_CANTOPEN,
        codes.SQLITE_PROTOCOL,
        codes.SQLITE_EMPTY,
        codes.SQLITE_SCHEMA,
    ),
    OperationalError,
)


def from_code(code: int, message: str) -> Exception:
    """The exception for an extended result code, or for a value that could not be bound."""
    if code == TOO_LARGE:
        return OverflowError("Python int too large to convert to SQLite INTEGER")
    if code == NOT_TEXT:
        try:
            message.encode()
        except UnicodeEncodeError as error:
            return error
    found = CLASSES.get(code & 0xFF, DatabaseError)
    if found is MemoryError:
        return MemoryError()
    return with_code(found(message), code)


def with_code(error: Exception, code: int) -> Exception:
    """The same exception, saying which result code it stands for."""
    if isinstance(error, Error):
        error.sqlite_errorcode = code
        error.sqlite_errorname = codes.NAMES.get(code) or codes.NAMES.get(code & 0xFF, "unknown")
    return error


def raise_code(code: int, message: str) -> NoReturn:
    """Raise the exception for an extended result code."""
    raise from_code(code, message)
