"""Projections: built from the first event, kept up, built again beside what readers see, and switched to in one go."""

import asyncio
import threading
import time
from typing import Any

import pytest

from ruv_swarm_store import Conflict, Event, InvalidValue, NewEvent, NotFound, Store, UnitOfWork
from ruv_swarm_store.entities import Build, BuildState


class Totals:
    """How many events there are of each type, in the configuration: each slot has a prefix of its own."""

    name = "totals"

    def __init__(self, version: int = 1, weight: int = 1) -> None:
        self.version = version
        self.weight = weight
        self.broken = False
        self.applied: list[tuple[str, int]] = []

    def apply(self, work: UnitOfWork, event: Event, slot: str) -> None:
        if self.broken and event.event_type == "broken":
            raise Broken
        self.applied.append((slot, event.position))
        key = f"totals/{slot}/{event.event_type}"
        work.config.set(key, (work.config.get(key) or 0) + self.weight)
        work.config.set(f"totals/{slot}/last", event.position)

    def clear(self, work: UnitOfWork, slot: str) -> None:
        for key in work.config.prefix(f"totals/{slot}/"):
            work.config.delete(key)


class Broken(Exception):
    pass


def append(store, *types):
    store.events.append("s", [NewEvent(type) for type in types], type="thing")


def totals(store, slot: str | None) -> dict[str, Any]:
    assert slot is not None
    prefix = f"totals/{slot}/"
    return {key.removeprefix(prefix): value for key, value in store.config.prefix(prefix).items()}


def expected(store, weight: int = 1) -> dict[str, Any]:
    """What the events add up to."""
    counts: dict[str, Any] = {}
    for event in store.events.walk():
        counts[event.event_type] = counts.get(event.event_type, 0) + weight
        counts["last"] = event.position
    return counts


def states(projector) -> dict[str, tuple[BuildState, int]]:
    return {build.slot: (build.state, build.version) for build in projector.builds()}


def test_a_projection_is_built_and_kept_up(store: Store, clock):
    append(store, *"abcabca")
    projector = store.events.project(Totals())
    assert (projector.live, store.events.live("totals"), projector.due, projector.builds()) == (None, None, True, [])
    for verb in (projector.catch_up, projector.lag):
        with pytest.raises(NotFound, match="built"):
            verb()
    told: list[tuple[int, int]] = []
    assert projector.rebuild(batch=3, progress=lambda done, newest: told.append((done, newest)))
    last = store.events.last_position()
    assert told[-1] == (last, last)
    assert len(told) == 3
    assert all(newest == last for _, newest in told)
    assert sorted(told) == told
    assert projector.live == store.events.live("totals") == "a"
    assert projector.builds() == [Build("totals", "a", BuildState.LIVE, 1, clock.now)]
    assert totals(store, "a") == expected(store)
    assert not projector.due
    append(store, *"aab")
    assert (projector.lag(), projector.catch_up(batch=2), projector.catch_up(), projector.lag()) == (3, 3, 0, 0)
    assert totals(store, "a") == expected(store)


def test_readers_see_the_old_build_until_the_new_one_is_whole(store: Store):
    append(store, *"abcab")
    projection = Totals()
    projector = store.events.project(projection)
    projector.rebuild()
    seen: list[Any] = []

    def look(done: int, newest: int) -> None:
        seen.append((projector.live, totals(store, projector.live)))
        append(store, "x")  # things go on
        projector.catch_up()
        assert totals(store, projector.live) == expected(store)

    left = iter([False] * 2 + [True])
    assert not projector.rebuild(batch=2, progress=look, stop=lambda: next(left))
    assert [slot for slot, _ in seen] == ["a"] * 2
    assert states(projector) == {"a": (BuildState.LIVE, 1), "b": (BuildState.BUILDING, 1)}
    assert projector.live == "a"
    assert projector.rebuild(batch=100)  # goes on where it was stopped
    assert [at for slot, at in projection.applied if slot == "b"] == [event.position for event in store.events.walk()]
    assert states(projector) == {"b": (BuildState.LIVE, 1)}
    assert totals(store, "b") == expected(store)
    assert totals(store, "a") == {}
    assert projector.rebuild()
    assert projector.live == "a"
    assert totals(store, "a") == expected(store)
    assert [consumer.name for consumer in store.events.consumers()] == ["projection:totals:a"]


