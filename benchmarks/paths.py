"""The hot paths, each as the same work on a store and on the floor, for whoever measures them on SQLite outside of pytest."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path as File
from typing import Any, NamedTuple

from floor import AGENT, NOW, Floor, SQLiteFloor
from peers import PAYLOAD, RESULT

from ruv_swarm_store import NewEvent, Store
from ruv_swarm_store.clock import new_ids

DATA = {"x": 12, "y": 7, "by": "scout"}
VALUE = {"limit": 12, "hosts": ["a", "b"], "on": True}
CONTENT = {"found": "https://example.com/a/page", "score": 0.75}
STREAM = 1_000
"""Events in each stream of a filled log."""
AGENTS = 100
"""Agents that the rows of the other nouns speak of."""


class Sides(NamedTuple):
    """A store and a floor, whose databases hold the same `rows` rows; see `fill`."""

    store: Store
    floor: Floor
    rows: int

    def some(self, count: int) -> list[int]:
        """Numbers of `count` rows, in no order, the same ones each time."""
        return random.Random(self.rows).choices(range(self.rows), k=count)


class Pair(NamedTuple):
    """A job on both sides, which may be run again and again. `below` takes what `prepare` makes before the clock starts."""

    ours: Callable[[], object]
    below: Callable[[Any], object]
    operations: int
    prepare: Callable[[], Any] = lambda: None

    def take_turns(self) -> tuple[float, float]:
        """Seconds an operation takes, ours and the floor's, one after the other."""
        prepared = self.prepare()
        started = time.perf_counter()
        self.below(prepared)
        between = time.perf_counter()
        self.ours()
        ended = time.perf_counter()
        return (ended - between) / self.operations, (between - started) / self.operations


class Path(NamedTuple):
    """A hot path: its name, what its database is filled with, and its job at so many operations a round."""

    name: str
    filled_with: str
    make: Callable[[Sides, int], Pair]


def task_id(number: int) -> str:
    """The id of a task that is there from the beginning."""
    return f"00000000-0000-7000-8000-{number:012x}"


def enqueue(sides: Sides, count: int) -> Pair:
    def ours() -> None:
        put = sides.store.tasks.enqueue
        for _ in range(count):
            put("crawl", PAYLOAD)

    return Pair(ours, sides.floor.enqueue, count, lambda: sides.floor.rows([PAYLOAD] * count))


