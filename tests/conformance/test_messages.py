"""Messages: one row however many recipients, delivered and acknowledged once for each."""

import threading
import time
from datetime import UTC, datetime

import pytest
from msgspec import structs
from sqlalchemy import select

from ruv_swarm_store import Agent, InvalidValue, Message, NotFound, Store, StoreError, schema
from ruv_swarm_store.entities import Audience, Delivery


@pytest.fixture
def three(store: Store):
    return [store.agents.register("worker", name=name) for name in ("a", "b", "c")]


def contents(messages):
    return [message.content for message in messages]


# Who gets it


def test_a_direct_message_reaches_its_recipient_only(store: Store, clock, three):
    a, b, c = three
    message = store.messages.publish("hello", {"n": 1}, sender=a, to=b)
    assert message == Message(
        message.id, "hello", {"n": 1}, clock.now, Audience.DIRECT, from_agent=a.id, to_agent=b.id, position=message.position
    )
    assert store.messages.get(message.id) == message
    assert store.messages.receive(b) == [message]
    assert store.messages.receive(a) == store.messages.receive(c) == []


def test_a_broadcast_reaches_everybody_once(store: Store, three):
    message = store.messages.publish("found", 1, sender=three[0])
    assert (message.audience, message.to_agent, message.to_group) == (Audience.BROADCAST, None, None)
    for agent in three:
        assert store.messages.receive(agent.id) == [message]
        assert store.messages.receive(agent) == []
    assert store.messages.count() == 1


def test_a_late_joiner_does_not_see_older_broadcasts(store: Store, three):
    store.messages.publish("t", "before")
    late = store.agents.register("worker")
    store.messages.publish("t", "after")
    assert contents(store.messages.receive(late)) == ["after"]
    assert store.messages.unread(late) == 1
    assert contents(store.messages.receive(three[0])) == ["before", "after"]


def test_an_agent_revived_has_missed_what_was_published_meanwhile(store: Store, three):
    a, b, _ = three
    team = store.groups.create("team")
    store.groups.join(team, a)
    for n in range(5):
        store.messages.publish("t", n)
    assert contents(store.messages.receive(a, limit=2)) == [0, 1]
    store.messages.publish("t", "to the team", to_group=team)
    store.agents.terminate(a)
    store.messages.publish("t", "missed")
    store.messages.publish("t", "missed", to_group=team)
    store.messages.publish("t", "waits", sender=b, to=a)
    assert store.messages.unread(a) == 7
    store.agents.register("worker", id=a.id)
    store.messages.publish("t", "after")
    store.messages.publish("t", "after, to the team", to_group=team)
    assert store.messages.unread(a) == 9
    assert contents(store.messages.receive(a)) == [2, 3, 4, "to the team", "waits", "after", "after, to the team"]
    store.agents.terminate(a)
    store.agents.register("worker", id=a.id)
    assert store.messages.receive(a) == []
    assert contents(store.messages.receive(b)) == [0, 1, 2, 3, 4, "missed", "after"]


def test_an_agent_that_only_failed_misses_nothing(store: Store, three):
    store.agents.set_status(three[0], "failed")
    store.messages.publish("t", 1)
    store.agents.register("worker", id=three[0].id)
    assert contents(store.messages.receive(three[0])) == [1]


def test_a_group_message_reaches_its_members(store: Store, three):
    a, b, c = three
    team = store.groups.create("team")
    store.groups.join(team, a)
    store.groups.join(team, b)
    message = store.messages.publish("t", 1, to_group=team)
    assert (message.audience, message.to_group) == (Audience.GROUP, team.id)
    assert store.messages.receive(a) == store.messages.receive(b) == [message]
    assert store.messages.receive(c) == []
    store.groups.leave(team, b)
    store.messages.publish("t", 2, to_group=team.id)
    assert contents(store.messages.receive(a)) == [2]
    assert store.messages.receive(b) == []


def test_one_message_reaches_an_agent_once_by_whatever_way(store: Store, three):
    a = three[0]
    teams = [store.groups.create(name) for name in ("x", "y")]
    for team in teams:
        store.groups.join(team, a)
    store.messages.publish("t", 1, to_group=teams[0])
    store.messages.publish("t", 2, to=a)
    store.messages.publish("t", 3)
    store.messages.publish("t", 4, to_group=teams[1])
    assert contents(store.messages.receive(a)) == [1, 2, 3, 4]
    assert store.messages.receive(a) == []


