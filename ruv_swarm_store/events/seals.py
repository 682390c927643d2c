"""The hash chain that makes tampering with events evident.

Each link covers a block of consecutive events and the link before, so that no event before the newest link can be changed, left out
or added without a link that no longer matches. Appending costs nothing: links are added afterwards, by `seal`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from msgspec import Struct
from sqlalchemy import func, literal_column, select

from ruv_swarm_store import codec, schema
from ruv_swarm_store.engines import Executor, Scope, json_text, parameter
from ruv_swarm_store.entities import Seal
from ruv_swarm_store.errors import Closed, StoreError
from ruv_swarm_store.events import reading
from ruv_swarm_store.query import Mapping

BLOCK = 1_000
"""Most events under one link."""
PAGE = 500
"""Links read at a time."""

SEALS = Mapping(schema.event_seals, Seal, key="position")
_FORMAT = b"ruv_swarm_store events 1\n"
# The fields of an event in the order they are hashed. A column that comes later is for a new format.
_FIELDS = (
    "position", "id", "aggregate_id", "aggregate_type", "sequence_number", "event_type", "schema_version", "timestamp",
    "correlation_id", "causation_id", "event_data", "metadata",
)  # fmt: skip
_DATA = _FIELDS.index("event_data")
_JSON = [index for index, name in enumerate(_FIELDS) if isinstance(schema.events.c[name].type, schema.Json)]
_events, _seals = schema.events.c, schema.event_seals.c
_after: Any = parameter("after", schema.Int64)
_until: Any = parameter("until", schema.Int64)
_limit: Any = parameter("limit", schema.Int64)
_columns = [json_text(_events[name]) if index in _JSON else _events[name] for index, name in enumerate(_FIELDS)]
_BLOCK = select(*_columns).where(_events.position > _after, _events.position <= _until).order_by(_events.position).limit(_limit)
_LAST = select(*SEALS.columns).where(_seals.position > literal_column("0")).order_by(_seals.position.desc()).limit(1)
_NEWEST = select(func.max(_seals.position)).where(_seals.position > literal_column("0"))
_LINKS = select(*SEALS.columns).where(_seals.position > _after).order_by(_seals.position).limit(_limit)
_BELOW = select(func.count()).where(_events.position <= _until)
_UNSEALED = select(func.count()).where(_events.position > _after)
_LOWEST, _HIGHEST = -(2**63), 2**63 - 1


class Fault(Struct, frozen=True):
    """Where a chain does not match."""

    link: Seal | None
    """The first link that does not match the events after the one before it; None when it is no single link."""
    what: str


class Audit(Struct, frozen=True):
    """What `verify` found."""

    links: int
    """Links that match, from the first."""
    events: int
    """Events under them."""
    unsealed: int
    """Events after the newest link: the chain says nothing about them yet."""
    head: str | None
    """The hash of the last link that matches. Keep it elsewhere: `verify(head=…)` proves that the chain still goes through it."""
    fault: Fault | None

    @property
    def intact(self) -> bool:
        """Whether every link matches its events."""
        return self.fault is None


def seal(scope: Scope, block: int) -> Seal | None:
    """Adds links of `block` events at most over all after the newest link; the newest then, None where there is no event."""
    while True:
        with scope.read() as run:
            last = _last(run)
        # Hashed before anybody is kept waiting: events stay as they are, and none comes in later below one that can be seen.
        content = _Content(last)
        for rows in _pages(scope, content.after, _HIGHEST, block):
            content.add(rows)
        if not content.count:
            return last
        with scope.transaction() as run:
            run.lock(schema.event_seals.name)
            if _last(run) == last:  # otherwise somebody else has sealed meanwhile: go on from there
                run.insert(SEALS.insertion, SEALS.dump(content.link(run.now)))


def verify(scope: Scope, head: str | None) -> Audit:
    """Reads all links and all events under them again, and compares."""
    chain = _Chain(scope, head)
    fault = chain.follow()
    with scope.read() as run:
        [newest] = run.one(_NEWEST) or [None]
        [unsealed] = run.one(_UNSEALED, {"after": _LOWEST if newest is None else newest}) or [0]
    return Audit(chain.links, chain.events, unsealed, None if chain.last is None else chain.last.hash, fault)


class _Content:
    """The events after a link, hashed one by one: what the next link is made of."""

    def __init__(self, last: Seal | None) -> None:
        self.after = 0 if last is None else last.position
        self.position = self.after
        self.count = 0
        self._hash = hashlib.sha256(_FORMAT + (b"" if last is None else last.hash.encode()) + b"\n")

    def add(self, rows: Sequence[Sequence[Any]]) -> None:
        """Takes events in. Raises `ValueError` or `RecursionError` for one whose JSON cannot be read."""
        lines = []
        for row in rows:
            values = list(row)
            for index in _JSON:
                if values[index] is not None:
                    values[index] = [codec.decode_canonical(values[index])]  # in a list: null in JSON is not NULL
            lines.append(codec.canonical(values))
            self.position = row[0]
        self.count += len(rows)
        self._hash.update(b"\n".join([*lines, b""]))

    def link(self, sealed_at: int) -> Seal:
        """The link over what was taken in."""
        content = self._hash.copy()
        content.update(codec.canonical([self.position, self.after, self.count, sealed_at]))
        return Seal(self.position, self.after, self.count, content.hexdigest(), sealed_at)


class _Chain:
    """The links as they are followed, and how far they match."""

    def __init__(self, scope: Scope, head: str | None) -> None:
        self._scope = scope
        self._head = head
        self.last: Seal | None = None
        self.links = 0
        self.events = 0

    def follow(self) -> Fault | None:
        """Goes along the chain; where it does not match."""
        passed = self._head is None
        try:
            for link in self._stored():
                if (what := self._mismatch(link)) is not None:
                    return Fault(link, what)
                self.last = link
                self.links += 1
                self.events += link.count
                passed = passed or link.hash == self._head
        except StoreError as error:
            if error.retryable or isinstance(error, Closed):
                raise
            return Fault(None, f"the links cannot be read: {error}")
        return None if passed else Fault(None, f"no link has the hash {self._head}: the chain was cut off before it, or written anew")

    def _stored(self) -> Iterator[Seal]:
        after = _LOWEST
        while True:
            with self._scope.read() as run:
                links = SEALS.load_all(run.all(_LINKS, {"after": after, "limit": PAGE}))
            if not links:
                return
            yield from links
            after = links[-1].position

    def _mismatch(self, link: Seal) -> str | None:
        """What is wrong with a link and the events under it, if anything."""
        content = _Content(self.last)
        try:
            if self.last is None and (below := self._below()):
                return f"{below} events have positions below 1"
            for rows in _pages(self._scope, content.after, link.position, _HIGHEST):
                content.add(rows)
        except (ValueError, RecursionError):
            return f"an event after position {content.position} holds what is not JSON"
        except StoreError as error:
            if error.retryable or isinstance(error, Closed):
                raise
            return f"an event after position {content.position} cannot be read: {error}"
        if content.link(link.sealed_at) == link:
            return None
        if (content.after, content.position, content.count) != (link.after, link.position, link.count):
            return (
                f"there are {content.count} events from after position {content.after} to {content.position}; "
                f"the link tells of {link.count} from after {link.after} to {link.position}"
            )
        return "the hash of the events and the link before is not the link's"

    def _below(self) -> int:
        with self._scope.read() as run:
            [below] = run.one(_BELOW, {"until": 0}) or [0]
            return int(below)


def _last(run: Executor) -> Seal | None:
    row = run.one(_LAST)
    return None if row is None else SEALS.load(row)


def _pages(scope: Scope, after: int, until: int, count: int) -> Iterator[reading.Rows]:
    """Events in order of position, in pages; at most `count`."""
    size = reading.FIRST_PAGE
    while count > 0:
        size = min(size, count)
        with scope.read() as run:
            rows = run.all(_BLOCK, {"after": after, "until": until, "limit": size})
        if rows:
            yield rows
        if len(rows) < size:
            return
        count -= len(rows)
        after = rows[-1][0]
        size = reading.next_size(rows, _DATA)
