"""What the driver does beside executing statements, compared with sqlite3 wherever that can do it too."""

import datetime
import sqlite3
import sys
import warnings
from typing import Any

import pytest
import sqljs_dbapi
from sqljs_dbapi import Connection
from sqljs_dbapi._engine import engine
from sqljs_dbapi.sql import complete_statement

BOTH = pytest.mark.parametrize("module", [sqljs_dbapi, sqlite3], ids=["sqljs", "sqlite3"])


def shared(name: str, **options: Any) -> Connection:
    """A connection to a database in memory that other connections share."""
    return sqljs_dbapi.connect(f"file:{name}?mode=memory&cache=shared", uri=True, **options)


# --- values and rows -----------------------------------------------------------------------------------------------------


@BOTH
def test_rows_by_name(module):
    with_ = module.connect(":memory:")
    with_.row_factory = module.Row
    row = with_.execute("SELECT 1 AS a, 'x' AS B").fetchone()
    assert (row["A"], row["b"], row[0], row[-1], row[0:1], list(row), len(row), row.keys()) == (
        1,
        "x",
        1,
        "x",
        (1,),
        [1, "x"],
        2,
        ["a", "B"],
    )
    assert tuple(row) == (1, "x")
    assert row == with_.execute("SELECT 1 AS a, 'x' AS B").fetchone() != with_.execute("SELECT 2 AS a, 'x' AS B").fetchone()
    assert hash(row) == hash(with_.execute("SELECT 1 AS a, 'x' AS B").fetchone())
    for key in ("c", 2, 1.0):
        with pytest.raises(IndexError):
            row[key]
    cursor = with_.execute("SELECT 1")
    with pytest.raises(TypeError):
        module.Row(cursor, [1])
    with_.close()


@BOTH
def test_factories(module):
    with_ = module.connect(":memory:")
    with_.text_factory = bytes
    assert with_.execute("SELECT 'é', x'00'").fetchone() == ("é".encode(), b"\0")
    with_.text_factory = lambda data: data.decode("latin-1")
    assert with_.execute("SELECT 'é'").fetchall() == [("Ã©",)]
    with_.text_factory = str
    cursor = with_.execute("SELECT CAST(x'ff41' AS TEXT) AS bad UNION ALL SELECT 'good'")
    for _ in range(2):
        with pytest.raises(module.OperationalError, match="Could not decode to UTF-8 column 'bad' with text"):
            cursor.fetchone()
    with_.text_factory = bytes
    assert cursor.fetchall() == [(b"\xff\x41",), (b"good",)]
    with_.text_factory = str
    with_.row_factory = lambda cursor, row: {column[0]: value for column, value in zip(cursor.description, row, strict=True)}
    assert with_.execute("SELECT 1 AS x UNION SELECT 2").fetchall() == [{"x": 1}, {"x": 2}]
    with_.close()