def test_sender_recipient_and_group_must_exist(store: Store, three):
    for options in ({"sender": "nobody"}, {"to": "nobody"}, {"to_group": "nobody"}):
        with pytest.raises(NotFound):
            store.messages.publish("t", 1, **options)
    for ask in (store.messages.receive, store.messages.unread):
        with pytest.raises(NotFound, match="nobody"):
            ask("nobody")
    assert store.messages.count() == 0


@pytest.mark.parametrize(
    "options",
    [
        {"topic": None},
        {"topic": 5},
        {"content": {1, 2}},
        {"content": float("nan")},
        {"to": "a", "to_group": "g"},
        {"ttl": 1, "expires_at": 1},
        {"ttl": -1},
        {"ttl": "1"},
        {"expires_at": "soon"},
        {"expires_at": datetime(2026, 1, 1)},  # noqa: DTZ001
        {"correlation_id": 5},
        {"sender": 5},
    ],
    ids=repr,
)
def test_publish_refuses_what_cannot_be_stored(store: Store, options):
    with pytest.raises(InvalidValue):
        store.messages.publish(**{"topic": "t", **options})
    assert store.messages.count() == 0


def test_a_late_member_does_not_see_what_the_group_was_told_before(store: Store, three):
    a, b, _ = three
    team = store.groups.create("team")
    store.groups.join(team, a)
    store.messages.publish("t", "before", to_group=team)
    store.groups.join(team, b)
    store.groups.join(team, a, role="lead")  # is one already
    store.messages.publish("t", "after", to_group=team)
    assert contents(store.messages.receive(a)) == ["before", "after"]
    assert store.messages.unread(b) == 1
    assert contents(store.messages.receive(b)) == ["after"]


def test_who_leaves_still_gets_what_was_published_while_it_was_a_member(store: Store, three, clock):
    a, b, _ = three
    team = store.groups.create("team")
    for agent in (a, b):
        store.groups.join(team, agent)
    store.messages.publish("t", 1, to_group=team)
    assert contents(store.messages.receive(a, visibility=5)) == [1]
    second = store.messages.publish("u", 2, to_group=team)
    store.messages.publish("t", "expired", to_group=team, ttl=0)
    store.groups.leave(team, a)
    store.messages.publish("t", "not for it", to_group=team)
    assert (store.messages.unread(a), store.messages.unread(a, "u")) == (2, 1)
    assert store.messages.delivery(second, a).deliveries == 0
    assert contents(store.messages.receive(a)) == [2]
    assert store.messages.delivery(second, a).deliveries == 1
    store.groups.join(team, a)
    store.messages.publish("t", 3, to_group=team)
    clock.advance(5)
    assert contents(store.messages.receive(a)) == [1, 3]
    assert contents(store.messages.receive(b)) == [1, 2, "not for it", 3]


def test_what_a_deleted_group_was_told_reaches_who_was_in_it(store: Store, three):
    team, other = store.groups.create("team"), store.groups.create("other")
    for agent in three[:2]:
        store.groups.join(team, agent)
        store.groups.join(other, agent)
    for n, group in enumerate([team, other, team]):
        store.messages.publish("t", n, to_group=group)
    assert contents(store.messages.receive(three[0], limit=1)) == [0]
    assert store.groups.delete_many([team, other.id, "nothing"]) == 2
    assert contents(store.messages.receive(three[0])) == [1, 2]
    assert contents(store.messages.receive(three[1])) == [0, 1, 2]
    assert store.messages.receive(three[2]) == []


def test_each_of_fifty_inboxes_holds_exactly_what_was_sent(store: Store):
    agents = [agent.id for agent in store.agents.insert_many(Agent(f"agent-{n:02}", "worker", 0, 0) for n in range(50))]
    team = store.groups.create("even")
    for agent in agents[::2]:
        store.groups.join(team, agent)
    expected: dict[str, list[int]] = {agent: [] for agent in agents}
    for n in range(40):
        to = (agents, agents[::2], [agents[n]])[n % 3]
        store.messages.publish("t", n, **({}, {"to_group": team}, {"to": agents[n]})[n % 3])
        for agent in to:
            expected[agent].append(n)
    assert store.messages.count() == 40
    for agent in agents:
        received = store.messages.receive(agent)
        assert contents(received) == expected[agent]
        assert store.messages.acknowledge_many(received, agent) == len(received)
        assert (store.messages.unread(agent), store.messages.receive(agent)) == (0, [])


