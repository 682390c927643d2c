"""The playground's Python: one store, one run at a time, and a page that is told of both as JSON."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from typing import Any

import msgspec
from sqljs_dbapi import storage
from sqljs_dbapi.storage import Database, StorageError

from ruv_swarm_store import Store, StoreError, schema
from ruv_swarm_store.demo import run as runs
from ruv_swarm_store.demo.cooperative import Orders, View, conduct
from ruv_swarm_store.demo.progress import Progress, Throughput, look
from ruv_swarm_store.demo.run import FAILED, FINISHED, RUN, STOPPED, Run
from ruv_swarm_store.demo.work import PARSE_TIME
from ruv_swarm_store.errors import CorruptDatabase, SchemaMismatch

NAME = "swarm"
"""The database, of this page's origin."""
ASIDE = "swarm-import"
"""Where a file is looked at before it takes the place of the database."""
PATIENCE = 0.5
"""Seconds a page that is reloaded waits for the lock of the one before; whoever holds it longer is another tab, and is followed."""
TICK = 0.5
"""Seconds from one look at the storage to the next."""
EVENTS = 60
"""Events told at a time; the page keeps no more either."""
ADDED_UP = 5_000
"""Files up to which the slowest ones are looked for: that reads every task."""
NOUNS = ("agents", "tasks", "events", "messages", "metrics", "groups", "config")

log = logging.getLogger(__name__)
_e = schema.events.c