@BOTH
def test_adapters_and_converters(module):
    class Point:
        def __init__(self, x, y):
            self.x, self.y = x, y

        def __eq__(self, other):
            return (self.x, self.y) == (other.x, other.y)

        __hash__ = None

    module.register_adapter(Point, lambda point: f"{point.x};{point.y}")
    module.register_converter("point", lambda data: Point(*map(int, data.split(b";"))))
    with_ = module.connect(":memory:", detect_types=module.PARSE_DECLTYPES | module.PARSE_COLNAMES)
    with_.execute("CREATE TABLE t (p POINT (2), n NUMBER, d DATE, s TIMESTAMP)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        day, moment = datetime.date(2024, 2, 29), datetime.datetime(2024, 2, 29, 12, 30, 1, 250)  # noqa: DTZ001
        with_.execute("INSERT INTO t VALUES (?, 5, ?, ?)", (Point(1, 2), day, moment))
        with_.executemany("INSERT INTO t VALUES (?, 5, ?, ?)", [(Point(3, 4), day, moment), (None, None, None)])
        assert with_.execute("SELECT * FROM t").fetchall() == [
            (Point(1, 2), 5, day, moment),
            (Point(3, 4), 5, day, moment),
            (None, 5, None, None),
        ]
        assert with_.execute("SELECT n + 1, '7;8' AS \"x [point]\", p || '' FROM t").fetchone() == (6, Point(7, 8), "1;2")
        assert with_.execute('SELECT 1 AS "x [nothing]"').description[0][0] == "x"
    with pytest.warns(DeprecationWarning, match="default date adapter"):
        with_.execute("SELECT ?", (day,))
    with_.close()


# --- transactions and connections ------------------------------------------------------------------------------------------


def test_connections_share_a_database_in_memory():
    one, two = shared("a"), shared("a")
    one.execute("CREATE TABLE t (x)")
    one.execute("INSERT INTO t VALUES (1)")
    assert two.execute("SELECT count(*) FROM t").fetchone() == (0,)
    with pytest.raises(sqljs_dbapi.OperationalError, match="locked") as caught:
        two.execute("INSERT INTO t VALUES (2)")
    assert caught.value.sqlite_errorname == "SQLITE_BUSY"
    one.commit()
    assert two.execute("SELECT x FROM t").fetchall() == [(1,)]
    other = shared("b")
    with pytest.raises(sqljs_dbapi.OperationalError, match="no such table"):
        other.execute("SELECT x FROM t")
    for connection in (one, two, other):
        connection.close()
    again = shared("a")
    assert again.execute("SELECT name FROM sqlite_master").fetchall() == []
    again.close()


def test_a_small_result_leaves_no_lock():
    reader, writer = shared("lock"), shared("lock")
    writer.execute("CREATE TABLE t (x)")
    writer.execute("INSERT INTO t VALUES (1), (2)")
    writer.commit()
    cursor = reader.execute("SELECT x FROM t")
    assert cursor.fetchone() == (1,)
    writer.execute("INSERT INTO t VALUES (3)")
    writer.commit()
    assert cursor.fetchall() == [(2,)]
    cursor = reader.execute("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000) SELECT i FROM n, t")
    writer.execute("INSERT INTO t VALUES (4)")
    with pytest.raises(sqljs_dbapi.OperationalError, match="locked"):
        writer.commit()
    del cursor
    writer.commit()
    reader.close()
    writer.close()


@BOTH
def test_context_manager(module):
    with_ = module.connect(":memory:")
    with with_:
        with_.execute("CREATE TABLE t (x UNIQUE)")
        with_.execute("INSERT INTO t VALUES (1)")
    with pytest.raises(module.IntegrityError), with_:
        with_.execute("INSERT INTO t VALUES (2)")
        with_.execute("INSERT INTO t VALUES (1)")
    assert with_.execute("SELECT x FROM t").fetchall() == [(1,)]
    with_.close()


@BOTH
def test_attributes_of_transactions(module):
    with_ = module.connect(":memory:")
    for wrong, error in (("nonsense", ValueError), (1, TypeError)):
        with pytest.raises(error):
            with_.isolation_level = wrong
    with_.execute("CREATE TABLE t (x)")
    with_.execute("INSERT INTO t VALUES (1)")
    with_.isolation_level = None
    assert not with_.in_transaction
    with_.autocommit = False
    assert with_.in_transaction
    with_.autocommit = True
    assert not with_.in_transaction
    with pytest.raises(ValueError, match="autocommit must be True, False, or"):
        with_.autocommit = 5
    with_.close()


def test_reading_an_endless_result(connection):
    cursor = connection.execute("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n")
    assert [cursor.fetchone()[0] for _ in range(20_000)] == list(range(1, 20_001))
    assert cursor.fetchmany(3) == [(20_001,), (20_002,), (20_003,)]


def test_statements_are_kept_and_given_up(loaded):
    with_ = sqljs_dbapi.connect(":memory:", cached_statements=3)
    with_.execute("CREATE TABLE t (x)")
    for n in range(20):
        with_.execute(f"SELECT {n}").fetchall()
    assert len(with_._idle) <= 3
    first, second = with_.execute("SELECT 1 FROM sqlite_master"), with_.execute("SELECT 1 FROM sqlite_master")
    assert first.fetchall() == second.fetchall() == [(1,)]
    with_.execute("DROP TABLE t")
    with_.close()


@BOTH
def test_a_cursor_is_not_used_while_it_runs(module):
    with_ = module.connect(":memory:")
    cursor = with_.cursor()
    seen = []

    def again():
        try:
            cursor.execute("SELECT 1")
        except module.ProgrammingError as error:
            seen.append(str(error))

    with_.create_function("again", 0, again)
    cursor.execute("SELECT again()")
    assert seen == ["Recursive use of cursors not allowed."]
    with_.close()


# --- functions -------------------------------------------------------------------------------------------------------------


@BOTH
def test_functions(module):
    with_ = module.connect(":memory:")
    with_.create_function("same", -1, lambda *values: values[0] if values else None)
    for value in (None, 1, -(2**63), 2**63 - 1, 1.0, 1e300, "é\0x", b"\0\xff", "", b""):
        assert with_.execute("SELECT same(?, 'more')", (value,)).fetchone() == (value,)
    assert with_.execute("SELECT typeof(same(1.0)), typeof(same(1)), same()").fetchone() == ("real", "integer", None)
    with_.create_function("wrong", 1, lambda kind: {"type": object(), "big": 2**70}.get(kind) if kind != "raise" else 1 / 0)
    for kind in ("type", "raise"):
        with pytest.raises(module.OperationalError, match="user-defined function raised exception"):
            with_.execute("SELECT wrong(?)", (kind,))
    with pytest.raises(module.DataError, match="string or blob too big"):
        with_.execute("SELECT wrong('big')")
    with_.create_function("twice", 1, lambda n: with_.execute("SELECT ? * 2, 'x' || ?", (n, "y" * 100)).fetchone()[0])
    with_.execute("CREATE TABLE t (x, y)")
    with_.executemany("INSERT INTO t VALUES (?, twice(?))", [(n, n) for n in range(100)])
    assert with_.execute("SELECT x, y, twice(x) FROM t").fetchall() == [(n, 2 * n, 2 * n) for n in range(100)]
    with_.create_function("same", -1, None)
    with pytest.raises(module.OperationalError):
        with_.execute("SELECT same(1)")
    with_.create_function("same", 1, lambda _: 5, deterministic=True)
    with_.execute("CREATE INDEX i ON t (same(x))")
    with_.close()


class Longest:
    """An aggregate."""

    def __init__(self):
        self.found = ""

    def step(self, value):
        if value == "bad":
            raise ValueError(value)
        self.found = max(self.found, value, key=len)

    def finalize(self):
        return self.found


class Unmade:
    """An aggregate that cannot be made."""

    def __init__(self):
        raise ValueError


def test_what_a_function_was_is_let_go_when_it_is_replaced_removed_or_its_connection_closed():
    calls = engine().callbacks.calls
    before = len(calls)
    with_ = sqljs_dbapi.connect(":memory:")
    for _ in range(3):
        with_.create_function("f", 1, lambda value: value)
    with_.create_function("F", 2, lambda value, _: value)
    with_.create_aggregate("total", 1, type("Total", (), {"step": lambda self, value: None, "finalize": lambda self: 7}))
    assert len(calls) == before + 4
    with_.create_function("f", 2, None)
    assert len(calls) == before + 3
    assert with_.execute("SELECT f(1), total(1)").fetchone() == (1, 7)
    with_.close()
    assert len(calls) == before


@BOTH
def test_aggregates(module):
    with_ = module.connect(":memory:")
    with_.create_aggregate("longest", 1, Longest)
    with_.create_aggregate("unmade", 1, Unmade)
    query = "WITH t(k, x) AS (VALUES (1, 'a'), (1, 'aaa'), (2, 'bb'), (2, 'b')) SELECT k, longest(x) FROM t GROUP BY k"
    assert with_.execute(query).fetchall() == [(1, "aaa"), (2, "bb")]
    assert with_.execute("SELECT longest(1) WHERE 0").fetchall() == [(None,)]
    assert with_.execute("SELECT longest(x), longest(y) FROM (SELECT 'a' x, 'bb' y)").fetchall() == [("a", "bb")]
    with pytest.raises(module.OperationalError, match="user-defined aggregate's 'step' method raised error"):
        with_.execute("SELECT longest('bad')").fetchall()
    with pytest.raises(module.OperationalError, match="user-defined aggregate's '__init__' method raised error"):
        with_.execute("SELECT unmade(1)").fetchall()
    assert with_.execute("SELECT longest('ok')").fetchone() == ("ok",)
    with_.close()


def test_tracebacks_of_functions(connection, monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    connection.create_function("wrong", 0, lambda: 1 / 0)
    sqljs_dbapi.enable_callback_tracebacks(True)
    try:
        with pytest.raises(sqljs_dbapi.OperationalError):
            connection.execute("SELECT wrong()")
    finally:
        sqljs_dbapi.enable_callback_tracebacks(False)
    assert [type(one.exc_value) for one in seen] == [ZeroDivisionError]


def test_interrupt(connection):
    connection.create_function("stop", 0, connection.interrupt)
    with pytest.raises(sqljs_dbapi.OperationalError, match="interrupted") as caught:
        connection.execute("SELECT stop()")
    assert caught.value.sqlite_errorname == "SQLITE_INTERRUPT"
    connection.interrupt()
    assert connection.execute("SELECT 1").fetchone() == (1,)
    other = sqljs_dbapi.connect(":memory:")
    other.create_function("harmless", 0, lambda: 1)
    connection.create_function("stop_other", 0, other.interrupt)
    connection.execute("SELECT stop_other()")
    assert other.execute("SELECT harmless()").fetchone() == (1,)
    other.close()


def test_large_rows_are_not_all_read_ahead(connection):
    """Sixteen rows of 30 MB each would not fit."""
    cursor = connection.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 12) SELECT i, zeroblob(30000000) FROM n"
    )
    assert len(cursor._rows) == 2
    assert [(number, len(blob)) for number, blob in cursor] == [(number, 30_000_000) for number in range(1, 13)]