def test_what_is_sent_to_a_terminated_agent_waits_for_it(store: Store, three):
    a, b, _ = three
    store.agents.terminate(a)
    store.messages.publish("t", 1, sender=b, to=a)
    assert store.messages.unread(a) == 1
    store.agents.register("worker", id=a.id)
    assert contents(store.messages.receive(a)) == [1]


# Order and limits


def test_messages_come_oldest_first_a_limit_at_a_time(store: Store, three):
    a, b, _ = three
    team = store.groups.create("team")
    store.groups.join(team, a)
    for n in range(30):
        store.messages.publish("t", n, **({}, {"to": a}, {"to_group": team}, {"to": b})[n % 4])
    expected = [n for n in range(30) if n % 4 != 3]
    got = []
    while batch := store.messages.receive(a, limit=7):
        assert len(batch) == min(7, len(expected) - len(got))
        got += contents(batch)
    assert got == expected


@pytest.mark.parametrize("limit", [0, -1, None, 1.5])
def test_a_limit_is_a_positive_number(store: Store, three, limit):
    with pytest.raises(InvalidValue):
        store.messages.receive(three[0], limit=limit)


# Acknowledging


def test_what_is_acknowledged_never_comes_again(store: Store, three, clock):
    a, b, _ = three
    message = store.messages.publish("t", 1)
    [received] = store.messages.receive(a)
    store.messages.acknowledge(received, a)
    store.messages.acknowledge(received, a)
    store.messages.acknowledge(message.id, a.id)
    clock.advance(3_600)
    assert store.messages.receive(a) == []
    assert store.messages.receive(b) == [message]


def test_acknowledging_counts_for_one_recipient(store: Store, three):
    a, b, _ = three
    message = store.messages.publish("t", 1)
    store.messages.acknowledge(message, a)
    assert (store.messages.unread(a), store.messages.unread(b)) == (0, 1)
    assert store.messages.receive(a) == []


def test_acknowledging_needs_a_message_and_an_agent(store: Store, three):
    message = store.messages.publish("t", 1)
    with pytest.raises(NotFound):
        store.messages.acknowledge("nothing", three[0])
    with pytest.raises(NotFound):
        store.messages.acknowledge(message, "nobody")


def test_a_direct_message_is_acknowledged_by_its_recipient_only(store: Store, three):
    a, b, _ = three
    message = store.messages.publish("t", 1, to=a)
    for named in (message, message.id):
        with pytest.raises(InvalidValue, match="alone"):
            store.messages.acknowledge(named, b)
        assert store.messages.acknowledge_many([named], b) == 0
        assert not store.messages.release(named, b)
    assert store.messages.deliveries(message) == []
    assert store.messages.receive(a) == [message]
    assert store.messages.acknowledge_many([message], a) == 1


def test_a_message_is_known_by_its_id_not_by_its_place(store: Store, three):
    a = three[0]
    mine = store.messages.publish("t", 1)
    stranger = structs.replace(mine, id="of another store")  # at the same position
    for refused in (store.messages.acknowledge, store.messages.release, store.messages.delivery):
        with pytest.raises(NotFound):
            refused(stranger, a)
    with pytest.raises(NotFound):
        store.messages.deliveries(stranger)
    assert store.messages.acknowledge_many([stranger], a) == 0
    assert store.messages.receive(a) == [mine]
    with pytest.raises(NotFound):
        store.messages.release(stranger, a)
    moved = structs.replace(mine, position=mine.position + 1_000)
    assert store.messages.acknowledge_many([moved, mine], a) == 1
    assert store.messages.delivery(moved, a).acknowledged_at is not None


def test_unacknowledged_messages_come_again_to_the_millisecond(store: Store, three, clock):
    a, b, _ = three
    message = store.messages.publish("t", 1)
    assert store.messages.receive(a, visibility=30) == [message]
    store.messages.acknowledge(message, b)
    clock.advance(ms=29_999)
    assert store.messages.receive(a) == []
    clock.advance(ms=1)
    assert store.messages.receive(a, visibility=5) == [message]
    clock.advance(ms=4_999)
    assert store.messages.receive(a) == []
    clock.advance(ms=1)
    assert store.messages.receive(a) == [message]
    assert store.messages.receive(b) == []


