"""Random sequences of verbs on inboxes, groups and configuration give on every engine what a plain Python model gives."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from msgspec import structs

from ruv_swarm_store import ConfigEntry, Conflict, InvalidValue, Message, NotFound, Store
from ruv_swarm_store.entities import Audience, Delivery


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000_000

    def __call__(self) -> int:
        return self.now


TOPICS = ["x", "a", "a.b", "a.c", "a.b.c"]
NAMES: dict[str | None, set[str]] = {
    None: set(TOPICS), "x": {"x"}, "a.b": {"a.b"}, "none": set(), "*": {"x", "a"}, "a.*": {"a.b", "a.c"}, "A.*": set(),
    "a.**": {"a", "a.b", "a.c", "a.b.c"}, "*.b.**": {"a.b", "a.b.c"}, "**": set(TOPICS), "a.b.*.**": {"a.b.c"},
}  # fmt: skip
"""What each name of topics stands for."""


class Inbox:
    """One agent's inbox in plain Python."""

    def __init__(self) -> None:
        self.terminated = False
        self.ended = 0
        """How many messages there were when it was terminated."""
        self.groups: set[str] = set()
        self.reached: set[int] = set()
        """The numbers of the messages that were for it when they were published."""
        self.rows: dict[int, Delivery] = {}

    def keep(self, numbers: set[int], row: Delivery) -> None:
        for number in numbers:
            self.rows.setdefault(number, structs.replace(row, message_position=number))


