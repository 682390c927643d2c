"""Consumer groups: each event goes to one member at a time, in order, until one has acknowledged it or it is parked."""

import asyncio
import threading
import time
from typing import Any

import crew
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from msgspec import Struct, structs

from ruv_swarm_store import Event, InvalidValue, LeaseLost, NewEvent, NotFound, Store, UnitOfWork, schema
from ruv_swarm_store.errors import StoreError
from ruv_swarm_store.events import Claim, ConsumerGroup, Upcasters
from ruv_swarm_store.events.cursors import SCAN


class Broken(Exception):
    pass


def append(store, *types):
    store.events.append("s", [NewEvent(type, number) for number, type in enumerate(types)], type="thing")


def record(work: UnitOfWork, event: Event) -> None:
    """An effect in the store that tells which event it is of."""
    work.metrics.record("effect", event.position)


def effects(store) -> list[int]:
    return sorted(int(metric.value) for metric in store.metrics.find_all())


def positions(store) -> list[int]:
    return [event.position for event in store.events.walk()]


def kinds(claims) -> str:
    return "".join(claim.event.event_type for claim in claims)


@pytest.fixture
def group(store: Store) -> ConsumerGroup:
    append(store, *"abcdef")
    return store.events.group("g", max_attempts=3)


def test_events_are_shared_out_in_order(store: Store, group: ConsumerGroup, clock):
    one, two = group.claim("one", 2, lease=10), group.claim("two", 3, lease=20)
    assert (kinds(one), kinds(two)) == ("ab", "cde")
    first = one[0]
    assert (first.group, first.member, first.attempts, first.error) == ("g", "one", 1, None)
    assert (first.expires_at, two[0].expires_at) == (clock.now + 10_000, clock.now + 20_000)
    assert first.event == store.events.get(first.event.id)
    assert (kinds(group.claim("one", 10)), group.claim("two")) == ("f", [])
    assert (group.position, group.lag()) == (store.events.last_position(), 6)
    group.acknowledge(first)
    group.acknowledge([two[2], two[0]])
    group.acknowledge([])
    assert group.lag() == 3


def test_what_is_done_and_its_acknowledgement_are_one(store: Store, group: ConsumerGroup, clock):
    (first,) = group.claim("one", lease=10)
    with pytest.raises(Broken), store.transaction() as work:
        record(work, first.event)
        group.acknowledge(first)
        raise Broken
    assert (effects(store), group.lag()) == ([], 6)
    with store.transaction() as work:
        group.acknowledge(first)
        record(work, first.event)
    assert (effects(store), group.lag()) == (positions(store)[:1], 5)
    clock.advance(11)
    assert kinds(group.claim("two")) == "b"  # what is acknowledged does not come again


def test_an_expired_lease_is_taken_over_and_its_late_holder_loses(store: Store, group: ConsumerGroup, clock):
    slow = group.claim("slow", 2, lease=1)
    clock.advance(ms=999)
    assert kinds(group.claim("quick")) == "c"
    clock.advance(ms=1)
    quick = group.claim("quick", 3, lease=10)
    assert kinds(quick) == "abd"
    assert [(claim.attempts, claim.error) for claim in quick] == [(2, "the lease of slow ran out")] * 2 + [(1, None)]
    for verb in (
        group.acknowledge,
        group.renew,
        group.release,
        lambda claim: group.retry(claim, "no"),
        lambda claim: group.park(claim, "no"),
    ):
        with pytest.raises(LeaseLost) as caught, store.transaction() as work:
            record(work, slow[0].event)
            verb(slow[0])
        assert caught.value.data["position"] == slow[0].event.position
    with pytest.raises(LeaseLost):
        group.acknowledge([quick[2], slow[1]])  # all or none
    assert effects(store) == []
    group.acknowledge(quick)
    with pytest.raises(LeaseLost):
        group.acknowledge(quick[0])
    assert group.lag() == 3


def test_an_expired_lease_that_nobody_took_over_is_still_good(store: Store, group: ConsumerGroup, clock):
    (claim,) = group.claim("one", lease=1)
    clock.advance(5)
    group.acknowledge(claim)
    assert group.lag() == 5