def enqueue_1000(sides: Sides, count: int) -> Pair:
    size = min(count, 1_000)
    payloads = [{**PAYLOAD, "n": number} for number in range(size)]
    pairs = [("crawl", payload) for payload in payloads]
    times = max(1, count // size)

    def ours() -> None:
        for _ in range(times):
            sides.store.tasks.enqueue_many(pairs)

    def below(ids: Sequence[Sequence[str]]) -> None:
        for some in ids:
            sides.floor.enqueue_bulk(some, payloads)

    return Pair(ours, below, times * size, lambda: [new_ids(NOW, size) for _ in range(times)])


def claim(sides: Sides, count: int) -> Pair:
    def ours() -> None:
        take = sides.store.tasks.claim
        for _ in range(count):
            assert take(AGENT) is not None

    return Pair(ours, lambda _: sides.floor.claim(count), count)


def claim_32(sides: Sides, count: int) -> Pair:
    times = max(1, count // 32)

    def ours() -> None:
        for _ in range(times):
            assert len(sides.store.tasks.claim_many(AGENT, 32)) == 32

    return Pair(ours, lambda _: sides.floor.claim_many(times), times * 32)


def claim_and_complete(sides: Sides, count: int) -> Pair:
    def ours() -> None:
        for _ in range(count):
            task = sides.store.tasks.claim(AGENT)
            assert task is not None
            sides.store.tasks.complete(task, RESULT)

    return Pair(ours, lambda _: sides.floor.claim_and_complete(count), count)


def claim_and_complete_32(sides: Sides, count: int) -> Pair:
    times = max(1, count // 32)

    def ours() -> None:
        for _ in range(times):
            claimed = sides.store.tasks.claim_many(AGENT, 32)
            assert len(sides.store.tasks.complete_many([(task, RESULT) for task in claimed])) == 32

    def below(_: Any) -> None:
        for _ in range(times):
            sides.floor.complete_many(sides.floor.hold(1))

    return Pair(ours, below, times * 32)


def get(sides: Sides, count: int) -> Pair:
    ids = [task_id(number) for number in sides.some(count)]

    def ours() -> None:
        read = sides.store.tasks.get
        for id in ids:
            read(id)

    return Pair(ours, lambda _: sides.floor.get(ids), count)


def append(sides: Sides, count: int) -> Pair:
    version = sides.floor.version = 0

    def ours() -> None:
        nonlocal version
        add = sides.store.events.append
        for _ in range(count):
            version = add("mine", [NewEvent("moved", DATA)], type="bench", expected_version=version)

    return Pair(ours, lambda ids: sides.floor.append("mine", ids, DATA), count, lambda: new_ids(NOW, count))


def append_1000(sides: Sides, count: int) -> Pair:
    size = min(count, 1_000)
    times = max(1, count // size)
    version = at = 0

    def ours() -> None:
        nonlocal version
        for _ in range(times):
            batch = [NewEvent("moved", DATA) for _ in range(size)]
            version = sides.store.events.append("batches", batch, type="bench", expected_version=version)

    def below(ids: Sequence[Sequence[str]]) -> None:
        nonlocal at
        other, sides.floor.version = sides.floor.version, at
        for some in ids:
            sides.floor.append_batch("batches", some, DATA)
        at, sides.floor.version = sides.floor.version, other

    return Pair(ours, below, times * size, lambda: [new_ids(NOW, size) for _ in range(times)])


def read_stream(sides: Sides, count: int) -> Pair:
    streams = [f"s{number // STREAM}" for number in sides.some(max(1, count // STREAM))]

    def ours() -> None:
        for stream in streams:
            assert len(sides.store.events.read(stream, type="bench")) == STREAM

    return Pair(ours, lambda _: [sides.floor.read(stream) for stream in streams], len(streams) * STREAM)


def heartbeat(sides: Sides, count: int) -> Pair:
    agents = [f"a{number}" for number in sides.some(count)]

    def ours() -> None:
        beat = sides.store.agents.heartbeat
        for agent in agents:
            beat(agent)

    return Pair(ours, lambda _: sides.floor.heartbeat(agents), count)


def publish(sides: Sides, count: int) -> Pair:
    # To somebody else than the one who receives.
    def ours() -> None:
        tell = sides.store.messages.publish
        for _ in range(count):
            tell("found", CONTENT, sender=AGENT, to="a0")

    return Pair(ours, sides.floor.publish, count, lambda: [(id, json.dumps(CONTENT), "a0") for id in new_ids(NOW, count)])


def receive_10(sides: Sides, count: int) -> Pair:
    times = max(1, count // 10)

    def prepare() -> None:
        with sides.store.transaction() as work:
            for _ in range(times * 10):
                work.messages.publish("found", CONTENT, sender=AGENT, to=AGENT)
        letters = [(id, json.dumps(CONTENT), AGENT) for id in new_ids(NOW, times * 10)]
        sides.floor.within(lambda: sides.floor.publish(letters))

    def ours() -> None:
        for _ in range(times):
            received = sides.store.messages.receive(AGENT, limit=10)
            assert sides.store.messages.acknowledge_many(received, AGENT) == 10

    return Pair(ours, lambda _: sides.floor.receive_and_acknowledge(AGENT, times), times * 10, prepare)


def config_get(sides: Sides, count: int) -> Pair:
    keys = [f"k{number}" for number in sides.some(count)]

    def ours() -> None:
        read = sides.store.config.get
        for key in keys:
            read(key)

    return Pair(ours, lambda _: sides.floor.config(keys), count)


def config_set(sides: Sides, count: int) -> Pair:
    pairs = [(f"k{number}", json.dumps(VALUE)) for number in sides.some(count)]

    def ours() -> None:
        put = sides.store.config.set
        for key, _ in pairs:
            put(key, VALUE)

    return Pair(ours, lambda _: sides.floor.set_config(pairs), count)


def record(sides: Sides, count: int) -> Pair:
    def ours() -> None:
        add = sides.store.metrics.record
        for _ in range(count):
            add("latency", 12.5, agent=AGENT, unit="ms", tags={"host": "a"})

    return Pair(ours, lambda _: sides.floor.record(count), count)


# In this order the claims take about as many tasks as the others add.
PATHS: Sequence[Path] = (
    Path("get by id", "tasks", get),
    Path("claim", "tasks", claim),
    Path("enqueue", "tasks", enqueue),
    Path("claim 32 at once", "tasks", claim_32),
    Path("enqueue 1000 at once", "tasks", enqueue_1000),
    Path("claim and complete", "tasks", claim_and_complete),
    Path("claim and complete 32 at once", "tasks", claim_and_complete_32),
    Path("append", "events", append),
    Path("append 1000 at once", "events", append_1000),
    Path("read a stream of 1000", "events", read_stream),
    Path("heartbeat", "agents", heartbeat),
    Path("publish", "messages", publish),
    Path("receive and acknowledge 10", "messages", receive_10),
    Path("get config", "config", config_get),
    Path("set config", "config", config_set),
    Path("record a sample", "metrics", record),
)


# How a database is filled: by statements that make rows from numbers, so that millions take seconds

_TABLES = {
    "tasks": """tasks
(id, type, payload, created_at, priority, status, max_retries, on_dependency_failure, fence, retry_count, version)""",
    "events": "events (id, aggregate_id, aggregate_type, event_type, event_data, timestamp, sequence_number)",
    "agents": "agents",
    "messages": "messages (id, topic, content, timestamp, audience, to_agent, version)",
    "config": "swarm_config",
    "metrics": "metrics (metric_name, value, timestamp, metric_type, unit, agent_id, tags, version)",
}
_ID = "printf('00000000-0000-7000-8000-%012x', n)"
_ROWS = {
    "tasks": f"{_ID}, 'crawl', '{json.dumps(PAYLOAD)}', {NOW}, n % 10, 'pending', 3, 'cancel', 0, 0, 1",
    "events": f"{_ID}, 's' || (n / {STREAM}), 'bench', 'moved', '{json.dumps(DATA)}', {NOW}, n % {STREAM} + 1",
    "agents": f"'a' || n, 'bench', {NOW}, {NOW}, NULL, 'idle', '[]', '{{}}', NULL, 1",
    "messages": f"{_ID}, 'found', '{json.dumps(CONTENT)}', {NOW}, 'direct', 'a' || (n % {AGENTS}), 1",
    "config": f"'k' || n, '{json.dumps(VALUE)}', {NOW}, NULL, NULL, 1",
    "metrics": f"""'latency', 12.5, {NOW} + n, 'gauge', 'ms', 'a' || (n % {AGENTS}), '{{"host":"a"}}', 1""",
}
_NUMBERS = "WITH RECURSIVE numbers (n) AS (SELECT ? UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < ?)"
_PART = 1_000_000
_INBOXES = "INSERT INTO message_cursors SELECT id, '', (SELECT coalesce(max(position), 0) FROM messages) FROM agents"


def fill(path: File, filled_with: str, rows: int) -> None:
    """Makes a database that holds so many rows of a noun, and the agents they speak of, who have read all there is."""
    Store.open(path).close()  # the schema
    with closing(sqlite3.connect(path, isolation_level=None)) as raw:
        raw.execute("PRAGMA synchronous=OFF")
        raw.execute("PRAGMA cache_size=-500000")
        for noun, count in {"agents": AGENTS, filled_with: rows}.items():
            for start in range(0, count, _PART):
                numbers = (start, min(start + _PART, count))
                raw.execute(f"INSERT INTO {_TABLES[noun]} {_NUMBERS} SELECT {_ROWS[noun]} FROM numbers", numbers)
        raw.execute(_INBOXES)
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")


@contextmanager
def opened(directory: File, filled_with: str, rows: int) -> Iterator[Sides]:
    """Both sides, each on a file of its own in `directory` that is gone afterwards."""
    ours, floors = directory / f"{filled_with}-{rows}.db", directory / f"{filled_with}-{rows}-floor.db"
    fill(ours, filled_with, rows)
    shutil.copy(ours, floors)
    try:
        with Store.open(ours) as store, closing(SQLiteFloor(str(floors), full=False)) as floor:
            store.agents.register("bench", id=AGENT)
            floor.execute(f"{_INBOXES} WHERE id = '{AGENT}'")
            yield Sides(store, floor, rows)
    finally:
        for path in (ours, floors):
            for kept in directory.glob(f"{path.name}*"):
                kept.unlink()
