"""Subscriptions: what is done about an event and how far a consumer has come commit together, in order, once."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import crew
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from ruv_swarm_store import Conflict, Event, InvalidValue, NewEvent, NotFound, Store, UnitOfWork
from ruv_swarm_store.entities import Consumer, ConsumerKind
from ruv_swarm_store.errors import StoreError, Unavailable, Unsupported
from ruv_swarm_store.events import Upcasters
from ruv_swarm_store.events.cursors import SCAN


def append(store, *types, stream="s"):
    store.events.append(stream, [NewEvent(type, number) for number, type in enumerate(types)], type="thing")


def record(work: UnitOfWork, event: Event) -> None:
    """An effect in the store that tells which event it is of."""
    work.metrics.record("effect", event.position)


def effects(store) -> list[int]:
    """The positions of the events that had an effect, in the order of the effects."""
    return [int(metric.value) for metric in store.metrics.find_all()]


def positions(store, *types) -> list[int]:
    return [event.position for event in store.events.walk(types=types or None)]


class Broken(Exception):
    pass


def test_every_event_is_handled_once_in_order(store: Store):
    append(store, *"abcdefg")
    one = store.events.subscribe("one")
    assert [one.handle(record, limit=3) for _ in range(4)] == [3, 3, 1, 0]
    append(store, "h")
    assert one.handle(record) == 1
    assert effects(store) == positions(store)
    assert one.position == store.events.last_position()


def test_a_consumer_begins_where_it_is_told_and_goes_on_where_it_was(store: Store, clock):
    append(store, *"abc")
    at = positions(store)
    for name, start, left in (("all", 0, at), ("none", "now", []), ("some", at[0], at[1:])):
        new = store.events.subscribe(name, start=start)
        assert new.lag() == len(left)
        seen: list[int] = []
        new.handle(lambda work, event, seen=seen: seen.append(event.position))
        assert seen == left
        again = store.events.subscribe(name, start=0)
        assert again.handle(record) == again.lag() == 0
        version = clock.now + (1 if left else 0)
        assert again.consumer() == Consumer(name, ConsumerKind.SUBSCRIPTION, at[-1], clock.now, clock.now, 0, None, version)
    append(store, "d")
    assert store.events.subscribe("none").handle(record) == 1


def test_names_are_independent_and_listed(store: Store):
    append(store, *"ab")
    one, two = store.events.subscribe("one"), store.events.subscribe("two")
    one.handle(record)
    assert [(consumer.name, consumer.position) for consumer in store.events.consumers()] == [
        ("one", store.events.last_position()),
        ("two", 0),
    ]
    assert two.handle(record) == 2
    assert one.remove()
    assert not one.remove()
    assert [consumer.name for consumer in store.events.consumers()] == ["two"]
    for verb in (lambda: one.position, one.lag, one.reset, lambda: one.handle(record), lambda: one.follow(record, timeout=0)):
        with pytest.raises(NotFound, match="one"):
            verb()


def test_a_failure_undoes_the_batch_is_counted_and_shows_the_same_events_again(store: Store):
    append(store, *"abcd")
    one = store.events.subscribe("one")
    shown: list[list[str]] = []

    def fail_at_c(work: UnitOfWork, event: Event) -> None:
        record(work, event)
        shown[-1].append(event.event_type)
        if event.event_type == "c":
            raise Broken("no\0 \ud800")

    for failures in (1, 2):
        shown.append([])
        with pytest.raises(Broken):
            one.handle(fail_at_c)
        assert effects(store) == []
        consumer = one.consumer()
        assert (consumer.position, consumer.failures) == (0, failures)
        assert consumer.error_message == "Broken: no\\0 \\ud800"
    assert shown == [["a", "b", "c"]] * 2
    shown.append([])
    assert one.handle(fail_at_c, limit=2) == 2
    assert one.handle(record) == 2
    assert effects(store) == positions(store)
    assert (one.consumer().failures, one.consumer().error_message) == (0, None)


def test_a_handler_that_only_promises_is_refused(store: Store):
    """What it gives would never be awaited, and the events pass for handled."""

    async def later(work: UnitOfWork, event: Event) -> None:
        raise AssertionError("awaited")

    def stepwise(work: UnitOfWork, event: Event) -> Iterator[None]:
        yield

    async def stepwise_later(work: UnitOfWork, event: Event) -> AsyncIterator[None]:
        yield

    class Promises:
        name, version = "promises", 1

        def __init__(self, handler: Any) -> None:
            self.handler = handler

        def apply(self, work: UnitOfWork, event: Event, slot: str) -> Any:
            return self.handler(work, event)

        def clear(self, work: UnitOfWork, slot: str) -> None:
            pass

    append(store, "a", "b")
    for handler, why in ((later, "await"), (stepwise, "generator"), (stepwise_later, "generator")):
        for act in (
            lambda: store.events.subscribe("s").handle(handler),
            lambda: store.events.subscribe("s").handle(lambda work, event: handler(work, event)),
            lambda: store.events.group("g").handle("me", handler),
            lambda: store.events.project(Promises(handler)).rebuild(),
        ):
            with pytest.raises(InvalidValue, match=why):
                act()
    assert store.events.subscribe("s").position == 0
    assert [claim.event.event_type for claim in store.events.group("g").claim("you", 2)] == ["a", "b"]


def test_a_handler_that_has_to_give_way_is_called_again(store: Store):
    append(store, *"ab")
    one, group = store.events.subscribe("one"), store.events.group("two")
    for handle in (one.handle, lambda handler: group.handle("m", handler)):
        ways = iter(["deadlock", "serialization"])

        def handler(work: UnitOfWork, event: Event, ways=ways) -> None:
            record(work, event)
            if kind := next(ways, None):
                raise Unavailable("gave way", kind=kind)

        assert handle(handler) == 2
    assert sorted(effects(store)) == sorted(positions(store) * 2)
    assert one.consumer().failures == group.lag() == 0
    with pytest.raises(Unavailable):
        one.reset()
        one.handle(lambda *_: (_ for _ in ()).throw(Unavailable("away", kind="connection")))


def test_what_is_not_wanted_is_passed_over_for_good(store: Store):
    append(store, *"abacab")
    one = store.events.subscribe("one", types=["b", "c", "b"])
    assert one.lag() == 3
    assert one.handle(record, limit=2) == 2
    assert one.position == positions(store)[3]
    assert one.handle(record) == 1
    append(store, *"aaa")
    assert (one.lag(), one.handle(record)) == (0, 0)
    assert one.position == store.events.last_position()
    assert effects(store) == positions(store, "b", "c")


def test_a_rare_event_behind_a_long_log_is_found_in_bounded_steps(store: Store):
    store.events.append("s", [NewEvent("common")] * (SCAN + 50), type="thing")
    one = store.events.subscribe("one", types=["rare"])
    assert one.handle(record) == 0
    assert one.position == store.events.last_position()
    one.reset()
    append(store, "rare")
    assert one.handle(record) == 1
    assert effects(store) == [one.position] == [store.events.last_position()]


def test_a_batch_is_handled_in_a_block_of_one_s_own(store: Store):
    append(store, *"abc")
    one = store.events.subscribe("one")
    with one.batch(limit=2) as (work, events):
        assert [event.event_type for event in events] == ["a", "b"]
        record(work, events[1])
        assert one.position == events[1].position  # as this transaction sees it
    with pytest.raises(Broken), one.batch() as (work, events):
        record(work, events[0])
        raise Broken
    assert (one.consumer().failures, effects(store)) == (1, positions(store)[1:2])
    with one.batch() as (_, events):
        assert [event.event_type for event in events] == ["c"]
    with one.batch() as (work, events):
        assert events == []
        work.config.set("k", 1)
    assert store.config.get("k") == 1


def test_a_unit_of_work_takes_the_position_with_it(store: Store):
    append(store, *"ab")
    with pytest.raises(Broken), store.transaction() as work:
        one = work.events.subscribe("one")
        append(work, "c")
        assert one.handle(record) == 3  # its own event too
        raise Broken
    assert store.events.consumers() == []
    with store.transaction() as work:
        one = work.events.subscribe("one")
        append(work, "c")
        with pytest.raises(Broken):
            one.handle(lambda *_: (_ for _ in ()).throw(Broken))
        assert one.handle(record, limit=2) == 2
        for verb in (lambda: one.follow(record, timeout=1), lambda: next(work.events.follow(timeout=1))):
            with pytest.raises(StoreError, match="transaction"):
                verb()
    one = store.events.subscribe("one")
    assert (one.handle(record), one.consumer().failures) == (1, 0)
    assert effects(store) == positions(store)


def test_a_position_is_reset(store: Store):
    append(store, *"abc")
    one = store.events.subscribe("one")
    one.handle(record)
    one.reset(positions(store)[0])
    assert one.handle(record) == 2
    one.reset()
    assert one.lag() == 3
    one.reset("now")
    assert (one.lag(), one.handle(record)) == (0, 0)


def test_a_name_is_a_subscription_s_or_a_group_s(store: Store):
    store.events.subscribe("one")
    store.events.group("two")
    for verb, kind in ((lambda: store.events.group("one"), "subscription"), (lambda: store.events.subscribe("two"), "group")):
        with pytest.raises(Conflict, match=kind):
            verb()


def test_what_is_no_name_type_or_position_is_refused(store: Store):
    events = store.events
    for verb in (
        lambda: events.subscribe(5),
        lambda: events.subscribe("a", types="abc"),
        lambda: events.subscribe("a", types=[]),
        lambda: events.subscribe("a", types=[1]),
        lambda: events.subscribe("a", start=-1),
        lambda: events.subscribe("a", start="then"),
        lambda: events.follow(after=-1),
        lambda: events.follow(types="a"),
        lambda: events.follow(limit=0),
        lambda: events.follow(timeout=-1),
    ):
        with pytest.raises(InvalidValue):
            verb()
    assert events.consumers() == []
    one = events.subscribe("a")
    for verb in (lambda: one.handle(record, limit=0), lambda: one.reset(-1), lambda: one.follow(record, limit=0, timeout=0)):
        with pytest.raises(InvalidValue):
            verb()


def test_old_events_come_in_their_newest_form(new_database):
    upcasters = Upcasters()
    upcasters.register("t", 1)(lambda data: {"n": data})
    database = new_database()
    store = database.open(upcasters=upcasters)
    store.events.append("s", [NewEvent("t", 5, schema_version=1)], type="thing")
    seen: list[Any] = []
    store.events.subscribe("one").handle(lambda work, event: seen.append(event.event_data))
    seen += [event.event_data for event in store.events.follow(timeout=0)]
    seen += [claim.event.event_data for claim in store.events.group("two").claim("m")]
    assert seen == [{"n": 5}] * 3


# Beside the journal


def test_who_names_no_types_gets_none_of_the_journal_s(new_database):
    """It would feed itself: what it does to the swarm's state is told by the next events."""
    store: Store = new_database().open(journal=True)
    append(store, *"ab")
    for key in range(30):  # more than any page below
        store.config.set(f"k/{key}", 0)
    store.events.append("mine", [NewEvent("c")], type="journalist")

    def count(work: UnitOfWork, event: Event) -> None:
        work.config.set(event.event_type, (work.config.get(event.event_type) or 0) + 1)

    subscription = store.events.subscribe("one")
    assert subscription.lag() == 3
    assert [subscription.handle(count, limit=2) for _ in range(4)] == [2, 1, 0, 0]
    assert (subscription.lag(), subscription.follow(count, timeout=0)) == (0, 0)
    assert subscription.position == store.events.last_position(), "it moves past them"
    group = store.events.group("two")
    assert group.lag() == 3
    assert [group.handle("m", count, limit=1) for _ in range(5)] == [1, 1, 1, 0, 0]
    assert group.lag() == 0
    assert [event.event_type for event in store.events.follow(timeout=0, limit=2)] == ["a", "b", "c"]
    assert [store.config.get(key) for key in "abc"] == [2, 2, 2]
    # Who names them gets them.
    wanted = store.events.subscribe("three", types=["swarm_config.inserted", "journal.started", "a"])
    assert wanted.lag() == wanted.handle(lambda work, event: None) == 30 + 3 + 2