@BOTH
def test_trace(module):
    with_ = module.connect(":memory:")
    seen = []
    with_.set_trace_callback(seen.append)
    with_.execute("CREATE TABLE t (a, b)")
    with_.execute("INSERT INTO t VALUES (?2, ?1)", ("it's", b"\x0f"))
    with_.execute("SELECT :a, '?' AS x", {"a": None})
    with_.commit()
    with_.set_trace_callback(None)
    with_.execute("SELECT 1")
    assert seen == ["CREATE TABLE t (a, b)", "BEGIN ", "INSERT INTO t VALUES (x'0f', 'it''s')", "SELECT NULL, '?' AS x", "COMMIT"]
    with_.close()


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.create_window_function("f", 1, Longest),
        lambda c: c.create_collation("c", lambda a, b: 0),
        lambda c: c.set_authorizer(lambda *_: 0),
        lambda c: c.set_progress_handler(lambda: 0, 100),
        lambda c: c.enable_load_extension(True),
        lambda c: c.load_extension("x"),
        lambda c: c.getlimit(0),
        lambda c: c.getconfig(0),
    ],
    ids=str,
)
def test_what_sqljs_cannot_do_is_said(connection, call):
    with pytest.raises(sqljs_dbapi.NotSupportedError, match=r"sql\.js does not export sqlite3_"):
        call(connection)


