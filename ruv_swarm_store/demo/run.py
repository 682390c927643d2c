"""A run: one indexing of one tree, as the store has it."""

from __future__ import annotations

import heapq
from typing import Any

from msgspec import Struct
from sqlalchemy import and_, func, select, true

from ruv_swarm_store import schema
from ruv_swarm_store.demo.source import Facts
from ruv_swarm_store.demo.totals import Totals
from ruv_swarm_store.entities import NewEvent, Task, TaskStatus
from ruv_swarm_store.errors import Conflict
from ruv_swarm_store.store import Repositories, Store

TREE, DIRECTORY, FILE = "demo.tree", "demo.directory", "demo.file"
"""Types of task, and of the streams their events are in."""
TYPES = (TREE, DIRECTORY, FILE)
RUN = "demo.run"
"""The type of the stream of a run's own events, named by its first task."""

STARTED, RESUMED, STOPPED, FINISHED, FAILED = "run.started", "run.resumed", "run.stopped", "run.finished", "run.failed"
LISTED, INDEXED = "directory.listed", "file.indexed"

MAX_RETRIES = 20
"""High, since every worker killed on a task costs it one; not endless, since a file might be what kills them."""
PRIORITY = {TREE: 9, DIRECTORY: 8, FILE: 5}
"""Directories first, so that what there is to do is soon known."""

PAGE = 1_000

_t, _e = schema.tasks.c, schema.events.c


class Slow(Struct, frozen=True, order=True):
    """A file that took long."""

    milliseconds: float
    path: str
    lines: int


class Effort(Struct, frozen=True):
    """What a run took: the seconds are those from the beginning of each session to the last task completed in it."""

    tasks: int
    seconds: float
    sessions: int
    workers: int
    retries: int


class Run:
    """A run that has begun. Its tasks are those from its first one on: a store has one unfinished run at most."""

    def __init__(self, store: Store, root: Task) -> None:
        self._store = store
        self.id = root.id
        self.path: str = root.payload["path"]
        self.began: int = root.created_at
        self.tasks = and_(_t.position >= root.position, _t.type.in_(TYPES))

    def note(self, event: str, data: Any = None) -> None:
        """Appends to the run's own stream."""
        self._store.events.append(self.id, [NewEvent(event, data)], type=RUN)

    def add_up(self) -> tuple[Totals, list[Slow]]:
        """The totals of the completed files, and the ten files that took longest."""
        totals = Totals()
        slowest: list[Slow] = []
        for page in self._store.tasks.where(self.tasks, _t.type == FILE, _t.status == TaskStatus.COMPLETED).pages(PAGE):
            for task in page:
                facts = Facts(**task.result["facts"])
                totals.files += 1
                totals.unparsable += facts.fault is not None
                totals.lines += facts.lines
                totals.words += facts.words
                totals.functions += facts.functions
                totals.classes += facts.classes
                totals.imports += len(facts.modules)
                for module in facts.modules:
                    totals.modules[module] = totals.modules.get(module, 0) + 1
                slow = Slow(task.result["milliseconds"], task.payload["path"], facts.lines)
                if len(slowest) < 10:
                    heapq.heappush(slowest, slow)
                else:
                    heapq.heappushpop(slowest, slow)
        return totals, sorted(slowest, reverse=True)

    def audit(self) -> list[str]:
        """What is not as it must be once nothing is left to do: every task completed, every file indexed exactly once."""
        found = [
            f"task {task.id} ({task.payload['path']}) is {task.status}: {task.error_message}"
            for task in self._store.tasks.where(self.tasks, _t.status != TaskStatus.COMPLETED).order_by(_t.position.asc())
        ]
        times = func.count(_e.position)
        indexed = and_(_e.aggregate_id == _t.id, _e.aggregate_type == FILE, _e.event_type == INDEXED)
        odd = (
            select(_t.id, times)
            .select_from(schema.tasks.outerjoin(schema.events, indexed))
            .where(self.tasks, _t.type == FILE, _t.status == TaskStatus.COMPLETED)
            .group_by(_t.id)
            .having(times != 1)
        )
        return found + [f"task {id} was indexed {count} times" for id, count in self._store.execute(odd)]

    def effort(self) -> Effort:
        """What the run has taken so far."""
        stream = self._store.events.read(self.id, type=RUN)
        begun = [event.timestamp for event in stream if event.event_type in (STARTED, RESUMED)]
        milliseconds = 0
        for begin, end in zip(begun, [*begun[1:], None], strict=True):
            within = and_(self.tasks, _t.completed_at >= begin, true() if end is None else _t.completed_at < end)
            last = self._store.execute(select(func.max(_t.completed_at)).where(within))[0][0]
            milliseconds += 0 if last is None else last - begin
        counts = select(func.count(), func.count(_t.agent_id.distinct()), func.coalesce(func.sum(_t.retry_count), 0))
        tasks, workers, retries = tuple(self._store.execute(counts.where(self.tasks))[0])
        return Effort(tasks, milliseconds / 1000, len(begun), workers, retries)


def begin(store: Store, path: str) -> tuple[Run, bool]:
    """The store's unfinished run over this tree, or a new one; and whether it is a resumed one.

    Raises `Conflict` when the unfinished run is over another tree.
    """
    with store.transaction() as work:
        if (last := latest(work)) is not None and not last[1]:
            run = Run(store, last[0])
            if run.path != path:
                raise Conflict(
                    f"this store has an unfinished run over {run.path}",
                    hint="Finish that one first, forget it with --fresh, or use another --store",
                )
            work.events.append(run.id, [NewEvent(RESUMED)], type=RUN)
            return run, True
        root = work.tasks.enqueue(TREE, {"path": path}, priority=PRIORITY[TREE], max_retries=MAX_RETRIES)
        work.events.append(root.id, [NewEvent(STARTED, {"path": path})], type=RUN, expected_version=0)
        return Run(store, root), False


def latest(of: Repositories) -> tuple[Task, bool] | None:
    """The first task of the run that was begun last, and whether that has ended; None when there was none yet."""
    started = of.events.where(_e.event_type == STARTED, _e.aggregate_type == RUN).order_by(_e.position.desc()).first()
    if started is None:
        return None
    stream = of.events.read(started.aggregate_id, type=RUN)
    return of.tasks.get(started.aggregate_id), any(event.event_type in (FINISHED, FAILED) for event in stream)


def find(store: Store, id: str) -> Run:
    """The run with that id. Raises `NotFound` when there is none."""
    return Run(store, store.tasks.get(id))
