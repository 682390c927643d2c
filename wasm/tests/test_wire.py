"""What travels between Python and SQLite arrives as it was, for any values."""

import math
import sqlite3
from array import array
from typing import Any

import pytest
import sqljs_dbapi
from hypothesis import given, settings
from hypothesis import strategies as st
from sqljs_dbapi._engine import Engine

BOTH = pytest.mark.parametrize("module", [sqljs_dbapi, sqlite3], ids=["sqljs", "sqlite3"])
INTEGERS = st.integers(-(2**63), 2**63 - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
VALUES = st.one_of(st.none(), INTEGERS, st.floats(), TEXTS, st.binary(max_size=50))
ROWS = st.lists(st.sampled_from([INTEGERS, st.floats(), TEXTS, st.binary(), VALUES]), min_size=1, max_size=6).flatmap(
    lambda columns: st.lists(st.tuples(*[st.one_of(st.none(), column) for column in columns]), min_size=1, max_size=30)
)


def same(left: Any, right: Any) -> bool:
    """Equal, of one type, and NaN like NaN."""
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float) and isinstance(right, float):
        return math.copysign(1, left) == math.copysign(1, right) and (left == right or (math.isnan(left) and math.isnan(right)))
    return type(left) is type(right) and left == right


@settings(max_examples=150, deadline=None)
@given(ROWS)
def test_sqlite_holds_what_was_sent(rows: list[tuple[Any, ...]]):
    """One by one and many at once, there and back. SQLite has no NaN: it becomes NULL."""
    connection = sqljs_dbapi.connect(":memory:", isolation_level=None)
    width = len(rows[0])
    marks = ", ".join("?" * width)
    connection.execute(f"CREATE TABLE t ({', '.join(f'c{n}' for n in range(width))})")
    connection.executemany(f"INSERT INTO t VALUES ({marks})", rows)
    for row in rows:
        connection.execute(f"INSERT INTO t VALUES ({marks})", row)
    expected = [tuple(None if isinstance(value, float) and math.isnan(value) else value for value in row) for row in rows]
    assert same(connection.execute("SELECT * FROM t ORDER BY rowid").fetchall(), expected * 2)
    for number, row in enumerate(expected, 1):
        assert same(connection.execute("SELECT * FROM t WHERE rowid = ?", (number,)).fetchall(), [row])
    connection.close()


@pytest.mark.parametrize("size", [0, 1, 31, 32, 1 << 16, (1 << 18) - 40, 1 << 18, 1 << 20, 9_000_000])
@pytest.mark.parametrize("piece", ["x", "é", "\0", b"\0"], ids=ascii)
def test_buffers_grow_as_far_as_they_must(connection, piece, size: int):
    value = piece * size
    assert connection.execute("SELECT ?", (value,)).fetchone() == (value,)
    connection.execute("CREATE TABLE t (x)")
    connection.executemany("INSERT INTO t VALUES (?)", [(value,), (1,), (value,)])
    assert connection.execute("SELECT x FROM t").fetchall() == [(value,), (1,), (value,)]


EDGES = sorted(
    {sign * (1 << bits) + step for bits in (0, 14, 15, 30, 31, 32, 45, 52, 53, 60, 62, 63) for step in (-1, 0, 1) for sign in (-1, 1)}
)


def test_integers_at_every_edge(connection):
    """Where an integer needs another digit on its way, or a double no longer holds it."""
    connection.create_function("same", 1, lambda value: value)
    for value in EDGES:
        if -(2**63) <= value < 2**63:
            row = (value, str(value), value)
            assert connection.execute("SELECT :x, CAST(:x AS TEXT), same(:x)", {"x": value}).fetchone() == row
            assert connection.execute(f"SELECT {value}, '{value}', same({value})").fetchone() == row
        else:
            with pytest.raises(OverflowError, match="too large to convert to SQLite INTEGER"):
                connection.execute("SELECT ?", (value,))
    connection.execute("CREATE TABLE t (x INTEGER PRIMARY KEY)")
    for value in (2**63 - 1, 2**53 + 1, -(2**63), -1):
        assert connection.execute("INSERT INTO t VALUES (?)", (value,)).lastrowid == value