# --- copies ----------------------------------------------------------------------------------------------------------------

SCHEMA = """
CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, a TEXT, b REAL, c BLOB);
INSERT INTO t (a, b, c) VALUES ('it''s', 1.5, x'00ff'), (NULL, 0.1, zeroblob(3)), ('é', 1e300, NULL);
CREATE TABLE "with ""quotes" (x);
INSERT INTO "with ""quotes" VALUES (9223372036854775807);
CREATE INDEX i ON t (a);
CREATE VIEW v AS SELECT a FROM t;
CREATE TRIGGER g AFTER DELETE ON t BEGIN SELECT 1; END;
PRAGMA user_version = 7;
"""


@pytest.mark.parametrize("filter_", [None, "t%", "nothing"])
def test_iterdump(filter_):
    dumps = []
    for module in (sqljs_dbapi, sqlite3):
        with_ = module.connect(":memory:")
        with_.executescript(SCHEMA)
        dumps.append([line.replace("1.0e+300", "1e+300") for line in with_.iterdump(filter=filter_)])
        with_.close()
    assert dumps[0] == dumps[1]


def test_a_dump_makes_the_database_again(connection):
    connection.executescript(SCHEMA)
    again = sqljs_dbapi.connect(":memory:")
    again.executescript("\n".join(connection.iterdump()))
    assert list(again.iterdump()) == list(connection.iterdump())
    again.close()


