"""The threads that do a store's work for event loops: jobs go there in order, and what comes of them comes back many at a time."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from queue import SimpleQueue
from typing import Any, Protocol

from ruv_swarm_store.engines import Capabilities
from ruv_swarm_store.errors import StoreError

log = logging.getLogger(__name__)

READERS = 4
"""Most threads that read. One does, as long as none of its reads takes long: by turns several would only keep one another from Python."""
PARALLEL = 8
"""Most threads where transactions write side by side, and each spends most of its time waiting for the server."""
ERRANDS = 4
"""Most threads for what takes long and comes seldom, backups for one."""
LINGER = 0.001
"""Seconds for which what is done waits for more to be done, to be handed back together."""
TICK = 0.005
"""Seconds between two times that an event loop looks for what is done, while any of its jobs is under way."""

Call = Callable[[], Any]
Undo = Callable[[Any], object]
"""Takes back what came of a job whose caller is gone. It runs where jobs do."""
Refusal = Callable[[], StoreError]
"""Makes the error that who comes too late gets."""


class Desk:
    """Where an event loop gets what came of its jobs."""

    __slots__ = ("_lanes", "_rung", "_ticking", "done", "loop", "under_way")

    def __init__(self, loop: asyncio.AbstractEventLoop, lanes: Callable[[], Iterable[Lane]]) -> None:
        self.loop = loop
        self.done: deque[tuple[_Job, Any, BaseException | None]] = deque()
        """Jobs that have ended, or were cancelled before they began; with what came of them."""
        self.under_way = 0
        """How many jobs have not come back."""
        self._lanes = lanes
        self._rung = False
        self._ticking = False

    def took(self) -> None:
        """Notes that a job of this loop was taken."""
        self.under_way += 1
        if not self._ticking and not self.loop.is_closed():
            self._ticking = True
            self.loop.call_later(TICK, self._tick)

    def ring(self) -> None:
        """Has the loop fetch what is done; from any thread."""
        if not self._rung or self.loop.is_closed():
            self._rung = True
            try:
                self.loop.call_soon_threadsafe(self.fetch)
            except RuntimeError:  # the loop is closed
                self.fetch()

    def fetch(self) -> None:
        """Hands over what is done, and has taken back what nobody waits for; in the loop's thread, or any other once it is closed."""
        self._rung = False  # first: what is done from here on rings again
        done, closed = self.done, self.loop.is_closed()
        while True:
            try:
                job, value, error = done.popleft()
            except IndexError:
                return
            self.under_way -= 1
            if closed or job.future.done():
                if error is None and job.undo is not None:
                    job.lane.take_back(self, job.undo, value)
            elif error is None:
                job.future.set_result(value)
            elif isinstance(error, StopIteration):  # no future takes one
                stopped = RuntimeError(f"{error!r} was raised")
                stopped.__cause__ = error
                job.future.set_exception(stopped)
            else:
                job.future.set_exception(error)

    def settle(self) -> None:
        """Takes back, at once, what is done and nobody waits for, while no thread is at work any more; the rest is there to be fetched."""
        closed = self.loop.is_closed()
        for _ in range(len(self.done)):
            with suppress(IndexError):  # fetched meanwhile
                job, value, error = self.done.popleft()
                if error is None and job.undo is not None and (closed or job.future.done()):
                    undo, job.undo = job.undo, None
                    _undo(undo, value)
                self.done.append((job, value, error))
        if self.done:
            self.ring()

    def _tick(self) -> None:
        # What a thread has done is not handed back before it is through with what it does next, and that may wait for a lock.
        self.fetch()
        self._ticking = self.under_way > 0
        if self._ticking:
            for lane in self._lanes():
                lane.look()
            self.loop.call_later(TICK, self._tick)


class _Job:
    """A call, and who waits for what comes of it."""

    __slots__ = ("call", "context", "desk", "future", "lane", "undo")

    def __init__(self, lane: Lane, desk: Desk, call: Call, undo: Undo | None) -> None:
        self.lane = lane
        self.desk = desk
        self.call = call
        self.undo = undo
        self.context: Context = copy_context()
        self.future: asyncio.Future[Any] = desk.loop.create_future()


