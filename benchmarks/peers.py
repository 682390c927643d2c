"""The same jobs by other task queues and event stores, each through its own public interface, the fastest way its documentation shows.

All of them take the same payload and give it back as an object; what is particular about one is said in its `notes`.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
import uuid
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import make_dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, ClassVar

from places import Durability, Place, PostgreSQLPlace

from ruv_swarm_store import Store

PAYLOAD: Any = {"url": "https://example.com/a/page", "depth": 3, "tags": ["a", "b"]}
RESULT = {"ok": True}


class Peer:
    """A library that queues tasks, on an empty database of its own. Its jobs are methods; it has those that the library has:

    - `enqueue(count)` adds so many tasks, one by one; `enqueue_many(payloads)` adds a task for each payload, at once;
    - `claim(count)` takes so many tasks, one by one; `claim_many(count)` takes 32 at once, so many times;
    - `claim_and_complete(count)` takes so many one by one, each finished with a result if the library keeps one.
    """

    name: ClassVar[str]
    module: ClassVar[str]
    engine: ClassVar[str]
    durabilities: ClassVar[Sequence[Durability]] = ("normal", "full")
    """At which it can be run: those in which its documented options leave the database."""
    notes: ClassVar[Mapping[str, str]] = {}
    """By job; `""` for all of them."""

    def __init__(self, place: Place) -> None:
        raise NotImplementedError

    @classmethod
    def load(cls) -> Any:
        """The library. Raises `ImportError`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(cls.module)

    @classmethod
    def note(cls, job: str) -> str:
        """What is particular about it at a job; for `""`, at all of them."""
        return cls.notes.get(job, "")

    @classmethod
    def can(cls, job: str) -> bool:
        return getattr(cls, job, None) is not getattr(Peer, job, None)

    def job(self, name: str) -> Callable[[Any], object] | None:
        """The job of that name, if the library has it."""
        found: Callable[[Any], object] | None = getattr(self, name, None)
        return found

    def fill(self, count: int) -> None:
        """Adds a backlog."""
        if (many := self.job("enqueue_many")) is not None:
            many([PAYLOAD] * count)
        else:
            self.enqueue(count)

    def fill_like(self, filling: Callable[[Store], object]) -> None:
        """Fills it as a store of ours is filled, if its tables are ours."""

    def enqueue(self, count: int) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class LiteQueue(Peer):
    name, module, engine = "litequeue", "litequeue", "sqlite"
    durabilities = ("normal",)  # it sets synchronous=NORMAL
    notes: ClassVar = {"claim": "no priorities, no leases", "claim_and_complete": "no priorities, no leases, no results"}

    def __init__(self, place: Place) -> None:
        self._queue: Any = self.load().LiteQueue(place.new())

    def enqueue(self, count: int) -> None:
        put = self._queue.put
        for _ in range(count):
            put(json.dumps(PAYLOAD))

    def enqueue_many(self, payloads: Sequence[Any]) -> None:
        put = self._queue.put
        with self._queue.transaction():
            for payload in payloads:
                put(json.dumps(payload))

    def claim(self, count: int) -> None:
        pop = self._queue.pop
        for _ in range(count):
            json.loads(pop().data)

    def claim_and_complete(self, count: int) -> None:
        pop, done = self._queue.pop, self._queue.done
        for _ in range(count):
            message = pop()
            json.loads(message.data)
            if hasattr(message, "claim_id"):
                done(message.message_id, claim_id=message.claim_id)
            else:  # before 0.10, which Python 3.11 gets
                done(message.message_id)

    def close(self) -> None:
        self._queue.close()