def test_backup_serialize_deserialize(connection):
    connection.executescript(SCHEMA)
    connection.executemany("INSERT INTO t (c) VALUES (zeroblob(?))", [(1000,)] * 500)
    with pytest.raises(sqljs_dbapi.OperationalError, match="locked"):
        connection.serialize()
    connection.commit()
    target = sqljs_dbapi.connect(":memory:")
    steps = []
    connection.backup(target, pages=50, progress=lambda *step: steps.append(step))
    assert list(target.iterdump()) == list(connection.iterdump())
    assert len(steps) > 2
    assert steps[-1][0] == sqljs_dbapi.SQLITE_DONE
    assert steps[-1][1] == 0
    image = connection.serialize()
    native = sqlite3.connect(":memory:")
    native.deserialize(image)
    assert native.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert native.execute("SELECT count(*) FROM t").fetchone() == (503,)
    back = sqljs_dbapi.connect(":memory:")
    back.deserialize(native.serialize())
    assert list(back.iterdump()) == list(connection.iterdump())
    with pytest.raises(sqljs_dbapi.DatabaseError):
        back.deserialize(b"not a database" * 1000)
    for one in (target, native, back):
        one.close()


@BOTH
def test_blobs(module):
    with_ = module.connect(":memory:")
    with_.execute("CREATE TABLE t (b)")
    with_.execute("INSERT INTO t VALUES (?)", (b"0123456789",))
    with with_.blobopen("t", "b", 1) as blob:
        assert (len(blob), blob.read(3), blob.tell(), blob.read()) == (10, b"012", 3, b"3456789")
        blob.seek(-2, 2)
        blob.write(b"XY")
        blob[0] = ord("A")
        blob[1:5:2] = b"BC"
        assert (blob[0], blob[-1], blob[1:4], blob[::3]) == (ord("A"), ord("Y"), b"B2C", b"AC6Y")
        with pytest.raises(ValueError, match="data longer than blob length"):
            blob.write(b"1")
        with pytest.raises(IndexError):
            blob[10]
    assert with_.execute("SELECT b FROM t").fetchone() == (b"AB2C4567XY",)
    with pytest.raises(module.OperationalError, match="no such rowid"):
        with_.blobopen("t", "b", 2)
    with pytest.raises(module.OperationalError), with_.blobopen("t", "b", 1, readonly=True) as blob:
        blob[0] = 1
    with_.close()