def test_a_lease_is_renewed(group: ConsumerGroup, clock):
    (claim,) = group.claim("one", lease=1)
    renewed = group.renew(claim, lease=5)
    assert renewed == structs.replace(claim, expires_at=clock.now + 5_000)
    clock.advance(4)
    assert kinds(group.claim("two")) == "b"
    group.acknowledge(claim)


def test_what_failed_comes_again_after_a_while_and_is_parked_in_the_end(store: Store, group: ConsumerGroup, clock):
    (claim,) = group.claim("one")
    assert group.retry(claim, "first", delay=2)
    with pytest.raises(LeaseLost):
        group.acknowledge(claim)
    clock.advance(ms=1_999)
    assert kinds(group.claim("one")) == "b"
    clock.advance(ms=1)
    (claim,) = group.claim("two")
    assert (claim.event.event_type, claim.attempts, claim.error) == ("a", 2, "first")
    assert group.retry(claim, ValueError("second"))
    (claim,) = group.claim("two")
    assert (claim.attempts, claim.error) == (3, "ValueError: second")
    assert not group.retry(claim, "third")
    (parked,) = group.parked()
    assert (parked.event, parked.attempts, parked.error, parked.parked_at) == (claim.event, 3, "third", clock.now)
    clock.advance(1_000)
    assert kinds(group.claim("two", 10, lease=1)) == "bcdef"
    assert group.lag() == 5
    # Who only lets leases run out is no better; the first of these was claimed before.
    for left in ("bcdef", "cdef", ""):
        clock.advance(2)
        assert kinds(group.claim("two", 10, lease=1)) == left
    assert [parked.error for parked in group.parked()] == ["third", *["the lease of two ran out"] * 5]
    assert group.lag() == 0


def test_parked_events_are_looked_at_tried_again_or_dropped(store: Store, group: ConsumerGroup, clock):
    for claim in group.claim("one", 5):
        group.park(claim, "because")
    assert (kinds(group.parked()), group.lag()) == ("abcde", 1)
    a, b, *_ = parked = group.parked()
    assert group.parked(limit=2) == parked[:2]
    assert group.parked(after=b.event.position) == parked[2:]
    assert group.unpark([b]) == 1
    (claim,) = group.claim("two")
    assert (claim.event, claim.attempts, claim.error) == (b.event, 1, "because")
    assert group.discard([a.event, parked[2].event.position, 10**9]) == 2
    assert kinds(group.parked()) == "de"
    assert group.unpark() == 2
    assert kinds(group.claim("two", 10)) == "def"
    assert (group.unpark(), group.discard()) == (0, 0)
    group.park(claim, "again")
    assert group.discard() == 1
    assert group.parked() == []


def test_what_is_given_back_unharmed_counts_no_attempt(group: ConsumerGroup):
    (claim,) = group.claim("one")
    group.release(claim)
    with pytest.raises(LeaseLost):
        group.release(claim)
    (claim,) = group.claim("two")
    assert (claim.event.event_type, claim.attempts) == ("a", 1)


def test_a_claim_made_before_a_reset_is_worth_nothing_after_it(store: Store, group: ConsumerGroup, clock):
    old = group.claim("one", 3)
    group.park(old[2], "no")
    group.reset()
    assert group.parked() == []
    assert group.lag() == 6
    assert kinds(group.claim("one")) == "a"
    with pytest.raises(LeaseLost):
        group.acknowledge(old[0])  # the same member, the same event, another claim
    group.reset("now")
    assert (group.lag(), group.claim("one")) == (0, [])
    group.reset(positions(store)[3])
    assert kinds(group.claim("one", 10)) == "ef"
    assert group.remove()
    assert not group.remove()
    for verb in (lambda: group.claim("one"), lambda: group.position, group.lag, group.reset):
        with pytest.raises(NotFound, match="'g'"):
            verb()
    with pytest.raises(LeaseLost):
        group.acknowledge(old[1])


def test_a_claim_on_a_group_that_was_removed_is_worth_nothing_in_its_successor(store: Store, group: ConsumerGroup, clock):
    (old,) = group.claim("one")
    assert group.remove()
    clock.advance(1)
    group = store.events.group("g")
    (new,) = group.claim("one")
    assert new.event == old.event
    with pytest.raises(LeaseLost):
        group.acknowledge(old)
    group.acknowledge(new)
    assert group.lag() == 5