def test_a_newer_version_is_due_and_an_older_one_gives_way(store: Store):
    append(store, *"ab")
    old, new = store.events.project(Totals(1)), store.events.project(Totals(2, weight=10))
    assert old.run(timeout=0) == 0
    assert (old.due, new.due) == (False, True)
    with pytest.raises(Conflict, match="version 1"):
        new.catch_up()
    append(store, "c")
    assert old.run(timeout=0) == 1
    new.run(timeout=0)
    assert (new.due, old.due) == (False, False)
    assert totals(store, new.live) == expected(store, weight=10)
    append(store, "c")
    for verb in (old.catch_up, lambda: old.run(timeout=0)):
        with pytest.raises(Conflict) as caught:
            verb()
        assert caught.value.data == {"expected": 1, "actual": 2}
    assert new.catch_up() == 1
    assert totals(store, new.live) == expected(store, weight=10)
    assert old.rebuild()  # whoever insists goes back
    assert totals(store, old.live) == expected(store)


def test_one_version_is_built_at_a_time(store: Store):
    append(store, *"abcd")
    old, new = store.events.project(Totals(1)), store.events.project(Totals(2, weight=10))
    begun = iter([False, True])
    assert not new.rebuild(batch=1, stop=lambda: next(begun))
    with pytest.raises(Conflict, match="version 2"):
        old.rebuild()
    newer = store.events.project(Totals(3, weight=100))

    def overtake(done: int, newest: int) -> None:
        newer.rebuild(batch=1, stop=iter([False, True]).__next__)

    with pytest.raises(Conflict, match="superseded"):
        new.rebuild(batch=1, progress=overtake)
    assert states(newer) == {"a": (BuildState.BUILDING, 3)}
    assert newer.rebuild()
    assert totals(store, "a") == expected(store, weight=100)


def test_two_who_build_the_same_help_each_other(store: Store):
    append(store, *"abcdef")
    one, two = store.events.project(Totals()), store.events.project(Totals())
    assert one.rebuild(batch=1, progress=lambda done, newest: done < 3 or two.rebuild(batch=1))
    assert one.live == two.live == "a"
    assert totals(store, "a") == expected(store)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_build_that_others_finished_and_built_over_is_done(store: Store, times: int):
    append(store, *"abcdef")
    one, two = store.events.project(Totals()), store.events.project(Totals())
    ahead = iter(range(times))

    def overtake(done: int, newest: int) -> None:
        for _ in ahead:
            two.rebuild(batch=1)

    assert one.rebuild(batch=1, progress=overtake)
    assert states(one) == {"aba"[times - 1]: (BuildState.LIVE, 1)}
    assert totals(store, one.live) == expected(store)


def test_a_failure_leaves_a_build_where_it_was(store: Store):
    append(store, "a", "b", "broken", "c")
    projection = Totals()
    projection.broken = True
    projector = store.events.project(projection)
    for failures in (1, 2):
        with pytest.raises(Broken):
            projector.rebuild(batch=2)
        assert [(consumer.failures, consumer.error_message) for consumer in store.events.consumers()] == [(failures, "Broken: ")]
        assert totals(store, "a") == {"a": 1, "b": 1, "last": store.events.read_all()[1].position}
    with pytest.raises(Broken):
        projector.rebuild(batch=10)
    projection.broken = False
    assert projector.rebuild()
    append(store, "broken")
    projection.broken = True
    with pytest.raises(Broken):
        projector.run(timeout=0)
    projection.broken = False
    assert projector.catch_up() == 1
    assert totals(store, "a") == expected(store)


def test_what_a_switch_left_behind_is_cleared_later(store: Store):
    """Whoever switched readers over may die before it clears the old slot."""
    append(store, *"ab")
    projector = store.events.project(Totals())
    projector.rebuild()
    projector.tidy = lambda: (_ for _ in ()).throw(Broken)  # type: ignore[method-assign]
    with pytest.raises(Broken):
        projector.rebuild()
    again = store.events.project(Totals())
    assert states(again) == {"a": (BuildState.RETIRED, 1), "b": (BuildState.LIVE, 1)}
    assert totals(store, "a") == totals(store, again.live) == expected(store)
    again.run(timeout=0)
    assert states(again) == {"b": (BuildState.LIVE, 1)}
    assert totals(store, "a") == {}
    with pytest.raises(Broken):
        projector.rebuild()
    assert again.rebuild()  # into the slot that was not cleared
    assert totals(store, again.live) == expected(store)


def test_a_projection_takes_in_the_types_it_wants(store: Store):
    append(store, *"axxbxaxx")
    projector = store.events.project(Totals(), types=["a", "b"])
    assert projector.rebuild(batch=2)
    append(store, *"xaxx")
    assert projector.catch_up() == 1
    assert {key: count for key, count in totals(store, "a").items() if key != "last"} == {"a": 3, "b": 1}
    assert projector.lag() == 0


