"""What a program sees of this driver is what it sees of Pyodide's own sqlite3: results, counts, state and errors."""

import sqlite3
import warnings
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import pytest
import sqljs_dbapi
from hypothesis import given, settings
from hypothesis import strategies as st

MODULES = (sqljs_dbapi, sqlite3)


class Number(IntEnum):
    """An int of another type."""

    ONE = 1


class Point:
    """What conforms to the protocol."""

    def __conform__(self, protocol: type) -> str | None:
        return "1;2" if protocol.__name__ == "PrepareProtocol" else None


class Mapped(dict[str, int]):
    """A mapping that knows every key."""

    def __missing__(self, key: str) -> int:
        return len(key)


class Listed:
    """A sequence that is no list."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        if index > 1:
            raise IndexError
        return index


def outcome(action: Callable[[], Any]) -> Any:
    """What it gives, or the exception's name, code and message."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = action()
        except Exception as error:
            name = getattr(error, "sqlite_errorname", None)
            # sqlite3 does not know the names of codes that are newer than the SQLite it was built for
            return type(error).__name__, str(error), getattr(error, "sqlite_errorcode", None), name if name in vars(sqlite3) else None
    if type(result).__name__ in {"Cursor", "Connection", "Statement", "Blob"}:
        return type(result).__name__
    return result


def state(connection: Any, cursor: Any) -> Any:
    """Everything that can be seen of a connection and a cursor."""
    return {
        "in_transaction": outcome(lambda: connection.in_transaction),
        "total_changes": outcome(lambda: connection.total_changes),
        "rowcount": cursor.rowcount,
        "lastrowid": cursor.lastrowid,
        "description": cursor.description and [column[0] for column in cursor.description],  # sqlite3 has no type codes
    }


def compare(steps: list[tuple[str, tuple[Any, ...]]], **options: Any) -> None:
    """Do the same with both: each step is the name of a method and its arguments; `fetchall` comes after each."""
    connections = [module.connect(":memory:", **options) for module in MODULES]
    cursors = [connection.cursor() for connection in connections]
    for name, arguments in steps:
        seen = []
        for connection, cursor in zip(connections, cursors, strict=True):
            target = cursor if hasattr(cursor, name) and not name.startswith("con.") else connection
            given = [argument() if callable(argument) else argument for argument in arguments]
            made = outcome(lambda target=target, name=name, given=given: getattr(target, name.removeprefix("con."))(*given))
            # this driver has read more rows by now than sqlite3, maybe all of them
            before = None if cursor.description else state(connection, cursor)
            # PEP 249 lets nothing be fetched where there is no result; sqlite3 gives no rows
            rows = outcome(cursor.fetchall if cursor.description else lambda cursor=cursor: list(cursor))
            seen.append((made, before, rows, types(rows), state(connection, cursor)))
        assert seen[0] == seen[1], (name, arguments)
    for connection in connections:
        connection.close()


def types(rows: Any) -> Any:
    """The types of the values, which `==` does not see."""
    return [[type(value).__name__ for value in row] if isinstance(row, tuple) else type(row).__name__ for row in rows]


def execute(*statements: str | tuple[Any, ...]) -> list[tuple[str, tuple[Any, ...]]]:
    """Steps that execute these."""
    return [("execute", one if isinstance(one, tuple) else (one,)) for one in statements]


TABLE = "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT UNIQUE, b REAL NOT NULL DEFAULT 1.5 CHECK (b < 100), c BLOB)"
FILL = ("executemany", ("INSERT INTO t (a, c) VALUES (?, ?)", [(f"a{n}", bytes([n])) for n in range(40)]))

