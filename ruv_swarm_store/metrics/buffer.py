"""Gathers samples and writes many at a time: one transaction for hundreds, at the price of losing the newest when the process dies."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self

from ruv_swarm_store import codec
from ruv_swarm_store.clock import Moment, duration
from ruv_swarm_store.engines import Scope
from ruv_swarm_store.entities import Agent
from ruv_swarm_store.errors import Closed, Conflict, NotFound, StoreError, Unavailable
from ruv_swarm_store.metrics.samples import METRICS, Row, Sample, agent_of, known_agents, metric_of, seal

PAUSE = 1.0
"""Seconds `record` lets pass between attempts while nothing can be written."""
FACTOR = 10
"""How many times its size a buffer holds while nothing can be written."""


class Buffer:
    """Samples on their way into the store: written when there are enough, when the oldest has waited long enough, and on closing.

    Any number of threads may record. Nothing is dropped in silence: what cannot be written for now is kept and tried again, up to
    `limit` samples; then `record` raises and takes no more. A store's buffer is not written inside a transaction of its thread, which
    might take back what others recorded; a unit of work's is that transaction's.
    """

    def __init__(self, scope: Scope, size: int, seconds: float | None, limit: int | None, *, own: bool = True) -> None:
        """`own` says whether what it writes are transactions of its own, rather than a part of a unit of work."""
        self._scope = scope
        self._size = codec.integer(size, "size", 1)
        self._seconds = None if seconds is None else duration(seconds, "seconds") / 1000
        self._limit = size * FACTOR if limit is None else codec.integer(limit, "limit", size)
        self._own = own
        self._timed = self._seconds is not None and own  # a unit of work belongs to its thread
        self._closed = False
        self._start()

    def _start(self) -> None:
        """Makes what must be new in a new process."""
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._author = 0
        """The thread that writes."""
        self._waiting: list[Row] = []
        self._taken = 0
        """How many samples are being written."""
        self._orphans: list[Row] = []
        """Samples whose agents do not exist, to be reported."""
        self._oldest = 0.0
        self._again = 0.0
        """Before this, no failed write is tried again by `record`."""
        self._timer: threading.Timer | asyncio.TimerHandle | None = None
        self.failure: StoreError | None = None
        """What kept the last attempt from writing, if anything did."""

    def _here(self) -> None:
        if self._process != os.getpid():
            self._start()  # what was gathered before a fork, the parent writes

    @property
    def pending(self) -> int:
        """How many samples are not written yet."""
        self._here()
        return len(self._waiting) + self._taken

    def record(
        self,
        name: str,
        value: float,
        *,
        agent: Agent | str | None = None,
        type: str = "gauge",
        unit: str = "",
        tags: dict[str, Any] | None = None,
        at: Moment | None = None,
    ) -> None:
        """Takes one value, measured now or `at` an instant, to be written with others.

        Raises `InvalidValue` for what cannot be stored. `NotFound` tells of samples taken earlier whose agents do not exist: they
        are in its `data["samples"]`; this value was taken. Any other error says that the buffer is full and why it cannot be
        written (`Unavailable` while the database is away, `StoreError` inside a transaction): this value was not taken.
        """
        self._here()
        row = seal(Sample(name, value, agent, type, unit, tags, at), self._scope.clock())
        while not self._take(row):
            self._write()
        if self._due() and time.monotonic() >= self._again and not (self._writing.locked() or self._inside()):
            with suppress(StoreError):  # kept as `failure`: there is room yet
                self._write()
        self._report()

    def flush(self) -> None:
        """Writes everything taken so far. Raises what keeps it from that, `StoreError` inside a transaction; the samples are kept then.

        Raises `NotFound` like `record`.
        """
        self._here()
        self._write()
        self._report()

    def close(self) -> None:
        """Writes what is left and ends the buffer. Raises like `flush`, and may be repeated then. Harmless when repeated."""
        self._here()
        while not self._closed:
            self._write()
            with self._lock:
                self._closed = not self._waiting  # another thread may have recorded meanwhile
        with self._lock:
            timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        self._report()

    def _take(self, row: Row) -> bool:
        """Whether there was room."""
        with self._lock:
            if self._closed:
                raise Closed("this buffer is closed", hint="Record inside its with block, or make another")
            if len(self._waiting) + self._taken >= self._limit:
                return False
            self._waiting.append(row)
            if len(self._waiting) == 1:
                self._oldest = time.monotonic()
            if self._timed and self._timer is None:
                self._arm(self._seconds or 0)
            return True

    def _inside(self) -> bool:
        """Whether this thread is in a transaction that could take back what is written now."""
        return self._own and self._scope.within

    def _due(self) -> bool:
        return len(self._waiting) >= self._size or self._old()

    def _old(self) -> bool:
        return self._seconds is not None and bool(self._waiting) and time.monotonic() - self._oldest >= self._seconds

    def _report(self) -> None:
        if not self._orphans:
            return
        with self._lock:
            orphans, self._orphans = self._orphans, []
        if orphans:
            raise NotFound(
                f"{len(orphans)} samples were not stored: their agents do not exist",
                hint="Register the agents and record the samples again: they are in data['samples']",
                samples=[metric_of(row) for row in orphans],
            )

    def _write(self) -> None:
        """Writes what is waiting, in order; what was not written is waiting again."""
        if self._inside():
            raise StoreError(
                f"{self!r} cannot be written inside a transaction, which could take back what others have recorded",
                hint="Leave the with block first, or use the unit of work's own: work.metrics.buffer()",
            )
        if self._author == threading.get_ident():
            raise Unavailable("another coroutine of this thread is writing this buffer", hint="Let it go on, and try again then")
        with self._writing, self._as_author():
            while True:
                with self._lock:
                    batch, self._waiting = self._waiting, []
                    self._taken = len(batch)
                if not batch:
                    return
                left: Sequence[Row] = batch
                orphans: Sequence[Row] = ()
                try:
                    try:
                        with self._scope.transaction() as run:
                            run.insert_many(METRICS.insertion, batch)
                        left = ()
                    except Conflict:
                        with self._scope.read() as run:
                            known = known_agents(run, batch)
                        left = [row for row in batch if agent_of(row) in known]
                        orphans = [row for row in batch if agent_of(row) not in known]
                except StoreError as error:
                    self.failure = error
                    self._again = time.monotonic() + PAUSE
                    raise
                else:
                    self.failure = None
                finally:
                    with self._lock:
                        self._waiting[:0] = left
                        self._orphans += orphans
                        self._taken = 0
                        self._oldest = time.monotonic()

    @contextmanager
    def _as_author(self) -> Iterator[None]:
        self._author = threading.get_ident()
        try:
            yield
        finally:
            self._author = 0

    def _arm(self, seconds: float) -> None:
        """Has the samples written in a while, though nobody records any more; call it with the lock held."""
        buffer: weakref.ref[Buffer] = weakref.ref(self)
        timer = threading.Timer(seconds, _ring, [buffer])
        timer.daemon = True
        try:
            timer.start()
            self._timer = timer
        except RuntimeError:  # no threads here, where the event loop is what goes on
            try:
                self._timer = asyncio.get_running_loop().call_later(seconds, _ring, buffer)
            except RuntimeError:
                self._timed = False  # the next record looks at the time

    def _ring(self) -> None:
        if self._old():
            with suppress(StoreError):  # kept as `failure`, and tried again
                self._write()
        with self._lock:
            self._timer = None
            if self._waiting and not self._closed and self._seconds is not None:
                self._arm(max(self._oldest + self._seconds - time.monotonic(), 0.001))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            self.close()
        except StoreError as failure:
            if error is None:
                raise
            error.add_note(f"{self.pending} samples were not written: {failure}")

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        if not getattr(self, "_closed", True) and self._process == os.getpid() and self.pending:
            _warn(f"{self!r} was never closed: its samples are lost", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        return f"<Buffer of {len(self._waiting) + self._taken} samples{', closed' if self._closed else ''}>"


def _ring(buffer: weakref.ref[Buffer]) -> None:
    found = buffer()
    if found is not None:
        found._ring()