def test_each_delivery_is_counted(store: Store, three, clock):
    a, b, c = three
    message = store.messages.publish("t", 1)
    for count in range(1, 4):
        assert store.messages.receive(a, visibility=1) == [message]
        assert store.messages.delivery(message, a) == Delivery(a.id, message.position, clock.now, count, clock.now + 1_000)
        clock.advance(1)
    store.messages.acknowledge(message, b.id)
    assert store.messages.deliveries(message.id) == [
        Delivery(a.id, message.position, clock.now - 1_000, 3, clock.now),
        Delivery(b.id, message.position, clock.now, 1, clock.now, clock.now),
    ]
    assert store.messages.delivery(message.id, c.id) is None
    for ask in (store.messages.deliveries, lambda id: store.messages.delivery(id, a)):
        with pytest.raises(NotFound):
            ask("nothing")


def test_what_is_given_back_comes_again(store: Store, three, clock):
    a, b, _ = three
    message = store.messages.publish("t", 1)
    assert not store.messages.release(message, a)  # not received yet
    store.messages.receive(a)
    store.messages.receive(b)
    assert store.messages.release(message, a)
    assert store.messages.receive(a) == [message]
    assert store.messages.release(message.id, a.id, delay=0.5)
    clock.advance(ms=499)
    assert store.messages.receive(a) == store.messages.receive(b) == []
    clock.advance(ms=1)
    assert store.messages.receive(a) == [message]
    assert store.messages.delivery(message, a).deliveries == 3
    store.messages.acknowledge(message, a)
    assert not store.messages.release(message, a)
    assert store.messages.receive(a) == []
    with pytest.raises(NotFound):
        store.messages.release("nothing", a)
    with pytest.raises(InvalidValue):
        store.messages.release(message, a, delay=-1)


def test_many_are_acknowledged_at_once(store: Store, three):
    a, b, _ = three
    messages = [store.messages.publish("t", n) for n in range(6)]
    store.messages.receive(a, limit=3)
    assert store.messages.acknowledge_many((messages[n] if n % 2 else messages[n].id for n in range(5)), a) == 5
    assert store.messages.acknowledge_many([messages[0], messages[0].id, "nothing"], a) == 1
    assert store.messages.acknowledge_many([], a) == 0
    assert contents(store.messages.receive(a)) == [5]
    assert store.messages.unread(b) == 6
    store.messages.delete(messages[5])
    assert store.messages.acknowledge_many(messages, b) == 5
    with pytest.raises(NotFound):
        store.messages.acknowledge_many(messages[:2], "nobody")


def test_old_and_new_come_together_in_order(store: Store, three, clock):
    a = three[0]
    for n in range(3):
        store.messages.publish("t", n)
    store.messages.acknowledge(store.messages.receive(a, visibility=1)[1], a)
    clock.advance(1)
    store.messages.publish("t", 3)
    assert contents(store.messages.receive(a)) == [0, 2, 3]


def test_unread_counts_what_is_not_acknowledged(store: Store, three):
    a = three[0]
    messages = [store.messages.publish(topic, n) for n, topic in enumerate(["x", "y", "x"])]
    store.messages.publish("x", "not mine", to=three[1])
    assert (store.messages.unread(a), store.messages.unread(a, "x"), store.messages.unread(a, "z")) == (3, 2, 0)
    store.messages.receive(a, limit=2)
    assert store.messages.unread(a) == 3
    store.messages.acknowledge(messages[0], a)
    assert (store.messages.unread(a), store.messages.unread(a, "x"), store.messages.unread(a, "y")) == (2, 1, 1)


# Topics


def test_a_topic_is_received_on_its_own(store: Store, three):
    a = three[0]
    for n, topic in enumerate(["x", "y", "x", "y"]):
        store.messages.publish(topic, n)
    assert contents(store.messages.receive(a, "x")) == [0, 2]
    assert contents(store.messages.receive(a, "x")) == []
    assert contents(store.messages.receive(a, topic="y")) == [1, 3]
    assert contents(store.messages.receive(a)) == []