def test_a_projection_without_types_takes_in_none_of_the_journal_s(database):
    """A build would never catch up with what it does itself."""
    store: Store = database.open(journal=True)
    append(store, *"abab")
    projector = store.events.project(Totals())
    calls = 0

    def stop() -> bool:
        nonlocal calls
        calls += 1
        return calls > 20

    assert projector.rebuild(batch=1, stop=stop)
    assert projector.lag() == projector.catch_up(batch=1) == 0
    assert {key: value for key, value in totals(store, "a").items() if key != "last"} == {"a": 2, "b": 2}


def test_an_empty_log_is_projected_too(store: Store):
    projector = store.events.project(Totals())
    assert projector.rebuild()
    assert (projector.live, totals(store, "a"), projector.due) == ("a", {}, False)


def test_a_projection_is_removed(store: Store):
    append(store, *"ab")
    projector = store.events.project(Totals())
    projector.rebuild()
    projector.remove()
    assert (projector.builds(), store.events.consumers(), store.config.find_all()) == ([], [], [])
    assert projector.rebuild()
    assert totals(store, "a") == expected(store)


@pytest.mark.parametrize("projection", [Totals(0), Totals("1"), Totals()])
def test_what_is_no_projection_is_refused(store: Store, projection):
    if projection.version == 1:
        projection.name = 5
    with pytest.raises(InvalidValue):
        store.events.project(projection)
    with pytest.raises(InvalidValue):
        store.events.project(Totals(), types="abc")


@pytest.mark.needs("threads", "concurrent_writers")
def test_a_reader_s_slot_stays_while_it_reads(database):
    store: Store = database.open()
    append(store, *"ab")
    projector = store.events.project(Totals())
    projector.rebuild()
    with store.transaction() as work:
        slot = work.events.live("totals")
        other = threading.Thread(target=projector.rebuild)
        other.start()
        time.sleep(0.2)
        assert totals(work, slot) == expected(store)
    other.join(20)
    assert projector.live != slot


@pytest.mark.needs("threads")
def test_a_rebuild_while_appends_go_on_gives_what_one_from_scratch_does(database):
    store: Store = database.open()
    append(store, *"abcabc" * 10)
    projector = store.events.project(Totals())
    projector.rebuild()
    stop = threading.Event()
    taken: list[int] = []
    backwards: list[tuple[int, int]] = []

    def feed() -> None:
        while not stop.is_set():
            append(store, *"abc")
            time.sleep(0.02)  # what comes faster than it is taken in is never caught up with

    def keep_up() -> None:
        taken.append(store.events.project(Totals()).run(stop=stop.is_set))

    def read() -> None:
        before = 0
        while not stop.is_set():
            with store.transaction() as work:
                seen = totals(work, work.events.live("totals"))["last"]
            if seen < before:
                backwards.append((before, seen))
            before = seen

    threads = [threading.Thread(target=job) for job in (feed, keep_up, read)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(2):
            assert store.events.project(Totals()).rebuild(batch=20)
            assert projector.live == ("b", "a")[turn % 2]
        built = totals(store, projector.live)["last"]
        until = time.monotonic() + 20
        while totals(store, projector.live)["last"] == built and time.monotonic() < until:  # who keeps up comes to it, too
            time.sleep(0.01)
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    projector.catch_up()
    assert backwards == []  # readers are never taken back behind what they have seen
    assert totals(store, projector.live) == expected(store)
    assert totals(store, "b") == {}
    assert sum(taken) > 0


@pytest.mark.needs("threads")
def test_a_projection_stays_live(database):
    store: Store = database.open()
    append(store, *"ab")
    stop = threading.Event()
    running = threading.Thread(target=lambda: store.events.project(Totals()).run(stop=stop.is_set))
    running.start()
    for _ in range(3):
        append(store, *"abc")
        wanted = expected(store)
        deadline = time.monotonic() + 20
        while (slot := store.events.live("totals")) is None or totals(store, slot) != wanted:
            assert time.monotonic() < deadline
            time.sleep(0.005)
    stop.set()
    running.join(20)


def test_a_coroutine_keeps_a_projection(database):
    store: Store = database.open()
    append(store, "a")

    async def play() -> None:
        projector = store.events.project(Totals())
        running = asyncio.create_task(projector.run_async(timeout=0.3))
        await asyncio.sleep(0.05)
        append(store, *"ab")
        assert await running == 2
        assert totals(store, projector.live) == expected(store)

    asyncio.run(play())
