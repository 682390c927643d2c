"""The floor: the same jobs written by hand on the standard library's `sqlite3`, as fast as it goes on the same schema.

Rows are made before the clock starts; one-statement jobs run in autocommit, the cheapest correct way.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruv_swarm_store import Store
from ruv_swarm_store.clock import new_ids

NOW = 1_700_000_000_000
PRAGMAS = ("synchronous=NORMAL", "foreign_keys=ON", "busy_timeout=0", "cache_size=-65536", "wal_autocheckpoint=4000", "temp_store=MEMORY")

ENQUEUE = """
INSERT INTO tasks (id, type, payload, created_at, priority, status, max_retries, on_dependency_failure, fence, retry_count, version)
VALUES (?, ?, ?, ?, ?, 'pending', 3, 'cancel', 0, 0, 1)"""
CLAIM = """
UPDATE tasks SET status = 'assigned', agent_id = ?, assigned_at = ?, lease_expires_at = ?, fence = fence + 1, version = version + 1
WHERE position = (SELECT position FROM tasks WHERE status = 'pending' ORDER BY priority DESC, position LIMIT 1) RETURNING *"""
COMPLETE = """
UPDATE tasks SET status = 'completed', result = ?, completed_at = ?, lease_expires_at = NULL, version = version + 1
WHERE id = ? AND fence = ? AND status IN ('assigned', 'running') RETURNING *"""
GET = "SELECT * FROM tasks WHERE id = ?"
APPEND = """
INSERT INTO events (id, aggregate_id, aggregate_type, event_type, event_data, metadata, timestamp, sequence_number)
SELECT ?, ?, 'bench', 'moved', ?, NULL, ?, ? WHERE ? = (
  SELECT coalesce(max(sequence_number), 0) FROM events WHERE aggregate_id = ? AND aggregate_type = 'bench')"""
READ = "SELECT * FROM events WHERE aggregate_id = ? AND aggregate_type = 'bench' ORDER BY sequence_number LIMIT 1000"


class Floor:
    """A raw connection to a database with this library's schema."""

    def __init__(self, path: Path) -> None:
        Store.open(path).close()  # the schema, nothing else
        self.raw = sqlite3.connect(path, isolation_level=None, cached_statements=512)
        for pragma in PRAGMAS:
            self.raw.execute(f"PRAGMA {pragma}")
        self.agent = "worker"
        self.raw.execute("INSERT INTO agents VALUES (?, 'bench', 0, 0, NULL, 'idle', '[]', '{}', NULL, 1)", (self.agent,))
        self.version = 0

    def rows(self, payloads: Sequence[Any]) -> list[tuple[Any, ...]]:
        """What `enqueue` takes, made ahead of time."""
        return [
            (id, "crawl", json.dumps(payload), NOW, index % 10)
            for index, (id, payload) in enumerate(zip(new_ids(NOW, len(payloads)), payloads, strict=True))
        ]

    def enqueue(self, rows: Sequence[tuple[Any, ...]]) -> None:
        execute = self.raw.execute
        for row in rows:
            execute(ENQUEUE, row)

    def enqueue_bulk(self, ids: Sequence[str], payloads: Sequence[Any]) -> None:
        self.raw.execute("BEGIN IMMEDIATE")
        self.raw.executemany(ENQUEUE, [(id, "crawl", json.dumps(payload), NOW, 5) for id, payload in zip(ids, payloads, strict=True)])
        self.raw.execute("COMMIT")

    def claim(self, count: int) -> None:
        execute = self.raw.execute
        for _ in range(count):
            assert execute(CLAIM, (self.agent, NOW, NOW + 30_000)).fetchall()

    def claim_and_complete(self, count: int) -> None:
        execute = self.raw.execute
        for _ in range(count):
            [task] = execute(CLAIM, (self.agent, NOW, NOW + 30_000)).fetchall()
            assert execute(COMPLETE, ('{"ok":true}', NOW, task[0], task[18])).fetchall()

    def get(self, ids: Sequence[str]) -> None:
        execute = self.raw.execute
        for id in ids:
            assert execute(GET, (id,)).fetchone()

    def append(self, stream: str, ids: Sequence[str], data: str) -> None:
        execute = self.raw.execute
        for id in ids:
            assert execute(APPEND, (id, stream, data, NOW, self.version + 1, self.version, stream)).rowcount == 1
            self.version += 1

    def read(self, stream: str) -> list[Any]:
        return [json.loads(row[4]) for row in self.raw.execute(READ, (stream,)).fetchall()]

    def close(self) -> None:
        self.raw.close()
