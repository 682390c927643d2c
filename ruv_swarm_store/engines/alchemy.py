"""SQLAlchemy's ordinary connection over a driver connection that somebody else owns."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy
from sqlalchemy import Connection, Executable, Row, event
from sqlalchemy.exc import DBAPIError, StatementError

from ruv_swarm_store.engines.executor import Params, Trace
from ruv_swarm_store.errors import InvalidValue, StoreError


class Lent:
    """A driver connection lent to SQLAlchemy: whoever lent it ends its transactions and closes it."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def commit(self) -> None:
        pass

    def rollback(self) -> None:
        pass

    def close(self) -> None:
        pass


def ended() -> StoreError:
    """What to raise from a statement on that has ended the transaction it was part of: what followed would be committed piecemeal."""
    return StoreError("a statement ended the transaction that it was part of", hint="Leave COMMIT and ROLLBACK to the with block")


def execute(
    connection: Connection,
    statement: Executable,
    params: Params,
    refused: tuple[type[Exception], ...],
    failed: Callable[[Exception], StoreError],
) -> Sequence[Row[*tuple[Any, ...]]]:
    """Runs a statement; the rows it returns. Of what the driver raises, `failed` makes this package's error."""
    try:
        result = connection.execute(statement, dict(params))
        return result.all() if result.returns_rows else []
    except DBAPIError as error:
        if isinstance(error.orig, refused):
            raise failed(error.orig) from error.orig
        raise
    except refused as error:
        raise failed(error) from error
    except StatementError as error:
        if isinstance(error.orig, StoreError):
            raise error.orig from None
        raise InvalidValue(str(error.orig), hint="Check the statement's parameters") from error


def trace_engine(engine: sqlalchemy.Engine, trace: Trace) -> None:
    """Tells of every statement that SQLAlchemy runs."""
    started = threading.local()

    @event.listens_for(engine, "before_cursor_execute")
    def before(*_: Any) -> None:
        started.at = time.perf_counter()

    @event.listens_for(engine, "after_cursor_execute")
    def after(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        trace(statement, time.perf_counter() - started.at)
