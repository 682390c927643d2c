"""The driver beside Pyodide's own sqlite3, in the same run: what a statement, a row and SQLAlchemy cost.

Run it inside Pyodide: `node wasm/harness/node.mjs --file wasm/benchmarks/bench_driver.py`.
"""

import sqlite3
import time
from statistics import median, quantiles

import sqljs_dbapi
from sqlalchemy import Column, Float, Integer, MetaData, String, Table, bindparam, create_engine, insert, select

ROWS = 20_000
BARS = {"point query": 25.0, "fetchall": 350.0, "executemany": 100.0, "SQLAlchemy": 1.25}
SETUP = "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, kind TEXT, score REAL, at INTEGER)"
INSERT = "INSERT INTO t VALUES (?, ?, ?, ?, ?)"


def best(work, repeat=7):
    """The shortest of several runs, in seconds: the others were disturbed."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def rows():
    """Rows as a store has them."""
    return [(n, f"name {n}", "kind", n / 3, 1_700_000_000_000 + n) for n in range(ROWS)]


def driver_figures(module):
    """Microseconds of a point query and of an autocommitted insert, and thousands of rows each second."""
    connection = module.connect(":memory:", isolation_level=None)
    connection.execute(SETUP)
    data = rows()

    def fill():
        connection.execute("DELETE FROM t")
        connection.execute("BEGIN")
        connection.executemany(INSERT, data)
        connection.execute("COMMIT")

    def points():
        for n in range(1, 2000):
            connection.execute("SELECT * FROM t WHERE id = ?", (n,)).fetchone()

    def inserts():
        for n in range(ROWS, ROWS + 1000):
            connection.execute(INSERT, (n, "name", "kind", 0.5, 1_700_000_000_000))
        connection.execute("DELETE FROM t WHERE id >= ?", (ROWS,))

    found = {
        "executemany": ROWS / best(fill, 5) / 1e3,
        "point query": best(points) / 1999 * 1e6,
        "fetchall": ROWS / best(lambda: connection.execute("SELECT * FROM t").fetchall()) / 1e3,
        "insert": best(inserts) / 1000 * 1e6,
    }
    connection.close()
    return found


def sqlalchemy_engine(url):
    """An engine with a table of rows."""
    engine = create_engine(url)
    table = Table(
        "t",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("name", String),
        Column("kind", String),
        Column("score", Float),
        Column("at", Integer),
    )
    names = table.c.keys()
    with engine.begin() as connection:
        table.create(connection)
        connection.execute(insert(table), [dict(zip(names, row, strict=True)) for row in rows()[:2000]])
    return engine, table


def sqlalchemy_works(url):
    """What is measured through SQLAlchemy Core: a select by key, one of 100 rows, and an insert; each with how often it is done."""
    engine, table = sqlalchemy_engine(url)
    by_key = select(table).where(table.c.id == bindparam("id_"))
    some = select(table).where(table.c.id < bindparam("id_"))
    connection = engine.connect()

    def points():
        for n in range(500):
            connection.execute(by_key, {"id_": n}).first()

    def many():
        for _ in range(100):
            connection.execute(some, {"id_": 100}).all()

    def inserts():
        for n in range(300):
            connection.execute(insert(table), {"id": 100_000 + n, "name": "x", "kind": "y", "score": 0.5, "at": 1_700_000_000_000})
        connection.rollback()

    return {"select by key": (points, 500), "select 100 rows": (many, 100), "insert": (inserts, 300)}


def beside(ours, floor, rounds=40):
    """The median times of two, in seconds, and the quartiles of their ratio in neighbouring rounds, which are disturbed alike."""
    pairs = []
    for number in range(rounds):
        first, second = (ours, floor) if number % 2 else (floor, ours)
        one, other = best(first, 1), best(second, 1)
        pairs.append((one, other) if number % 2 else (other, one))
    times, floors = zip(*pairs, strict=True)
    return median(times), median(floors), quantiles([time / least for time, least in pairs])


async def main():
    """Print the figures."""
    await sqljs_dbapi.load()
    ours, floor = driver_figures(sqljs_dbapi), driver_figures(sqlite3)
    for name, unit in {"point query": "us", "insert": "us", "fetchall": "k rows/s", "executemany": "k rows/s"}.items():
        bar = f"  bar {BARS[name]:g}" if name in BARS else ""
        print(f"{name:16} {ours[name]:8.1f} {unit:9} sqlite3 {floor[name]:8.1f}{bar}")
    works, floors = sqlalchemy_works("sqlite+sqljs://"), sqlalchemy_works("sqlite://")
    for name, (work, count) in works.items():
        taken, least, (low, middle, high) = beside(work, floors[name][0])
        figures = f"{taken / count * 1e6:8.1f} us  sqlite3 {least / count * 1e6:8.1f}  {middle:.2f}x ({low:.2f} to {high:.2f})"
        print(f"SQLAlchemy {name:16} {figures}, bar {BARS['SQLAlchemy']}x")


await main()  # noqa: F704, PLE1142 - run as a program that may await
