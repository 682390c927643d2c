"""Changes a database without pause, so that each commit keeps a promise that any copy can be held to: `churn.py FILE SEED SECONDS`.

In `promise` every row has the same number, as many commits were made by all; in `ledger` the amounts sum up to nothing; each row of `blob`
names the length of what it holds. Between commits the log is copied into the file, restarted and cut off, in every way there is.
"""

from __future__ import annotations

import fcntl
import random
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SCHEMA = """
CREATE TABLE promise (id INTEGER PRIMARY KEY, number INTEGER NOT NULL, padding BLOB NOT NULL);
CREATE TABLE ledger (id INTEGER PRIMARY KEY, amount INTEGER NOT NULL);
CREATE TABLE blob (id INTEGER PRIMARY KEY, size INTEGER NOT NULL, data BLOB NOT NULL);
CREATE INDEX blob_size ON blob (size);
"""


def create(path: str, page_size: int, auto_vacuum: int) -> None:
    raw = sqlite3.connect(path, isolation_level=None)
    raw.execute(f"PRAGMA page_size={page_size}")
    raw.execute(f"PRAGMA auto_vacuum={auto_vacuum}")
    raw.execute("PRAGMA journal_mode=WAL").fetchone()
    raw.close()
    add_tables(path)


def add_tables(path: str) -> None:
    raw = sqlite3.connect(path, isolation_level=None)
    raw.executescript(SCHEMA)
    raw.execute("BEGIN")
    raw.executemany("INSERT INTO promise (number, padding) VALUES (0, ?)", [(b"p" * 700,)] * 40)
    raw.executemany("INSERT INTO ledger (amount) VALUES (?)", [(0,)] * 500)
    raw.execute("COMMIT")
    raw.close()


def broken(raw: sqlite3.Connection) -> list[str]:
    """What of the promise a copy does not keep."""
    wrong = [line for (line,) in raw.execute("PRAGMA integrity_check") if line != "ok"]
    if raw.execute("SELECT count(DISTINCT number), count(*) FROM promise").fetchone() != (1, 40):
        wrong.append("rows of one commit differ")
    if raw.execute("SELECT sum(amount), count(*) FROM ledger").fetchone() != (0, 500):
        wrong.append("half of a transfer")
    if raw.execute("SELECT count(*) FROM blob WHERE length(data) != size").fetchone() != (0,):
        wrong.append("a blob of another length")
    return wrong


def number(raw: sqlite3.Connection) -> int:
    """How many commits are in it."""
    return int(raw.execute("SELECT max(number) FROM promise").fetchone()[0])


@contextmanager
def turn(path: str) -> Iterator[None]:
    """Only one process at a time changes anything: before 3.51.3, SQLite loses commits when the log is begun anew during a checkpoint."""
    with Path(f"{path}.turn").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def churn(path: str, seed: int, seconds: float) -> int:
    chance = random.Random(seed)
    raw = sqlite3.connect(path, isolation_level=None, timeout=30)
    raw.execute(f"PRAGMA wal_autocheckpoint={chance.choice((3, 20, 200, 1000))}")
    raw.execute("PRAGMA synchronous=OFF")  # nobody cuts the power here
    raw.execute(f"PRAGMA cache_size={chance.choice((10, 2000))}")  # with 10, transactions spill into the log before they commit
    until = time.monotonic() + seconds
    commits = 0
    while time.monotonic() < until:
        with turn(path):
            if chance.random() < 0.1:
                with suppress(sqlite3.OperationalError):  # others are reading
                    raw.execute("PRAGMA busy_timeout=20")
                    raw.execute(f"PRAGMA wal_checkpoint({chance.choice(('PASSIVE', 'FULL', 'RESTART', 'TRUNCATE'))})").fetchone()
                    if chance.random() < 0.2:
                        raw.execute("VACUUM")
                raw.execute("PRAGMA busy_timeout=30000")
            raw.execute("BEGIN IMMEDIATE")
            raw.execute("UPDATE promise SET number = number + 1")
            for _ in range(chance.randrange(20)):
                one, other, amount = chance.randrange(1, 501), chance.randrange(1, 501), chance.randrange(1000)
                raw.execute("UPDATE ledger SET amount = amount - ? WHERE id = ?", (amount, one))
                raw.execute("UPDATE ledger SET amount = amount + ? WHERE id = ?", (amount, other))
            for _ in range(chance.choice((0, 0, 1, 1, 5, 30))):
                size = chance.randrange(1, 5000)
                raw.execute("INSERT INTO blob (size, data) VALUES (?, randomblob(?))", (size, size))
            if chance.random() < 0.2:
                raw.execute("DELETE FROM blob WHERE random() % 2")
            if raw.execute("PRAGMA auto_vacuum").fetchone()[0] == 2:
                raw.execute("PRAGMA incremental_vacuum(5)").fetchall()
            if chance.random() < 0.15:
                raw.execute("ROLLBACK")
            else:
                raw.execute("COMMIT")
                commits += 1
        time.sleep(chance.choice((0, 0, 0.0005, 0.003)))
    raw.close()
    return commits


if __name__ == "__main__":
    print(churn(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