REFUSED = [
    (2**63, OverflowError, "too large to convert to SQLite INTEGER"),
    (-(2**63) - 1, OverflowError, "too large to convert to SQLite INTEGER"),
    (10**100, OverflowError, "too large to convert to SQLite INTEGER"),
    ("a\ud800z", UnicodeEncodeError, "position 1: surrogates not allowed"),
    ("\udfff" * 100, UnicodeEncodeError, "surrogates not allowed"),
    (memoryview(b"abcd")[::2], BufferError, "not C-contiguous"),
    (object(), sqlite3.ProgrammingError, "type 'object' is not supported"),
    ([1], sqlite3.ProgrammingError, "type 'list' is not supported"),
    ((1,), sqlite3.ProgrammingError, "type 'tuple' is not supported"),
    ({1}, sqlite3.ProgrammingError, "type 'set' is not supported"),
    (1j, sqlite3.ProgrammingError, "type 'complex' is not supported"),
    (..., sqlite3.ProgrammingError, "type 'ellipsis' is not supported"),
    (StopIteration, sqlite3.ProgrammingError, "type 'type' is not supported"),
]


@pytest.mark.parametrize(("value", "kind", "said"), REFUSED, ids=lambda value: ascii(value)[:20])
@BOTH
def test_what_does_not_travel_is_refused(module, value: Any, kind: type[Exception], said: str):
    """Also by executemany, which has then executed what came before it."""
    kind = getattr(module, kind.__name__, kind)
    connection = module.connect(":memory:")
    connection.execute("CREATE TABLE t (x)")
    with pytest.raises(kind, match=said):
        connection.execute("INSERT INTO t VALUES (?)", (value,))
    assert connection.execute("INSERT INTO t VALUES (?)", (0,)).rowcount == 1
    with pytest.raises(kind, match=said):
        connection.executemany("INSERT INTO t VALUES (?)", [(1,), ("b",), (value,), (3,)])
    assert connection.in_transaction
    assert connection.execute("SELECT x FROM t").fetchall() == [(0,), (1,), ("b",)]
    connection.close()


class Bytes(bytes):
    """Bytes that are bound as something else."""

    def __conform__(self, protocol: type) -> str:
        return f"{len(self)} bytes"


@BOTH
def test_buffers_of_every_type(module):
    """What has an adapter is not taken for the bytes that it holds as well."""
    connection = module.connect(":memory:")
    numbers = array("h", [1, -2])
    assert connection.execute("SELECT ?, ?, ?, ?", (bytearray(b"a\0b"), memoryview(b"cd"), numbers, Bytes(b"abc"))).fetchone() == (
        b"a\0b",
        b"cd",
        numbers.tobytes(),
        "3 bytes",
    )
    connection.execute("CREATE TABLE t (x)")
    connection.executemany("INSERT INTO t VALUES (?)", [[bytearray(b"a")], [numbers], [Bytes(b"abc")], [True]])
    assert connection.execute("SELECT x FROM t").fetchall() == [(b"a",), (numbers.tobytes(),), ("3 bytes",), (1,)]
    connection.close()


PIECES = st.one_of(
    TEXTS.map(str.encode),
    st.binary(max_size=4),
    st.sampled_from(["\ud800", "\udfff", "\ud7ff", "\ue000", "\U0010ffff"]).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.sampled_from(
        [b"\xc1\xbf", b"\xc2\x80", b"\xe0\x9f\xbf", b"\xe0\xa0\x80", b"\xf0\x8f\xbf\xbf", b"\xf0\x90\x80\x80", b"\xf4\x90\x80\x80"]
    ),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=6).map(b"".join))
def test_a_text_is_what_python_decodes(data: bytes):
    """SQLite holds any bytes as a text; those that are not UTF-8 are an error when their row is fetched, and no other row's."""
    connection = sqljs_dbapi.connect(":memory:")
    connection.create_function("same", 1, lambda value: value)
    cursor = connection.execute("SELECT 'é' UNION ALL SELECT CAST(? AS TEXT) UNION ALL SELECT x'ff'", (data,))
    assert cursor.fetchone() == ("é",)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        with pytest.raises(sqljs_dbapi.OperationalError, match="Could not decode to UTF-8"):
            cursor.fetchone()
        with pytest.raises(sqljs_dbapi.OperationalError, match="user-defined function raised exception"):
            connection.execute("SELECT same(CAST(? AS TEXT))", (data,))
    else:
        assert cursor.fetchone() == (text,)
        assert cursor.fetchone() == (b"\xff",)
        assert connection.execute("SELECT same(CAST(? AS TEXT))", (data,)).fetchone() == (text,)
    connection.text_factory = bytes
    assert connection.execute("SELECT CAST(? AS TEXT), 'x', ?", (data, data)).fetchone() == (data, b"x", data)
    connection.close()


