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

PASSED = "SELECT position FROM message_cursors WHERE agent_id = ? AND topic = ''"
"""What an agent has received of the messages."""


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
    COMPLETE_MANY = """
UPDATE tasks SET status = 'completed', result = done.result, completed_at = ?, lease_expires_at = NULL, version = version + 1
FROM (SELECT value ->> 0 AS id, CAST(value ->> 1 AS BIGINT) AS fence, value -> 2 AS result FROM json_each(?)) AS done
WHERE tasks.id = done.id AND tasks.fence = done.fence AND status IN ('assigned', 'running') RETURNING *"""
    GET = "SELECT * FROM tasks WHERE id = ?"
    WALK = "SELECT * FROM tasks WHERE position > ? ORDER BY position LIMIT 1000"
    HEARTBEAT = """
UPDATE agents SET last_heartbeat = ?, status = CASE status WHEN 'failed' THEN 'idle' ELSE status END
WHERE id = ? AND status <> 'terminated'"""
    PUBLISH = """
INSERT INTO messages (id, topic, content, timestamp, audience, from_agent, to_agent, version)
VALUES (?, 'found', ?, ?, 'direct', 'worker', ?, 1)"""
    RECEIVE = f"""
SELECT * FROM messages WHERE position IN (
  SELECT position FROM (SELECT position FROM messages WHERE to_agent = ? AND position > ({PASSED}) ORDER BY position LIMIT 10) AS direct
  UNION ALL SELECT position FROM (
    SELECT position FROM messages WHERE audience = 'broadcast' AND position > ({PASSED}) ORDER BY position LIMIT 10) AS broadcast
  UNION ALL SELECT position FROM (
    SELECT m.position FROM agent_group_members AS g JOIN messages AS m ON m.to_group = g.group_id
    WHERE g.agent_id = ? AND m.position > g.joined_position AND m.position > ({PASSED}) ORDER BY m.position LIMIT 10) AS to_group
  UNION ALL SELECT message_position FROM message_deliveries WHERE agent_id = ? AND acknowledged_at IS NULL AND visible_at <= ?)
ORDER BY position LIMIT 10"""
    DELIVER = """
INSERT INTO message_deliveries VALUES (?, ?, ?, 1, ?, NULL)
ON CONFLICT (agent_id, message_position) DO UPDATE SET deliveries = message_deliveries.deliveries + 1, visible_at = excluded.visible_at"""
    HOLD_INBOX: str | None = None
    """Keeps others out of an inbox until the transaction ends, where several may write at once."""
    PASS = "UPDATE message_cursors SET position = ? WHERE agent_id = ? AND topic = ''"
    ACKNOWLEDGE = f"""
UPDATE message_deliveries SET acknowledged_at = ?
WHERE agent_id = ? AND message_position IN ({", ".join(["?"] * 10)}) AND acknowledged_at IS NULL"""
    CONFIG = "SELECT value FROM swarm_config WHERE key = ? AND (expires_at IS NULL OR expires_at > ?)"
    SET_CONFIG = """
INSERT INTO swarm_config VALUES (?, ?, ?, NULL, NULL, 1) ON CONFLICT (key) DO UPDATE
SET value = excluded.value, updated_at = excluded.updated_at, updated_by = NULL, expires_at = NULL, version = swarm_config.version + 1
RETURNING *"""
    RECORD = """
INSERT INTO metrics (metric_name, value, timestamp, metric_type, unit, agent_id, tags, version)
VALUES ('latency', 12.5, ?, 'gauge', 'ms', 'worker', '{"host":"a"}', 1)"""
    APPEND = """
INSERT INTO events (id, aggregate_id, aggregate_type, event_type, event_data, metadata, timestamp, sequence_number)
SELECT ?, ?, 'bench', 'moved', ?, NULL, ?, ? WHERE ? = (
  SELECT coalesce(max(sequence_number), 0) FROM events WHERE aggregate_id = ? AND aggregate_type = 'bench')"""
    ADD_EVENTS = """
INSERT INTO events (id, aggregate_id, aggregate_type, event_type, event_data, timestamp, sequence_number)
VALUES (?, ?, 'bench', 'moved', ?, ?, ?)"""
    VERSION = "SELECT coalesce(max(sequence_number), 0) FROM events WHERE aggregate_id = ? AND aggregate_type = 'bench'"
    READ = "SELECT * FROM events WHERE aggregate_id = ? AND aggregate_type = 'bench' ORDER BY sequence_number LIMIT 1000"
    READ_ON = """
SELECT * FROM events WHERE aggregate_id = ? AND aggregate_type = 'bench' AND sequence_number > ? ORDER BY sequence_number LIMIT 1000"""
    READ_ALL = "SELECT * FROM events WHERE position > ? ORDER BY position LIMIT 1000"
    SNAPSHOT = """
SELECT state, sequence_number FROM event_snapshots WHERE aggregate_id = ? AND aggregate_type = 'bench' AND name = 'sum'
ORDER BY sequence_number DESC LIMIT 1"""
    KEEP = "INSERT INTO event_snapshots VALUES (?, 'bench', 'sum', ?, 1, ?, ?)"

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

    def hold(self, count: int) -> list[Any]:
        """Claims 32 tasks, `count` times; what `complete_many` takes to complete them."""
        statement = self.CLAIM_MANY
        claimed = [self.execute(statement, (AGENT, NOW, NOW + 30_000)).fetchall() for _ in range(count)]
        return [[(task[0], task[18], {"ok": True}) for task in rows] for rows in claimed]

    def complete_many(self, batches: Sequence[Any]) -> None:
        """Completes the tasks of each batch at once."""
        execute, statement = self.execute, self.COMPLETE_MANY
        for batch in batches:
            assert len(execute(statement, (NOW, json.dumps(batch))).fetchall()) == len(batch)

    def walk(self) -> int:
        """Goes through all tasks in pages, their payloads as objects; how many there are."""
        after = found = 0
        while rows := self.execute(self.WALK, (after,)).fetchall():
            found += len([json.loads(row[2]) for row in rows])
            after = rows[-1][21]
        return found

    def heartbeat(self, agents: Sequence[str]) -> None:
        execute, statement = self.execute, self.HEARTBEAT
        for agent in agents:
            assert execute(statement, (NOW, agent)).rowcount == 1

    def publish(self, rows: Sequence[tuple[str, str, str]]) -> None:
        """Publishes rows of id, content and recipient, one by one."""
        execute, statement = self.execute, self.PUBLISH
        for id, content, to in rows:
            execute(statement, (id, content, NOW, to))

    def receive_and_acknowledge(self, agent: str, count: int) -> None:
        """Receives ten messages and acknowledges them, `count` times."""
        for _ in range(count):
            found: list[Any] = []

            def take(found: list[Any] = found) -> None:
                if self.HOLD_INBOX is not None:
                    self.execute(self.HOLD_INBOX, (agent,))
                found += self.execute(self.RECEIVE, (agent, agent, agent, agent, agent, agent, NOW)).fetchall()
                self.execute_many(self.DELIVER, [(agent, row[11], NOW, NOW + 30_000) for row in found])
                self.execute(self.PASS, (found[-1][11], agent))

            self.within(take)
            assert [json.loads(row[2]) for row in found]
            assert self.execute(self.ACKNOWLEDGE, (NOW, agent, *[row[11] for row in found])).rowcount == 10

    def config(self, keys: Sequence[str]) -> None:
        execute, statement = self.execute, self.CONFIG
        for key in keys:
            json.loads(execute(statement, (key, NOW)).fetchone()[0])

    def set_config(self, rows: Sequence[tuple[str, str]]) -> None:
        """Sets rows of key and value, one by one."""
        execute, statement = self.execute, self.SET_CONFIG
        for key, value in rows:
            assert execute(statement, (key, value, NOW)).fetchall()

    def record(self, count: int) -> None:
        """Adds a sample of a metric, `count` times."""
        execute, statement = self.execute, self.RECORD
        for _ in range(count):
            execute(statement, (NOW,))

    def append(self, stream: str, ids: Sequence[str], data: Any) -> None:
        """Appends an event for each id, one by one."""
        execute, statement = self.execute, self.APPEND
        for id in ids:
            assert execute(statement, (id, stream, json.dumps(data), NOW, self.version + 1, self.version, stream)).rowcount == 1
            self.version += 1

    def append_batch(self, stream: str, ids: Sequence[str], data: Any) -> None:
        """Appends an event for each id in one transaction, the fastest way."""

        def add() -> None:
            assert self.execute(self.VERSION, (stream,)).fetchone()[0] == self.version
            self.add_events([(id, stream, json.dumps(data), NOW, number) for number, id in enumerate(ids, self.version + 1)])

        self.within(add)
        self.version += len(ids)

    @abstractmethod
    def add_events(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Adds rows of id, stream, data, time and number."""

    def read(self, stream: str) -> list[Any]:
        """The stream's data as objects."""
        return [json.loads(row[4]) for row in self.execute(self.READ, (stream,)).fetchall()]

    def read_all(self) -> int:
        """Goes through the log in pages, the data as objects; how many events there are."""
        after = found = 0
        while rows := self.execute(self.READ_ALL, (after,)).fetchall():
            found += len([json.loads(row[4]) for row in rows])
            after = rows[-1][8]
        return found

    def fold(self, stream: str) -> int:
        """The sum of `x` over a stream, which is read in pages, from its newest snapshot if it has one."""
        row = self.execute(self.SNAPSHOT, (stream,)).fetchone()
        state, after = (0, 0) if row is None else (json.loads(row[0]), row[1])
        while rows := self.execute(self.READ_ON, (stream, after)).fetchall():
            for row in rows:
                state += json.loads(row[4])["x"]
            after = rows[-1][7]
        return int(state)

    def keep(self, stream: str, number: int, state: int) -> None:
        """Keeps a snapshot."""
        self.execute(self.KEEP, (stream, number, json.dumps(state), NOW))

    @abstractmethod
    def execute_many(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Runs one of its statements for each row."""

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

    def add_events(self, rows: Sequence[tuple[Any, ...]]) -> None:
        self.raw.executemany(self.ADD_EVENTS, rows)

    def execute_many(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        self.raw.executemany(statement, rows)

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
    VERSION = Floor.VERSION.replace("?", "%s")
    READ = Floor.READ.replace("?", "%s")
    READ_ON = Floor.READ_ON.replace("?", "%s")
    READ_ALL = Floor.READ_ALL.replace("?", "%s")
    SNAPSHOT = Floor.SNAPSHOT.replace("?", "%s")
    KEEP = Floor.KEEP.replace("?", "%s")
    COMPLETE_MANY = (
        Floor.COMPLETE_MANY.replace("json_each(?)", "jsonb_array_elements(CAST(? AS jsonb))").replace("?", "%s").replace("*", "tasks.*")
    )
    WALK = Floor.WALK.replace("?", "%s")
    HEARTBEAT = Floor.HEARTBEAT.replace("?", "%s")
    PUBLISH = Floor.PUBLISH.replace("?", "%s")
    RECEIVE = Floor.RECEIVE.replace("?", "%s")
    DELIVER = Floor.DELIVER.replace("?", "%s")
    HOLD_INBOX = f"{PASSED} FOR NO KEY UPDATE".replace("?", "%s")
    PASS = Floor.PASS.replace("?", "%s")
    ACKNOWLEDGE = Floor.ACKNOWLEDGE.replace("?", "%s")
    CONFIG = Floor.CONFIG.replace("?", "%s")
    SET_CONFIG = Floor.SET_CONFIG.replace("?", "%s")
    RECORD = Floor.RECORD.replace("?", "%s")

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

    def add_events(self, rows: Sequence[tuple[Any, ...]]) -> None:
        columns = "id, aggregate_id, aggregate_type, event_type, event_data, timestamp, sequence_number"
        with self.cursor.copy(f"COPY events ({columns}) FROM STDIN") as copy:
            for id, stream, data, now, number in rows:
                copy.write_row((id, stream, "bench", "moved", data, now, number))

    def execute_many(self, statement: Any, rows: Sequence[tuple[Any, ...]]) -> None:
        self.cursor.executemany(statement, rows)

    def within(self, work: Callable[[], object]) -> None:
        with self.raw.transaction():
            work()

    def close(self) -> None:
        self.raw.close()
