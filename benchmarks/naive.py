"""The same jobs on this library's schema by SQLAlchemy Core as its tutorial shows it, which is what one would write without this library.

Each statement is built where it is executed, in `engine.begin()` or `engine.connect()`, and gives `Row`s, whose JSON is decoded by the
column's type. Tables are filled as ours are, and durability and pragmas are those of the floor.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from floor import AGENT, NOW, PRAGMAS
from peers import PAYLOAD, RESULT, Peer, commit
from places import Place, PostgreSQLPlace
from sqlalchemy import Engine, create_engine, event, func, insert, select, update

from ruv_swarm_store import Store
from ruv_swarm_store.clock import new_id
from ruv_swarm_store.schema import event_snapshots, events, tasks

DATA = {"x": 12, "y": 7, "by": "scout"}
LEASE = 30_000
Rows = Sequence[Any]


class SQLAlchemy(Peer):
    """What both engines have in common: all but the connection."""

    name, module = "SQLAlchemy", "sqlalchemy"
    notes: ClassVar = {"": "Core as in its tutorial, on our schema: statements built where they are executed, Row results"}

    def __init__(self, place: Place) -> None:
        self._place = place
        self._address = place.new()
        self.fill_like(lambda store: store.agents.register("bench", id=AGENT))
        self._engine = self._connect(place)
        self._versions: dict[str, int] = {}

    def _connect(self, place: Place) -> Engine:
        raise NotImplementedError

    def fill_like(self, filling: Callable[[Store], object]) -> None:
        with Store.open(self._address, durability=self._place.durability) as store:
            filling(store)

    def fill(self, count: int) -> None:
        pass  # it is filled as ours are

    def close(self) -> None:
        self._engine.dispose()

    # Tasks

    def enqueue(self, count: int) -> None:
        for _ in range(count):
            with self._engine.begin() as connection:
                connection.execute(insert(tasks).values(**self._task(PAYLOAD)))

    def enqueue_many(self, payloads: Sequence[Any]) -> None:
        with self._engine.begin() as connection:
            connection.execute(insert(tasks), [self._task(payload) for payload in payloads])

    def _task(self, payload: Any) -> dict[str, Any]:
        return {
            "id": new_id(NOW), "type": "crawl", "payload": payload, "created_at": NOW, "priority": 5, "status": "pending", "max_retries": 3,
            "on_dependency_failure": "cancel", "fence": 0, "retry_count": 0, "version": 1,
        }  # fmt: skip

    def _claim(self, limit: int) -> Rows:
        ready = (
            select(tasks.c.position)
            .where(tasks.c.status == "pending")
            .order_by(tasks.c.priority.desc(), tasks.c.position)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        if limit == 1:
            these = tasks.c.position == ready.scalar_subquery()
        else:  # PostgreSQL may run a plain subquery again, and then take more
            these = tasks.c.position.in_(select(ready.cte("ready").prefix_with("MATERIALIZED").c.position))
        with self._engine.begin() as connection:
            claimed = connection.execute(
                update(tasks)
                .where(these)
                .values(
                    status="assigned",
                    agent_id=AGENT,
                    assigned_at=NOW,
                    lease_expires_at=NOW + LEASE,
                    fence=tasks.c.fence + 1,
                    version=tasks.c.version + 1,
                )
                .returning(tasks)
            ).all()
        assert len(claimed) == limit
        return claimed

    def claim(self, count: int) -> None:
        for _ in range(count):
            self._claim(1)

    def claim_many(self, count: int) -> None:
        for _ in range(count):
            self._claim(32)

    def claim_and_complete(self, count: int) -> None:
        for _ in range(count):
            [task] = self._claim(1)
            with self._engine.begin() as connection:
                connection.execute(
                    update(tasks)
                    .where(tasks.c.id == task.id, tasks.c.fence == task.fence, tasks.c.status.in_(["assigned", "running"]))
                    .values(status="completed", result=RESULT, completed_at=NOW, lease_expires_at=None, version=tasks.c.version + 1)
                    .returning(tasks)
                ).one()

    def get(self, count: int) -> None:
        """Reads so many of the first tasks by their ids."""
        if not hasattr(self, "_ids"):
            with self._engine.connect() as connection:
                self._ids = list(connection.scalars(select(tasks.c.id).order_by(tasks.c.position).limit(count)))
        for id in self._ids:
            with self._engine.connect() as connection:
                connection.execute(select(tasks).where(tasks.c.id == id)).one()

    # Events

    def append(self, given: tuple[int, int]) -> None:
        """Appends so many batches of so many events to one stream."""
        times, size = given
        for _ in range(times):
            self._append("mine", size)

    def _append(self, stream: str, size: int) -> None:
        version = self._versions.get(stream, 0)
        with self._engine.begin() as connection:
            found = connection.scalar(
                select(func.coalesce(func.max(events.c.sequence_number), 0)).where(
                    events.c.aggregate_id == stream, events.c.aggregate_type == "bench"
                )
            )
            assert found == version
            new = [
                {
                    "id": new_id(NOW), "aggregate_id": stream, "aggregate_type": "bench", "event_type": "moved", "event_data": DATA,
                    "timestamp": NOW, "sequence_number": number,
                }
                for number in range(version + 1, version + size + 1)
            ]  # fmt: skip
            connection.execute(insert(events), new)
        self._versions[stream] = version + size

    def _read(self, stream: str, after: int = 0) -> Rows:
        with self._engine.connect() as connection:
            return connection.execute(
                select(events)
                .where(events.c.aggregate_id == stream, events.c.aggregate_type == "bench", events.c.sequence_number > after)
                .order_by(events.c.sequence_number)
                .limit(1_000)
            ).all()

    def read_streams(self, streams: int) -> None:
        """Reads streams of a thousand events."""
        for number in range(streams):
            assert len(self._read(f"s{number}")) == 1_000

    def read_log(self, thousands: int) -> None:
        """Reads so many thousand events of all streams."""
        after = found = 0
        while True:
            with self._engine.connect() as connection:
                page = connection.execute(select(events).where(events.c.position > after).order_by(events.c.position).limit(1_000)).all()
            if not page:
                break
            found += len(page)
            after = page[-1].position
        assert found == thousands * 1_000

    def fold(self, thousands: int) -> None:
        """Sums up a stream of so many thousand events."""
        assert self._sum(0, 0) == 12 * thousands * 1_000

    def fold_from_a_snapshot(self, given: tuple[int, int]) -> None:
        """Does so, so many times, from a snapshot that is fifty events old."""
        thousands, times = given
        for _ in range(times):
            with self._engine.connect() as connection:
                snapshot = connection.execute(
                    select(event_snapshots)
                    .where(event_snapshots.c.aggregate_id == "s0", event_snapshots.c.aggregate_type == "bench")
                    .where(event_snapshots.c.name == "sum")
                    .order_by(event_snapshots.c.sequence_number.desc())
                    .limit(1)
                ).one()
            assert self._sum(snapshot.state, snapshot.sequence_number) == 12 * (thousands * 1_000 + 50)

    def _sum(self, total: int, after: int) -> int:
        while page := self._read("s0", after):
            for row in page:
                total += row.event_data["x"]
            after = page[-1].sequence_number
        return total


class SQLAlchemyOnSQLite(SQLAlchemy):
    engine = "sqlite"

    def _connect(self, place: Place) -> Engine:
        engine = create_engine(f"sqlite:///{self._address}")

        @event.listens_for(engine, "connect")
        def configure(raw: Any, _: object) -> None:
            for pragma in (f"synchronous={'FULL' if place.durability == 'full' else 'NORMAL'}", *PRAGMAS):
                raw.execute(f"PRAGMA {pragma}")

        return engine


class SQLAlchemyOnPostgreSQL(SQLAlchemy):
    engine = "postgresql"

    def _connect(self, place: Place) -> Engine:
        assert isinstance(place, PostgreSQLPlace)
        make = importlib.import_module("psycopg").connect
        options = f"-c search_path={self._address.rpartition('schema=')[2]} -c synchronous_commit={commit(place)}"
        return create_engine("postgresql+psycopg://", creator=lambda: make(place.url, options=options))


NAIVE: Sequence[type[Peer]] = (SQLAlchemyOnSQLite, SQLAlchemyOnPostgreSQL)
