"""Appends to streams and reads them, one by one or all in their global order."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import NoReturn, TypeVar

from sqlalchemy import func, select

from ruv_swarm_store import codec, schema
from ruv_swarm_store.clock import Moment
from ruv_swarm_store.engines import Scope
from ruv_swarm_store.entities import Consumer, ConsumerKind, Event, NewEvent, Seal
from ruv_swarm_store.errors import InvalidValue, Unsupported
from ruv_swarm_store.events import seals
from ruv_swarm_store.events.advancing import Begin
from ruv_swarm_store.events.appending import ANY, EXISTS, Append, Checked, append_all, append_few, append_one, check, listed, version_of
from ruv_swarm_store.events.cursors import Cursor, Start, checked_types, consumers
from ruv_swarm_store.events.following import Follower, Stop
from ruv_swarm_store.events.groups import MAX_ATTEMPTS, ConsumerGroup
from ruv_swarm_store.events.projections import Projection, Projector, live_slot
from ruv_swarm_store.events.reading import EVENTS, FOREVER, PAGE, LogReading, StreamReading, pages
from ruv_swarm_store.events.snapshots import Snapshots
from ruv_swarm_store.events.subscriptions import Subscription
from ruv_swarm_store.events.upcasting import Upcasters, UpcastMapping
from ruv_swarm_store.repository import Repository, repeatable

S = TypeVar("S")

_HEAD = select(func.coalesce(func.max(schema.events.c.position), 0))


class Events(Repository[Event]):
    """The event store.

    A stream is named by an aggregate's id and type. Its events are numbered from 1 without gaps by the store; its version is
    the number of its last event. `position` orders all events, and is never filled in later below one already read.
    """

    mapping = EVENTS

    def __init__(self, scope: Scope, begin: Begin, upcasters: Upcasters | None = None) -> None:
        super().__init__(scope)
        self._begin = begin
        self._upcasters = upcasters
        if upcasters is not None:
            self.mapping = UpcastMapping(upcasters)

    def append(
        self, aggregate_id: str, events: Iterable[NewEvent], *, type: str, expected_version: int = ANY, cause: Event | None = None
    ) -> int:
        """Adds events to a stream, all or none; returns its new version.

        `expected_version` is the version the caller has seen, `NONE` (0) for a stream that must not exist, `EXISTS` for one that must,
        `ANY` for whatever it is; `Conflict` carries the `expected` and the `actual` one otherwise. An append whose events all carry
        ids stored before, in this stream, is taken as a repetition: nothing is added, and the version it led to then is returned.
        Their types, data and metadata must be those stored, or it is a `Conflict`; nothing else of them is compared.

        Events that come from another, the `cause`, have its id as `causation_id`, and as `correlation_id` the one it has, or its
        id, unless they carry their own.
        """
        given = listed(events)
        if len(given) == 1 and isinstance(event := given[0], NewEvent) and event.id is None and expected_version != EXISTS:
            added = append_one(self._scope, aggregate_id, type, event, expected_version, cause, self._upcasters)
            if added:
                return added
        checked = check(Append(aggregate_id, given, type, expected_version, cause), self._upcasters)
        return append_few(self._scope, checked) or self._append([checked])[0]

    def append_many(self, appends: Iterable[Append]) -> list[int]:
        """Adds events to several streams, all or none; returns the version that each append led to.

        Events have ascending positions in the order given, with nobody else's between. A stream may be named more than once: a
        later append finds the version that an earlier one leads to. Where one conflicts, `Conflict` also carries its `index`.
        """
        return self._append([check(append, self._upcasters) for append in appends])

    @repeatable
    def _append(self, appends: Sequence[Checked]) -> list[int]:
        with self._scope.transaction() as run:
            return append_all(run, appends)

    def version(self, aggregate_id: str, *, type: str) -> int:
        """The number of a stream's last event; 0 when it has none."""
        stream, kind = codec.text(aggregate_id, "aggregate id"), codec.text(type, "aggregate type")
        with self._scope.read() as run:
            return version_of(run, stream, kind)

    def read(
        self,
        aggregate_id: str,
        *,
        type: str | None = None,
        after: int = 0,
        until: int | None = None,
        limit: int | None = None,
        backward: bool = False,
    ) -> list[Event]:
        """A stream's events with numbers above `after` and up to `until`, in order, or from the last one `backward`; at most `limit`.

        Without `type`, the events of every stream with this aggregate id, number by number. A `limit` must not come between two that
        have the same number: `InvalidValue` asks for the type then.
        """
        reading = StreamReading(aggregate_id, type, after, until, backward)
        most = FOREVER if limit is None else codec.integer(limit, "limit", 0)
        with self._scope.read() as run:
            events = self.mapping.load_all(reading.page(run, most if type is not None else min(most, FOREVER - 1) + 1))
        if len(events) > most:
            del events[most + 1 :]
            beyond = events.pop()
            if events and beyond.sequence_number == events[-1].sequence_number:
                raise InvalidValue(
                    f"streams of the types {events[-1].aggregate_type!r} and {beyond.aggregate_type!r} share the id {aggregate_id!r}",
                    hint="Give the type to read in parts",
                )
        return events

    def walk_stream(
        self, aggregate_id: str, *, type: str | None = None, after: int = 0, until: int | None = None, backward: bool = False
    ) -> Iterator[Event]:
        """What `read` gives, read in pages: memory stays the same however long the stream is."""
        for rows in pages(self._scope, StreamReading(aggregate_id, type, after, until, backward)):
            yield from self.mapping.load_all(rows)

    def read_all(
        self,
        *,
        after: int = 0,
        before: int | None = None,
        types: Iterable[str] | None = None,
        correlation: str | None = None,
        causation: str | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        backward: bool = False,
        limit: int = PAGE,
    ) -> list[Event]:
        """Events of every stream in order of position, or the newest first `backward`; at most `limit`.

        Those with positions above `after` and below `before`; of these types; with this correlation or causation id; with times from
        `since` up to before `until`. Go on after the last one's position, or backward before it.
        """
        reading = LogReading(after, before, types, correlation, causation, since, until, backward)
        most = codec.integer(limit, "limit", 0)
        with self._scope.read() as run:
            return self.mapping.load_all(reading.page(run, most))

    def walk(
        self,
        *,
        after: int = 0,
        before: int | None = None,
        types: Iterable[str] | None = None,
        correlation: str | None = None,
        causation: str | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        backward: bool = False,
    ) -> Iterator[Event]:
        """Every event that `read_all` would give, read in pages: memory stays the same however many there are."""
        for rows in pages(self._scope, LogReading(after, before, types, correlation, causation, since, until, backward)):
            yield from self.mapping.load_all(rows)

    def last_position(self) -> int:
        """The position of the newest event; 0 when there is none."""
        with self._scope.read() as run:
            return int((run.one(_HEAD) or [0])[0])

    def fold(
        self,
        aggregate_id: str,
        initial: S,
        apply: Callable[[S, Event], S],
        *,
        type: str,
        until: int | None = None,
        snapshot: Snapshots | None = None,
    ) -> S:
        """The state a stream adds up to: `apply` over its events in order, from `initial`, up to number `until`.

        With `snapshot` it goes on from the newest usable snapshot, and keeps a new one at the end of the stream when that is far
        enough. A snapshot that is damaged, or of another version, counts as not there.
        """
        codec.text(aggregate_id, "aggregate id")
        codec.text(type, "aggregate type")
        state, after = initial, 0
        if snapshot is not None and (found := snapshot.latest(self._scope, aggregate_id, type, FOREVER if until is None else until)):
            state, after = found
        number = after
        for rows in pages(self._scope, StreamReading(aggregate_id, type, after, until, backward=False)):
            events = self.mapping.load_all(rows)
            for event in events:
                state = apply(state, event)
            number = events[-1].sequence_number
        if snapshot is not None and until is None and number - after >= snapshot.every:
            snapshot.keep(self._scope, aggregate_id, type, number, state)
        return state

    def seal(self, *, block: int = seals.BLOCK) -> Seal | None:
        """Adds links to the hash chain over all events since the newest, each over `block` of them at most; returns the newest.

        Its `hash` vouches for every event up to its `position`. None in a store without events. Nobody who appends waits for it, and
        several may seal at once.
        """
        return seals.seal(self._scope, codec.integer(block, "block", 1))

    def verify(self, *, head: str | None = None) -> seals.Audit:
        """Reads every link of the hash chain and every event under it again, and says whether they match, or where they do not.

        Whoever can write everything can write the chain anew: a `head` kept elsewhere, the hash of a seal, must be part of it.
        """
        return seals.verify(self._scope, None if head is None else codec.text(head, "head"))

    # Consumers

    def subscribe(self, name: str, *, types: Iterable[str] | None = None, start: Start = 0) -> Subscription:
        """The durable consumer of that name, for events of these types; a new one begins after position `start`, or `now`.

        Without `types` it is for all but the journal's, which come to who names their types: it would go on for ever with those that
        tell of its own work. Where there is one it goes on from where it was. Raises `Conflict` when the name is a group's.
        """
        wanted = checked_types(types)
        cursor = Cursor.established(self._scope, name, ConsumerKind.SUBSCRIPTION, start)
        return Subscription(self._scope, self._begin, self.mapping, cursor, wanted)

    def group(self, name: str, *, types: Iterable[str] | None = None, start: Start = 0, max_attempts: int = MAX_ATTEMPTS) -> ConsumerGroup:
        """The group of competing consumers of that name; see `subscribe`, for `types` too. What fails `max_attempts` times is parked."""
        wanted, most = checked_types(types), codec.integer(max_attempts, "max_attempts", 1)
        cursor = Cursor.established(self._scope, name, ConsumerKind.GROUP, start)
        return ConsumerGroup(self._scope, self._begin, self.mapping, cursor, wanted, most)

    def project(self, projection: Projection, *, types: Iterable[str] | None = None) -> Projector:
        """What builds a projection from events of these types, and keeps it up with them. Nothing happens yet.

        Without `types` it takes in all but the journal's.
        """
        return Projector(self._scope, self._begin, self.mapping, projection, types)

    def live(self, name: str) -> str | None:
        """The slot in which readers find the projection of that name; see `Projector.live`."""
        return live_slot(self._scope, name)

    def consumers(self) -> Sequence[Consumer]:
        """Every subscription, group and slot of a projection, by name: how far it is, and what it has failed at."""
        with self._scope.read() as run:
            return consumers(run)

    def follow(
        self,
        *,
        after: int = 0,
        types: Iterable[str] | None = None,
        limit: int = PAGE,
        timeout: float | None = None,
        stop: Stop | None = None,
    ) -> Iterator[Event]:
        """Events above a position, in order, and then those to come; read at most `limit` at a time. Nothing is written.

        Without `types` all but the journal's.
        It ends when nothing has come for `timeout` seconds, or soon after `stop()` is true. Raises `StoreError` inside a transaction,
        and `Unsupported` where nothing can block.
        """
        return Follower(self._scope, self.mapping, after, checked_types(types), limit, timeout, stop).events()

    def follow_async(
        self,
        *,
        after: int = 0,
        types: Iterable[str] | None = None,
        limit: int = PAGE,
        timeout: float | None = None,
        stop: Stop | None = None,
    ) -> AsyncIterator[Event]:
        """`follow`, for `async for`: the event loop goes on while there is nothing."""
        return Follower(self._scope, self.mapping, after, checked_types(types), limit, timeout, stop).events_async()

    # Events are facts: the plain verbs that would change one refuse, and so does the database itself.

    def insert(self, entity: Event) -> NoReturn:
        """Refuses: `append` numbers events."""
        raise _append_only()

    def insert_many(self, entities: Iterable[Event]) -> NoReturn:
        """Refuses: `append` numbers events."""
        raise _append_only()

    def update(self, entity: Event) -> NoReturn:
        """Refuses: events are facts."""
        raise _append_only()

    def update_many(self, entities: Iterable[Event]) -> NoReturn:
        """Refuses: events are facts."""
        raise _append_only()

    def replace(self, entity: Event) -> NoReturn:
        """Refuses: events are facts."""
        raise _append_only()

    def upsert(self, entity: Event) -> NoReturn:
        """Refuses: events are facts."""
        raise _append_only()

    def delete(self, id: Event | str | int) -> NoReturn:
        """Refuses: events are facts."""
        raise _append_only()

    def delete_many(self, ids: Iterable[Event | str | int]) -> NoReturn:
        """Refuses: events are facts."""
        raise _append_only()


def _append_only() -> Unsupported:
    return Unsupported("events are append-only", hint="Append a new event that says what changed")