# --- the engine below --------------------------------------------------------------------------------------------------------


def test_files_of_the_engine():
    js = engine().js
    path = js.createFile(None)
    one, two = Connection._of_file(path), Connection._of_file(path)
    seen = []
    from pyodide.ffi import create_proxy

    proxy = create_proxy(lambda: seen.append(one.in_transaction))
    stop = js.onCommit(path, proxy)
    one.execute("CREATE TABLE t (x)")
    assert len(seen) == 1
    one.execute("BEGIN")
    one.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(100)])
    assert js.inWriteTransaction(path)
    with pytest.raises(Exception, match="busy"):
        js.exportFile(path)
    assert len(seen) == 1
    one.execute("COMMIT")
    assert seen == [False, False]
    for quiet in (
        "BEGIN",
        "COMMIT",
        "SELECT x FROM t",
        "PRAGMA user_version",
        "UPDATE t SET x = 1 WHERE 0",
        "BEGIN",
        "DELETE FROM t",
        "ROLLBACK",
    ):
        list(two.execute(quiet))
    assert len(seen) == 2
    loud = (
        "UPDATE t SET x = x + 1",
        "PRAGMA user_version = 3",
        "INSERT INTO t VALUES (1) RETURNING x",
        "VACUUM",
        "WITH w AS (SELECT 1) DELETE FROM t WHERE x = 1",
    )
    for number, statement in enumerate(loud, 3):
        list(two.execute(statement))
        assert len(seen) == number, statement
    assert not js.inWriteTransaction(path)
    image = js.exportFile(path).to_bytes()
    assert len(image) == js.fileSize(path)
    assert js.connectionCount(path) == 2
    stop()
    proxy.destroy()
    two.execute("DROP TABLE t")
    assert len(seen) == 2 + len(loud)
    from pyodide.ffi import to_js

    js.replaceFile(path, to_js(image))
    assert one.execute("SELECT count(*) FROM t").fetchone()[0] > 90
    one.close()
    two.close()
    js.removeFile(path)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT 1;",
        "SELECT 1",
        "",
        ";",
        "SELECT ';",
        "SELECT ';';",
        "-- x;",
        "SELECT 1; -- x",
        "/* ; */",
        "/* ;",
        "SELECT 1; /* x",
        'SELECT "x;',
        "SELECT [x;];",
        "CREATE TRIGGER t AFTER INSERT ON x BEGIN SELECT 1;",
        "CREATE TEMP TRIGGER t AFTER INSERT ON x BEGIN SELECT 1; END;",
        "EXPLAIN CREATE TRIGGER t BEGIN SELECT 1; END; ",
        "CREATE TABLE trigger (x);",
    ],
)
def test_complete_statement(statement):
    assert complete_statement(statement) == sqlite3.complete_statement(statement)


def test_everything_sqlite3_has_is_here_or_left_out_on_purpose():
    """Constants for what sql.js does not export, and what sqlite3 deprecates."""
    missing = {name for name in vars(sqlite3) if not name.startswith("_") and not hasattr(sqljs_dbapi, name)}
    left = {name for name in missing if not name.startswith(("SQLITE_LIMIT_", "SQLITE_DBCONFIG_", "SQLITE_DENY", "SQLITE_IGNORE"))}
    actions = {name for name in left if name.startswith("SQLITE_")}
    assert all(getattr(sqlite3, name) <= 33 for name in actions), actions
    assert left - actions <= {"dbapi2", "sqlite3", "collections", "datetime", "time", "adapters", "converters", "version", "version_info"}
    assert {name for name in vars(sqlite3.Connection) if not name.startswith("_") and not hasattr(Connection, name)} <= {
        "row_factory",
        "text_factory",
    }
    assert {name for name in vars(sqlite3.Cursor) if not name.startswith("_") and not hasattr(sqljs_dbapi.Cursor, name)} <= {"connection"}