class InboxMachine(RuleBasedStateMachine):
    """Who receives what, when again, how often, and how much is unread."""

    def __init__(self, database: Any) -> None:
        super().__init__()
        self.clock = Clock()
        self.store: Store = database.open(clock=self.clock)
        self.messages: list[Message] = []
        self.gone: set[int] = set()
        self.inboxes: dict[str, Inbox] = {}

    @initialize()
    def begin(self) -> None:
        self.teams = [self.store.groups.create(name).id for name in ("one", "two")]
        self.join_swarm()
        self.join_swarm()
        self.join_team(next(iter(self.inboxes)), self.teams[0])

    @precondition(lambda self: len(self.inboxes) < 4)
    @rule()
    def join_swarm(self) -> None:
        self.inboxes[self.store.agents.register("worker").id] = Inbox()

    def join_team(self, agent: str, team: str) -> None:
        self.store.groups.join(team, agent)
        self.inboxes[agent].groups.add(team)

    def agent(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(list(self.inboxes)))

    def live(self, number: int) -> bool:
        message = self.messages[number]
        return number not in self.gone and (message.expires_at is None or message.expires_at > self.clock.now)

    def named(self, topic: str | None, since: int | None = None) -> set[int]:
        """The numbers of the live messages on these topics, since then."""
        return {
            number
            for number, message in enumerate(self.messages)
            if self.live(number) and message.topic in NAMES[topic] and (since is None or message.timestamp >= since)
        }

    def fresh(self, inbox: Inbox, numbers: set[int]) -> set[int]:
        return (numbers & inbox.reached) - set(inbox.rows)

    def ready(self, agent: str) -> Delivery:
        return Delivery(agent, 0, self.clock.now, 0, self.clock.now)

    @rule(data=st.data(), topic=st.sampled_from(TOPICS), ttl=st.sampled_from([None, None, 0.05]), count=st.integers(1, 3))
    def publish(self, data: st.DataObject, topic: str, ttl: float | None, count: int) -> None:
        for _ in range(count):
            to = data.draw(st.sampled_from([None, *self.teams, *self.inboxes]))
            where = {"to_group": to} if to in self.teams else {"to": to}
            number = len(self.messages)
            self.messages.append(self.store.messages.publish(topic, number, ttl=ttl, **where))
            for id, inbox in self.inboxes.items():
                if id == to or (not inbox.terminated and (to is None or to in inbox.groups)):
                    inbox.reached.add(number)

    @rule(data=st.data(), team=st.integers(0, 1))
    def join_or_leave(self, data: st.DataObject, team: int) -> None:
        agent, group = self.agent(data), self.teams[team]
        inbox = self.inboxes[agent]
        if group not in inbox.groups:
            self.join_team(agent, group)
            return
        assert self.store.groups.leave(group, agent)
        inbox.groups.remove(group)
        of_group = {n for n in self.fresh(inbox, self.named(None)) if self.messages[n].to_group == group}
        inbox.keep(of_group, self.ready(agent))

    @rule(data=st.data())
    def terminate_or_revive(self, data: st.DataObject) -> None:
        agent = self.agent(data)
        inbox = self.inboxes[agent]
        if not inbox.terminated and data.draw(st.booleans()):
            return  # seldom enough
        if inbox.terminated:
            self.store.agents.register("worker", id=agent)
            inbox.keep(self.fresh(inbox, self.named(None)), self.ready(agent))
        else:
            self.store.agents.terminate(agent)
            inbox.ended = len(self.messages)
        inbox.terminated = not inbox.terminated

    @rule(
        data=st.data(),
        topic=st.sampled_from([None, None, *NAMES]),
        limit=st.integers(1, 4),
        visibility=st.sampled_from([0, 0.02, 10]),
        late=st.sampled_from([None, None, None, 0, 20]),
    )
    def receive(self, data: st.DataObject, topic: str | None, limit: int, visibility: float, late: int | None) -> None:
        agent, now = self.agent(data), self.clock.now
        inbox = self.inboxes[agent]
        since = None if late is None else now - late
        named = self.named(topic, since)
        rows = inbox.rows
        again = sorted(n for n in named & set(rows) if rows[n].acknowledged_at is None and rows[n].visible_at <= now)[:limit]
        fresh = self.fresh(inbox, named)
        if since is not None:  # it asks for what was there before it, too
            fresh |= {n for n in named - set(rows) if self.for_all_of(inbox, n)}
        new = sorted(fresh)[: limit - len(again)]
        received = self.store.messages.receive(agent, topic, limit=limit, visibility=visibility, since=since)
        assert received == [self.messages[n] for n in sorted(again + new)]
        for n in again + new:
            count = rows[n].deliveries if n in rows else 0
            rows[n] = Delivery(agent, n, now, count + 1, now + round(visibility * 1000))

    def for_all_of(self, inbox: Inbox, number: int) -> bool:
        """Whether a message is for all or for a group an agent is in; for a terminated one, of those from before its end."""
        message = self.messages[number]
        return (message.audience is Audience.BROADCAST or message.to_group in inbox.groups) and not (
            inbox.terminated and number >= inbox.ended
        )

    @precondition(lambda self: self.messages)
    @rule(data=st.data(), many=st.booleans())
    def acknowledge(self, data: st.DataObject, many: bool) -> None:
        agent = self.agent(data)
        known = [n for n in range(len(self.messages)) if n not in self.gone]
        if not known:
            return
        inbox = self.inboxes[agent]
        likely = [n for n in known if n in inbox.rows] or known
        numbers = data.draw(st.lists(st.sampled_from(likely), min_size=1, max_size=3 if many else 1, unique=True))
        his = [n for n in numbers if self.messages[n].audience is not Audience.DIRECT or self.messages[n].to_agent == agent]
        if many:
            named = [self.messages[n] if n % 2 else self.messages[n].id for n in numbers]
            assert self.store.messages.acknowledge_many(named, agent) == len(his)
        elif his:
            self.store.messages.acknowledge(self.messages[numbers[0]], agent)
        else:
            with pytest.raises(InvalidValue):
                self.store.messages.acknowledge(self.messages[numbers[0]], agent)
        for n in his:
            row = inbox.rows.get(n) or Delivery(agent, n, self.clock.now, 1, self.clock.now)
            inbox.rows[n] = structs.replace(row, acknowledged_at=self.clock.now if row.acknowledged_at is None else row.acknowledged_at)

    @precondition(lambda self: self.messages)
    @rule(data=st.data(), delay=st.sampled_from([0, 0.02]))
    def release(self, data: st.DataObject, delay: float) -> None:
        agent = self.agent(data)
        number = data.draw(st.sampled_from(range(len(self.messages))))
        if number in self.gone:
            return
        row = self.inboxes[agent].rows.get(number)
        comes = row is not None and row.acknowledged_at is None
        assert self.store.messages.release(self.messages[number], agent, delay=delay) == comes
        if comes:
            self.inboxes[agent].rows[number] = structs.replace(row, visible_at=self.clock.now + round(delay * 1000))

    @rule(ms=st.sampled_from([1, 20, 50]))
    def let_time_pass(self, ms: int) -> None:
        self.clock.now += ms

    @rule(older_than=st.sampled_from([0.05, 0.1]))
    def prune(self, older_than: float) -> None:
        old = self.clock.now - round(older_than * 1000)
        gone = {n for n, message in enumerate(self.messages) if n not in self.gone and (message.timestamp < old or not self.live(n))}
        assert self.store.messages.prune(older_than) == len(gone)
        self.gone |= gone
        for inbox in self.inboxes.values():
            for n in gone & set(inbox.rows):
                del inbox.rows[n]

    @invariant()
    def agrees(self) -> None:
        for agent, inbox in self.inboxes.items():
            for topic in (None, "x", "a.**"):
                named = self.named(topic)
                open = {n for n in named & set(inbox.rows) if inbox.rows[n].acknowledged_at is None}
                assert self.store.messages.unread(agent, topic) == len(open | self.fresh(inbox, named))

    def teardown(self) -> None:
        left = [message for n, message in enumerate(self.messages) if n not in self.gone]
        assert self.store.messages.find_all() == left
        for n, message in enumerate(self.messages):
            if n not in self.gone:
                rows = [structs.replace(i.rows[n], message_position=message.position) for i in self.inboxes.values() if n in i.rows]
                assert self.store.messages.deliveries(message) == sorted(rows, key=lambda row: (row.delivered_at, row.agent_id))
        for agent in self.inboxes:
            counts: dict[str, int] = self.store.messages.unread_by_topic(agent)
            assert sum(counts.values()) == self.store.messages.unread(agent)
            assert all(self.store.messages.unread(agent, topic) == count for topic, count in counts.items())
        assert self.store.check() == []
        self.store.close()