def test_what_cannot_be_loaded_is_parked_and_stops_nobody(new_database):
    """Without the step that leads to today's form, say: the group goes on, and the event waits for it."""
    upcasters, fixed = Upcasters(), False
    upcasters.register("a", 1)(lambda data: {"n": data if fixed else data["n"]})
    upcasters.register("b", 2)(lambda data: data)
    store: Store = new_database().open(upcasters=upcasters)
    store.events.append("s", [NewEvent(type, number, schema_version=1) for number, type in enumerate("abbacb")], type="thing")
    group = store.events.group("g")
    (good,) = group.claim("one", 10)
    assert (good.event.event_type, group.position, group.lag()) == ("c", store.events.last_position(), 1)
    parked = group.parked()
    assert [(one.event.event_type, one.event.event_data, one.event.schema_version, one.attempts) for one in parked] == [
        (type, number, 1, 1) for number, type in enumerate("abbacb") if type != "c"
    ]  # in the form they are stored in
    assert [one.event.position for one in parked] == [one.position for one in parked]
    assert [str(one.error).partition(":")[0] for one in parked] == ["CorruptRow", *["SchemaMismatch"] * 2, "CorruptRow", "SchemaMismatch"]
    # Tried again they are given up again as long as nothing has changed, and the others are served.
    append(store, "c")
    assert group.unpark(parked[:2]) == 2
    assert kinds(group.claim("two", 2)) == "c"
    assert [(one.position, one.attempts) for one in group.parked()] == [(one.position, 1) for one in parked]
    fixed = True
    upcasters.register("b", 1)(lambda data: [data])
    assert group.unpark() == 5
    assert [claim.event.event_data for claim in group.claim("three", 10)] == [{"n": 0}, [1], [2], {"n": 3}, [5]]


def test_a_damaged_event_is_parked_and_stops_nobody(database, store: Store, group: ConsumerGroup):
    first, second, *_ = store.events.read_all()
    database.unguard(store, schema.events)
    database.damage(store, schema.events, "id", second.id, "event_data", "{not json")
    assert kinds(group.claim("one", 10)) == "acdef"
    (parked,) = group.parked()
    assert (parked.event, parked.position, parked.attempts) == (None, second.position, 1)
    assert "cannot be read" in str(parked.error)
    assert group.unpark([parked]) == 1
    assert group.claim("one", 10) == []
    assert group.discard(group.parked()) == 1
    assert (group.parked(), group.lag(), first.event_type) == ([], 5, "a")


def test_groups_want_some_types_and_begin_where_told(store: Store):
    append(store, *"abcabc")
    some = store.events.group("some", types=["b", "c"], start=positions(store)[1])
    assert some.lag() == 3
    assert kinds(some.claim("one", 2)) == "cb"
    assert kinds(some.claim("one", 2)) == "c"
    append(store, "a")
    assert some.claim("one") == []
    assert some.position == store.events.last_position()  # passed over for good
    assert store.events.group("late", start="now").claim("one") == []


def test_a_rare_event_behind_a_long_log_is_claimed(store: Store):
    store.events.append("s", [NewEvent("common")] * (SCAN + 5) + [NewEvent("rare")], type="thing")
    assert kinds(store.events.group("g", types=["rare"]).claim("one")) == "rare"[:4]


def test_what_cannot_be_claimed_or_ended_is_refused(store: Store, group: ConsumerGroup):
    (claim,) = group.claim("one")
    other = store.events.group("other")
    for verb in (
        lambda: group.claim(5),
        lambda: group.claim("one", 0),
        lambda: group.claim("one", lease=-1),
        lambda: group.retry(claim, "no", delay=-1),
        lambda: group.retry(claim, "\0"),
        lambda: group.park(claim, 5),
        lambda: other.acknowledge(claim),
        lambda: group.acknowledge([claim, claim.event]),
        lambda: group.unpark(["a"]),
        lambda: group.handle("one", record, delay=-1),
        lambda: group.parked(limit=-1),
        lambda: store.events.group("new", max_attempts=0),
        lambda: store.events.group("new", types=[]),
    ):
        with pytest.raises(InvalidValue):
            verb()
    assert [consumer.name for consumer in store.events.consumers()] == ["g", "other"]
    assert group.lag() == 6


# The whole round