@BOTH
@pytest.mark.parametrize("place", [1, 2, 15, 16, 17, 79, 80, 81, 100])
def test_one_text_of_many_rows_is_not_utf8(module, place: int):
    """Wherever the row lies among those read by one call, it alone is an error, and the others are what they are."""
    connection = module.connect(":memory:")
    query = """
        WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 100)
        SELECT i, CASE i WHEN ? THEN CAST(x'61ff' AS TEXT) ELSE 'é' || i END, x'ff' FROM n"""
    cursor = connection.execute(query, (place,))
    assert [cursor.fetchone() for _ in range(place - 1)] == [(n, f"é{n}", b"\xff") for n in range(1, place)]
    with pytest.raises(module.OperationalError, match="Could not decode to UTF-8"):
        cursor.fetchone()
    with pytest.raises(module.OperationalError, match="Could not decode to UTF-8"):
        connection.execute(query, (place,)).fetchall()
    connection.text_factory = lambda data: data.decode(errors="replace")
    expected = [(n, "a\ufffd" if n == place else f"é{n}", b"\xff") for n in range(1, 101)]
    assert connection.execute(query, (place,)).fetchall() == expected
    assert list(connection.execute(query, (place,))) == expected
    connection.close()


READ = [
    "SELECT i, i || '', i, r, r || '', r, t, t + 0, t FROM v",  # a number has its text as well
    "SELECT i, r, t, b, n FROM v ORDER BY i DESC",
    "SELECT typeof(r), r, r * 2, CAST(r AS INTEGER), CAST(i AS REAL), CAST(i AS TEXT), CAST(t AS BLOB), CAST(b AS TEXT) FROM v",
    "SELECT zeroblob(3), zeroblob(0), b || zeroblob(2), x'', '' FROM v",
    "SELECT sum(i), total(i), avg(r), max(t), min(b), group_concat(t), count(n), 9e999, -9e999, 9e999 - 9e999 FROM v",
    "SELECT substr(t, 2), upper(t), t || char(0) || t, length(t), replace(t, 'e', ''), printf('%s %d', t, i) FROM v GROUP BY r",
    "SELECT json_array(i, r, t), json_extract('[1, 2.5, \"ä\", null]', '$[0]', '$[1]', '$[2]') FROM v",
    "SELECT a.t, b.t FROM v AS a LEFT JOIN v AS b ON b.i = a.i + 1 ORDER BY 1, 2",
    "INSERT INTO v SELECT * FROM v RETURNING i, t, b, n",
    "UPDATE v SET i = i - 1, t = t || 'é' RETURNING i, t, b",
]


@pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16le", "UTF-16be"])
def test_values_are_read_as_sqlite3_reads_them(encoding: str):
    """Whatever SQLite keeps beside a value, and however."""
    results = []
    for module in (sqljs_dbapi, sqlite3):
        connection = module.connect(":memory:")
        connection.execute(f"PRAGMA encoding = '{encoding}'")
        connection.execute("CREATE TABLE v (i INTEGER, r REAL, t TEXT, b BLOB, n)")
        rows = [
            (1, 2, "een € \U0001f600", b"\0\1", None),
            (2**53 + 1, 1e300, "", b"", 0),
            (-(2**63), -0.0, "7", b"7", "x" * 300),
            (None, None, None, None, 2.5),
            (-7, 3, "12.50", memoryview(b"abc"), b"n"),
        ]
        connection.executemany("INSERT INTO v VALUES (?, ?, ?, ?, ?)", rows)
        assert connection.execute("PRAGMA encoding").fetchone() == (encoding,)
        results.append([connection.execute(query).fetchall() for query in READ])
        connection.close()
    for query, ours, theirs in zip(READ, *results, strict=True):
        assert same(ours, theirs), query


