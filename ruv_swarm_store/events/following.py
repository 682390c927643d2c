"""Waiting for what comes: looks, and looks again whenever something was committed."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TypeVar

from ruv_swarm_store import codec
from ruv_swarm_store.clock import duration
from ruv_swarm_store.engines import Pause, Scope, Steps, block, cooperate
from ruv_swarm_store.entities import Event
from ruv_swarm_store.events.cursors import stretch
from ruv_swarm_store.events.reading import EVENTS, FIRST_PAGE, next_size
from ruv_swarm_store.query import Mapping

T = TypeVar("T")
_DATA = EVENTS.fields.index("event_data")
Stop = Callable[[], object]
"""Asked now and then; what is true ends the waiting. A `threading.Event`'s `is_set` will do."""

LONGEST_PAUSE = 1.0
"""Seconds after which whoever waits looks around anyway: for expired leases, and for a wake-up that was lost."""
STOP_PAUSE = 0.05
"""Seconds between two times that `stop` is asked."""


def arrival(
    scope: Scope, look: Callable[[], tuple[T | None, float]], timeout: float | None = None, stop: Stop | None = None
) -> Steps[T | None]:
    """What `look` finds as soon as it finds something; None when `timeout` seconds have passed, or `stop` says so.

    `look` also says how many seconds it need not be called again when nothing is committed.
    """
    deadline = math.inf if timeout is None else time.monotonic() + duration(timeout, "timeout") / 1000
    while stop is None or not stop():
        seen = scope.changes()
        found, idle = look()
        if found is not None:
            return found
        again = min(deadline, time.monotonic() + min(idle, LONGEST_PAUSE))
        while (left := again - time.monotonic()) > 0 and scope.changes() == seen:
            if stop is not None and stop():
                return None
            yield Pause(seen, left if stop is None else min(left, STOP_PAUSE))
        if again == deadline and left <= 0:
            return look()[0]
    return None


class Follower:
    """A way through all events that waits at their end for those to come. It writes nothing."""

    def __init__(
        self,
        scope: Scope,
        mapping: Mapping[Event],
        after: int,
        types: str | None,
        limit: int,
        timeout: float | None,
        stop: Stop | None,
    ) -> None:
        self._scope = scope
        self._mapping = mapping
        self._after = codec.integer(after, "after", 0)
        self._types = types
        self._limit = codec.integer(limit, "limit", 1)
        self._size = min(limit, FIRST_PAGE)
        self._timeout = None if timeout is None else duration(timeout, "timeout") / 1000
        self._stop = stop

    def _look(self) -> tuple[list[Event] | None, float]:
        with self._scope.read() as run:
            while not (part := stretch(run, self._after, self._types, self._size)).empty:
                self._after = part.until
                if part.rows:
                    self._size = min(self._limit, next_size(part.rows, _DATA))
                    return self._mapping.load_all(part.rows), 0
        return None, LONGEST_PAUSE

    def _steps(self) -> Steps[list[Event] | None]:
        return arrival(self._scope, self._look, self._timeout, self._stop)

    def events(self) -> Iterator[Event]:
        """The events, the thread sleeping while there are none."""
        while page := block(self._scope, self._steps()):
            yield from page

    async def events_async(self) -> AsyncIterator[Event]:
        """The events, the event loop going on while there are none."""
        while page := await cooperate(self._scope, self._steps()):
            for event in page:
                yield event
