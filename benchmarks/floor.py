"""The floor: the same jobs written by hand on the plain driver, as fast as it goes on the same schema.

Rows are made before the clock starts; one-statement jobs run in autocommit, the cheapest correct way. Both drivers prepare a
statement once and run it again; the one cursor or connection is used throughout.
"""

from __future__ import annotations

import json
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ruv_swarm_store.clock import new_ids

if TYPE_CHECKING:
    import psycopg

NOW = 1_700_000_000_000
AGENT = "worker"
PRAGMAS = ("foreign_keys=ON", "busy_timeout=0", "cache_size=-8192", "wal_autocheckpoint=4000", "temp_store=MEMORY")
COLUMNS = "id, type, payload, created_at, priority, status, max_retries, on_dependency_failure, fence, retry_count, version"
CLAIMED = "status = 'assigned', agent_id = ?, assigned_at = ?, lease_expires_at = ?, fence = fence + 1, version = version + 1"
READY = "SELECT position FROM tasks WHERE status = 'pending' ORDER BY priority DESC, position"


class Floor(ABC):
    """A raw connection to a database with this library's schema. Statements are written for SQLite; engines put them right."""

    bulk_is: ClassVar[str]
    """How `enqueue_bulk` does it."""
    ENQUEUE = f"INSERT INTO tasks ({COLUMNS}) VALUES (?, ?, ?, ?, ?, 'pending', 3, 'cancel', 0, 0, 1)"
    CLAIM = f"UPDATE tasks SET {CLAIMED} WHERE position = ({READY} LIMIT 1) RETURNING *"
    CLAIM_MANY = f"UPDATE tasks SET {CLAIMED} WHERE position IN ({READY} LIMIT 32) RETURNING *"
    COMPLETE = """
UPDATE tasks SET status = 'completed', result = ?, completed_at = ?, lease_expires_at = NULL, version = version + 1
WHERE id = ? AND fence = ? AND status IN ('assigned', 'running') RETURNING *"""
    GET = "SELECT * FROM tasks WHERE id = ?"
    APPEND = """
INSERT INTO events (id, aggregate_id, aggregate_type, event_type, event_data, metadata, timestamp, sequence_number)
SELECT ?, ?, 'bench', 'moved', ?, NULL, ?, ? WHERE ? = (
  SELECT coalesce(max(sequence_number), 0) FROM events WHERE aggregate_id = ? AND aggregate_type = 'bench')"""
    READ = "SELECT * FROM events WHERE aggregate_id = ? AND aggregate_type = 'bench' ORDER BY sequence_number LIMIT 1000"

    def __init__(self, execute: Callable[..., Any]) -> None:
        """`execute` runs one statement with its values and gives the cursor."""
        self.execute = execute
        self.execute("INSERT INTO agents VALUES ('worker', 'bench', 0, 0, NULL, 'idle', '[]', '{}', NULL, 1)")
        self.version = 0

    def rows(self, payloads: Sequence[Any]) -> list[tuple[Any, ...]]:
        """What `enqueue` takes, made ahead of time."""
        return [
            (id, "crawl", json.dumps(payload), NOW, index % 10)
            for index, (id, payload) in enumerate(zip(new_ids(NOW, len(payloads)), payloads, strict=True))
        ]

    @abstractmethod
    def add(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Adds such rows in one transaction, the fastest way."""

    def enqueue(self, rows: Sequence[tuple[Any, ...]]) -> None:
        execute, statement = self.execute, self.ENQUEUE
        for row in rows:
            execute(statement, row)

    def enqueue_bulk(self, ids: Sequence[str], payloads: Sequence[Any]) -> None:
        self.add([(id, "crawl", json.dumps(payload), NOW, 5) for id, payload in zip(ids, payloads, strict=True)])

    def claim(self, count: int) -> None:
        execute, statement = self.execute, self.CLAIM
        for _ in range(count):
            assert execute(statement, (AGENT, NOW, NOW + 30_000)).fetchall()

    def claim_many(self, count: int) -> None:
        """Claims 32 tasks, `count` times."""
        execute, statement = self.execute, self.CLAIM_MANY
        for _ in range(count):
            assert len(execute(statement, (AGENT, NOW, NOW + 30_000)).fetchall()) == 32

    def claim_and_complete(self, count: int) -> None:
        execute, claim, complete = self.execute, self.CLAIM, self.COMPLETE
        for _ in range(count):
            [task] = execute(claim, (AGENT, NOW, NOW + 30_000)).fetchall()
            assert execute(complete, ('{"ok":true}', NOW, task[0], task[18])).fetchall()

    def get(self, ids: Sequence[str]) -> None:
        execute, statement = self.execute, self.GET
        for id in ids:
            assert execute(statement, (id,)).fetchone()

    def append(self, stream: str, ids: Sequence[str], data: str) -> None:
        execute, statement = self.execute, self.APPEND
        for id in ids:
            assert execute(statement, (id, stream, data, NOW, self.version + 1, self.version, stream)).rowcount == 1
            self.version += 1

    def read(self, stream: str) -> list[Any]:
        """The stream's data as objects."""
        return [json.loads(row[4]) for row in self.execute(self.READ, (stream,)).fetchall()]

    @abstractmethod
    def within(self, work: Callable[[], object]) -> None:
        """Does `work` in one transaction."""

    @abstractmethod
    def close(self) -> None: ...


class SQLiteFloor(Floor):
    """The standard library's `sqlite3`."""

    bulk_is = "executemany and json.dumps in one transaction, ids made before"

    def __init__(self, path: str, *, full: bool) -> None:
        self.raw = sqlite3.connect(path, isolation_level=None, cached_statements=512)
        for pragma in (f"synchronous={'FULL' if full else 'NORMAL'}", *PRAGMAS):
            self.raw.execute(f"PRAGMA {pragma}")
        super().__init__(self.raw.execute)

    def add(self, rows: Sequence[tuple[Any, ...]]) -> None:
        self.raw.execute("BEGIN IMMEDIATE")
        self.raw.executemany(self.ENQUEUE, rows)
        self.raw.execute("COMMIT")

    def within(self, work: Callable[[], object]) -> None:
        self.raw.execute("BEGIN IMMEDIATE")
        work()
        self.raw.execute("COMMIT")

    def close(self) -> None:
        self.raw.close()


class PostgreSQLFloor(Floor):
    """Plain psycopg 3: autocommit, every statement prepared when it first runs."""

    bulk_is = "COPY and json.dumps, ids made before"
    ENQUEUE = Floor.ENQUEUE.replace("?", "%s")
    CLAIM = f"UPDATE tasks SET {CLAIMED} WHERE position = ({READY} LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING *".replace("?", "%s")
    CLAIM_MANY = f"""
WITH picked AS MATERIALIZED ({READY} LIMIT 32 FOR UPDATE SKIP LOCKED)
UPDATE tasks SET {CLAIMED} FROM picked WHERE tasks.position = picked.position RETURNING tasks.*""".replace("?", "%s")
    COMPLETE = Floor.COMPLETE.replace("?", "%s")
    GET = Floor.GET.replace("?", "%s")
    APPEND = Floor.APPEND.replace("?", "%s")
    READ = Floor.READ.replace("?", "%s")

    def __init__(self, raw: psycopg.Connection[Any], *, full: bool) -> None:
        from psycopg.types.numeric import Int8Dumper
        from psycopg.types.string import TextLoader

        self.raw = raw
        raw.prepare_threshold = 0
        raw.adapters.register_dumper(int, Int8Dumper)  # one type for all numbers: one prepared statement
        raw.adapters.register_loader("jsonb", TextLoader)  # a row is a tuple without decoding, as on SQLite
        raw.execute(f"SET synchronous_commit = {'on' if full else 'off'}")
        self.cursor = raw.cursor()
        super().__init__(self.cursor.execute)

    def add(self, rows: Sequence[tuple[Any, ...]]) -> None:
        with self.cursor.copy(f"COPY tasks ({COLUMNS}) FROM STDIN") as copy:
            for id, type, payload, created_at, priority in rows:
                copy.write_row((id, type, payload, created_at, priority, "pending", 3, "cancel", 0, 0, 1))

    def within(self, work: Callable[[], object]) -> None:
        with self.raw.transaction():
            work()

    def close(self) -> None:
        self.raw.close()