class Session:
    """The store of this page, as its writer, or as a follower while another tab writes."""

    def __init__(self, tell: Callable[[str, str], object]) -> None:
        """`tell` takes the name of what changed, and the new state as JSON."""
        self._tell_page = tell
        self._database: Database | None = None
        self._store: Store | None = None
        self._orders: Orders | None = None
        self._running: asyncio.Task[None] | None = None
        self._waiting: asyncio.Task[None] | None = None
        self._ticking: asyncio.Task[None] | None = None
        self._throughput = Throughput()
        self._told = -1

    # Opening and closing

    async def open(self, mode: storage.Mode = "wait") -> None:
        """Opens the store: as its writer if there is none (`wait`) or by force (`steal`), following one otherwise (`follow`)."""
        await self._let_go()
        try:
            database = await storage.open(NAME, mode=mode, timeout=PATIENCE)
        except StorageError as error:
            if error.reason != "locked":
                raise
            database = await storage.open(NAME, mode="follow")
        self._database = database
        while True:
            try:
                self._store = await Store.open_async(NAME, read_only=database.read_only)
                break
            except SchemaMismatch:
                if not database.read_only or database.status().generation > 0:
                    raise
            await asyncio.sleep(TICK)  # the writer has just begun
        if database.read_only:
            self._waiting = self._beside(self._take_turn(database))
        self._told = -1
        self._throughput = Throughput()
        self._ticking = self._beside(self._tick(database))
        self.show()

    async def _take_turn(self, database: Database) -> None:
        """Becomes the writer when the present one ends."""
        await database.promote()
        if self._store is not None:
            await self._store.close_async()
        self._store = await Store.open_async(NAME)
        self.show()
        self._tell("storage", self.status())
        self._tell("turn", None)

    async def _let_go(self) -> None:
        for task in (self._ticking, self._waiting):
            if task is not None:
                task.cancel()
        await self._halt()
        store, database, self._store, self._database = self._store, self._database, None, None
        for each in (None if store is None else store.close_async(), None if database is None else database.close()):
            if each is not None:
                with contextlib.suppress(StoreError, StorageError):  # the page has been told of a writer's failure before
                    await each

    async def hand_over(self) -> None:
        """Lets another tab write, and follows it."""
        await self._halt()
        await self._let_go()
        await asyncio.sleep(TICK)  # for the other one's turn
        await self.open()

    def _beside(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Does something beside everything else; the page is told when that fails."""

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                self._tell("trouble", str(error))

        task = asyncio.ensure_future(work)
        task.add_done_callback(ended)
        return task

    @property
    def _open(self) -> Store:
        if self._store is None:
            raise RuntimeError("the store is not open")
        return self._store

    @property
    def _stored(self) -> Database:
        if self._database is None:
            raise RuntimeError("the store is not open")
        return self._database

    # Runs

    def start(self, path: str, agents: int, pace: float) -> None:
        """Begins a run over a directory, or goes on with the one that was not finished. `pace` is in seconds for each file."""
        if self._running is not None and not self._running.done():
            raise RuntimeError("a run is going on")
        self._orders = Orders(agents, pace)
        self._running = asyncio.ensure_future(self._conduct(path, self._orders))

    async def _conduct(self, path: str, orders: Orders) -> None:
        try:
            await conduct(self._open, path, orders, self._show)
            await self._open.flush()
        except Exception as error:
            log.exception("the run ended")
            self._tell("trouble", str(error))
        self._orders = None
        self.show()

    def order(self, agents: int, pace: float) -> None:
        """Changes how many agents there are, and how fast they go, while a run goes on."""
        if self._orders is not None:
            self._orders.agents, self._orders.pace = agents, pace

    def stop(self) -> None:
        """Lets the agents finish what they do and stops the run, to be gone on with later."""
        if self._orders is not None:
            self._orders.stop = True

    def kill(self, agent: str) -> None:
        """Ends an agent in the middle of what it does."""
        if self._orders is not None:
            self._orders.kill.add(agent)

    def give_up(self) -> None:
        """Ends an unfinished run for good: what it has left to do is cancelled."""
        if (last := runs.latest(self._open)) is not None and not last[1]:
            self._open.tasks.cancel(last[0], tree=True)
            Run(self._open, last[0]).note(FAILED, {"reason": "given up"})
        self.show()

    async def _halt(self) -> None:
        if self._running is not None:
            self.stop()
            with contextlib.suppress(Exception):
                await self._running

    # What the page shows

    def show(self) -> None:
        """Tells of the last run, whoever carries it out."""
        if self._orders is None:
            self._show(None)

    def _show(self, view: View | None) -> None:
        store = self._open
        last = runs.latest(store) if view is None else None
        run = view.run if view is not None else None if last is None else Run(store, last[0])
        progress = view.progress if view is not None else None if run is None else look(store, run)
        scene: dict[str, Any] = {"state": "empty", "said": [], "events": self._events(), "counts": self._counts(store)}
        if run is not None and progress is not None:
            scene |= _described(run, progress)
            scene["state"] = "running" if view is not None else self._state(store, run)
            if scene["state"] in ("finished", "failed"):
                scene["outcome"] = _outcome(store, run)
        if view is not None:
            scene |= {"elapsed": view.elapsed, "rate": view.rate, "said": view.said, "stage": view.stage}
        elif progress is not None:
            scene["rate"] = self._throughput.measure(progress.completed)
        self._tell("storage", self.status())  # not older than what is shown beside it
        self._tell("scene", scene)

    def _state(self, store: Store, run: Run) -> str:
        last = store.events.where(_e.aggregate_id == run.id, _e.aggregate_type == RUN).order_by(_e.position.desc()).first()
        ended = {FINISHED: "finished", FAILED: "failed", STOPPED: "stopped"}
        otherwise = "elsewhere" if self._stored.read_only else "interrupted"
        return otherwise if last is None else ended.get(last.event_type, otherwise)

    def _events(self) -> list[dict[str, Any]]:
        newer = self._open.events.where(_e.position > self._told).order_by(_e.position.desc()).limit(EVENTS).all()
        if newer:
            self._told = newer[0].position
        return [
            {
                "position": event.position,
                "at": event.timestamp,
                "type": event.event_type,
                "about": event.event_data.get("path", "") if isinstance(event.event_data, dict) else "",
            }
            for event in reversed(newer)
        ]

    def _counts(self, store: Store) -> dict[str, int]:
        return {noun: getattr(store, noun).count() for noun in NOUNS}

    async def _tick(self, database: Database) -> None:
        """Tells of the storage, and of what another tab does."""
        seen = database.status().generation
        while True:
            status = self.status()
            self._tell("storage", status)
            if status["failure"] and await self._is_fenced(database):
                self._tell("fenced", None)
            if database.read_only and status["generation"] != seen:
                seen = status["generation"]
                self.show()
            await asyncio.sleep(TICK)

    # Storage

    def status(self) -> dict[str, Any]:
        """Where the storage stands; see `sqljs_dbapi.storage.Status`."""
        return {**asdict(self._stored.status()), "read_only": self._stored.read_only}

    async def _is_fenced(self, database: Database) -> bool:
        """Whether another tab writes by now."""
        try:
            await database.flush()
        except StorageError as error:
            return error.reason == "fenced"
        return False

    async def flush(self) -> None:
        """Returns once everything is stored."""
        await self._open.flush()

    def export(self) -> bytes:
        """The database as a plain SQLite file."""
        return self._stored.export()

    async def replace(self, content: bytes | None) -> None:
        """Puts a SQLite file, or a new store, in the place of the database. Raises when it is none, and then nothing has changed."""
        await self._halt()
        checked = await _checked(content)
        await self._open.close_async()
        try:
            await self._stored.replace(checked)
        finally:
            self._store = await Store.open_async(NAME)
        self._told = -1
        self.show()

    async def forget(self) -> None:
        """Empties the store."""
        await self.replace(None)

    def _tell(self, name: str, value: Any) -> None:
        self._tell_page(name, msgspec.json.encode(value).decode())


async def _checked(content: bytes | None) -> bytes:
    """A SQLite file as this release wants it: opened and migrated aside, and found whole. None: a new one."""
    await storage.remove(ASIDE)  # what a crash may have left
    try:
        async with await storage.open(ASIDE, persist=False) as database:
            if content is not None:
                await database.replace(content)
            async with await Store.open_async(ASIDE) as store:
                if wrong := store.check():
                    raise CorruptDatabase(f"the file is damaged: {wrong[0]}")
            return database.export()
    finally:
        await storage.remove(ASIDE)


def _described(run: Run, progress: Progress) -> dict[str, Any]:
    indexed, known = progress.files
    return {
        "run": {"id": run.id, "path": run.path, "began": run.began},
        "queue": progress.counts,
        "workers": [
            {
                "id": worker.agent.id,
                "name": worker.agent.name,
                "status": worker.agent.status,
                "completed": worker.completed,
                "doing": worker.doing,
                "seconds": worker.seconds,
            }
            for worker in progress.workers
        ],
        "completed": progress.completed,
        "retries": progress.retries,
        "files": {"indexed": indexed, "known": known},
    }


def _outcome(store: Store, run: Run) -> dict[str, Any]:
    """What a run found, as it noted it when it had been checked."""
    last = store.events.read(run.id, type=RUN)[-1]
    outcome: dict[str, Any] = dict(last.event_data)
    if last.event_type == FINISHED:
        times = next(iter(store.metrics.aggregate(PARSE_TIME, since=run.began)), None)
        outcome["parse_time"] = None if times is None else {"p50": times.p50, "p95": times.p95, "p99": times.p99}
        outcome["slowest"] = run.add_up()[1] if outcome["totals"]["files"] <= ADDED_UP else []
    return outcome