class ConfigMachine(RuleBasedStateMachine):
    """A row of a key that was deleted or has expired stays until `expire`, seen by nobody."""

    def __init__(self, database: Any) -> None:
        super().__init__()
        self.clock = Clock()
        self.store: Store = database.open(clock=self.clock)
        self.entries: dict[str, ConfigEntry] = {}
        self.asked = self.clock.now
        self.mirror: dict[str, ConfigEntry] = {}
        """What somebody knows who only ever asks for changes."""

    keys = st.sampled_from(["a", "a.b", "a.c", "b", "\U0001f41d"])

    def live(self) -> dict[str, ConfigEntry]:
        return {key: e for key, e in self.entries.items() if e.expires_at is None or e.expires_at > self.clock.now}

    def next_version(self, key: str) -> int:
        return self.entries[key].version + 1 if key in self.entries else 1

    @rule(key=keys, value=st.none() | st.integers(0, 3), ttl=st.sampled_from([None, 0, 0.005, 1]), expected=st.none() | st.integers(0, 3))
    def set(self, key: str, value: int | None, ttl: float | None, expected: int | None) -> None:
        now = self.clock.now
        version = self.live()[key].version if key in self.live() else 0
        entry = ConfigEntry(key, value, now, "me", None if ttl is None else now + round(ttl * 1000), self.next_version(key))
        if expected is None:
            assert self.store.config.set(key, value, by="me", ttl=ttl) == entry
        elif expected == version:
            assert self.store.config.compare_and_set(key, value, expected=expected, by="me", ttl=ttl) == entry
        else:
            with pytest.raises(Conflict) as caught:
                self.store.config.compare_and_set(key, value, expected=expected, by="me", ttl=ttl)
            assert caught.value.data["actual"] == version
            return
        self.entries[key] = entry

    @rule(key=keys, how=st.sampled_from(["insert", "upsert", "update", "replace"]))
    def plain(self, key: str, how: str) -> None:
        live = self.live()
        entry = ConfigEntry(key, how, self.clock.now, version=live[key].version if key in live else 1)
        refused = {"insert": Conflict if key in live else None, "upsert": None}.get(how, None if key in live else NotFound)
        if refused is not None:
            with pytest.raises(refused):
                getattr(self.store.config, how)(entry)
            return
        expected = structs.replace(entry, version=self.next_version(key))
        assert getattr(self.store.config, how)(entry) == expected
        self.entries[key] = expected

    @rule(keys=st.lists(keys, min_size=1, max_size=3, unique=True))
    def delete(self, keys: list[str]) -> None:
        live = [key for key in keys if key in self.live()]
        if len(keys) == 1:
            assert self.store.config.delete(keys[0]) == bool(live)
        else:
            assert self.store.config.delete_many(keys) == len(live)
        for key in live:
            self.entries[key] = ConfigEntry(key, None, self.clock.now, None, 0, self.entries[key].version + 1)

    @rule(kept=st.sampled_from([0, 0.004]))
    def expire(self, kept: float) -> None:
        before = self.clock.now - round(kept * 1000)
        over = [key for key, e in self.entries.items() if e.expires_at is not None and max(e.expires_at, e.updated_at) <= before]
        assert self.store.config.expire(kept=kept) == len(over)
        for key in over:
            del self.entries[key]
            self.mirror.pop(key, None)  # who asks too seldom does not hear of it

    @rule(ms=st.sampled_from([1, 4, 5, 1_000]))
    def let_time_pass(self, ms: int) -> None:
        self.clock.now += ms

    @rule(overlap=st.sampled_from([0, 0.005]))
    def follow(self, overlap: float) -> None:
        changes = self.store.config.changes_since(self.asked, overlap=overlap)
        self.mirror |= {entry.key: entry for entry in changes.entries}
        for key in changes.deleted:
            self.mirror.pop(key, None)
        assert self.mirror == self.live()
        self.asked = changes.until

    @invariant()
    def agrees(self) -> None:
        live = dict(sorted(self.live().items()))
        assert self.store.config.find_all() == list(live.values())
        assert self.store.config.count() == len(live)
        assert self.store.config.prefix("a") == {key: entry.value for key, entry in live.items() if key.startswith("a")}
        for key in ("a", "\U0001f41d"):
            assert self.store.config.entry(key) == live.get(key)
        since = self.clock.now - 5
        changed = [entry for entry in live.values() if entry.updated_at >= since]
        assert self.store.config.changed_since(since) == sorted(changed, key=lambda entry: entry.updated_at)

    def teardown(self) -> None:
        self.store.close()


@pytest.mark.long
@pytest.mark.parametrize(("machine", "examples", "steps"), [(InboxMachine, 30, 40), (ConfigMachine, 20, 30)])
def test_random_verbs_agree_with_the_model(new_database, machine, examples, steps):
    scale = settings().max_examples / 60  # more of them in the deep profile
    run_state_machine_as_test(
        lambda: machine(new_database()), settings=settings(max_examples=round(examples * scale), stateful_step_count=steps)
    )