@BOTH
def test_a_statement_follows_the_schema(module):
    """SQLite prepares a statement that is kept anew when a table is another: it then has other columns, or the same under other names."""
    connection = module.connect(":memory:", isolation_level=None)
    connection.execute("CREATE TABLE t (a INTEGER, b TEXT)")
    connection.execute("INSERT INTO t VALUES (1, 'two')")
    tables = [
        "(a INTEGER, b TEXT)",
        "(a)",
        "(a, b, c, d, e)",
        f"({', '.join(f'c{number}' for number in range(60))})",
        "(only)",
        "(x REAL, y BLOB)",
        "(y, x)",
    ]
    for number, table in enumerate(tables):
        connection.execute("DROP TABLE t")
        connection.execute(f"CREATE TABLE t {table}")
        count = connection.execute("SELECT count(*) FROM pragma_table_info('t')").fetchone()[0]
        row = tuple(f"{number} {column}" for column in range(count)) if "INTEGER" not in table else (1, "two")
        for _ in range(3):
            connection.execute(f"INSERT INTO t VALUES ({', '.join('?' * count)})", row)
        for query in ("SELECT * FROM t WHERE ?1", "SELECT * FROM t", "UPDATE t SET rowid = rowid + 10 RETURNING *"):
            cursor = connection.execute(query, (1,) if "?" in query else ())
            names = [name for (name,) in connection.execute("SELECT name FROM pragma_table_info('t')").fetchall()]
            assert [column[0] for column in cursor.description] == names
            assert cursor.fetchall() == [row] * 3
    connection.execute("ALTER TABLE t RENAME COLUMN y TO z")
    assert connection.execute("SELECT * FROM t").description[0][0] == "z"
    connection.execute("ALTER TABLE t ADD COLUMN more DEFAULT 7")
    assert connection.execute("SELECT * FROM t").fetchone() == ("6 0", "6 1", 7)
    connection.execute("ALTER TABLE t DROP COLUMN z")
    assert connection.execute("SELECT * FROM t").fetchone() == ("6 1", 7)
    connection.close()


def test_what_javascript_throws_is_an_error_of_ours(connection, loaded: Engine):
    statement = connection("SELECT ?")
    for arguments in ((1, b"", 1), (), (1,), (statement.pointer, b"", 1, 1)):
        with pytest.raises(sqljs_dbapi.OperationalError):
            loaded.run(*arguments)
    for wrong in ((None, b"", 1), (statement.pointer, None, 1), (statement.pointer, "text", 1), (statement.pointer, b"", "1")):
        with pytest.raises(TypeError):
            loaded.run(*wrong)
    with pytest.raises(sqljs_dbapi.OperationalError, match=r"run\(\) takes 3 arguments, not 1"):
        loaded.run(1)  # type: ignore[call-arg]
    assert connection.execute("SELECT ?", (5,)).fetchone() == (5,)


@pytest.mark.parametrize("many", [False, True])
def test_what_is_raised_on_the_way_into_a_function_is_not_an_error_of_sqlite_s(connection, loaded: Engine, many: bool):
    """As by an interrupt, which Python looks for wherever a function begins. The statement has not happened, and can be run again."""
    connection.execute("CREATE TABLE t (x)")
    connection.create_function("f", 1, lambda value: value)
    found = loaded.callbacks.calls.copy()
    statement = "INSERT INTO t VALUES (f(?))"
    run = connection.executemany if many else connection.execute
    given: Any = [(1,), (2,)] if many else (1,)

    class Interrupting(dict[Any, Any]):
        def __getitem__(self, key: Any) -> Any:
            raise KeyboardInterrupt

    loaded.callbacks.calls = Interrupting(found)
    try:
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                run(statement, given)
    finally:
        loaded.callbacks.calls = found
    connection.rollback()
    run(statement, given)
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (2 if many else 1,)


def test_a_watcher_of_commits_may_run_statements(connection, loaded: Engine):
    """While the answer of the statement that has committed is being written."""
    from pyodide.ffi import create_proxy

    js = loaded.js
    path = js.createFile(None)
    one, two = sqljs_dbapi.Connection._of_file(path), sqljs_dbapi.connect(":memory:")
    one.execute("CREATE TABLE t (x)")
    seen = []
    watcher = create_proxy(lambda: seen.append(two.execute("SELECT 'a', 'b', 'c' UNION ALL VALUES (1, 2, 3)").fetchall()))
    end = js.onCommit(path, watcher)
    assert one.execute("INSERT INTO t VALUES (1), (2) RETURNING x").fetchall() == [(1,), (2,)]
    assert seen == [[("a", "b", "c"), (1, 2, 3)]]
    end()
    watcher.destroy()
    one.close()
    two.close()
    js.removeFile(path)


def test_a_heap_that_grows_between_calls_is_found_again(connection, loaded: Engine):
    """Python's heap and SQLite's grow, and every view of them dies."""
    connection.execute("CREATE TABLE t (x)")
    kept = []
    for size in (1_000_000, 30_000_000, 60_000_000):
        kept.append(bytearray(size))  # Python's heap
        connection.execute("SELECT length(zeroblob(?))", (size,)).fetchone()
        connection.execute("INSERT INTO t VALUES (zeroblob(?))", (size // 10,))
        connection.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(3)])
        assert connection.execute("SELECT x FROM t WHERE typeof(x) = 'integer' ORDER BY rowid DESC LIMIT 3").fetchall() == [
            (2,),
            (1,),
            (0,),
        ]
    assert len(kept) == 3