def test_with_and_without_topic_mix(store: Store, three):
    a = three[0]
    for n, topic in enumerate(["x", "y", "x", "y"]):
        store.messages.publish(topic, n)
    assert contents(store.messages.receive(a, "y", limit=1)) == [1]
    assert contents(store.messages.receive(a)) == [0, 2, 3]
    store.messages.publish("x", 4)
    store.messages.publish("y", 5)
    assert contents(store.messages.receive(a)) == [4, 5]
    assert contents(store.messages.receive(a, "x")) == []
    store.messages.publish("y", 6)
    store.messages.publish("x", 7)
    assert contents(store.messages.receive(a, "x")) == [7]
    assert contents(store.messages.receive(a, "y")) == [6]
    assert contents(store.messages.receive(a)) == []


def test_a_topic_has_a_name(store: Store, three):
    for ask in (
        lambda: store.messages.publish("", 1),
        lambda: store.messages.receive(three[0], ""),
        lambda: store.messages.unread(three[0], ""),
    ):
        with pytest.raises(InvalidValue, match="empty"):
            ask()
    assert store.messages.count() == 0


MATCHES = {
    "a": ["a"], "a.b": ["a.b"], "*": ["a", "b", "A", "a*", "", "*", "%", "a_b"], "a.*": ["a.b", "a.", "a.%", "a.*"],
    "*.b": ["a.b", "A.b", ".b"], "*.*": ["a.b", "a.", "a.%", "a.*", "A.b", ".b"], "a.**": ["a", "a.b", "a.", "a.b.c", "a.%", "a.*"],
    "a.*.**": ["a.b", "a.", "a.b.c", "a.%", "a.*"], "*.b.**": ["a.b", "a.b.c", "A.b", ".b"], "a.*.c": ["a.b.c"], "a*": ["a*"],
    "a.%": ["a.%"], "A.**": ["A", "A.b"], "a_b": ["a_b"], "a.*.*.*": [], "none.**": [],
}  # fmt: skip


def test_a_pattern_stands_for_the_topics_it_matches(store: Store):
    topics = ["a", "b", "A", "a.b", "a.", "a.b.c", "a*", "*", "a.%", "a.*", "%", "a_b", "A.b", ".b"]
    agents = [store.agents.register("worker").id for _ in MATCHES]
    for topic in topics:
        store.messages.publish(topic, topic)
    for agent, (pattern, expected) in zip(agents, MATCHES.items(), strict=True):
        wanted = [topic for topic in topics if topic in expected]
        assert store.messages.unread(agent, pattern) == len(wanted), pattern
        assert contents(store.messages.replay(agent, pattern)) == wanted, pattern
        assert contents(store.messages.receive(agent, pattern)) == wanted, pattern
        assert store.messages.receive(agent, pattern) == [], pattern
        assert sorted(store.messages.unread_by_topic(agent)) == sorted(topics)
        assert store.messages.unread_by_topic(agent, pattern) == dict.fromkeys(sorted(wanted), 1)
        assert contents(store.messages.receive(agent)) == [topic for topic in topics if topic not in wanted]


def test_any_rest_stands_at_the_end(store: Store, three):
    for ask in (store.messages.receive, store.messages.unread, store.messages.unread_by_topic, store.messages.replay, store.messages.wait):
        with pytest.raises(InvalidValue, match="last segment"):
            ask(three[0], "a.**.b")
    store.messages.publish("a.**.b", 1)
    assert contents(store.messages.receive(three[0])) == [1]


def test_patterns_topics_and_all_mix(store: Store, three):
    a = three[0]
    for n, topic in enumerate(["x.1", "y", "x.2", "x.1"]):
        store.messages.publish(topic, n)
    assert contents(store.messages.receive(a, "x.*", limit=1)) == [0]
    assert contents(store.messages.receive(a, "x.1")) == [3]
    assert contents(store.messages.receive(a, "x.*")) == [2]
    assert contents(store.messages.receive(a)) == [1]
    store.messages.publish("x.3", 4)
    store.messages.publish("x.1", 5)
    assert contents(store.messages.receive(a, "x.1")) == [5]
    assert contents(store.messages.receive(a, "**")) == [4]
    assert contents(store.messages.receive(a, "x.*")) == []