# Taking turns


@pytest.mark.needs("threads")
def test_several_under_one_name_take_turns(database):
    store: Store = database.open()
    append(store, *(["t"] * 60))
    done: list[int] = []

    def work(number: int, barrier: threading.Barrier) -> None:
        barrier.wait()
        one = store.events.subscribe("one")
        while one.lag():
            done.append(one.handle(record, limit=3))

    crew.in_threads(4, work)
    assert effects(store) == positions(store)
    assert sum(done) == 60


@pytest.mark.needs("threads")
def test_an_append_that_commits_late_is_not_passed_over(database):
    """Whoever appends meanwhile has to wait, or comes after: a consumer never sees a position that something will appear below."""
    store: Store = database.open()
    one = store.events.subscribe("one")
    begun, end = threading.Event(), threading.Event()

    def slowly() -> None:
        with store.transaction() as work:
            append(work, "slow", stream="slow")
            begun.set()
            assert end.wait(20)

    threads = [threading.Thread(target=slowly), threading.Thread(target=lambda: append(store, "quick", stream="quick"))]
    threads[0].start()
    assert begun.wait(20)
    threads[1].start()
    seen: list[str] = []
    if store.capabilities.concurrent_writers:
        for _ in range(10):
            one.handle(lambda work, event: seen.append(event.event_type))
            time.sleep(0.005)
    end.set()
    for thread in threads:
        thread.join()
    one.handle(lambda work, event: seen.append(event.event_type))
    assert seen == ["slow", "quick"]


