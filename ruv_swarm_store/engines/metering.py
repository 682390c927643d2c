"""The one seam at which statements are timed: while a meter is on, executors are of a class that measures what they run.

The class is put in the place of the plain one and taken away again, so that nothing is paid while nobody measures.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from time import perf_counter
from typing import Any, TypeVar

from msgspec import Struct
from sqlalchemy import Executable, event

from ruv_swarm_store.clock import Clock
from ruv_swarm_store.engines.constructs import Insertion
from ruv_swarm_store.engines.executor import NONE, Executor, Prepared
from ruv_swarm_store.timings import BATCH, Timings

log = logging.getLogger(__name__)

K = TypeVar("K", bound=Executor)

MOST = 256
"""Most statements, and most operations, that are told apart."""

Told = Callable[[str, float, int, BaseException | None], object]
"""Called with a statement's SQL, its seconds, its rows and its error, just after it has ended."""


class Slow(Struct, frozen=True):
    """A statement that took long."""

    at: int
    """When it ended, in milliseconds since the epoch."""
    sql: str
    seconds: float
    rows: int
    error: str = ""
    """The class of what it raised, if it failed."""


class Footprint(Struct, frozen=True, kw_only=True):
    """What a database takes up, as far as it tells."""

    size: int | None = None
    """Bytes of the database, without its log."""
    log: int | None = None
    """Bytes of its write-ahead log."""
    cache_hits: float | None = None
    """The share of the pages asked for that were found in memory."""
    connections: int = 0
    """How many this store has open."""


class Group:
    """Timings by name, so many of them at most."""

    def __init__(self, others: str) -> None:
        """What comes beyond is counted together under the name `others`."""
        self._others = others
        self._found: dict[str, Timings] = {}
        self._kept: set[str] = set()
        self.known: dict[Hashable, Timings] = {}
        """By what stands for a name; see `learn`."""
        self._adding = threading.RLock()  # a finaliser may use the store in the middle of it

    def __call__(self, name: str) -> Timings:
        """Those of a name."""
        found = self._found.get(name)
        if found is None:
            with self._adding:
                kept = name if len(self._found) < MOST else self._others
                found = self._found.setdefault(kept, Timings(kept))
        return found

    def keep(self, name: str) -> Timings:
        """Those of a name, for who holds on to them: the name stays."""
        found = self(name)
        self._kept.add(found.name)
        return found

    def learn(self, key: Hashable, name: str) -> Timings:
        """Those of a name, which from now on are `known` by a key, too."""
        with self._adding:
            found = self.known[key] = self(name)
        return found

    def all(self) -> list[Timings]:
        """Those of every name."""
        return list(self._found.values())

    def reset(self) -> None:
        """Forgets what was counted, and the names."""
        with self._adding:
            self.known.clear()
            for name, timings in list(self._found.items()):
                if name in self._kept:
                    timings.reset()
                else:
                    del self._found[name]

    def forked(self) -> None:
        """In a child process: begins at nothing."""
        self._adding = threading.RLock()
        for timings in self.all():
            timings.forked()


