"""Random appends and reads give on every engine what a plain Python model gives."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from msgspec import structs

from ruv_swarm_store import ANY, EXISTS, NONE, Append, Conflict, Event, InvalidValue, NewEvent, Snapshots, Store
from ruv_swarm_store.events import reading


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000_000

    def __call__(self) -> int:
        return self.now


Stream = tuple[str, str]
STREAMS: list[Stream] = [("a", "x"), ("a", "y"), ("a", ""), ("b", "x")]
TYPES = [f"t{n}" for n in range(reading.MERGED + 2)]
IDS = [None, None, None, *(f"e-{n}" for n in range(6))]
streams = st.sampled_from(STREAMS)
labels = st.sampled_from([None, None, "c1", "c2"])
datas = st.sampled_from([None, 0, 1.0, -0.0, 1e16, [], {"b": [1, None], "a": "x"}])
new_events = st.builds(
    NewEvent, st.sampled_from(TYPES), datas, st.sampled_from([None, {"m": 1}]), st.sampled_from(IDS),
    schema_version=st.sampled_from([None, 1, 2]), correlation_id=labels, causation_id=labels,
)  # fmt: skip
limits = st.integers(0, 5) | st.none()


def plain(data: Any) -> str:
    """Data in a form to compare: 1 is not 1.0, order in JSON does not count, nor does the sign of a zero."""
    return json.dumps(data, sort_keys=True).replace("-0.0", "0.0")


class EventMachine(RuleBasedStateMachine):
    """The log as a list of events; their positions are the store's, of which only the order is known."""

    def __init__(self, database: Any) -> None:
        super().__init__()
        self.clock = Clock()
        self.store: Store = database.open(clock=self.clock)
        self.log: list[Event] = []
        self.heads: list[str] = []

    def stream(self, stream: Stream) -> list[Event]:
        return [event for event in self.log if (event.aggregate_id, event.aggregate_type) == stream]

    # Appending

    def expect(self, appends: list[Append]) -> tuple[list[int], list[Event]] | None:
        """The versions that the appends lead to and the events they add; None when they must be refused."""
        given = [(append, event) for append in appends for event in append.events if event.id is not None]
        known = {event.id: event for event in self.log}
        if any(event.id in known for _, event in given):
            if sum(len(list(append.events)) for append in appends) != len(given):
                return None
            for append, event in given:
                there = known.get(event.id or "")
                asked = (append.aggregate_id, append.type, event.type, plain(event.data), plain(event.metadata))
                if there is None or asked != (
                    there.aggregate_id, there.aggregate_type, there.event_type, plain(there.event_data), plain(there.metadata)
                ):  # fmt: skip
                    return None
            first = min(self.log.index(known[event.id or ""]) for _, event in given)
            before = Counter((event.aggregate_id, event.aggregate_type) for event in self.log[:first])
            repeated = []
            for append in appends:
                stream = (append.aggregate_id, append.type)
                before[stream] = max((known[event.id or ""].sequence_number for event in append.events), default=before[stream])
                repeated.append(before[stream])
            return repeated, []
        versions = {stream: len(self.stream(stream)) for stream in STREAMS}
        led, added = [], []
        for append in appends:
            stream = (append.aggregate_id, append.type)
            version, expected = versions[stream], append.expected_version
            if not (expected in (ANY, version) or (expected == EXISTS and version > 0)):
                return None
            for event in append.events:
                versions[stream] += 1
                correlation, causation = event.correlation_id, event.causation_id
                if append.cause is not None:
                    correlation = correlation or append.cause.correlation_id or append.cause.id
                    causation = causation or append.cause.id
                added.append(
                    Event(event.id or "", *stream, event.type, event.data, event.metadata, self.clock.now, versions[stream],
                          schema_version=event.schema_version or 1, correlation_id=correlation, causation_id=causation)
                )  # fmt: skip
            led.append(versions[stream])
        return led, added

    def check(self, appends: list[Append], do: Any) -> None:
        expected = self.expect(appends)
        if expected is None:
            with pytest.raises(Conflict):
                do()
            return
        led, added = expected
        assert do() == led
        news = self.store.events.read_all(after=self.log[-1].position if self.log else 0)
        assert [
            structs.replace(event, position=0, id=event.id if want.id else "") for event, want in zip(news, added, strict=True)
        ] == added
        assert len({event.id for event in news}) == len(news)
        assert [event.position for event in news] == [news[0].position + n for n in range(len(news))]
        self.log += news

    def cause(self, data: st.DataObject) -> Event | None:
        return data.draw(st.sampled_from(self.log[-3:])) if self.log and data.draw(st.booleans()) else None

    def version(self, data: st.DataObject, stream: Stream) -> int:
        right = len(self.stream(stream))
        return data.draw(st.sampled_from([ANY, ANY, right, right, right, EXISTS, NONE, right + 1, max(right - 1, 0)]))

    @rule(data=st.data(), stream=streams, events=st.lists(new_events, max_size=4, unique_by=lambda event: event.id or id(event)))
    def append(self, data: st.DataObject, stream: Stream, events: list[NewEvent]) -> None:
        wanted = Append(stream[0], events, stream[1], self.version(data, stream), self.cause(data))
        self.check(
            [wanted],
            lambda: [
                self.store.events.append(
                    stream[0], iter(events), type=stream[1], expected_version=wanted.expected_version, cause=wanted.cause
                )
            ],
        )

    @rule(data=st.data(), parts=st.lists(st.tuples(streams, st.integers(0, 3)), max_size=3))
    def append_many(self, data: st.DataObject, parts: list[tuple[Stream, int]]) -> None:
        events = data.draw(st.lists(new_events, min_size=9, max_size=9, unique_by=lambda event: event.id or id(event)))
        appends = [
            Append(stream[0], [events.pop() for _ in range(size)], stream[1], self.version(data, stream), self.cause(data))
            for stream, size in parts
        ]
        self.check(appends, lambda: self.store.events.append_many(appends))

    @rule(data=st.data(), stream=streams)
    def repeat(self, data: st.DataObject, stream: Stream) -> None:
        named = [event for event in self.stream(stream) if event.id.startswith("e-")]
        events = [NewEvent(event.event_type, event.event_data, id=event.id) for event in named[: data.draw(st.integers(1, 3))]]
        self.check([Append(stream[0], events, stream[1])], lambda: [self.store.events.append(stream[0], events, type=stream[1])])

    @rule(ms=st.sampled_from([0, 1, 10, -5]))
    def pass_time(self, ms: int) -> None:
        self.clock.now += ms

    # Reading

    @rule(
        stream=streams, typed=st.booleans(), after=st.integers(0, 6), until=st.integers(0, 12) | st.none(), backward=st.booleans(),
        limit=limits,
    )  # fmt: skip
    def read(self, stream: Stream, typed: bool, after: int, until: int | None, backward: bool, limit: int | None) -> None:
        expected = sorted(
            (
                event
                for event in self.log
                if event.aggregate_id == stream[0]
                and (event.aggregate_type == stream[1] or not typed)
                and after < event.sequence_number <= (99 if until is None else until)
            ),
            key=lambda event: (event.sequence_number, event.aggregate_type),
            reverse=backward,
        )
        options: dict[str, Any] = {"type": stream[1] if typed else None, "after": after, "until": until, "backward": backward}
        assert list(self.store.events.walk_stream(stream[0], **options)) == expected
        if limit is None or limit >= len(expected) or not limit or expected[limit - 1].sequence_number != expected[limit].sequence_number:
            assert self.store.events.read(stream[0], limit=limit, **options) == expected[:limit]
        else:
            with pytest.raises(InvalidValue, match="share the id"):
                self.store.events.read(stream[0], limit=limit, **options)

    @rule(
        data=st.data(), types=st.lists(st.sampled_from(TYPES)) | st.none(), correlation=labels, causation=labels,
        since=st.integers(-20, 20) | st.none(), until=st.integers(-20, 40) | st.none(), backward=st.booleans(), limit=st.integers(0, 8),
    )  # fmt: skip
    def read_all(
        self, data: st.DataObject, types: list[str] | None, correlation: str | None, causation: str | None, since: int | None,
        until: int | None, backward: bool, limit: int,
    ) -> None:  # fmt: skip
        places = st.sampled_from([0, *(event.position for event in self.log)])
        after, before = data.draw(places), data.draw(places | st.none())
        since, until = (None if time is None else self.clock.now + time for time in (since, until))
        expected = [
            event
            for event in self.log
            if event.position > after
            and (before is None or event.position < before)
            and (types is None or event.event_type in types)
            and (correlation is None or event.correlation_id == correlation)
            and (causation is None or event.causation_id == causation)
            and (since is None or event.timestamp >= since)
            and (until is None or event.timestamp < until)
        ]
        if backward:
            expected.reverse()
        options: dict[str, Any] = {
            "after": after, "before": before, "types": types, "correlation": correlation, "causation": causation, "since": since,
            "until": until, "backward": backward,
        }  # fmt: skip
        assert self.store.events.read_all(limit=limit, **options) == expected[:limit]
        assert list(self.store.events.walk(**options)) == expected

    @rule(stream=streams, until=st.integers(0, 20) | st.none(), every=st.sampled_from([None, 1, 3]), version=st.integers(1, 2))
    def fold(self, stream: Stream, until: int | None, every: int | None, version: int) -> None:
        snapshot = None if every is None else Snapshots("ids", every=every, version=version)

        def apply(state: list[str], event: Event) -> list[str]:
            return [*state, event.id]

        state: list[str] = self.store.events.fold(stream[0], [], apply, type=stream[1], until=until, snapshot=snapshot)
        assert state == [event.id for event in self.stream(stream)[:until]]

    @rule(block=st.integers(1, 5))
    def seal(self, block: int) -> None:
        head = self.store.events.seal(block=block)
        assert (head is None) == (not self.log)
        if head is not None:
            assert head.position == self.log[-1].position
            self.heads.append(head.hash)

    @rule(data=st.data())
    def verify(self, data: st.DataObject) -> None:
        audit = self.store.events.verify(head=data.draw(st.sampled_from(self.heads)) if self.heads else None)
        assert audit.intact
        assert audit.events + audit.unsealed == len(self.log)

    @invariant()
    def versions_and_counts_agree(self) -> None:
        assert [self.store.events.version(id, type=kind) for id, kind in STREAMS] == [len(self.stream(stream)) for stream in STREAMS]
        assert self.store.events.count() == len(self.log)
        assert self.store.events.last_position() == (self.log[-1].position if self.log else 0)


def test_events_are_what_a_model_says(new_database: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "FIRST_PAGE", 2)
    monkeypatch.setattr(reading, "PAGE", 3)
    scale = settings().max_examples / 60  # more of them in the deep profile
    run_state_machine_as_test(
        lambda: EventMachine(new_database()), settings=settings(max_examples=round(15 * scale), stateful_step_count=30)
    )
