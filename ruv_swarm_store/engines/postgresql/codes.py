"""What the server's errors mean, told by their SQLSTATE."""

from __future__ import annotations

import psycopg

from ruv_swarm_store.errors import Conflict, CorruptDatabase, InvalidValue, StoreError, Unavailable, Unsupported

REFUSED = (psycopg.Error, UnicodeEncodeError, OverflowError)
"""What the driver raises: its own errors, and Python's for text and numbers that it cannot hand over."""

REPEATABLE = {"40001": "serialization", "40P01": "deadlock"}
"""Failures that say: the same again may well succeed."""


def lost(error: Exception) -> bool:
    """Whether the connection is gone, or the server is about to end it."""
    state = getattr(error, "sqlstate", None)
    return isinstance(error, psycopg.OperationalError) and (state is None or state[:2] == "08" or state in ("57P01", "57P02", "57P03"))


def translate(error: Exception, timeout: float, where: str = "the database") -> StoreError:
    """This package's error for one of the driver's, told by its code."""
    if not isinstance(error, psycopg.Error):
        return InvalidValue(f"the database cannot hold a value ({error})", hint="Give text that UTF-8 can hold, and 64-bit numbers")
    state = error.sqlstate or ""
    said = error.diag.message_primary or " ".join(str(error).split())
    match state:
        case "23505":
            return Conflict(
                f"a row with this key exists already ({error.diag.constraint_name})",
                hint="Give it another, or change that row with update or upsert",
                kind="unique",
            )
        case "23503":
            return Conflict(
                "a row refers to one that does not exist, or is still referred to",
                hint="Add first what a row refers to; delete first what refers to it",
                kind="reference",
            )
        case "0A000":
            return Unsupported(said, hint="Append a new event instead")
        case "25006":
            return Unsupported(f"{where} is open for reading only", hint="Open it without read_only=True to write")
        case "40001" | "40P01":
            return Unavailable(
                f"{where} gave up one of several transactions that waited for each other ({said})",
                hint="Run it again",
                kind=REPEATABLE[state],
            )
        case "25P02":
            return StoreError("the transaction was rolled back by an earlier failure", hint="Begin it again")
        case "55P03":
            return Unavailable(
                f"{where} was locked by other transactions for {timeout:g} s", hint="Keep transactions short, or raise the timeout"
            )
        case "42501":
            return StoreError(f"{where} refused ({said})", hint="Grant this user the rights it needs on the database and the schema")
    match state[:2]:
        case "22" | "23":
            return InvalidValue(f"the database refused a value ({said})", hint="Nothing was written")
        case "53" | "57" | "58":
            return Unavailable(f"{where} could not go on ({said})", hint="Try again once the server is well", kind="server")
        case "XX":
            return CorruptDatabase(f"{where} is damaged ({said})", hint="Restore a backup")
    if lost(error):
        return Unavailable(
            f"the connection to {where} was lost ({said})",
            hint="Try again; whether what was under way was carried out is not known",
            kind="connection",
        )
    if isinstance(error, psycopg.DataError):
        return InvalidValue(f"the database cannot hold a value ({said})", hint="Give text without NUL characters, and 64-bit numbers")
    return StoreError(f"the database refused a statement ({said})")