def test_handlers_have_effects_once_and_failures_are_tried_again(store: Store, group: ConsumerGroup, clock):
    calls: list[str] = []

    def handler(work: UnitOfWork, event: Event) -> None:
        record(work, event)
        calls.append(event.event_type)
        if event.event_type == "b" and calls.count("b") < 2:
            raise Broken("not yet")
        if event.event_type == "d":
            raise Broken("never")

    assert group.handle("one", handler, limit=10, delay=2) == 4
    assert calls == [*"abcdef"]
    assert group.handle("one", handler, delay=2) == 0
    clock.advance(2)
    assert group.handle("one", handler, delay=2) == 1  # b; d waits twice as long now
    clock.advance(ms=3_999)
    assert group.handle("one", handler, delay=2) == 0
    clock.advance(ms=1)
    assert group.handle("one", handler, delay=2) == 0
    assert calls == [*"abcdefbdd"]
    ((event, attempts, error),) = [(parked.event, parked.attempts, parked.error) for parked in group.parked()]
    assert (event.event_type, attempts, error) == ("d", 3, "Broken: never")
    assert effects(store) == [at for at in positions(store) if at != event.position]
    assert group.lag() == 0


def test_a_handler_that_takes_too_long_has_no_effect(store: Store, group: ConsumerGroup, clock):
    taken: list[Claim] = []

    def handler(work: UnitOfWork, event: Event) -> None:
        record(work, event)
        if not taken:  # while the first is handled, the lease of the second runs out
            clock.advance(2)

    assert group.handle("slow", handler, limit=1, lease=1) == 1  # its own is still its own
    slow = group.claim("slow", 2, lease=1)
    clock.advance(2)
    taken += group.claim("quick", 1)
    assert group._handle(slow, handler, 0) == 1
    assert kinds(taken) == "b"
    group.acknowledge(taken[0])
    assert effects(store) == [positions(store)[0], positions(store)[2]]


def test_an_interrupt_gives_back_what_was_claimed(store: Store, group: ConsumerGroup):
    def handler(work: UnitOfWork, event: Event) -> None:
        record(work, event)
        if event.event_type == "c":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        group.handle("one", handler)
    assert effects(store) == positions(store)[:2]
    claims = group.claim("two", 10)
    assert kinds(claims) == "cdef"
    assert {claim.attempts for claim in claims} == {1}


@pytest.mark.needs("blocking")
def test_following_ends_when_nothing_comes_or_when_told(database):
    store: Store = database.open()
    append(store, *"abc")
    group = store.events.group("g")
    assert group.follow("one", record, timeout=0.05) == 3
    append(store, *"def")
    done: list[int] = []

    def handler(work: UnitOfWork, event: Event) -> None:
        done.append(event.position)

    assert group.follow("one", handler, stop=lambda: len(done) == 1) == 1
    assert kinds(group.claim("two", 10)) == "ef"  # given back
    assert group.wait("one", timeout=0) == []
    with store.transaction() as work, pytest.raises(StoreError, match="transaction"):
        work.events.group("g").wait("one", timeout=1)


@pytest.mark.needs("threads")
def test_who_waits_is_woken_by_events_leases_and_delays(database):
    store: Store = database.open()
    group = store.events.group("g")
    threading.Timer(0.05, lambda: append(store, "a")).start()
    began = time.monotonic()
    (claim,) = group.wait("one", timeout=20, lease=0.1)
    assert time.monotonic() - began < 0.6
    began = time.monotonic()
    (claim,) = group.wait("two", timeout=20)  # once the lease has run out
    assert 0.05 < time.monotonic() - began < 0.6
    group.retry(claim, "no", delay=0.1)
    (claim,) = group.wait("two", timeout=20)
    assert claim.attempts == 3


def test_coroutines_wait_and_follow(database):
    store: Store = database.open()
    group = store.events.group("g")

    async def play() -> None:
        waiting = asyncio.create_task(group.wait_async("one", timeout=20))
        following = asyncio.create_task(store.events.group("h").follow_async("one", record, timeout=0.4))
        await asyncio.sleep(0.05)
        append(store, *"ab")
        assert kinds(await waiting) == "a"
        assert await following == 2
        cancelled = asyncio.create_task(group.wait_async("one"))
        group.claim("one")
        await asyncio.sleep(0.05)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled

    asyncio.run(play())
    assert group.lag() == 2