def test_a_rare_topic_is_found_behind_many_others(store: Store, three):
    a, b, _ = three
    many = [Message(f"id-{n}", "often", n, 0) for n in range(1_300)]
    store.messages.insert_many(many[:650])
    store.messages.publish("rare.a", "first")
    store.messages.insert_many(many[650:])
    for agent, name in ((a, "rare.a"), (b, "rare.*")):
        assert contents(store.messages.receive(agent, name)) == ["first"]
        assert contents(store.messages.receive(agent, name)) == []
    # a look in vain that has passed many goes on from there, and loses nothing by it
    assert store.messages.receive(a, "none") == store.messages.receive(b, "none.*") == []
    newest = store.messages.find_all()[-1].position
    cursors = schema.message_cursors.c
    assert store.execute(select(cursors.topic).where(cursors.position == newest).order_by(cursors.topic)) == [
        ("none",), ("none.*",), ("rare.*",), ("rare.a",),
    ]  # fmt: skip
    store.messages.publish("none", 1)
    store.messages.publish("none.b", 2)
    assert contents(store.messages.receive(a, "none")) == [1]
    assert contents(store.messages.receive(b, "none.*")) == [2]
    assert contents(store.messages.receive(a, limit=2_000)) == [*range(1_300), 2]
    assert contents(store.messages.receive(b, limit=2_000)) == [*range(1_300), 1]


# Looking back


def test_who_asks_gets_what_was_said_before_it_came(store: Store, three, clock):
    a, b, _ = three
    team = store.groups.create("team")
    for n in range(4):
        store.messages.publish("t", n, **({}, {"to": b}, {"to_group": team}, {})[n])
        clock.advance(ms=1)
    late = store.agents.register("worker")
    assert store.messages.receive(late) == []
    assert contents(store.messages.receive(late, since=clock.now - 1, limit=1)) == [3]
    assert contents(store.messages.receive(late, "t", since=clock.now - 4)) == [0]
    store.groups.join(team, late)
    assert contents(store.messages.receive(late, since=0)) == [2]
    assert store.messages.receive(late, since=0) == []
    store.messages.publish("t", 4)
    assert store.messages.receive(late, since=clock.now + 1) == []
    assert contents(store.messages.receive(late)) == [4]
    clock.advance(30)
    assert contents(store.messages.receive(late, since=datetime.fromtimestamp(clock.now / 1000 - 30, UTC))) == [4]
    assert contents(store.messages.receive(late, since=0)) == [0, 2, 3]
    assert contents(store.messages.receive(a)) == [0, 3, 4]


def test_replay_shows_it_all_again_and_changes_nothing(store: Store, three, clock):
    a, b, c = three
    team, left = store.groups.create("team"), store.groups.create("left")
    store.groups.join(left, a)
    for n in range(8):
        store.messages.publish("xy"[n % 2], n, **({}, {"to": a}, {"to_group": team}, {"to": b}, {"to_group": left})[n % 5])
        clock.advance(ms=1)
    store.groups.leave(left, a)
    store.groups.join(team, a)
    store.messages.publish("x", "expired", ttl=0)
    before = store.messages.unread(a)
    assert contents(store.messages.replay(a)) == [0, 1, 2, 4, 5, 6, 7]
    store.messages.acknowledge_many(store.messages.receive(a), a)
    everything = store.messages.replay(a)
    assert before == 5
    assert contents(everything) == [0, 1, 2, 4, 5, 6, 7]
    assert contents(store.messages.replay(a, after=everything[2].position, limit=2)) == [4, 5]
    assert contents(store.messages.replay(a, "y", after=everything[1].position)) == [5, 7]
    assert contents(store.messages.replay(a, "*", limit=3)) == [0, 1, 2]
    assert contents(store.messages.replay(a.id, since=clock.now - 3)) == [5, 6, 7]
    assert contents(store.messages.replay(a, "y", since=clock.now - 3)) == [5, 7]
    assert contents(store.messages.replay(b)) == [0, 3, 5]
    assert store.messages.receive(a) == []
    assert contents(store.messages.receive(c)) == [0, 5]
    for wrong in ({"after": -1}, {"limit": 0}, {"since": "then"}):
        with pytest.raises(InvalidValue):
            store.messages.replay(a, **wrong)


# Time to live


