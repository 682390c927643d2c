"""Durable subscriptions: what a consumer does about events commits together with how far it has come."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ruv_swarm_store import codec
from ruv_swarm_store.engines import Scope, block, cooperate, give_way
from ruv_swarm_store.entities import Consumer, Event
from ruv_swarm_store.events.advancing import Advance, Begin, Handler
from ruv_swarm_store.events.cursors import Cursor, Start, lag
from ruv_swarm_store.events.following import Stop
from ruv_swarm_store.query import Mapping

if TYPE_CHECKING:
    from ruv_swarm_store.store import UnitOfWork


class Subscription:
    """A named consumer of all events, one after the other.

    Its position moves in the transaction in which events are handled, so each takes effect exactly once in this database, whatever
    dies when. Any number of threads and processes may share a name: they take turns, and the order is kept. Let them ask for the
    same types. An exception undoes what was done and leaves the position: the same events come again.
    """

    def __init__(self, scope: Scope, begin: Begin, mapping: Mapping[Event], cursor: Cursor, types: str | None) -> None:
        self._scope = scope
        self._begin = begin
        self._mapping = mapping
        self._cursor = cursor
        self._advance = Advance(scope, begin, mapping, cursor, types)

    @property
    def name(self) -> str:
        """The consumer's name."""
        return self._cursor.name

    @property
    def position(self) -> int:
        """The position up to which everything was handled. Raises `NotFound` once it was removed."""
        return self.consumer().position

    def consumer(self) -> Consumer:
        """How it stands: its position, and how often it has failed there, with what error. Raises `NotFound`."""
        return self._cursor.consumer()

    def lag(self) -> int:
        """How many events it has still to handle. Raises `NotFound`."""
        with self._scope.read() as run:
            return lag(run, self._cursor.ahead(run)[0], self._advance.types)

    def reset(self, position: Start = 0) -> None:
        """Puts it at a position, to handle what follows, again or for the first time; `now` leaves out all there is.

        Waits for who is handling events under this name. Raises `NotFound`, and `InvalidValue` for a position that no event has yet.
        """
        at = self._cursor.checked(position)
        self._scope.write(lambda run: self._cursor.reset(run, at))

    def remove(self) -> bool:
        """Forgets the name and its position; whether it was known. Who follows it gets `NotFound`."""
        return self._scope.write(self._cursor.remove)

    @contextmanager
    def batch(self, *, limit: int = 100) -> Iterator[tuple[UnitOfWork, list[Event]]]:
        """A unit of work and the next events, at most `limit`, none when there are none.

        The block handles them all or not at all: the position moves when the unit of work commits.
        """
        codec.integer(limit, "limit", 1)
        while not (part := self._advance.next(limit)).empty:
            with self._advance.past(part) as work:
                if work is not None:
                    yield work, self._mapping.load_all(part.rows)
                    return
        with self._begin() as work:
            yield work, []

    def handle(self, handler: Handler, *, limit: int = 100) -> int:
        """Calls `handler(work, event)` for the next events, at most `limit`, all in one transaction; how many there were.

        What the handler raises is raised here, undoes the effects of the whole batch and counts as a failure of the consumer. A
        handler whose transaction has to give way to another one's (a deadlock) is called again.
        """
        codec.integer(limit, "limit", 1)
        while not (part := self._advance.next(limit)).empty:
            if (count := self._advance.handle(part, handler)) is not None:
                return count
        return 0

    def follow(self, handler: Handler, *, limit: int = 100, timeout: float | None = None, stop: Stop | None = None) -> int:
        """Handles events as they come, at most `limit` in a transaction; how many it has handled in the end.

        It ends when nothing has come for `timeout` seconds, or soon after `stop()` is true, and raises what the handler does. Woken
        by commits as `tasks.wait` is. Raises `StoreError` inside a transaction, and `Unsupported` where nothing can block.
        """
        codec.integer(limit, "limit", 1)
        handled = 0
        while (part := block(self._scope, self._advance.coming(limit, timeout, stop))) is not None:
            handled += self._advance.handle(part, handler) or 0
        return handled

    async def follow_async(self, handler: Handler, *, limit: int = 100, timeout: float | None = None, stop: Stop | None = None) -> int:
        """`follow`, while the event loop goes on. The handler runs in a transaction: it cannot await."""
        codec.integer(limit, "limit", 1)
        handled = 0
        while (part := await cooperate(self._scope, self._advance.coming(limit, timeout, stop))) is not None:
            handled += self._advance.handle(part, handler) or 0
            await give_way(self._scope)
        return handled

    def __repr__(self) -> str:
        return f"<Subscription {self.name!r}>"