class Meter:
    """What is done with an engine: its statements, what they wait for, and the operations that they serve."""

    def __init__(self, clock: Clock) -> None:
        """The times at which slow statements end are the `clock`'s."""
        self.operations = Group("(other operations)")
        self.statements = Group("(other statements)")
        self.waits = Group("(other waits)")
        self.slow: deque[Slow] = deque()
        self._clock = clock
        self._elapsed = 0.0
        self._resumed: float | None = None
        self.set(slow=math.inf, keep=0)
        _all.add(self)

    def set(self, *, slow: float, keep: int, told: Told | None = None) -> None:
        """Of statements that take `slow` seconds the last `keep` are kept; of each one `told` is told. For what is put on from now on."""
        self.threshold = slow
        self._slow = slow if told is None else -math.inf
        """Seconds from which on there is more to do than to count."""
        self.slow = deque(self.slow, maxlen=keep)
        self.told = told
        self._kinds: dict[type[Executor], type[Executor]] = {}

    @property
    def seconds(self) -> float:
        """How long it was on."""
        return self._elapsed + (0.0 if self._resumed is None else perf_counter() - self._resumed)

    def resume(self) -> None:
        """Goes on to count its seconds."""
        if self._resumed is None:
            self._resumed = perf_counter()

    def pause(self) -> None:
        """Ends counting its seconds."""
        self._elapsed, self._resumed = self.seconds, None

    def reset(self) -> None:
        """Forgets everything counted."""
        self._again()
        for group in (self.operations, self.statements, self.waits):
            group.reset()

    def forked(self) -> None:
        """In a child process: begins at nothing."""
        self._again()
        for group in (self.operations, self.statements, self.waits):
            group.forked()

    def _again(self) -> None:
        self.slow.clear()
        self._elapsed = 0.0
        self._resumed = None if self._resumed is None else perf_counter()

    # Measuring

    def kind(self, plain: type[K], more: Callable[[type[Any], Meter], Mapping[str, Any]]) -> type[K]:
        """The class of executors that do what `plain` does, and tell this meter; `more` makes what is particular about an engine's."""
        made: Any = self._kinds.get(plain)
        if made is None:
            verbs = {"__slots__": (), "__module__": plain.__module__, **self._verbs(plain), **more(plain, self)}
            made = self._kinds[plain] = type(plain.__name__, (plain,), verbs)
        return made  # type: ignore[no-any-return]

    def timed(self, plain: Callable[..., Any], rows: Callable[[Any], int] | None = None) -> Any:
        """A method of executors that runs the statement it is given first.

        `rows` counts those of its result; without it there is one, unless the result is None.
        """
        known, learn, slow = self.statements.known.get, self._learn, self._slow

        def run(run: Any, statement: Any, given: Any = NONE) -> Any:
            started = perf_counter()
            try:
                result = plain(run, statement, given)
            except BaseException as error:
                self._failed(learn(run, statement), self._text(run, statement), perf_counter() - started, error)
                raise
            seconds = perf_counter() - started
            timings = known(statement) or learn(run, statement)
            pending = timings.pending
            pending.append(seconds)
            if rows is not None:
                timings.odd(rows(result))
            elif result is None:
                timings.odd(0)
            if len(pending) >= BATCH:
                timings.fold()
            if seconds >= slow:
                self.ended(self._text(run, statement), seconds, rows(result) if rows is not None else int(result is not None))
            return result

        return run

    def named(self, plain: Callable[..., None], name: Callable[..., str]) -> Callable[..., None]:
        """A method of executors that runs one statement, of which `name` tells the text, from what the method is given."""

        def run(run: Any, *given: Any) -> None:
            text = name(run, *given)
            started = perf_counter()
            try:
                plain(run, *given)
            except BaseException as error:
                self._failed(self.statements(text), text, perf_counter() - started, error)
                raise
            self.ran(text, perf_counter() - started, 0)

        return run

    def level(self, plain: Callable[[Any], None], texts: Sequence[str], step: int) -> Callable[[Any], None]:
        """A method of executors that runs the first of these texts at a depth of `step`, the other further in."""
        known, learn, slow = self.statements.known.get, self.statements.learn, self._slow
        outermost, inner = texts

        def run(run: Any) -> None:
            text = outermost if run.depth == step else inner
            started = perf_counter()
            try:
                plain(run)
            except BaseException as error:
                self._failed(learn(text, text), text, perf_counter() - started, error)
                raise
            seconds = perf_counter() - started
            timings = known(text) or learn(text, text)
            pending = timings.pending
            pending.append(seconds)
            timings.odd(0)
            if len(pending) >= BATCH:
                timings.fold()
            if seconds >= slow:
                self.ended(text, seconds, 0)

        return run

    def ran(self, text: str, seconds: float, rows: int) -> None:
        """Counts a statement that has ended."""
        timings = self.statements(text)
        timings.add(seconds)
        timings.odd(rows)
        if len(timings.pending) >= BATCH:
            timings.fold()
        if seconds >= self._slow:
            self.ended(text, seconds, rows)

    def ended(self, text: str, seconds: float, rows: int, error: BaseException | None = None) -> None:
        """Keeps what was slow, and tells who asked to be told: under its own text, also where there were too many to count each."""
        if seconds >= self.threshold:
            self.slow.append(Slow(self._clock(), text, seconds, rows, "" if error is None else type(error).__name__))
        if self.told is not None:
            try:
                self.told(text, seconds, rows, error)
            except Exception:
                log.exception("who is told of statements failed")

    def _failed(self, timings: Timings, text: str, seconds: float, error: BaseException) -> None:
        timings.fail(seconds)
        self.ended(text, seconds, 0, error)

    def _learn(self, run: Any, statement: Any) -> Timings:
        return self.statements.learn(statement, self._text(run, statement))

    def _text(self, run: Any, statement: Any) -> str:
        executable = statement.statement if isinstance(statement, Insertion) else statement
        prepared = run._statements.get(executable)
        if prepared is None:  # it failed before, or ran in another form
            prepared = Prepared(executable, run.dialect)
        sql: str = prepared.sql
        return sql

    def _verbs(self, plain: type[Any]) -> dict[str, Any]:
        running = threading.local()

        def heard(_: Any, __: Any, sql: str, *___: Any) -> None:
            running.sql = sql

        def alchemy(run: Any) -> Any:
            fresh = run._alchemy is None
            connection = plain.alchemy(run)
            if fresh:
                event.listen(connection, "before_cursor_execute", heard)
            return connection

        def execute(run: Any, statement: Executable, params: Any = NONE) -> Any:
            running.sql = ""
            started = perf_counter()
            try:
                rows = plain.execute(run, statement, params)
            except BaseException as error:
                if running.sql:
                    self._failed(self.statements(running.sql), running.sql, perf_counter() - started, error)
                raise
            self.ran(running.sql or str(statement), perf_counter() - started, len(rows))
            return rows

        def insert_many(run: Any, insertion: Insertion, rows: Sequence[Any]) -> Any:
            started = perf_counter()
            try:
                numbers = plain.insert_many(run, insertion, rows)
            except BaseException as error:
                seconds, text = perf_counter() - started, self._many(run, insertion)
                self._failed(self.statements(text), text, seconds, error)
                raise
            seconds = perf_counter() - started
            self.ran(self._many(run, insertion), seconds, len(numbers))
            return numbers

        return {
            "one": self.timed(plain.one),
            "all": self.timed(plain.all, len),
            "run": self.timed(plain.run, _changed),
            "insert": self.timed(plain.insert),
            "insert_many": insert_many,
            "execute": execute,
            "alchemy": alchemy,
        }

    def _many(self, run: Any, insertion: Insertion) -> str:
        return f"{self._text(run, insertion)} -- many rows"


def dress(executor: Any, kind: type[Any], meter: Meter | None, more: Callable[[type[Any], Meter], Mapping[str, Any]]) -> None:
    """Has an executor be of that class, and tell the meter if there is one; see `Meter.kind`."""
    if meter is not None:
        kind = meter.kind(kind, more)
    if type(executor) is not kind:
        executor.__class__ = kind
        executor._alchemy = None  # SQLAlchemy's view of it is made anew


def _changed(number: int) -> int:
    """Drivers say -1 where they cannot tell."""
    return max(number, 0)


_all: weakref.WeakSet[Meter] = weakref.WeakSet()


def _forked() -> None:
    for meter in list(_all):
        meter.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
