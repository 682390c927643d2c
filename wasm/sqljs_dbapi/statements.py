"""Prepared statements: made once for each text of SQL, kept while they may be needed again."""

import re
from typing import TYPE_CHECKING

from sqljs_dbapi import errors
from sqljs_dbapi.sql import MODIFYING, is_blank, outline

if TYPE_CHECKING:
    from sqljs_dbapi._engine import Engine
    from sqljs_dbapi.sql import Placeholder

Description = tuple[tuple[str, str | None, None, None, None, None, None], ...]
READING = frozenset({"", "SELECT", "VALUES", "WITH", "EXPLAIN", "BEGIN", "COMMIT", "END", "ROLLBACK", "SAVEPOINT", "RELEASE"})
"""The verbs of statements that change nothing themselves."""
_STORED = re.compile(
    r"PRAGMA\s+(\w+\s*\.\s*)?(application_id|auto_vacuum|encoding|incremental_vacuum|schema_version|user_version)\s*[=(]", re.IGNORECASE
)
"""What is set in the database itself; other PRAGMAs read, or set what concerns the connection."""
LENGTH_LIMIT = 1_000_000_000  # bytes of one statement or value: SQLite's own


class Statement:
    """A prepared statement and what its text says."""

    __slots__ = (
        "columns",
        "converted",
        "count",
        "description",
        "expects",
        "is_dml",
        "modifies",
        "named",
        "names",
        "placeholders",
        "pointer",
        "sql",
        "types",
        "verb",
    )

    def __init__(self, pointer: int, sql: str, columns: list[str], types: list[str | None]) -> None:
        verb, modifies, placeholders, names = outline(sql)
        self.pointer = pointer
        """Its address in the engine."""
        self.sql = sql
        self.verb = verb
        self.is_dml = verb in MODIFYING
        """Whether it begins a transaction by itself and counts rows."""
        self.modifies = modifies or (_STORED.search(sql) is not None if verb == "PRAGMA" else verb not in READING)
        """Whether it may change something."""
        self.names = names
        """How each parameter is written; None for a question mark."""
        self.count = len(names)
        """How many parameters it has."""
        self.named = any(name is not None and name[0] != "?" for name in names)
        self.expects = -1 if self.named else self.count
        """How many values a tuple of parameters has; -1 if none will do."""
        self.placeholders: list[Placeholder] = placeholders
        self.converted: tuple[int, ...] = ()
        """The columns read as bytes for a converter."""
        self.describe(columns, types)

    def describe(self, columns: list[str], types: list[str | None]) -> None:
        """Take note of the columns, which a change of the schema may change."""
        self.columns = columns
        self.types = types
        """The declared type of each column that is one of a table's."""
        self.description: Description | None = (
            tuple((name, kind, None, None, None, None, None) for name, kind in zip(columns, types, strict=True)) or None
        )

    def strip_types(self) -> None:
        """Leave out of the description what names a converter: `name [type]` is called `name`."""
        if self.description is not None:
            self.description = tuple(
                (column[0].partition("[")[0].removesuffix(" "), column[1], None, None, None, None, None) for column in self.description
            )


def prepare(engine: "Engine", db: int, sql: str) -> tuple[Statement | None, str]:
    """The first statement of `sql`, None if there is none, and the text after it.

    Raises ProgrammingError for a text with NUL, UnicodeEncodeError for one that UTF-8 cannot hold, or SQLite's error.
    """
    data = sql.encode()
    if len(data) >= LENGTH_LIMIT:
        raise errors.DataError("query string is too large")
    if b"\0" in data:
        raise errors.ProgrammingError("the query contains a null character")
    pointer, tail, names, types, code, message = engine.prepare(db, data)
    if code:
        errors.raise_code(code, message or "")
    if tail == len(data):
        first, rest = sql, ""
    else:
        first, rest = data[:tail].decode(), data[tail:].decode()
    return (Statement(pointer, first, names, types) if pointer else None), rest


def prepare_only(engine: "Engine", db: int, sql: str) -> Statement | None:
    """The one statement of `sql`, None if there is none.

    Raises ProgrammingError when there are several, and as `prepare` does.
    """
    statement, rest = prepare(engine, db, sql)
    if not is_blank(rest):
        if statement is not None:
            engine.finalize(statement.pointer)
        raise errors.ProgrammingError("You can only execute one statement at a time.")
    return statement


class StatementCache:
    """The idle statements of a connection, by their text; the one unused for longest goes first.

    A statement is taken out while it runs, so that it is never used twice at the same time.
    """

    def __init__(self, engine: "Engine", capacity: int) -> None:
        self.engine = engine
        self.capacity = max(capacity, 1)
        self.idle: dict[str, Statement] = {}

    def make_room(self) -> None:
        """Finalize what was unused for longest, before another statement is prepared."""
        while len(self.idle) >= self.capacity:
            self.engine.finalize(self.idle.pop(next(iter(self.idle))).pointer)

    def give_back(self, text: str, statement: Statement) -> None:
        """Keep a statement that has been reset."""
        if self.idle.setdefault(text, statement) is not statement:
            self.engine.finalize(statement.pointer)