# Waiting for events to come


@pytest.mark.needs("threads")
def test_who_follows_is_woken_by_a_commit(database):
    store: Store = database.open()
    append(store, "a")
    stop = threading.Event()
    late: list[float] = []
    appended: list[float] = []

    def handle(work: UnitOfWork, event: Event) -> None:
        record(work, event)
        if event.event_data == 1:
            late.append(time.monotonic() - appended[-1])
        if len(late) == 3:
            stop.set()

    def feed() -> None:
        for _ in range(3):
            time.sleep(0.03)
            appended.append(time.monotonic())
            append(store, "b", "c")

    feeder = threading.Thread(target=feed)
    feeder.start()
    assert store.events.subscribe("one").follow(handle, stop=stop.is_set, timeout=20) == 7
    feeder.join()
    assert effects(store) == positions(store)
    assert min(late) < 0.3  # not by looking around once a second


@pytest.mark.needs("threads", "persistent")
def test_who_follows_is_woken_by_another_store(database):
    store, other = database.open(), database.open()
    taken: list[float] = []

    def feed() -> None:
        for _ in range(3):
            time.sleep(0.03)
            taken.append(-time.monotonic())
            append(other, "a")

    feeder = threading.Thread(target=feed)
    feeder.start()
    for event, number in zip(store.events.follow(timeout=20), range(3), strict=False):
        assert event.sequence_number == number + 1
        taken[number] += time.monotonic()
        if number == 2:
            break
    feeder.join()
    assert min(taken) < 0.3


