"""Every error this package raises: what happened, what to do about it, and whether trying again can help."""

from __future__ import annotations

from typing import Any, ClassVar


class StoreError(Exception):
    """Base of every error raised here.

    `hint` says what to do, `data` carries the facts a program may want, and `retryable` tells whether the same
    call can succeed later without a change. The driver's own exception, where there was one, is `__cause__`.
    """

    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "", **data: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.data = data

    def __str__(self) -> str:
        return f"{self.message}. {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.hint, self.data)


def _rebuild(kind: type[StoreError], message: str, hint: str, data: dict[str, Any]) -> StoreError:
    return kind(message, hint=hint, **data)


class InvalidValue(StoreError, ValueError):
    """An argument cannot be stored as given. Nothing was written."""


class NotFound(StoreError, LookupError):
    """No row has that identity."""


class Conflict(StoreError):
    """A version, a unique key or a reference was not what the call needed.

    `data` holds what is known: `expected` and `actual` versions, or `kind` (`unique`, `reference`).
    """


class LeaseLost(Conflict):
    """The lease on a task ran out and the task was taken over or returned to the queue."""


class InvalidTransition(Conflict):
    """A task or agent cannot go from the state it is in to the one asked for."""


class CorruptRow(StoreError):
    """A stored row cannot be read back as an entity. `data` names `table`, `id` and `column`."""


class CorruptDatabase(StoreError):
    """The file is not a database, or is damaged."""


class CorruptBackup(StoreError):
    """A backup's file is missing, damaged or not what its manifest says. `data` names the `file`."""


class SchemaMismatch(StoreError):
    """The database's schema is not the one this release works with."""


class Unavailable(StoreError):
    """The database could not be reached, written or locked in time."""

    retryable: ClassVar[bool] = True


class Closed(StoreError):
    """The store, or the unit of work, has ended."""


class Unsupported(StoreError):
    """This engine, or this table, cannot do that."""