@pytest.mark.needs("threads")
def test_members_at_once_share_every_event_out(database):
    store: Store = database.open()
    append(store, *(["t"] * 150))
    group = store.events.group("g")

    def work(number: int, barrier: threading.Barrier) -> list[int]:
        claimed: list[int] = []
        barrier.wait()
        while group.lag():
            for claim in group.claim(f"m-{number}", 4):
                claimed.append(claim.event.position)
                with store.transaction() as work:
                    record(work, claim.event)
                    group.acknowledge(claim)
        return claimed

    claimed = [position for found in crew.in_threads(5, work) for position in found]
    assert sorted(claimed) == positions(store) == effects(store)


@pytest.mark.needs("threads", "concurrent_writers")
def test_an_event_being_acknowledged_holds_up_nobody(database, clock):
    store: Store = database.open(clock=clock)
    append(store, *"abc")
    group = store.events.group("g")
    slow, _ = group.claim("slow", 2, lease=1)
    clock.advance(2)
    found: list[str] = []
    with store.transaction() as work:
        record(work, slow.event)
        group.acknowledge(slow)
        other = threading.Thread(target=lambda: found.append(kinds(group.claim("quick", 3))))
        other.start()
        other.join(10)
        assert found == ["bc"]
    assert effects(store) == positions(store)[:1]


@pytest.mark.needs("threads", "concurrent_writers")
def test_the_wait_for_others_is_not_taken_off_a_lease(database, clock):
    store: Store = database.open(clock=clock)
    append(store, *"abc")
    group = store.events.group("g")
    (held,) = group.claim("slow", lease=10)
    for verb in (lambda: group.claim("quick", lease=10)[0], lambda: group.renew(held, lease=10)):
        found: list[Claim] = []
        other = threading.Thread(target=lambda verb=verb, found=found: found.append(verb()))
        with pytest.raises(Broken), store.transaction():
            group.claim("slow")
            group.acknowledge(held)
            other.start()
            other.join(0.15)
            assert found == []
            clock.advance(5)
            raise Broken
        other.join(10)
        assert [claim.expires_at for claim in found] == [clock.now + 10_000]


# Against a model


class Handout(Struct):
    """What the model knows of an event that was handed out."""

    attempts: int
    visible_at: int
    holder: str | None
    claim: int
    error: str | None = None
    parked: bool = False


MOST = 3