SCRIPTS = {
    "values": execute(
        ("SELECT ?, ?, ?, ?, ?", (1, 1.0, "é\0😀", b"\0\xff", None)),
        ("SELECT ?, ?, ?", (2**63 - 1, -(2**63), 2**53 + 1)),
        ("SELECT ?, ?", (True, Number.ONE)),
        ("SELECT ?", (bytearray(b"x"),)),
        ("SELECT ?", (memoryview(b"xyz")[::2],)),
        ("SELECT ?", (memoryview(b"xyz"),)),
        ("SELECT ?, ?, ?", (float("inf"), float("-inf"), float("nan"))),
        ("SELECT ?", (2**63,)),
        ("SELECT ?", (object(),)),
        ("SELECT ?", (Point(),)),
        ("SELECT ?", ("\ud800",)),
        ("SELECT ?", ([1],)),
        ("SELECT :a", ({"a": {1}},)),
        "SELECT 9007199254740993, -9007199254740993, 1e300, 4294967296, -4294967297, 2147483648, -2147483649",
        "SELECT '', x'', zeroblob(3), 'a' || char(0) || 'b'",
    ),
    "parameters": execute(
        ("SELECT ?2, ?1, ?", (1, 2, 3)),
        ("SELECT ?5", (1,)),
        ("SELECT ?5", (1, 2, 3, 4, 5)),
        ("SELECT :a, @b, $c, :a", ({"a": 1, "b": 2, "c": 3},)),
        ("SELECT :a", ({},)),
        ("SELECT :a", (Mapped(),)),
        ("SELECT :a", ((1,),)),
        ("SELECT ?", ({"a": 1},)),
        ("SELECT ?1", ({"1": 5},)),
        ("SELECT ?, ?", (Listed(),)),
        ("SELECT ?", ()),
        ("SELECT 1", ((1,),)),
        ("SELECT ?", (7,)),
        ("SELECT ?", ("x",)),
        ("SELECT ?, ?", ("xy",)),
        ("SELECT ?", (None,)),
        ('SELECT \':a\', ":b", `:c`, [?] -- ?\n /* ? */ FROM (SELECT 1 ":b", 2 `:c`, 3 [?]) WHERE ? = ?', (1, 1)),
        ("SELECT :é, :a_1$x", ({"é": 1, "a_1$x": 2},)),
        ("SELECT $a::b", ({"a::b": 1},)),
    ),
    "text": [
        *execute(
            "",
            " ",
            "-- x",
            ";",
            "SELECT 1;",
            "SELECT 1; -- x",
            "SELECT 1; SELECT 2",
            "SELECT 1;;",
            "SELECT 1; x",
            "/* x",
            "nonsense",
            "SELECT",
        ),
        *execute("SELECT 1\0", "SELECT '\ud800'", (1,), (b"SELECT 1",), (None,), "/* c */ -- d\n select 2", "SELECT 1 /* unfinished"),
        ("executescript", ("SELECT 1; SELECT 2",)),
        ("executescript", ("SELECT 1; nonsense",)),
        ("executescript", ("x\0",)),
        ("executescript", (b"SELECT 1",)),
        ("executescript", ("-- nothing",)),
        ("executescript", (";;SELECT 1;;",)),
    ],
    "counts": [
        *execute(TABLE),
        FILL,
        *execute(
            "SELECT id FROM t WHERE id < 3",
            "INSERT INTO t (a) VALUES ('x')",
            "INSERT INTO t (a) VALUES ('y') RETURNING id, a",
            "UPDATE t SET b = 2 WHERE id < 5",
            "UPDATE t SET b = 3 WHERE id < 5 RETURNING id",
            "WITH w AS (SELECT 1 AS i) UPDATE t SET b = 4 WHERE id IN (SELECT i FROM w)",
            "WITH w(i) AS (VALUES ('w1'), ('w2')) INSERT INTO t (a) SELECT i FROM w RETURNING a",
            "DELETE FROM t WHERE id > 38",
            "DELETE FROM t WHERE id > 100",
            "REPLACE INTO t (id, a) VALUES (1, 'r')",
            "INSERT OR IGNORE INTO t (a) VALUES ('r')",
            "INSERT INTO t (a) VALUES ('r') ON CONFLICT (a) DO UPDATE SET b = 9",
            "/* c */ INSERT INTO t (a) VALUES ('comment')",
            "-- c\nDELETE FROM t WHERE a = 'comment'",
            "PRAGMA user_version = 3",
            "PRAGMA user_version",
            "VALUES (1), (2)",
            "CREATE INDEX i ON t (b)",
            "DROP TABLE t",
            "SELECT 1 WHERE 0",
        ),
    ],
    "executemany": [
        *execute(TABLE),
        ("executemany", ("INSERT INTO t (a, b) VALUES (:a, :b)", [{"a": "1", "b": 1}, {"a": "2", "b": 2.5}])),
        ("executemany", ("INSERT INTO t (a, b) VALUES (?, ?)", [["3", 1], ("4", 1)])),
        ("executemany", ("INSERT INTO t (a) VALUES (?)", lambda: iter([("5",), ("6",)]))),
        ("executemany", ("SELECT ?", [(1,), (2,)])),
        ("executemany", ("WITH w AS (SELECT 1) SELECT ?", [(1,)])),
        ("executemany", ("WITH w AS (SELECT ? AS x) INSERT INTO t (a) SELECT x FROM w", [("9",), ("10",)])),
        ("executemany", ("UPDATE t SET b = ? WHERE id = ?", [(5, 1), (6, 2), (7, 99)])),
        ("executemany", ("INSERT INTO t (a) VALUES (?)", [("11",), ("3",), ("12",)])),
        *execute("SELECT a, b FROM t ORDER BY id"),
        ("con.rollback", ()),
        *execute("SELECT a FROM t"),
        ("executemany", ("INSERT INTO t (a) VALUES (?)", [("1",), ("2", "3"), ("4",)])),
        *execute("SELECT a FROM t"),
        ("executemany", ("INSERT INTO t (a) VALUES (?)", [])),
        ("executemany", ("INSERT INTO t (a) VALUES (?)", 5)),
        ("executemany", ("INSERT INTO t (a) VALUES (?)", [("big",), (2**70,)])),
        ("executemany", ("INSERT INTO t (a) VALUES (?)", ["s", "t"])),
        ("executemany", ("INSERT INTO t DEFAULT VALUES", [(), ()])),
        ("executemany", ("CREATE TABLE u (x)", [()])),
        ("executemany", ("PRAGMA user_version = 1", [()])),
        *execute("SELECT a FROM t ORDER BY id"),
    ],
    "constraints": [
        *execute("PRAGMA foreign_keys = ON", TABLE, "CREATE TABLE f (id INTEGER PRIMARY KEY REFERENCES t (id), x INTEGER)"),
        FILL,
        *execute(
            "INSERT INTO t (a) VALUES ('a1')",
            "INSERT INTO t (id) VALUES (1)",
            "INSERT INTO t (b) VALUES (NULL)",
            "INSERT INTO t (b) VALUES (100)",
            "INSERT INTO f VALUES (1000, 1)",
            "INSERT INTO f VALUES ('x', 1)",
            "INSERT INTO t (rowid) VALUES (2)",
            "CREATE TABLE w (k TEXT PRIMARY KEY) WITHOUT ROWID",
            "INSERT INTO w VALUES ('k')",
            "INSERT INTO w VALUES ('k')",
            "CREATE TABLE s (i INTEGER) STRICT",
            "INSERT INTO s VALUES ('text')",
            "CREATE TRIGGER no BEFORE DELETE ON t BEGIN SELECT RAISE(ABORT, 'UNIQUE constraint failed: not really'); END",
            "DELETE FROM t",
            "SELECT nothing FROM t",
            "SELECT * FROM nothing",
            "SELECT abs(-9223372036854775808)",
            "SELECT a, abs(CASE id WHEN 30 THEN -9223372036854775808 ELSE id END) FROM t ORDER BY id",
            "SELECT json('{')",
            "SELECT zeroblob(2000000000)",
            "BEGIN",
            "BEGIN",
            "COMMIT",
            "COMMIT",
            "ROLLBACK",
            "RELEASE nothing",
        ),
    ],
    "transactions": [
        *execute(TABLE),
        ("con.commit", ()),
        *execute(
            "INSERT INTO t (a) VALUES (1)", "SAVEPOINT s", "INSERT INTO t (a) VALUES (2)", "ROLLBACK TO s", "RELEASE s", "SELECT a FROM t"
        ),
        ("con.rollback", ()),
        *execute(
            "SELECT a FROM t",
            ("INSERT INTO t (a) VALUES (?)", (1, 2)),
            "BEGIN",
            "INSERT INTO t (a) VALUES (1)",
            "INSERT INTO t (a) VALUES (1)",
        ),
        ("con.commit", ()),
        ("executescript", ("INSERT INTO t (a) VALUES (5); INSERT INTO t (a) VALUES (6);",)),
        *execute("UPDATE t SET b = 7"),
        ("executescript", ("SELECT 1",)),
        *execute("INSERT OR ROLLBACK INTO t (a) VALUES (5)", "INSERT INTO t (a) VALUES (70)", "INSERT OR ROLLBACK INTO t (a) VALUES (5)"),
        ("con.commit", ()),
        ("con.close", ()),
        ("con.commit", ()),
        ("con.cursor", ()),
        ("con.close", ()),
    ],
}


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"isolation_level": None},
        {"isolation_level": "IMMEDIATE"},
        {"autocommit": True},
        {"autocommit": False},
        {"cached_statements": 0},
    ],
    ids=str,
)
def test_the_same_statements_do_the_same(name: str, options: dict[str, Any]):
    compare(SCRIPTS[name], **options)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.binary(max_size=40),
)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 5).flatmap(lambda width: st.lists(st.tuples(*[VALUES] * width), min_size=1, max_size=40)))
def test_any_rows_come_back_as_from_sqlite3(rows: list[tuple[Any, ...]]):
    found = []
    width = len(rows[0])
    for module in MODULES:
        connection = module.connect(":memory:")
        connection.execute(f"CREATE TABLE t ({', '.join(f'c{n}' for n in range(width))})")
        connection.executemany(f"INSERT INTO t VALUES ({', '.join('?' * width)})", rows)
        for row in rows[:3]:
            connection.execute(f"INSERT INTO t VALUES ({', '.join('?' * width)})", row)
        back = connection.execute("SELECT * FROM t").fetchall()
        one_by_one = list(connection.execute("SELECT * FROM t"))
        found.append(
            (
                repr(back),
                repr(one_by_one),
                connection.execute("SELECT c0, typeof(c0), hex(c0) FROM t WHERE typeof(c0) <> 'real'").fetchall(),
            )
        )
        connection.close()
    assert found[0] == found[1]