class PersistQueue(Peer):
    name, module, engine = "persist-queue", "persistqueue", "sqlite"
    durabilities = ("full",)  # it leaves synchronous at SQLite's own FULL
    notes: ClassVar = {"claim": "no priorities, no leases", "claim_and_complete": "no priorities, no leases, no results"}

    def __init__(self, place: Place) -> None:
        self._queue: Any = self.load().SQLiteAckQueue(place.new())

    def enqueue(self, count: int) -> None:
        put = self._queue.put
        for _ in range(count):
            put(PAYLOAD)

    def claim(self, count: int) -> None:
        get = self._queue.get
        for _ in range(count):
            get(block=False)

    def claim_and_complete(self, count: int) -> None:
        get, ack = self._queue.get, self._queue.ack
        for _ in range(count):
            ack(id=get(block=False, raw=True)["pqid"])

    def close(self) -> None:
        self._queue.close()


class Huey(Peer):
    """Its verbs are the same on every storage."""

    name, module = "huey", "huey"
    notes: ClassVar = {"claim": "deletes the task: it is lost if the worker dies"}

    def _start(self, huey: Any) -> None:
        self._huey = huey

        def crawl(payload: Any) -> Any:
            return RESULT

        self._crawl: Any = huey.task()(crawl)

    def enqueue(self, count: int) -> None:
        crawl = self._crawl
        for _ in range(count):
            crawl(PAYLOAD)

    def claim(self, count: int) -> None:
        dequeue = self._huey.dequeue
        for _ in range(count):
            assert dequeue() is not None

    def claim_and_complete(self, count: int) -> None:
        dequeue, execute = self._huey.dequeue, self._huey.execute
        for _ in range(count):
            execute(dequeue())

    def close(self) -> None:
        self._huey.storage.close()


class SqliteHuey(Huey):
    engine = "sqlite"
    durabilities = ("full",)  # fsync=True is FULL, and fsync=False OFF

    def __init__(self, place: Place) -> None:
        self._start(self.load().SqliteHuey("bench", filename=place.new(), fsync=True))


class PostgresHuey(Huey):
    engine = "postgresql"

    def __init__(self, place: Place) -> None:
        self._start(self.load().PostgresHuey("bench", dsn=_conninfo(place)))


class _Async(Peer):
    """A library of coroutines: they run in one event loop, which is entered once for each timed round."""

    engine = "postgresql"

    def _start(self, start: Coroutine[Any, Any, None], loop: Callable[[], asyncio.AbstractEventLoop] | None = None) -> None:
        self._runner = asyncio.Runner(loop_factory=loop)
        self._runner.run(start)

    def _times(self, count: int, do: Callable[[], Awaitable[object]]) -> None:
        async def run() -> None:
            for _ in range(count):
                await do()

        self._runner.run(run())


class Procrastinate(_Async):
    name, module = "procrastinate", "procrastinate"
    notes: ClassVar = {"claim_and_complete": "keeps no results", "": "its pool in autocommit, which is not its default"}

    def __init__(self, place: Place) -> None:
        library = self.load()
        self._done = importlib.import_module("procrastinate.jobs").Status.SUCCEEDED
        pool = {"min_size": 1, "max_size": 1, "kwargs": {"autocommit": True}}
        self._app: Any = library.App(connector=library.PsycopgConnector(conninfo=_conninfo(place), **pool))

        async def crawl(payload: Any) -> Any:
            return RESULT

        self._crawl: Any = self._app.task(name="crawl")(crawl)

        self._start(self._open())

    async def _open(self) -> None:
        await self._app.open_async()
        await self._app.schema_manager.apply_schema_async()
        self._worker = await self._app.job_manager.register_worker()

    def enqueue(self, count: int) -> None:
        self._times(count, lambda: self._crawl.defer_async(payload=PAYLOAD))

    def enqueue_many(self, payloads: Sequence[Any]) -> None:
        self._times(1, lambda: self._crawl.batch_defer_async(*({"payload": payload} for payload in payloads)))

    async def _claim(self) -> Any:
        job = await self._app.job_manager.fetch_job(None, self._worker)
        assert job is not None
        return job

    async def _claim_and_complete(self) -> None:
        await self._app.job_manager.finish_job(await self._claim(), self._done, delete_job=False)

    def claim(self, count: int) -> None:
        self._times(count, self._claim)

    def claim_and_complete(self, count: int) -> None:
        self._times(count, self._claim_and_complete)

    def close(self) -> None:
        self._runner.run(self._app.close_async())
        self._runner.close()


