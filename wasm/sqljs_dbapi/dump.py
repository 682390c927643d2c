"""A database as SQL text, as sqlite3's `iterdump` writes it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqljs_dbapi.connection import Connection


def identifier(name: str) -> str:
    """A name as SQL."""
    return '"' + name.replace('"', '""') + '"'


def statements(connection: "Connection", pattern: str | None) -> Iterator[str]:
    """The statements that make the database, those of names LIKE `pattern` if it is given."""
    cursor = connection.cursor()
    cursor.row_factory = None
    if any(row[0] for row in cursor.execute("PRAGMA foreign_keys").fetchall()):
        yield "PRAGMA foreign_keys=OFF;"
    yield "BEGIN TRANSACTION;"
    chosen, parameters = ("", ()) if pattern is None else ("AND name LIKE ?", (pattern,))
    schema = f"SELECT name, type, sql FROM sqlite_master WHERE sql NOT NULL AND type {{}} {chosen} {{}}"  # noqa: S608 - words of ours
    virtual = False
    sequences: list[str] = []
    for name, _, sql in cursor.execute(schema.format("== 'table'", "ORDER BY name"), parameters).fetchall():
        if name == "sqlite_sequence":
            sequences = ['DELETE FROM "sqlite_sequence";', *_rows(cursor, name)]
        elif name == "sqlite_stat1":
            yield 'ANALYZE "sqlite_master";'
            yield from _rows(cursor, name)
        elif name.startswith("sqlite_"):
            continue
        elif sql.upper().startswith("CREATE VIRTUAL TABLE"):
            if not virtual:
                virtual = True
                yield "PRAGMA writable_schema=ON;"
            values = ",".join(_literal(value) for value in ("table", name, name, 0, sql))
            yield f"INSERT INTO sqlite_master(type,name,tbl_name,rootpage,sql)VALUES({values});"
        else:
            yield f"{sql};"
            yield from _rows(cursor, name)
    for _, _, sql in cursor.execute(schema.format("IN ('index', 'trigger', 'view')", ""), parameters).fetchall():
        yield f"{sql};"
    if virtual:
        yield "PRAGMA writable_schema=OFF;"
    yield from sequences
    yield "COMMIT;"


def _rows(cursor: Any, table: str) -> list[str]:
    columns = [row[1] for row in cursor.execute(f"PRAGMA table_info({identifier(table)})").fetchall()]
    values = " || ',' || ".join(f"quote({identifier(column)})" for column in columns)
    # SQLite writes the values itself: its floats come back exactly
    query = f"SELECT 'INSERT INTO ' || ? || ' VALUES(' || {values} || ')' FROM {identifier(table)}"  # noqa: S608 - quoted names
    return [f"{row[0]};" for row in cursor.execute(query, (identifier(table),)).fetchall()]


def _literal(value: str | int) -> str:
    return str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"
