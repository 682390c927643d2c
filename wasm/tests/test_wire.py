"""The codec: what one side writes the other reads, for any values, and both sides are the same code's two ends."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqljs_dbapi._engine import Engine
from sqljs_dbapi.wire import Buffers, decode_columns, decode_rows, encode_columns, encode_row

INTEGERS = st.integers(-(2**63), 2**63 - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
VALUES = st.one_of(st.none(), INTEGERS, st.floats(), TEXTS, st.binary(max_size=50))
COLUMNS = st.sampled_from([INTEGERS, st.floats(), TEXTS, st.binary(), st.none(), st.just("a\0b"), VALUES]).map(
    lambda values: st.one_of(values, st.none()) if values is not VALUES else values
)
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


@pytest.fixture
def buffers() -> Buffers:
    """Two buffers that nobody else looks at."""
    return Buffers(lambda to_engine, to_python: None)


@settings(max_examples=200, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=12))
def test_a_row_comes_back(values: list[Any]):
    buffers = Buffers(lambda to_engine, to_python: None)
    encode_row(tuple(values), buffers)
    assert same(decode_rows(buffers.to_engine, 0, 1, len(values), None), [tuple(values)])


@settings(max_examples=200, deadline=None)
@given(ROWS)
def test_columns_come_back(rows: list[tuple[Any, ...]]):
    buffers = Buffers(lambda to_engine, to_python: None)
    size = encode_columns(rows, buffers)
    assert same(decode_columns(buffers.to_engine[:size], 0, len(rows), len(rows[0]), None), rows)


@settings(max_examples=150, deadline=None)
@given(ROWS)
def test_sqlite_holds_what_was_sent(rows: list[tuple[Any, ...]]):
    """Through JavaScript and SQLite, in every form: rows and columns, there and back. SQLite has no NaN: it becomes NULL."""
    import sqljs_dbapi

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


def test_what_does_not_travel_is_refused(buffers: Buffers):
    with pytest.raises(OverflowError, match="too large to convert to SQLite INTEGER"):
        encode_row((2**63,), buffers)
    with pytest.raises(OverflowError, match="too large to convert to SQLite INTEGER"):
        encode_columns([(-(2**63) - 1,)], buffers)
    with pytest.raises(KeyError):
        encode_row((object(),), buffers)
    with pytest.raises(UnicodeEncodeError):
        encode_row(("\ud800",), buffers)


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