class PgQueuer(_Async):
    name, module = "pgqueuer", "pgqueuer"
    notes: ClassVar = {"claim_and_complete": "moves the task to a log, keeps no results", "": "on asyncpg and uvloop"}

    def __init__(self, place: Place) -> None:
        library, driver = self.load(), importlib.import_module("asyncpg")
        limits = importlib.import_module("pgqueuer.ports.repository").EntrypointExecutionParameter
        assert isinstance(place, PostgreSQLPlace)
        settings = {"search_path": place.empty_schema(), "synchronous_commit": commit(place)}
        self._entrypoints = {"crawl": limits(concurrency_limit=0)}
        self._who = uuid.uuid4()
        loop = importlib.import_module("uvloop").new_event_loop if sys.platform != "win32" else None
        self._start(self._open(driver.connect, place.url, settings, library.Queries), loop)

    async def _open(self, connect: Any, url: str, settings: Mapping[str, str], queries: Any) -> None:
        self._connection: Any = await connect(url, server_settings=settings)
        self._queries: Any = queries.from_asyncpg_connection(self._connection)
        await self._queries.install()

    def enqueue(self, count: int) -> None:
        self._times(count, lambda: self._queries.enqueue("crawl", json.dumps(PAYLOAD).encode(), 5))

    def enqueue_many(self, payloads: Sequence[Any]) -> None:
        encoded = [json.dumps(payload).encode() for payload in payloads]
        self._times(1, lambda: self._queries.enqueue(["crawl"] * len(encoded), encoded, [5] * len(encoded)))

    async def _take(self, count: int) -> list[Any]:
        jobs: list[Any] = await self._queries.dequeue(
            batch_size=count,
            entrypoints=self._entrypoints,
            queue_manager_id=self._who,
            global_concurrency_limit=None,
            heartbeat_timeout=timedelta(seconds=30),
        )
        assert len(jobs) == count
        for job in jobs:
            json.loads(job.payload)
        return jobs

    async def _claim_and_complete(self) -> None:
        [job] = await self._take(1)
        await self._queries.log_jobs([(job, "successful", None)])

    def claim(self, count: int) -> None:
        self._times(count, lambda: self._take(1))

    def claim_many(self, count: int) -> None:
        self._times(count, lambda: self._take(32))

    def claim_and_complete(self, count: int) -> None:
        self._times(count, self._claim_and_complete)

    def close(self) -> None:
        self._runner.run(self._connection.close())
        self._runner.close()


@cache
def _moved() -> Any:
    """A class of events for the library `eventsourcing`."""
    base = importlib.import_module("eventsourcing.domain").DomainEvent
    moved = make_dataclass("Moved", [("x", int), ("y", int), ("by", str)], bases=(base,), frozen=True)
    importlib.import_module("eventsourcing.utils").register_topic("bench:Moved", moved)
    return moved


class EventSourcing(Peer):
    """Its event store, which its applications and aggregates are built upon, with its JSON transcoder."""

    name, module, engine = "eventsourcing", "eventsourcing.sqlite", "sqlite"
    durabilities: ClassVar[Sequence[Durability]] = ("full",)  # it leaves synchronous at SQLite's own FULL
    notes: ClassVar = {"": "its EventStore: no ids of events, no metadata, numbers and times given by the caller"}

    def __init__(self, place: Place) -> None:
        library, persistence = self.load(), importlib.import_module("eventsourcing.persistence")
        transcoder = persistence.JSONTranscoder()
        for transcoding in (persistence.UUIDAsHex(), persistence.DatetimeAsISO()):
            transcoder.register(transcoding)
        self._mapper: Any = persistence.Mapper(transcoder)
        datastore = library.SQLiteDatastore(place.new())
        self._recorder: Any = library.SQLiteApplicationRecorder(datastore)
        self._snapshots: Any = library.SQLiteAggregateRecorder(datastore, events_table_name="snapshots")
        for recorder in (self._recorder, self._snapshots):
            recorder.create_table()
        self._store: Any = persistence.EventStore(self._mapper, self._recorder)
        self._kept: Any = persistence.EventStore(self._mapper, self._snapshots)
        self._close = datastore.close
        self._versions: dict[uuid.UUID, int] = {}
        self._streams: list[uuid.UUID] = []

    def _append(self, stream: uuid.UUID, size: int) -> None:
        version, moved, now = self._versions.get(stream, 0), _moved(), datetime.now(UTC)
        self._store.put([moved(stream, number, now, 12, 7, "scout") for number in range(version + 1, version + size + 1)])
        self._versions[stream] = version + size

    def append(self, given: tuple[int, int]) -> None:
        """Appends so many batches of so many events to one stream."""
        times, size = given
        if not self._streams:
            self._streams = [uuid.uuid4()]
        for _ in range(times):
            self._append(self._streams[0], size)

    def close(self) -> None:
        self._close()