@pytest.mark.needs("blocking")
def test_following_ends_when_nothing_comes_or_when_told(store: Store):
    append(store, *"ab")
    one = store.events.subscribe("one")
    began = time.monotonic()
    assert one.follow(record, timeout=0.1) == 2
    assert 0.1 <= time.monotonic() - began < 0.9
    append(store, "c")
    assert one.follow(record, stop=lambda: True) == 0
    assert one.follow(record, stop=lambda: one.lag() == 0) == 1
    assert one.follow(record, timeout=0) == 0
    with pytest.raises(Broken):
        append(store, "d")
        one.follow(lambda *_: (_ for _ in ()).throw(Broken), timeout=5)
    assert one.consumer().failures == 1
    assert effects(store) == positions(store)[:3]


@pytest.mark.needs("blocking")
def test_following_without_a_position_writes_nothing(store: Store):
    append(store, *"abcab")
    at = positions(store)
    assert [event.position for event in store.events.follow(timeout=0, limit=2)] == at
    assert [event.position for event in store.events.follow(after=at[1], timeout=0)] == at[2:]
    assert [event.event_type for event in store.events.follow(types=["b", "z"], timeout=0, limit=1)] == ["b", "b"]
    assert store.events.consumers() == []


@pytest.mark.needs("blocking", "persistent")
def test_a_store_that_only_reads_follows(database):
    writer: Store = database.open()
    append(writer, *"ab")
    one = writer.events.subscribe("one")
    reader: Store = database.open(read_only=True)
    found = reader.events.follow(timeout=20)
    assert [next(found).event_type for _ in range(2)] == ["a", "b"]
    append(writer, "c")
    assert next(found).event_type == "c"
    assert reader.events.subscribe("one").lag() == 3
    with pytest.raises(Unsupported):
        reader.events.subscribe("one").handle(record)
    assert one.position == 0


async def soon(act: Callable[[], object], after: float = 0.05) -> None:
    await asyncio.sleep(after)
    act()


