"""How far a run is: read from the store alone, as anybody could."""

from __future__ import annotations

import time
from collections import deque

from msgspec import Struct
from sqlalchemy import func, select, union_all

from ruv_swarm_store import schema
from ruv_swarm_store.demo.run import FILE, TYPES, Run
from ruv_swarm_store.demo.work import INDEXER
from ruv_swarm_store.entities import Agent, AgentStatus, TaskStatus
from ruv_swarm_store.schema import FINAL, LEASED, OPEN
from ruv_swarm_store.store import Store

_t, _a = schema.tasks.c, schema.agents.c


class AtWork(Struct, frozen=True):
    """A worker and what it does."""

    agent: Agent
    completed: int
    doing: str | None
    seconds: float
    """For how long it has been doing that."""


class Progress(Struct, frozen=True):
    """A run at one moment."""

    counts: dict[str, dict[TaskStatus, int]]
    """Tasks by type and status."""
    workers: list[AtWork]
    retries: int

    def count(self, *types: str, status: TaskStatus | None = None) -> int:
        """How many tasks there are of these types, in one status or in any."""
        return sum(count for type in types for each, count in self.counts.get(type, {}).items() if status is None or each is status)

    @property
    def completed(self) -> int:
        """How many tasks are completed."""
        return self.count(*TYPES, status=TaskStatus.COMPLETED)

    @property
    def is_over(self) -> bool:
        """Whether no task is left to do."""
        return all(status in FINAL for by_status in self.counts.values() for status in by_status)

    @property
    def files(self) -> tuple[int, int]:
        """How many files are indexed, and how many are known of."""
        return self.count(FILE, status=TaskStatus.COMPLETED), self.count(FILE)


def look(store: Store, run: Run) -> Progress:
    """Where the run stands now."""
    counts: dict[str, dict[TaskStatus, int]] = {}
    counted = select(_t.type, _t.status, func.count()).where(_t.type.in_(TYPES)).group_by(_t.type, _t.status)
    # Not the run's own condition, but two that are answered from an index each, however many tasks there are.
    parts = (counted.where(_t.status.in_(OPEN)), counted.where(_t.status.in_(FINAL), _t.completed_at >= run.began))
    for type, status, count in store.execute(union_all(*parts)):
        counts.setdefault(type, {})[status] = count
    failed = select(func.count()).where(schema.task_failures.c.failed_at >= run.began)
    return Progress(counts, _workers(store), store.execute(failed)[0][0])


def _workers(store: Store) -> list[AtWork]:
    agents = store.agents.where(_a.type == INDEXER, _a.status != AgentStatus.TERMINATED).order_by(_a.created_at.asc(), _a.name.asc()).all()
    leased = {task.agent_id: task for task in store.tasks.where(_t.status.in_(LEASED), _t.type.in_(TYPES))}
    ids = [agent.id for agent in agents]
    had = select(_t.agent_id, func.count()).where(_t.agent_id.in_(ids)).group_by(_t.agent_id)
    held = {row[0]: row[1] for row in store.execute(had)}
    now = time.time() * 1000
    return [
        AtWork(
            agent,
            held.get(agent.id, 0) - (agent.id in leased),
            None if (task := leased.get(agent.id)) is None else task.payload["path"],
            0.0 if task is None else max(0.0, now - (task.assigned_at or now)) / 1000,
        )
        for agent in agents
    ]


class Throughput:
    """Completions per second over the last few seconds."""

    def __init__(self, seconds: float = 5.0) -> None:
        self._seconds = seconds
        self._seen: deque[tuple[float, int]] = deque()

    def measure(self, completed: int) -> float:
        """The rate, now that `completed` is the count."""
        now = time.monotonic()
        self._seen.append((now, completed))
        while len(self._seen) > 2 and now - self._seen[0][0] > self._seconds:
            self._seen.popleft()
        then, before = self._seen[0]
        return (completed - before) / (now - then) if now > then else 0.0
