"""What is done with a task, whoever does it: a look at the tree, then everything it brought in one transaction."""

from __future__ import annotations

import time
from pathlib import Path

from msgspec import Struct, to_builtins

from ruv_swarm_store.demo.run import DIRECTORY, FILE, INDEXED, LISTED, MAX_RETRIES, PRIORITY, TREE
from ruv_swarm_store.demo.source import Facts, listing, measure
from ruv_swarm_store.entities import Agent, NewEvent, NewTask, Task
from ruv_swarm_store.store import Store

INDEXER = "indexer"
"""The type of agent a worker is."""
COORDINATES = "coordinator"
"""The type of agent the coordinator is."""
COORDINATOR = "demo-coordinator"
"""The coordinator's id: always the same one, so that what it was told and has not heard yet outlives its process."""
LEASE = 8.0
"""Seconds a claimed task stays claimed without a heartbeat."""
BEAT = 1.0
"""Seconds from one heartbeat to the next."""
BIG = 3_000
"""Lines from which a file is worth telling about."""
FINDINGS = "demo.findings"
"""The topic on which workers tell the coordinator what they came upon."""
PARSE_TIME = "demo.parse_time"
"""The metric: what reading and parsing one file took, in ms."""


class Entries(Struct, frozen=True):
    """What a directory holds."""

    files: list[str]
    directories: list[str]


class Measured(Struct, frozen=True):
    """What a file holds."""

    facts: Facts
    milliseconds: float


def examine(root: Path, task: Task) -> Entries | Measured:
    """Looks at what a task is about. Nothing is stored."""
    match task.type:
        case type if type == TREE:
            return Entries([], ["."])
        case type if type == DIRECTORY:
            return Entries(*listing(root / task.payload["path"]))
    started = time.perf_counter()
    facts = measure(root / task.payload["path"])
    return Measured(facts, (time.perf_counter() - started) * 1000)


def record(store: Store, agent: Agent, task: Task, found: Entries | Measured) -> None:
    """Completes a started task with what was found. Raises `LeaseLost` or `InvalidTransition` when it is another's by now."""
    if isinstance(found, Entries):
        _fan_out(store, task, found)
    else:
        _index(store, agent, task, found)


def _fan_out(store: Store, task: Task, found: Entries) -> None:
    here = Path(task.payload["path"] if task.type == DIRECTORY else "")
    children = [
        NewTask(type, {"path": (here / name).as_posix()}, PRIORITY[type], parent=task, max_retries=MAX_RETRIES)
        for type, names in ((DIRECTORY, found.directories), (FILE, found.files))
        for name in names
    ]
    counts = {"files": len(found.files), "directories": len(found.directories)}
    with store.transaction() as work:  # children without their parent's completion would be enqueued twice
        work.tasks.complete(task, counts)
        work.tasks.enqueue_many(children)
        if task.type == DIRECTORY:
            event = NewEvent(LISTED, {"path": task.payload["path"], **counts})
            work.events.append(task.id, [event], type=DIRECTORY, expected_version=0)


def _index(store: Store, agent: Agent, task: Task, found: Measured) -> None:
    path, facts = task.payload["path"], found.facts
    finding = facts.fault or (f"has {facts.lines:,} lines" if facts.lines >= BIG else None)
    known = to_builtins(facts)
    with store.transaction() as work:
        work.tasks.complete(task, {"facts": known, "milliseconds": round(found.milliseconds, 3)})
        # Were a file ever indexed twice, its stream would not be empty, and this would raise.
        work.events.append(task.id, [NewEvent(INDEXED, {"path": path, **known})], type=FILE, expected_version=0)
        work.metrics.record(PARSE_TIME, found.milliseconds, agent=agent, type="performance", unit="ms")
        if finding is not None:
            work.messages.publish(FINDINGS, {"path": path, "what": finding}, sender=agent, to=COORDINATOR)
