"""Messages: one row however many recipients, delivered and acknowledged once for each."""

from datetime import UTC, datetime

import pytest
from msgspec import structs

from ruv_swarm_store import InvalidValue, Message, NotFound, Store
from ruv_swarm_store.entities import Audience


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


def test_an_agent_revived_goes_on_where_it_was(store: Store, three):
    store.messages.publish("t", 1)
    store.agents.terminate(three[0])
    store.messages.publish("t", 2)
    store.agents.register("worker", id=three[0].id)
    assert contents(store.messages.receive(three[0])) == [1, 2]


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
    from sqlalchemy import select

    from ruv_swarm_store import schema

    store.messages.publish("t", 1)
    for _ in range(3):
        store.messages.receive(three[0], visibility=1)
        clock.advance(1)
    assert store.execute(select(schema.message_deliveries.c.deliveries)) == [(3,)]


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


def test_without_a_sender_there_is_nobody_to_reply_to(store: Store, three):
    with pytest.raises(InvalidValue, match="sender"):
        store.messages.reply(store.messages.publish("t", 1), 2)


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