class GroupMachine(RuleBasedStateMachine):
    """One group and its members against a plain model."""

    def __init__(self, database: Any) -> None:
        super().__init__()
        self.now = 1_800_000_000_000
        self.store: Store = database.open(clock=lambda: self.now)
        self.group = self.store.events.group("g", types=["a", "b"], max_attempts=MOST)
        self.log: list[Event] = []
        self.cursor = 0
        self.out: dict[int, Handout] = {}
        self.claims: list[Claim] = []
        self.numbers: dict[int, int] = {}
        """Which of all claims a Claim is from, by its place in `claims`."""
        self.count = 0

    @rule(types=st.lists(st.sampled_from("abx"), min_size=1, max_size=5))
    def append(self, types: list[str]) -> None:
        append(self.store, *types)
        self.log = self.store.events.read_all()

    @rule(member=st.sampled_from(["one", "two"]), limit=st.integers(1, 4), lease=st.sampled_from([0, 0.005, 1]))
    def claim(self, member: str, limit: int, lease: float) -> None:
        want: dict[int, Handout] = {}
        self.count += 1
        while True:
            due = sorted(at for at, row in self.out.items() if not row.parked and row.visible_at <= self.now and at not in want)[:limit]
            for at in due:
                row = self.out[at]
                if row.holder is not None:
                    row.error = f"the lease of {row.holder} ran out"
                row.holder = None
                row.parked = row.attempts >= MOST
                if not row.parked:
                    want[at] = row
            fresh = [event for event in self.log if event.position > self.cursor]
            for event in fresh:
                if len(want) == limit:
                    break
                self.cursor = event.position
                if event.event_type != "x":
                    want[event.position] = self.out[event.position] = Handout(0, 0, None, 0)
            if want or not due:
                break
        for row in want.values():
            row.holder, row.claim, row.attempts, row.visible_at = member, self.count, row.attempts + 1, self.now + round(lease * 1000)
        got = self.group.claim(member, limit, lease=lease)
        assert [(claim.event.position, claim.attempts, claim.error, claim.expires_at) for claim in got] == [
            (at, row.attempts, row.error, row.visible_at) for at, row in sorted(want.items())
        ]
        for claim in got:
            self.numbers[len(self.claims)] = self.count
            self.claims.append(claim)

    @precondition(lambda self: self.claims)
    @rule(
        data=st.data(),
        verb=st.sampled_from(["acknowledge", "acknowledge", "acknowledge_many", "retry", "retry", "release", "park", "renew"]),
        delay=st.sampled_from([0, 0.005]),
    )
    def end(self, data: st.DataObject, verb: str, delay: float) -> None:
        places = data.draw(
            st.lists(st.integers(0, len(self.claims) - 1), min_size=1, max_size=3, unique_by=lambda n: self.claims[n].event.position)
        )
        if verb != "acknowledge_many":
            places = places[:1]
        claims = [self.claims[place] for place in places]
        rows = [self.out.get(claim.event.position) for claim in claims]
        held = all(
            row is not None and row.holder == claim.member and row.claim == self.numbers[place]
            for row, claim, place in zip(rows, claims, places, strict=True)
        )
        verbs: dict[str, Any] = {
            "acknowledge": lambda: self.group.acknowledge(claims[0]),
            "acknowledge_many": lambda: self.group.acknowledge(claims),
            "retry": lambda: self.group.retry(claims[0], "failed", delay=delay),
            "release": lambda: self.group.release(claims[0]),
            "park": lambda: self.group.park(claims[0], "given up"),
            "renew": lambda: self.group.renew(claims[0], lease=delay),
        }
        if not held:
            with pytest.raises(LeaseLost):
                verbs[verb]()
            return
        answer = verbs[verb]()
        row = rows[0]
        assert row is not None
        match verb:
            case "acknowledge" | "acknowledge_many":
                for claim in claims:
                    del self.out[claim.event.position]
            case "retry":
                row.holder, row.error, row.parked, row.visible_at = None, "failed", row.attempts >= MOST, self.now + round(delay * 1000)
                assert answer is not row.parked
            case "release":
                row.holder, row.attempts, row.visible_at = None, row.attempts - 1, self.now
            case "park":
                row.holder, row.error, row.parked = None, "given up", True
            case "renew":
                row.visible_at = self.now + round(delay * 1000)

    @rule(data=st.data(), verb=st.sampled_from(["unpark", "discard"]), every=st.booleans())
    def end_parked(self, data: st.DataObject, verb: str, every: bool) -> None:
        parked = [at for at, row in self.out.items() if row.parked]
        some = parked if every else data.draw(st.lists(st.sampled_from(sorted(self.out)), unique=True, max_size=2)) if self.out else []
        touched = [at for at in some if at in parked]
        assert getattr(self.group, verb)(None if every else some) == len(touched)
        for at in touched:
            if verb == "discard":
                del self.out[at]
            else:
                row = self.out[at]
                row.parked, row.attempts, row.visible_at = False, 0, self.now

    @rule(ms=st.sampled_from([1, 5, 1_000]))
    def let_time_pass(self, ms: int) -> None:
        self.now += ms

    @rule(data=st.data())
    def reset(self, data: st.DataObject) -> None:
        if data.draw(st.integers(0, 4)):
            return  # seldom
        self.cursor = data.draw(st.sampled_from([0, *(event.position for event in self.log)]))
        self.group.reset(self.cursor)
        self.out.clear()

    @invariant()
    def agrees(self) -> None:
        ahead = sum(event.position > self.cursor and event.event_type != "x" for event in self.log)
        assert self.group.lag() == ahead + sum(not row.parked for row in self.out.values())
        assert [(parked.event.position, parked.attempts, parked.error) for parked in self.group.parked()] == [
            (at, row.attempts, row.error) for at, row in sorted(self.out.items()) if row.parked
        ]

    def teardown(self) -> None:
        self.store.close()


def test_random_verbs_agree_with_the_model(new_database):
    scale = settings().max_examples / 60
    run_state_machine_as_test(
        lambda: GroupMachine(new_database()), settings=settings(max_examples=round(20 * scale), stateful_step_count=40)
    )
