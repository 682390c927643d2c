"""Moving on: a consumer's position moves in the transaction in which the events up to it are handled."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from ruv_swarm_store.engines import Executor, Scope, Steps
from ruv_swarm_store.entities import Event
from ruv_swarm_store.errors import InvalidValue, StoreError
from ruv_swarm_store.events.cursors import Cursor, Stretch, stretch
from ruv_swarm_store.events.following import LONGEST_PAUSE, Stop, arrival
from ruv_swarm_store.query import Mapping
from ruv_swarm_store.repository import repeatable

if TYPE_CHECKING:
    from ruv_swarm_store.store import UnitOfWork

log = logging.getLogger(__name__)

Begin = Callable[[], "AbstractContextManager[UnitOfWork]"]
"""Begins a unit of work."""
Handler = Callable[["UnitOfWork", Event], object]
"""Does what an event calls for, through the unit of work. It may be called again for the same event, nothing being left of before."""
Guard = Callable[[Executor], object]
"""Called where a consumer moves on, its row held; what it raises keeps it from that."""


class Unawaited(InvalidValue):
    """A handler gave something to await, or to go through."""


def call(handler: Handler, work: UnitOfWork, event: Event) -> None:
    """Has a handler do its work. Raises `Unawaited` for one that only promises to."""
    promise = handler(work, event)
    if inspect.isawaitable(promise):
        if inspect.iscoroutine(promise):
            promise.close()
        raise Unawaited("the handler gave something to await", hint="Give a function that has done its work when it returns")
    if inspect.isgenerator(promise) or inspect.isasyncgen(promise):
        raise Unawaited("the handler is a generator, of which nothing has run", hint="Give a function that has no yield in it")


class Superseded(Exception):
    """A guard's way to say that somebody else is to go on from here; no failure."""


class Advance:
    """The way of a consumer through the events, which any number of threads and processes go together, by turns."""

    def __init__(
        self, scope: Scope, begin: Begin, mapping: Mapping[Event], cursor: Cursor, types: str | None, guard: Guard | None = None
    ) -> None:
        self.cursor = cursor
        self.types = types
        """Those it wants, as JSON; None for all."""
        self._scope = scope
        self._begin = begin
        self._mapping = mapping
        self._guard = guard

    def next(self, limit: int) -> Stretch:
        """What comes next, with rows in it unless there is nothing to come; passes over what is not wanted. Raises `NotFound`."""
        while True:
            with self._scope.read() as run:
                part = stretch(run, self.cursor.ahead(run)[0], self.types, limit)
            if part.rows or part.empty:
                return part
            with self.past(part):
                pass

    def coming(self, limit: int, timeout: float | None, stop: Stop | None) -> Steps[Stretch | None]:
        """`next`, as soon as there is something; None at the end of the waiting."""

        def look() -> tuple[Stretch | None, float]:
            part = self.next(limit)
            return (None if part.empty else part), LONGEST_PAUSE

        return arrival(self._scope, look, timeout, stop)

    @contextmanager
    def past(self, part: Stretch) -> Iterator[UnitOfWork | None]:
        """A unit of work that moves the position past a stretch when it commits; None when others have moved it meanwhile.

        The move comes first: it keeps everybody else of this name waiting, and then from handling the same.
        """
        try:
            with self._begin() as work:
                moved = self._scope.write(lambda run: self.cursor.move(run, part.after, part.until))
                if moved and self._guard is not None:
                    with self._scope.read() as run:
                        self._guard(run)
                yield work if moved else None
        except Superseded:
            raise
        except Exception as error:
            self.failed(part, error)
            raise

    @repeatable
    def handle(self, part: Stretch, handler: Handler) -> int | None:
        """Handles a stretch that was read before; how many events that was, None when others have."""
        with self.past(part) as work:
            if work is None:
                return None
            for event in self._mapping.load_all(part.rows):
                call(handler, work, event)
        return len(part.rows)

    def failed(self, part: Stretch, error: Exception) -> None:
        """Counts a failure; in a unit of work nothing is known to have failed before that ends."""
        if self._scope.within:
            return
        try:
            self.cursor.fail(part.after, error)
        except StoreError as another:
            log.warning("the failure of %r is not counted: %s", self.cursor.name, another)