class EventSourcingReading(EventSourcing):
    """What waits for no disk."""

    durabilities = ("normal", "full")

    def append(self, given: tuple[int, int]) -> None:
        raise NotImplementedError

    @classmethod
    def can(cls, job: str) -> bool:
        return job != "append" and super().can(job)

    def _filled(self, streams: int, size: int) -> list[uuid.UUID]:
        if not self._streams:
            self._streams = [uuid.uuid4() for _ in range(streams)]
            for stream in self._streams:
                self._append(stream, size)
        return self._streams

    def read_streams(self, streams: int) -> None:
        """Reads streams of a thousand events."""
        for stream in self._filled(streams, 1_000):
            assert len(list(self._store.get(stream))) == 1_000

    def read_log(self, thousands: int) -> None:
        """Reads so many thousand events of all streams."""
        self._filled(thousands, 1_000)
        start, found = 1, 0
        while page := self._recorder.select_notifications(start, 1_000):
            found += len([self._mapper.to_domain_event(event) for event in page])
            start = page[-1].id + 1
        assert found == thousands * 1_000

    def fold(self, thousands: int) -> None:
        """Sums up a stream of so many thousand events."""
        [stream] = self._filled(1, thousands * 1_000)
        assert self._sum(stream, 0, 0) == 12 * thousands * 1_000

    def fold_from_a_snapshot(self, given: tuple[int, int]) -> None:
        """Does so, so many times, from a snapshot that is fifty events old."""
        thousands, times = given
        known = bool(self._streams)
        [stream] = self._filled(1, thousands * 1_000)
        if not known:
            self._kept.put([_moved()(stream, thousands * 1_000, datetime.now(UTC), 12 * thousands * 1_000, 0, "a snapshot")])
            self._append(stream, 50)
        for _ in range(times):
            [snapshot] = self._kept.get(stream, desc=True, limit=1)
            assert self._sum(stream, snapshot.x, snapshot.originator_version) == 12 * (thousands * 1_000 + 50)

    def _sum(self, stream: uuid.UUID, total: int, after: int) -> int:
        while page := list(self._store.get(stream, gt=after, limit=1_000)):
            for event in page:
                total += event.x
            after = page[-1].originator_version
        return total


PEERS: Sequence[type[Peer]] = (
    LiteQueue, SqliteHuey, PersistQueue, Procrastinate, PgQueuer, PostgresHuey, EventSourcing, EventSourcingReading,
)  # fmt: skip


def commit(place: Place) -> str:
    """PostgreSQL's `synchronous_commit` at the place's durability."""
    return "on" if place.durability == "full" else "off"


def _conninfo(place: Place) -> str:
    """What connects to a new schema, at the place's durability."""
    assert isinstance(place, PostgreSQLPlace)
    make = importlib.import_module("psycopg.conninfo").make_conninfo
    options = f"-c search_path={place.empty_schema()} -c synchronous_commit={commit(place)}"
    conninfo: str = make(place.url, options=options)
    return conninfo