class Doing(Protocol):
    """What does jobs."""

    def do(self, call: Call) -> Awaitable[Any]:
        """Does a job; to be awaited at once."""
        ...

    async def take(self, call: Call, undo: Undo | None) -> Any:
        """Does a job; what came of it is taken back when its caller is cancelled before he has it."""
        ...


class Lane:
    """Threads that do jobs in the order in which they came. They start when they are needed.

    A job whose caller is cancelled before it has begun is left out; one that has begun is done to its end.
    """

    def __init__(self, name: str, desk: Callable[[], Desk], most: int, *, eager: bool = False) -> None:
        """At most so many threads: a further one where a job has to wait, if `eager`, or else where one has kept others waiting long."""
        self.name = name
        self.most = most
        self.eager = eager
        self._desk = desk
        self._jobs: deque[_Job] = deque()
        self._threads: list[threading.Thread] = []
        self._began = 0
        """How many jobs have begun."""
        self._seen = 0
        """How many had when `look` was last called."""
        self._active = 0
        """How many threads are at work."""
        self._turns = 0
        """How often one was put to work."""
        self._newest = 0
        """The turn of the one that was put to work last; 0 when it has gone through all there was."""
        self._refusal: Refusal | None = None
        self._last: deque[Call] = deque()
        """What the first of its threads to end does then."""
        self._renew()

    def _renew(self) -> None:
        self._lock = threading.RLock()  # a store that is dropped may be let go of in the middle of anything
        self._bell: SimpleQueue[int] = SimpleQueue()
        """For each thread that is to go to work its turn, 0 for each that is to end."""

    def do(self, call: Call) -> asyncio.Future[Any]:
        """Has a thread call it; await what this returns. Raises `Closed` when this has ended."""
        return self._begin(call, None).future

    async def take(self, call: Call, undo: Undo | None) -> Any:
        """`do`; what came of it `undo` takes back when its caller is cancelled, or his loop closed, before he has it."""
        job = self._begin(call, undo)
        future = job.future
        try:
            return await future
        except BaseException:
            if undo is not None and future.done() and not future.cancelled() and future.exception() is None:
                self.take_back(job.desk, undo, future.result())  # it was on its way to him
            raise

    def take_back(self, desk: Desk, undo: Undo, value: Any) -> None:
        """Undoes what came of a job that had ended when its caller was gone."""
        try:
            self._begin(partial(_undo, undo, value), None, desk)
        except StoreError:  # it takes no more jobs
            _undo(undo, value)

    def _begin(self, call: Call, undo: Undo | None, desk: Desk | None = None) -> _Job:
        if self._refusal is not None:
            raise self._refusal()
        job = _Job(self, desk or self._desk(), call, undo)
        self._put(job)
        job.desk.took()
        return job

    def _put(self, job: _Job) -> None:
        with self._lock:
            if self._refusal is not None:
                raise self._refusal()
            self._jobs.append(job)
            if not self._active or (self.eager and self._active < self.most):
                self._engage()

    def look(self) -> None:
        """Puts a further thread to work where none has begun a job since the last time, and some are waiting."""
        if self._jobs and self._began == self._seen:
            with self._lock:
                if self._jobs and self._active < self.most and self._refusal is None:
                    self._engage()
        self._seen = self._began

    def _engage(self) -> None:
        """Puts a thread to work; call it with the lock held."""
        if self._active == len(self._threads):
            thread = threading.Thread(target=self._work, name=f"store-{self.name}-{self._active + 1}", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                if self._threads:
                    return  # there can be no more: the others will get to it
                self._jobs.clear()
                raise
            self._threads.append(thread)
        self._active += 1
        self._turns += 1
        self._newest = self._turns
        self._bell.put(self._turns)

    def _work(self) -> None:
        while turn := self._bell.get():
            self._go_through(turn)
        try:
            last = self._last.popleft()
        except IndexError:
            return
        last()

    def _go_through(self, turn: int) -> None:
        jobs, since, now = self._jobs, 0.0, time.monotonic()
        desks: set[Desk] = set()
        while True:
            try:
                job = jobs.popleft()
            except IndexError:
                _ring(desks)
                with self._lock:
                    if not jobs:
                        self._active -= 1
                        if turn == self._newest:
                            self._newest = 0
                        return
                continue
            self._do(job)
            before, now = now, time.monotonic()
            if not desks:
                since = now
            desks.add(job.desk)
            del job  # whoever waits for it may let go of it
            if now - since > LINGER:
                _ring(desks)
            if turn < self._newest and not self.eager and now - before < LINGER:
                # A newer one is at it, and together they would only keep each other from Python.
                _ring(desks)
                with self._lock:
                    if turn < self._newest:
                        self._active -= 1
                        return

    def _do(self, job: _Job) -> None:
        value, error = None, None
        if job.future.cancelled():
            job.undo = None
        else:
            self._began += 1
            try:
                value = job.context.run(job.call)
                if job.undo is not None and job.future.cancelled():
                    undo, job.undo = job.undo, None
                    _undo(undo, value)
            except BaseException as raised:
                error = raised
        job.desk.done.append((job, value, error))
        del job, value, error  # the traceback of an error keeps this frame

    def dismiss(self, refusal: Refusal, last: Callable[[list[threading.Thread]], object] | None = None) -> list[threading.Thread]:
        """Takes no more jobs; the threads, which end when all there are have been done. The first to end calls `last` with them."""
        with self._lock:
            self._refusal = self._refusal or refusal
            threads, self._threads = self._threads, []
            if last is not None and threads:
                self._last.append(partial(last, threads))
            for _ in threads:
                self._bell.put(0)
        return threads

    def disown(self, refusal: Refusal) -> None:
        """In a forked child, which has none of the threads: refuses every job."""
        self._renew()
        self._jobs.clear()
        self._threads.clear()
        self._refusal = refusal


def _ring(desks: set[Desk]) -> None:
    for desk in desks:
        desk.ring()
    desks.clear()


def _undo(undo: Undo, value: Any) -> None:
    try:
        undo(value)
    except BaseException as error:
        log.warning("what a call had taken whose caller was gone was not given back: %r", error)  # its lease runs out by itself
        if not isinstance(error, Exception):
            raise


class _Keeper:
    """Knows what was begun and is to end before its store does."""

    def __init__(self) -> None:
        self._begun: set[Any] = set()

    def begin(self, of: Any) -> None:
        """Enters the `with` block of something."""
        of.__enter__()
        self._begun.add(of)

    def finish(self, of: Any, *raised: Any) -> None:
        """Leaves it."""
        self._begun.discard(of)
        of.__exit__(*(raised or (None, None, None)))

    def finish_all(self) -> None:
        """Leaves all that are left; what keeps one from ending well is logged."""
        for of in list(self._begun):
            try:
                self.finish(of)
            except StoreError as error:
                log.warning("%r was ended when its store was closed: %s", of, error)


class Crew(_Keeper):
    """Who does a store's work: one thread that writes, a few that read, and some for errands that take long."""

    def __init__(self) -> None:
        super().__init__()
        self._start()
        self.pause: Callable[[int, float], Awaitable[object]] | None = None
        """Returns when something was committed, or so many seconds later."""
        self.writing = self.reading = Lane("writer", self._desk, 1)
        self.errands = Lane("errand", self._desk, ERRANDS, eager=True)
        _crews.add(self)

    def _start(self) -> None:
        self._desks: dict[asyncio.AbstractEventLoop, Desk] = {}
        self._last: Desk | None = None
        self._lock = threading.Lock()
        self._ending: tuple[Future[None], threading.Thread] | None = None

    def equip(self, capabilities: Capabilities, pause: Callable[[int, float], Awaitable[object]]) -> None:
        """Adds what a store that was opened can make use of."""
        self.pause = pause
        if capabilities.concurrent_writers:
            self.writing.most, self.writing.eager = PARALLEL, True
        elif capabilities.processes:
            self.reading = Lane("reader", self._desk, READERS)
        # Otherwise there is one connection, which threads would only take from each other.

    def _desk(self) -> Desk:
        """The calling loop's."""
        loop, last = asyncio.get_running_loop(), self._last
        if last is not None and last.loop is loop:
            return last
        if threading.current_thread() in self.writing._threads:  # it would wait for itself
            raise StoreError(
                "a verb of a store for coroutines was awaited in the thread that does its work",
                hint="In a function that a verb is given call those of the unit of work, without await",
            )
        with self._lock:
            left = [self._desks.pop(known) for known in list(self._desks) if known.is_closed()]
            self._last = desk = self._desks.setdefault(loop, Desk(loop, self._lanes))
        for closed in left:
            closed.fetch()
        return desk

    def _lanes(self) -> Iterable[Lane]:
        return {lane.name: lane for lane in (self.writing, self.reading, self.errands)}.values()

    async def end(self, refusal: Refusal, then: Callable[[], object]) -> None:
        """Takes no more jobs, and when those there are have been done calls `then`; returns when that has."""
        with self._lock:
            if self._ending is None:
                ended: Future[None] = Future()
                ended.set_running_or_notify_cancel()  # who waits for it may go, and it goes on
                thread = threading.Thread(target=self._end, args=(ended, refusal, then), name="store-closing", daemon=True)
                thread.start()
                self._ending = ended, thread
            ended, thread = self._ending
        try:
            await asyncio.wrap_future(ended)
        finally:
            if ended.done():
                thread.join()  # it was the last thing it did

    def _end(self, ended: Future[None], refusal: Refusal, then: Callable[[], object]) -> None:
        try:
            self._end_after([thread for lane in self._lanes() for thread in lane.dismiss(refusal)], then)
        except BaseException as error:
            ended.set_exception(error)
        else:
            ended.set_result(None)

    def _end_after(self, threads: Iterable[threading.Thread], then: Callable[[], object]) -> None:
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join()
        for desk in list(self._desks.values()):
            desk.settle()
        self.finish_all()
        then()

    def drop(self, refusal: Refusal, then: Callable[[], object]) -> None:
        """`end`, for whoever can neither wait nor start a thread: the one that writes has the last word here."""
        others = [thread for lane in self._lanes() if lane is not self.writing for thread in lane.dismiss(refusal)]
        if not self.writing.dismiss(refusal, lambda writers: self._end_after([*others, *writers], then)):
            then()  # in a forked child

    def disown(self) -> None:
        """In a forked child: refuses every job. What others held, and what was to come back, is the parent's."""
        self._start()
        for lane in self._lanes():
            lane.disown(_not_here)


def _not_here() -> StoreError:
    return StoreError("this store belongs to the parent process, whose threads do its work", hint="Open another in the child")


class Inline(_Keeper):
    """Does jobs at once, where there are no threads; what was committed is stored as promised when they are done."""

    def __init__(self, flush: Callable[[], Awaitable[object]] | None) -> None:
        """`flush` is awaited after each job, where that is what `durability` promises."""
        super().__init__()
        self._flush = flush
        self.writing = self.reading = self.errands = self

    async def do(self, call: Call) -> Any:
        """Calls it."""
        return await self.keep(call(), None)

    async def take(self, call: Call, undo: Undo | None) -> Any:
        """`do`; what came of it `undo` takes back when its caller is cancelled while it is stored, or it cannot be."""
        return await self.keep(call(), undo)

    async def keep(self, value: Any, undo: Undo | None) -> Any:
        """Returns what came of a job when what it committed is stored."""
        if self._flush is not None:
            try:
                await self._flush()
            except BaseException:
                if undo is not None:
                    _undo(undo, value)
                raise
        return value


_crews: weakref.WeakSet[Crew] = weakref.WeakSet()


def _forked() -> None:
    for crew in list(_crews):
        crew.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