STATEMENTS = st.one_of(
    st.sampled_from(["commit", "rollback"]).map(lambda name: (f"con.{name}", ())),
    st.sampled_from(
        [
            "INSERT INTO t (a) VALUES ('x')",
            "INSERT INTO t (id, a) VALUES (3, 'three')",
            "UPDATE t SET b = b + 1 WHERE id % 2",
            "UPDATE t SET a = a || 'z' RETURNING a",
            "DELETE FROM t WHERE id = (SELECT max(id) FROM t)",
            "SELECT * FROM t ORDER BY id",
            "SELECT count(*), sum(b) FROM t",
            "BEGIN",
            "COMMIT",
            "ROLLBACK",
            "SAVEPOINT s",
            "RELEASE s",
            "ROLLBACK TO s",
            "INSERT OR REPLACE INTO t (id, a) VALUES (1, 'one')",
            "INSERT OR FAIL INTO t (a) SELECT a FROM t",
            "CREATE TABLE IF NOT EXISTS u (x)",
            "DROP TABLE IF EXISTS u",
            "INSERT INTO u VALUES (1)",
            "PRAGMA table_info(t)",
        ]
    ).map(lambda sql: ("execute", (sql,))),
    st.lists(st.integers(0, 30), max_size=5).map(
        lambda ids: ("executemany", ("INSERT INTO t (id, a) VALUES (?, ?)", [(n, str(n)) for n in ids]))
    ),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(STATEMENTS, max_size=25), st.sampled_from([{}, {"isolation_level": None}, {"autocommit": False}, {"autocommit": True}]))
def test_any_sequence_of_statements_does_the_same(steps: list[tuple[str, tuple[Any, ...]]], options: dict[str, Any]):
    compare([*execute(TABLE), *steps], **options)