def test_an_expired_message_is_gone_at_its_millisecond(store: Store, three, clock):
    a, b, c = three
    message = store.messages.publish("t", 1, ttl=1.5)
    assert message.expires_at == clock.now + 1_500
    assert store.messages.publish("t", 2, expires_at=clock.now + 60_000).expires_at == clock.now + 60_000
    clock.advance(ms=1_499)
    assert contents(store.messages.receive(a, visibility=0)) == [1, 2]
    assert store.messages.unread(b) == 2
    clock.advance(ms=1)
    assert contents(store.messages.receive(a)) == contents(store.messages.receive(b)) == [2]
    assert store.messages.unread(c) == 1


# Conversations


def test_a_reply_goes_back_under_one_correlation(store: Store, three):
    a, b, _ = three
    question = store.messages.publish("ask", "?", sender=a, to=b)
    answer = store.messages.reply(question, "!")
    assert (answer.from_agent, answer.to_agent, answer.topic, answer.correlation_id) == (b.id, a.id, "ask", question.id)
    thanks = store.messages.reply(answer, "thanks")
    assert (thanks.from_agent, thanks.to_agent, thanks.correlation_id) == (a.id, b.id, question.id)
    assert contents(store.messages.receive(a)) == ["!"]


def test_a_reply_to_a_broadcast_says_who_answers(store: Store, three):
    a, b, _ = three
    answer = store.messages.reply(store.messages.publish("ask", "?", sender=a, correlation_id="c-1"), "!", sender=b)
    assert (answer.from_agent, answer.to_agent, answer.correlation_id) == (b.id, a.id, "c-1")


def test_a_reply_is_to_a_message_or_its_id(store: Store, three):
    a, b, _ = three
    question = store.messages.publish("ask", "?", sender=a, to=b)
    answer = store.messages.reply(question.id, "!")
    assert (answer.from_agent, answer.to_agent, answer.correlation_id) == (b.id, a.id, question.id)
    with pytest.raises(NotFound):
        store.messages.reply("nothing", "!")
    for bad in (None, 5, a):
        with pytest.raises(InvalidValue):
            store.messages.reply(bad, "!")


def test_without_a_sender_there_is_nobody_to_reply_to(store: Store, three):
    with pytest.raises(InvalidValue, match="sender"):
        store.messages.reply(store.messages.publish("t", 1), 2)


def test_a_request_needs_somebody_to_wait(store: Store, three):
    a, b, _ = three
    with store.transaction() as work:
        for ask in (
            lambda: work.messages.request("ask", sender=a, to=b),
            lambda: store.messages.request("ask", sender=a, to=b),
            lambda: work.messages.wait(a),
            lambda: store.messages.wait(a, timeout=1),
        ):
            with pytest.raises(StoreError, match="transaction"):
                ask()
    assert store.messages.count() == 0
    with pytest.raises(NotFound):
        store.messages.request("ask", sender=a, to="nobody", timeout=0)
    with pytest.raises(InvalidValue):
        store.messages.request("ask", sender=None, to=b)


def test_a_request_without_a_reply_ends_and_expires(store: Store, three, clock):
    a, b, _ = three
    assert store.messages.request("ask", "?", sender=a, to=b, timeout=0.01) is None
    [asked] = store.messages.find_all()
    assert (asked.expires_at, asked.correlation_id) == (clock.now + 10, None)
    assert store.messages.request("ask", "?", sender=a, to=b, timeout=0, ttl=60) is None
    assert store.messages.find_all()[-1].expires_at == clock.now + 60_000
    # a reply to another is none
    store.messages.reply(store.messages.publish("ask", sender=a, to=b), "!")
    assert store.messages.request("ask", "?", sender=a, to=b, timeout=0) is None


@pytest.mark.needs("threads")
def test_a_request_returns_the_reply(store: Store, three):
    a, b, c = three
    asked, done = threading.Event(), []

    def answer() -> None:
        asked.wait(5)
        for message in store.messages.wait(b, "ask", timeout=5):
            store.messages.acknowledge(message, b)
            done.append(store.messages.reply(message, message.content + 1, sender=b))

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        store.messages.publish("other", "noise", to=a)
        asked.set()
        reply = store.messages.request("ask", 1, sender=a, to=b, timeout=5)
    finally:
        asked.set()
        thread.join()
    assert [reply] == done
    assert reply.content == 2
    assert contents(store.messages.receive(a)) == ["noise"]  # the reply is acknowledged
    assert store.messages.receive(c) == []