def test_coroutines_follow(database):
    store: Store = database.open()
    append(store, "a")
    one = store.events.subscribe("one")

    async def read() -> list[str]:
        return [event.event_type async for event in store.events.follow_async(timeout=0.4)]

    async def play() -> None:
        reading = asyncio.create_task(read())
        handling = asyncio.create_task(one.follow_async(record, timeout=0.4))
        await soon(lambda: append(store, "b"))
        await soon(lambda: append(store, "c", "d"))
        assert await handling == 4
        assert await reading == ["a", "b", "c", "d"]

    asyncio.run(play())
    assert effects(store) == positions(store)


def test_a_coroutine_that_is_cancelled_has_handled_nothing_more(database):
    store: Store = database.open()
    one = store.events.subscribe("one")

    async def play() -> None:
        handling = asyncio.create_task(one.follow_async(record))
        await asyncio.sleep(0.05)
        handling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await handling
        append(store, "a")
        await asyncio.sleep(0.02)

    asyncio.run(play())
    assert (one.lag(), effects(store)) == (1, [])


# Against a model


class SubscriptionMachine(RuleBasedStateMachine):
    """Three consumers, two of which want some types only, against lists."""

    def __init__(self, database: Any) -> None:
        super().__init__()
        self.store: Store = database.open()
        self.log: list[Event] = []
        self.wanted = {"all": {"a", "b", "c"}, "some": {"a", "c"}, "one": {"b"}}
        self.done = dict.fromkeys(self.wanted, 0)
        self.effects: list[int] = []
        self.names = {
            name: self.store.events.subscribe(name, types=None if name == "all" else types) for name, types in self.wanted.items()
        }

    def ahead(self, name: str) -> list[int]:
        return [event.position for event in self.log if event.position > self.done[name] and event.event_type in self.wanted[name]]

    @rule(types=st.lists(st.sampled_from("abc"), min_size=1, max_size=6))
    def append(self, types: list[str]) -> None:
        append(self.store, *types)
        self.log = self.store.events.read_all()

    @rule(name=st.sampled_from(["all", "some", "one"]), limit=st.integers(1, 4), fail_after=st.sampled_from([None, None, None, 0, 1, 2]))
    def handle(self, name: str, limit: int, fail_after: int | None) -> None:
        ahead = self.ahead(name)
        batch = ahead[:limit]
        calls: list[int] = []

        def handler(work: UnitOfWork, event: Event) -> None:
            calls.append(event.position)
            record(work, event)
            if len(calls) - 1 == fail_after:
                raise Broken

        if fail_after is not None and fail_after < len(batch):
            with pytest.raises(Broken):
                self.names[name].handle(handler, limit=limit)
            return
        assert self.names[name].handle(handler, limit=limit) == len(batch)
        assert calls == batch
        self.effects += batch
        if self.log:
            self.done[name] = batch[-1] if len(batch) == limit else self.log[-1].position

    @rule(name=st.sampled_from(["all", "some", "one"]), data=st.data())
    def reset(self, name: str, data: st.DataObject) -> None:
        position = data.draw(st.sampled_from([0, *(event.position for event in self.log)]))
        self.names[name].reset(position)
        self.done[name] = position

    @invariant()
    def agrees(self) -> None:
        assert effects(self.store) == self.effects
        for name, one in self.names.items():
            assert one.lag() == len(self.ahead(name))

    def teardown(self) -> None:
        self.store.close()


def test_random_handling_agrees_with_the_model(new_database):
    scale = settings().max_examples / 60
    run_state_machine_as_test(
        lambda: SubscriptionMachine(new_database()), settings=settings(max_examples=round(8 * scale), stateful_step_count=25)
    )


def test_no_consumer_begins_beyond_the_newest_event(store: Store):
    append(store, "a", "b")
    newest = store.events.last_position()
    for make in (store.events.subscribe, store.events.group):
        with pytest.raises(InvalidValue, match="newest"):
            make("new", start=newest + 1)
        assert store.events.consumers() == []
        consumer = make("new", start=newest)
        with pytest.raises(InvalidValue, match="newest"):
            consumer.reset(10**9)
        assert make("new", start=10**9).consumer().position == newest  # it goes on from where it was
        consumer.reset(newest - 1)
        assert consumer.lag() == 1
        consumer.remove()
