"""Competing consumers: a group's members share the events out among themselves, each under a lease."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from msgspec import Struct, structs
from sqlalchemy import ColumnElement, Text, case, delete, func, literal_column, null, select, tuple_, update

from ruv_swarm_store import codec, schema
from ruv_swarm_store.clock import duration
from ruv_swarm_store.engines import Scope, Steps, block, cooperate, give_way, insert_into, number_items, parameter, records
from ruv_swarm_store.entities import Consumer, Event
from ruv_swarm_store.errors import InvalidValue, LeaseLost, StoreError
from ruv_swarm_store.events.advancing import Begin, Handler, Unawaited, call
from ruv_swarm_store.events.cursors import Cursor, Start, lag, stretch
from ruv_swarm_store.events.following import LONGEST_PAUSE, Stop, arrival
from ruv_swarm_store.events.reading import EVENTS, Rows
from ruv_swarm_store.query import Mapping
from ruv_swarm_store.repository import repeatable

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 5
"""How often an event is tried before it is parked, unless a group says otherwise."""
LONGEST_DELAY = 3600.0
"""Seconds after which an event comes again at the latest, however often it has failed."""

_e = schema.events.c
_c = schema.event_consumers.c
_h = schema.event_handouts.c
_one: Any = literal_column("1")
_zero: Any = literal_column("0")
_now: Any = parameter("now", schema.Int64)
_most: Any = parameter("most", schema.Int64)
_expires: Any = parameter("expires", schema.Int64)
_error: Any = parameter("error", Text)
_after: Any = parameter("after", schema.Int64)
_limit: Any = parameter("limit", schema.Int64)
_of_group = _h.consumer == parameter("consumer", Text)
_out = _h.parked_at.is_(None)
_parked = _h.parked_at.is_not(None)
_held = (
    _of_group,
    _h.position == parameter("position", schema.Int64),
    _h.fence == parameter("fence", schema.Int64),
    _h.holder == parameter("holder", Text),
)
"""Whether a claim still holds its event: the fence is another one from the next claim on, and nobody holds what was given back."""

# Claims of a group take turns at its row. Its version is their fence: greater for each, whatever becomes of the handouts.
_TURN = (
    update(schema.event_consumers)
    .where(_c.name == parameter("consumer", Text))
    .values(version=_c.version + _one, updated_at=_now)
    .returning(_c.position, _c.version)
)
_CURSOR = update(schema.event_consumers).where(_c.name == parameter("consumer", Text)).values(position=parameter("until", schema.Int64))
_AHEAD = select(
    _c.position,
    select(func.coalesce(func.max(_e.position), _zero)).scalar_subquery(),
    select(func.min(_h.visible_at)).where(_of_group, _out).scalar_subquery(),
).where(_c.name == parameter("consumer", Text))

# Whoever is acknowledging one just now has its row locked: it is left to them.
_due = (
    select(_h.position)
    .where(_of_group, _out, _h.visible_at <= _now)
    .order_by(_h.position)
    .limit(_limit)
    .with_for_update(skip_locked=True, key_share=True)
    .cte("due")
    .prefix_with("MATERIALIZED")
)
_spent = _h.attempts >= _most
_ran_out: ColumnElement[Any] = literal_column("'the lease of '", Text).concat(_h.holder).concat(literal_column("' ran out'", Text))
_TAKE = (
    update(schema.event_handouts)
    .where(_of_group, _h.position.in_(select(_due.c.position)))
    .values(
        holder=case((_spent, null()), else_=parameter("holder", Text)),
        fence=parameter("fence", schema.Int64),
        attempts=_h.attempts + case((_spent, _zero), else_=_one),
        visible_at=_expires,
        parked_at=case((_spent, _now), else_=null()),
        error_message=case((_h.holder.is_not(None), _ran_out), else_=_h.error_message),
    )
    .returning(_h.position, _h.attempts, _h.error_message, _h.parked_at)
)
_HAND_OUT = insert_into(schema.event_handouts)
_GIVE_UP = update(schema.event_handouts).where(_of_group, _h.position == parameter("position", schema.Int64))
_GIVE_UP = _GIVE_UP.values(holder=null(), error_message=_error, parked_at=_now)
_POSITION = EVENTS.fields.index("position")
_EVENTS = select(*EVENTS.columns).where(_e.position.in_(number_items("positions"))).order_by(_e.position)

_ACKNOWLEDGE = delete(schema.event_handouts).where(*_held)
_claims = records("claims", position=schema.Int64, fence=schema.Int64, holder=Text)
_held_by_these = (
    _of_group,
    tuple_(_h.position, _h.fence, _h.holder).in_(select(_claims.c.position, _claims.c.fence, _claims.c.holder)),
)
_THESE = select(_h.position).where(*_held_by_these).order_by(_h.position)
_ACKNOWLEDGE_THESE = delete(schema.event_handouts).where(*_held_by_these).returning(_h.position)
_THIS = select(_h.position).where(*_held).order_by(_h.position)
_RENEW = update(schema.event_handouts).where(*_held).values(visible_at=_expires)
_RETRY = (
    update(schema.event_handouts)
    .where(*_held)
    .values(holder=null(), visible_at=_expires, error_message=_error, parked_at=case((_spent, _now), else_=null()))
    .returning(_h.parked_at)
)
_RELEASE = update(schema.event_handouts).where(*_held).values(holder=null(), visible_at=_now, attempts=_h.attempts - _one)
_PARK = update(schema.event_handouts).where(*_held).values(holder=null(), error_message=_error, parked_at=_now)

_some = _h.position.in_(number_items("positions"))
_PARKED = (
    select(*EVENTS.columns, _h.attempts, _h.error_message, _h.parked_at)
    .join_from(schema.event_handouts, schema.events, _e.position == _h.position)
    .where(_of_group, _parked, _h.position > _after)
    .order_by(_h.position)
    .limit(_limit)
)
_AGAIN: dict[str, Any] = {"parked_at": null(), "attempts": _zero, "visible_at": _now}
_UNPARK = update(schema.event_handouts).where(_of_group, _parked, _some).values(_AGAIN)
_UNPARK_ALL = update(schema.event_handouts).where(_of_group, _parked).values(_AGAIN)
_DISCARD = delete(schema.event_handouts).where(_of_group, _parked, _some)
_DISCARD_ALL = delete(schema.event_handouts).where(_of_group, _parked)
_FORGET = delete(schema.event_handouts).where(_of_group)
_OUT = select(func.count()).where(_of_group, _out)


class Claim(Struct, frozen=True, gc=False):
    """An event in the hands of one member of a group, until `expires_at`; then anybody's again.

    `attempts` counts this one too. `error` says what ended the one before.
    """

    group: str
    member: str
    event: Event
    fence: int
    attempts: int
    expires_at: int
    error: str | None = None


class Parked(Struct, frozen=True, gc=False):
    """An event that a group has given up, after how many attempts and why.

    One that cannot be brought to its newest form is there in the one it is stored in; None stands for one that is damaged.
    """

    event: Event | None
    attempts: int
    error: str | None
    parked_at: int
    position: int


class ConsumerGroup:
    """Consumers that compete for events: each goes to one member, under a lease, until somebody has acknowledged it.

    A claim is acknowledged in the transaction that holds what was done about its event: then each takes effect exactly once in this
    database. Who is too slow, and whose event has gone to another member, gets `LeaseLost`, and its transaction rolls back. Events
    are handed out in order; several members finish them in any. Let all members ask for the same types.
    """

    def __init__(self, scope: Scope, begin: Begin, mapping: Mapping[Event], cursor: Cursor, types: str | None, max_attempts: int) -> None:
        self._scope = scope
        self._begin = begin
        self._mapping = mapping
        self._cursor = cursor
        self._types = types
        self._max_attempts = max_attempts

    @property
    def name(self) -> str:
        """The group's name."""
        return self._cursor.name

    @property
    def position(self) -> int:
        """The position up to which events were handed out. Raises `NotFound` once it was removed."""
        return self.consumer().position

    def consumer(self) -> Consumer:
        """How the group stands. Raises `NotFound`."""
        return self._cursor.consumer()

    def lag(self) -> int:
        """How many events are not acknowledged yet: handed out, to be tried again, or still to come. Parked ones do not count."""
        with self._scope.read() as run:
            ahead = lag(run, self._cursor.ahead(run)[0], self._types)
            row = run.one(_OUT, {"consumer": self.name})
        return ahead + (0 if row is None else int(row[0]))

    @repeatable
    def reset(self, position: Start = 0) -> None:
        """Begins again after a position; `now` leaves out all there is. All claims are lost, and nothing is parked any more."""
        at = self._cursor.checked(position)
        with self._scope.transaction() as run:
            self._cursor.reset(run, at)
            run.run(_FORGET, {"consumer": self.name})

    def remove(self) -> bool:
        """Forgets the group, its claims and what it has parked; whether it was known. Its members get `NotFound` or `LeaseLost`."""
        return self._scope.write(self._cursor.remove)

    # Claims

    def claim(self, member: str, limit: int = 1, *, lease: float = 30.0) -> list[Claim]:
        """Up to `limit` events in order, for `lease` seconds this member's alone; none when there are none.

        Events whose lease has run out, or whose delay is over, come before those never handed out. One that was tried
        `max_attempts` times is parked instead, and at once one that cannot be loaded, because it is damaged or an upcaster is missing.
        Raises `NotFound` once the group was removed.
        """
        who = codec.text(member, "member")
        codec.integer(limit, "limit", 1)
        span = duration(lease, "lease")
        return self._claim(who, limit, span)[0] or []

    def _claim(self, member: str, limit: int, span: int) -> tuple[list[Claim] | None, float]:
        """Claims; None when there is nothing, and after how many seconds there may be although nothing is committed."""
        while True:
            with self._scope.read() as run:  # looking first keeps those who ask in vain from writing
                row, now = run.one(_AHEAD, {"consumer": self.name}), run.now
            if row is None:
                raise self._cursor.removed()
            position, head, visible_at = row
            due = visible_at is not None and visible_at <= now
            if position < head or due:
                claims, moved = self._take(member, limit, span, due)
                if claims:
                    return claims, 0
                if moved:
                    continue
            return None, LONGEST_PAUSE if due or visible_at is None else (visible_at - now) / 1000

    @repeatable
    def _take(self, member: str, limit: int, span: int, due: bool) -> tuple[list[Claim], bool]:
        """What is due, then what is new; and whether there may be more even where that was nothing."""
        with self._scope.transaction() as run:
            turn = run.one(_TURN, {"consumer": self.name, "now": run.now})
            if turn is None:
                raise self._cursor.removed()
            position, fence = turn
            now = max(run.now, self._scope.clock())  # the wait for the turn must not be taken off the lease
            expires = now + span
            params = {
                "consumer": self.name, "now": now, "expires": expires, "limit": limit, "fence": fence, "holder": member,
                "most": self._max_attempts,
            }  # fmt: skip
            rows = run.all(_TAKE, params) if due else ()
            taken = {at: (attempts, error) for at, attempts, error, parked_at in rows if parked_at is None}
            events, broken = self._load(run.all(_EVENTS, {"positions": codec.encode(list(taken))})) if taken else ([], {})
            for at, error in broken.items():
                run.run(_GIVE_UP, {"consumer": self.name, "position": at, "error": error, "now": now})
            moved = len(rows) > len(events)
            if len(events) < limit:
                part = stretch(run, position, self._types, limit - len(events))
                fresh, broken = self._load(part.rows)
                handouts: list[tuple[Any, ...]] = [(self.name, new.position, member, fence, 1, expires, None, None) for new in fresh]
                handouts += [(self.name, at, None, fence, 1, expires, error, now) for at, error in broken.items()]
                if handouts:
                    run.insert_many(_HAND_OUT, handouts)
                if not part.empty:
                    run.run(_CURSOR, {"consumer": self.name, "until": part.until})
                    moved = True
                events += fresh
            return [Claim(self.name, member, event, fence, *_split(taken.get(event.position), expires)) for event in events], moved

    def _load(self, rows: Rows) -> tuple[list[Event], dict[int, str]]:
        """Events; and where there is one that cannot be loaded, why: it must not stop the others."""
        events, broken = [], {}
        for row in rows:
            try:
                events.append(self._mapping.load(row))
            except StoreError as error:
                broken[row[_POSITION]] = codec.reason(error)
                log.warning("%r gives up the event at %s, which cannot be loaded: %s", self.name, row[_POSITION], error)
        return events, broken

    def wait(
        self, member: str, limit: int = 1, *, lease: float = 30.0, timeout: float | None = None, stop: Stop | None = None
    ) -> list[Claim]:
        """Claims, and while there is nothing blocks until there is; none after `timeout` seconds, or once `stop()` is true.

        Woken by commits as `tasks.wait` is, and by leases and delays that run out. Raises `StoreError` inside a transaction.
        """
        return block(self._scope, self._waiting(member, limit, lease, timeout, stop)) or []

    async def wait_async(
        self, member: str, limit: int = 1, *, lease: float = 30.0, timeout: float | None = None, stop: Stop | None = None
    ) -> list[Claim]:
        """`wait`, while the event loop goes on. Cancelled, it has claimed nothing."""
        return await cooperate(self._scope, self._waiting(member, limit, lease, timeout, stop)) or []

    def _waiting(self, member: str, limit: int, lease: float, timeout: float | None, stop: Stop | None) -> Steps[list[Claim] | None]:
        who, span = codec.text(member, "member"), duration(lease, "lease")
        codec.integer(limit, "limit", 1)
        return arrival(self._scope, lambda: self._claim(who, limit, span), timeout, stop)

    # Under a lease

    def acknowledge(self, claims: Claim | Iterable[Claim]) -> None:
        """Ends claims for good, all or none: call it in the transaction that holds what was done about their events.

        Raises `LeaseLost` when an event was taken over, given back, parked or acknowledged before: let it roll that back.
        """
        if isinstance(claims, Claim):
            key = self._key(claims)
            if not self._scope.write(lambda run: run.run(_ACKNOWLEDGE, key)):
                raise self._lost(claims)
        elif wanted := list(claims):
            self._acknowledge(wanted)

    @repeatable
    def _acknowledge(self, claims: Sequence[Claim]) -> None:
        keys = [self._key(claim) for claim in claims]
        params = {"consumer": self.name, "claims": codec.encode([[key["position"], key["fence"], key["holder"]] for key in keys])}
        with self._scope.transaction() as run:
            run.hold(_THESE, params)
            ended = {position for (position,) in run.all(_ACKNOWLEDGE_THESE, params)}
            for claim in claims:
                if claim.event.position not in ended:
                    raise self._lost(claim)

    @repeatable
    def renew(self, claim: Claim, *, lease: float = 30.0) -> Claim:
        """The claim with its lease extended to `lease` seconds from now. Raises `LeaseLost`."""
        key, span = self._key(claim), duration(lease, "lease")
        with self._scope.transaction() as run:
            run.hold(_THIS, key)
            expires = max(run.now, self._scope.clock()) + span  # the wait for it must not be taken off the lease
            renewed = run.run(_RENEW, {**key, "expires": expires})
        if not renewed:
            raise self._lost(claim)
        return structs.replace(claim, expires_at=expires)

    def retry(self, claim: Claim, error: str | BaseException, *, delay: float = 0.0) -> bool:
        """Gives an event back, to come again after `delay` seconds; whether it does. False: that was its last attempt, it is parked.

        Raises `LeaseLost`.
        """
        key, text, span = self._key(claim), codec.reason(error), duration(delay, "delay")
        params = {**key, "error": text, "most": self._max_attempts}
        row = self._scope.write(lambda run: run.one(_RETRY, {**params, "now": run.now, "expires": run.now + span}))
        if row is None:
            raise self._lost(claim)
        return row[0] is None

    def release(self, claim: Claim) -> None:
        """Gives an event back unharmed; no attempt is counted. Raises `LeaseLost`."""
        key = self._key(claim)
        if not self._scope.write(lambda run: run.run(_RELEASE, {**key, "now": run.now})):
            raise self._lost(claim)

    def park(self, claim: Claim, error: str | BaseException) -> None:
        """Gives an event up: it is put aside until `unpark` or `discard`, and holds nobody up. Raises `LeaseLost`."""
        key, text = self._key(claim), codec.reason(error)
        if not self._scope.write(lambda run: run.run(_PARK, {**key, "now": run.now, "error": text})):
            raise self._lost(claim)

    def _key(self, claim: Claim) -> dict[str, Any]:
        if not isinstance(claim, Claim) or claim.group != self.name:
            raise InvalidValue(f"{claim!r} is no claim of the group {self.name!r}", hint="Give what claim or wait returned")
        return {"consumer": self.name, "position": claim.event.position, "fence": claim.fence, "holder": claim.member}

    def _lost(self, claim: Claim) -> LeaseLost:
        return LeaseLost(
            f"{claim.member!r} has lost its claim on the event at {claim.event.position}",
            hint="Drop what was done under it, for another member may be doing it; renew in time, or claim with a longer lease",
            group=self.name,
            position=claim.event.position,
            fence=claim.fence,
        )

    # What was given up

    def parked(self, *, after: int = 0, limit: int = 100) -> list[Parked]:
        """What was given up of the events above a position, in order; at most `limit`."""
        params = {"consumer": self.name, "after": codec.integer(after, "after", 0), "limit": codec.integer(limit, "limit", 0)}
        with self._scope.read() as run:
            rows = run.all(_PARKED, params)
        return [Parked(self._readable(row), attempts, error, parked_at, row[_POSITION]) for *row, attempts, error, parked_at in rows]

    def _readable(self, row: Sequence[Any]) -> Event | None:
        for mapping in (self._mapping, EVENTS):
            with suppress(StoreError):
                return mapping.load(row)
        return None

    def unpark(self, events: Iterable[Parked | Event | int] | None = None) -> int:
        """Lets parked events, or all of them, be tried again from the first attempt on; how many. A number is a position."""
        return self._parked(_UNPARK_ALL, _UNPARK, events)

    def discard(self, events: Iterable[Parked | Event | int] | None = None) -> int:
        """Drops parked events, or all of them: they are done with; how many. A number is a position."""
        return self._parked(_DISCARD_ALL, _DISCARD, events)

    def _parked(self, all_: Any, some: Any, events: Iterable[Parked | Event | int] | None) -> int:
        positions = None if events is None else codec.encode([_position(event) for event in events])
        params = {"consumer": self.name, "positions": positions}
        return self._scope.write(lambda run: run.run(all_ if positions is None else some, {**params, "now": run.now}))

    # The whole round

    def handle(self, member: str, handler: Handler, *, limit: int = 10, lease: float = 30.0, delay: float = 1.0) -> int:
        """Claims up to `limit` events and calls `handler(work, event)` for each, in a transaction that acknowledges it; how many succeeded.

        What a handler raises undoes what it did; its event comes again after `delay` seconds, twice that the next time and so on, and
        is parked after `max_attempts`. An event that has gone to another member meanwhile is left to it. What claiming, or the
        database, raises is raised here.
        """
        duration(delay, "delay")
        return self._handle(self.claim(member, limit, lease=lease), handler, delay)

    def follow(
        self,
        member: str,
        handler: Handler,
        *,
        limit: int = 10,
        lease: float = 30.0,
        delay: float = 1.0,
        timeout: float | None = None,
        stop: Stop | None = None,
    ) -> int:
        """`handle` for events as they come; how many succeeded in the end.

        It ends when nothing has come for `timeout` seconds, or once `stop()` is true; what was claimed and not begun by then is given
        back.
        """
        duration(delay, "delay")
        handled = 0
        while claims := self.wait(member, limit, lease=lease, timeout=timeout, stop=stop):
            handled += self._handle(claims, handler, delay, stop)
        return handled

    async def follow_async(
        self,
        member: str,
        handler: Handler,
        *,
        limit: int = 10,
        lease: float = 30.0,
        delay: float = 1.0,
        timeout: float | None = None,
        stop: Stop | None = None,
    ) -> int:
        """`follow`, while the event loop goes on. The handler runs in a transaction: it cannot await."""
        duration(delay, "delay")
        handled = 0
        while claims := await self.wait_async(member, limit, lease=lease, timeout=timeout, stop=stop):
            handled += self._handle(claims, handler, delay, stop)
            await give_way(self._scope)
        return handled

    def _handle(self, claims: Sequence[Claim], handler: Handler, delay: float, stop: Stop | None = None) -> int:
        handled = 0
        left = list(reversed(claims))
        try:
            while left and not (stop is not None and stop()):
                try:
                    self._handle_one(left[-1], handler)
                    handled += 1
                except _Taken:
                    log.info("the event at %s has gone to another member of %r", left[-1].event.position, self.name)
                except Unawaited:
                    raise
                except Exception as error:
                    self._failed(left[-1], error, delay)
                left.pop()
        finally:
            for claim in reversed(left):
                with suppress(StoreError):  # its lease runs out by itself
                    self.release(claim)
        return handled

    def _failed(self, claim: Claim, error: Exception, delay: float) -> None:
        with suppress(LeaseLost):
            self.retry(claim, error, delay=min(delay * 2 ** min(claim.attempts - 1, 40), LONGEST_DELAY))

    @repeatable
    def _handle_one(self, claim: Claim, handler: Handler) -> None:
        with self._begin() as work:
            try:
                self.acknowledge(claim)  # first: it keeps others from the event, and tells at once when they have it
            except LeaseLost as error:
                raise _Taken from error
            call(handler, work, claim.event)

    def __repr__(self) -> str:
        return f"<ConsumerGroup {self.name!r}>"


class _Taken(Exception):
    """Another member has the event."""


def _split(before: tuple[int, str | None] | None, expires: int) -> tuple[int, int, str | None]:
    attempts, error = before or (1, None)
    return attempts, expires, error


def _position(event: Parked | Event | int) -> int:
    return event.position if isinstance(event, (Parked, Event)) else codec.integer(event, "position", 0)