@pytest.mark.needs("threads")
def test_wait_returns_with_the_next_message(store: Store, three):
    a, b, _ = three
    started = time.monotonic()
    assert store.messages.wait(a, timeout=0.02) == []
    assert store.messages.wait(a, "t", timeout=0) == []
    store.messages.publish("t", 0)
    assert contents(store.messages.wait(a.id, "t", limit=5)) == [0]
    timer = threading.Timer(0.05, lambda: store.messages.publish("x.y", 1, to=a))
    timer.start()
    assert contents(store.messages.wait(a, "x.*", timeout=5)) == [1]
    timer.join()
    assert time.monotonic() - started < 2
    assert contents(store.messages.wait(b)) == [0]


@pytest.mark.needs("threads")
def test_wait_returns_with_what_comes_again(database):
    store = database.open()
    agent = store.agents.register("worker")
    store.messages.publish("t", 1)
    store.messages.receive(agent, visibility=0.05)
    started = time.monotonic()
    assert contents(store.messages.wait(agent, timeout=5)) == [1]
    assert 0.01 < time.monotonic() - started < 0.9


def test_a_conversation_is_what_two_wrote_each_other(store: Store, three):
    a, b, c = three
    for n, (sender, to) in enumerate([(a, b), (b, a), (a, c), (c, b), (a, None), (a, b)]):
        store.messages.publish("t", n, sender=sender, to=to)
    assert contents(store.messages.conversation(a, b)) == contents(store.messages.conversation(b.id, a.id)) == [0, 1, 5]
    assert store.messages.conversation(a, b).limit(1).all()[0].content == 0
    assert store.messages.conversation(c, c).all() == []


def test_times_may_be_datetimes(store: Store, three, clock):
    when = datetime.fromtimestamp(clock.now / 1000 + 1, UTC)
    assert store.messages.publish("t", 1, expires_at=when).expires_at == clock.now + 1_000


# Deleting


def test_prune_removes_what_is_old_and_what_has_expired(store: Store, three, clock):
    a, b, _ = three
    old = [store.messages.publish("t", n) for n in range(3)]
    store.messages.acknowledge(old[0], a)
    store.messages.receive(a)
    clock.advance(ms=1)
    kept = store.messages.publish("t", "kept")
    over = store.messages.publish("t", "over", ttl=59)
    clock.advance(60)
    assert store.messages.prune(60.001) == 1 == store.messages.find_all().count(kept)
    assert store.messages.find_by_id(over.id) is None
    assert store.messages.count() == 4
    assert store.messages.prune(60) == 3
    assert store.messages.prune(60) == 0
    assert store.messages.find_all() == [kept]
    assert contents(store.messages.receive(a)) == contents(store.messages.receive(b)) == ["kept"]
    clock.advance(ms=1)
    with store.transaction() as work:
        assert work.messages.prune(60) == 1
    store.messages.publish("t", "next")
    assert contents(store.messages.receive(a)) == ["next"]
    for wrong in (-1, None, "1"):
        with pytest.raises(InvalidValue):
            store.messages.prune(wrong)


def test_prune_goes_through_many_in_batches(store: Store, three, clock):
    store.messages.insert_many(
        Message(f"id-{n}", "t", n, clock.now - n % 2, expires_at=clock.now if n % 3 == 0 else None) for n in range(900)
    )
    assert store.messages.prune(0) == 600
    assert {message.content % 6 for message in store.messages.find_all()} == {2, 4}


def test_a_deleted_message_is_delivered_to_nobody_and_its_place_is_not_reused(store: Store, three):
    a = three[0]
    first = store.messages.publish("t", 1)
    assert contents(store.messages.receive(a)) == [1]
    assert store.messages.delete(first)
    second = store.messages.publish("t", 2)
    assert second.position > first.position
    assert contents(store.messages.receive(a)) == [2]
    assert contents(store.messages.receive(three[1])) == [2]


def test_a_changed_message_keeps_its_recipients(store: Store, three):
    message = store.messages.publish("t", 1, to=three[1])
    changed = store.messages.update(structs.replace(message, content=2))
    assert (changed.version, changed.to_agent) == (2, three[1].id)
    with pytest.raises(InvalidValue, match="to_agent"):
        store.messages.update(structs.replace(changed, to_agent=three[0].id))
    assert store.messages.receive(three[1]) == [changed]
