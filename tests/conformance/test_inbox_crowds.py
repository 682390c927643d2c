"""Many at once on inboxes, groups, agents and configuration: nothing twice, nothing lost, nobody told of a deadlock."""

import threading
from collections import Counter
from typing import Any

import crew
import pytest
from msgspec import structs

from ruv_swarm_store import Agent, ConfigEntry, Conflict, Message, NotFound, Store, TaskStatus

pytestmark = pytest.mark.needs("threads")


def test_receivers_of_one_inbox_share_what_is_published_meanwhile(store: Store):
    agent = store.agents.register("worker").id
    left = threading.Semaphore(2)
    done = threading.Event()

    def work(number: int, barrier: Any) -> list[int]:
        barrier.wait()
        if number < 2:
            for n in range(40):
                store.messages.publish("ab"[n % 2], number * 1_000 + n, **({"to": agent} if n % 3 else {}))
            left.acquire()
            if not left._value:
                done.set()
            return []
        got: list[int] = []
        topic = [None, "a", "*", "b"][number - 2]
        while True:
            last = done.is_set()
            received = store.messages.receive(agent, topic, limit=7)
            got += [message.content for message in received]
            if number % 2:
                store.messages.acknowledge_many(received, agent)
            if last and not received:
                return got

    got = [n for part in crew.in_threads(6, work) for n in part]
    assert sorted(got) == sorted(writer * 1_000 + n for writer in range(2) for n in range(40))
    assert store.messages.receive(agent) == []


def test_what_is_acknowledged_while_it_is_received_stays_so(store: Store):
    agent = store.agents.register("worker").id
    for _ in range(4):
        messages = [store.messages.publish("t", n) for n in range(10)]

        def work(number: int, barrier: Any, messages: list[Message] = messages) -> None:
            barrier.wait()
            match number:
                case 0:
                    store.messages.receive(agent, visibility=0)
                case 1:
                    store.messages.acknowledge_many(messages[::-1], agent)
                case _:
                    for message in messages:
                        store.messages.acknowledge(message, agent)

        crew.in_threads(3, work)
        assert store.messages.receive(agent) == []
        assert store.messages.unread(agent) == 0


def test_a_message_committed_late_is_not_skipped(store: Store):
    agent, got, begun = store.agents.register("worker").id, [], threading.Event()

    def work(number: int, barrier: Any) -> None:
        barrier.wait()
        if number == 0:
            with store.transaction() as work:
                work.messages.publish("t", "first")
                begun.set()
                threading.Event().wait(0.05)
        elif number == 1:
            begun.wait(5)
            store.messages.publish("t", "second")
        else:
            begun.wait(5)
            for _ in range(200):
                got.extend(message.content for message in store.messages.receive(agent, ["t", "*"][len(got) % 2]))
                if len(got) == 2:
                    return
                threading.Event().wait(0.005)

    crew.in_threads(3, work)
    assert got == ["first", "second"]


def test_members_come_and_go_while_the_group_is_told(store: Store):
    stays, *moves = (store.agents.register("worker").id for _ in range(3))
    team = store.groups.create("team")
    store.groups.join(team, stays)
    got: dict[str, list[int]] = {agent: [] for agent in (stays, *moves)}

    def work(number: int, barrier: Any) -> None:
        barrier.wait()
        if number == 0:
            for n in range(60):
                store.messages.publish("t", n, to_group=team)
            return
        agent = (stays, *moves)[number - 1]
        for _ in range(15):
            if number > 1:
                store.groups.join(team, agent)
            got[agent] += [message.content for message in store.messages.receive(agent)]
            if number > 1:
                store.groups.leave(team, agent)

    crew.in_threads(4, work)
    for agent, contents in got.items():
        contents += [message.content for message in store.messages.receive(agent)]
        assert len(contents) == len(set(contents))
        assert contents == sorted(contents)
    assert got[stays] == list(range(60))


def test_registering_one_id_at_once_gives_it_to_all(store: Store):
    def work(number: int, barrier: Any) -> Agent:
        barrier.wait()
        return store.agents.register("worker", name="one", id="same", configuration={"n": number})

    agents = crew.in_threads(8, work)
    assert {agent.id for agent in agents} == {"same"}
    assert sorted(agent.version for agent in agents) == list(range(1, 9))
    assert store.agents.find_all() == [max(agents, key=lambda agent: agent.version)]
    store.messages.publish("t", 1)
    assert store.messages.unread("same") == 1


def test_a_name_goes_to_one_of_many(store: Store):
    def work(number: int, barrier: Any) -> bool:
        barrier.wait()
        try:
            store.agents.register("worker", name="one", id=f"id-{number}")
            return True
        except Conflict:
            return False

    assert crew.in_threads(8, work).count(True) == 1
    assert store.agents.count() == 1


def test_each_silent_agent_is_reaped_once(store: Store, clock):
    agents = [agent.id for agent in store.agents.insert_many(Agent(f"agent-{n:02}", "worker", 0, clock.now) for n in range(20))]
    tasks = [store.tasks.enqueue("t") for _ in agents]
    for agent in agents:
        store.tasks.claim(agent, lease=600)
    clock.advance(60)

    def work(number: int, barrier: Any) -> list[str]:
        barrier.wait()
        return [agent.id for agent in store.agents.reap(30)]

    reaped = [id for part in crew.in_threads(6, work) for id in part]
    assert sorted(reaped) == agents
    assert {(task.status, task.retry_count) for task in map(store.tasks.get, tasks)} == {(TaskStatus.PENDING, 1)}


def test_read_modify_write_in_units_of_work_loses_nothing(store: Store):
    """By key, of what is there and of what is not there yet."""
    store.agents.register("worker", id="a", configuration={"n": 0})
    group = store.groups.create("team", id="g", configuration={"n": 0})

    def work(number: int, barrier: Any) -> None:
        barrier.wait()
        for _ in range(4):
            with store.transaction() as work:
                agent = work.agents.get("a")
                work.agents.update(structs.replace(agent, configuration={"n": agent.configuration["n"] + 1}))
            with store.transaction() as work:
                found = work.groups.find_by_id(group)
                work.groups.replace(structs.replace(found, configuration={"n": found.configuration["n"] + 1}))
            with store.transaction() as work:
                work.config.set("new", work.config.get("new", 0) + 1)
            with store.transaction():
                entry = store.config.entry("other")  # the store's verbs take part
                store.config.set("other", 1 if entry is None else entry.value + 1)

    crew.in_threads(5, work)
    assert store.agents.get("a").configuration == store.groups.get("g").configuration == {"n": 20}
    assert (store.config.get("new"), store.config.get("other")) == (20, 20)


def test_what_is_added_under_a_key_in_units_of_work_is_added_once(store: Store):
    def work(number: int, barrier: Any) -> bool:
        barrier.wait()
        with store.transaction() as work:
            if work.groups.find_by_id("only") is not None:
                return False
            work.groups.create("only", id="only")
            return True

    assert crew.in_threads(6, work).count(True) == 1


def test_verbs_over_many_rows_in_any_order_do_not_deadlock(store: Store):
    agents = store.agents.insert_many(Agent(f"id-{n:02}", "worker", 0, 0) for n in range(30))
    entries = store.config.insert_many(ConfigEntry(f"k-{n:02}", n, 0) for n in range(30))
    answers: Counter[str] = Counter()

    def work(number: int, barrier: Any) -> None:
        barrier.wait()
        for round in range(6):
            order = slice(None, None, -1 if (number + round) % 2 else 1)
            store.agents.heartbeat_many(agents[order])
            try:
                match number % 4:
                    case 0:
                        store.agents.update_many(store.agents.find_all()[order])
                    case 1:
                        store.config.delete_many(entries[order])
                    case 2:
                        store.config.insert_many(entries[order])
                    case _:
                        store.config.update_many(store.config.find_all()[order])
                answers["done"] += 1
            except (Conflict, NotFound):
                answers["refused"] += 1  # a version that another was faster with

    crew.in_threads(8, work)
    assert answers["done"] >= 6
    assert store.agents.count() == 30


def test_several_prune_at_once_and_each_message_once(store: Store, clock):
    agents = store.agents.insert_many(Agent(f"id-{n}", "worker", 0, 0) for n in range(3))
    store.messages.insert_many(Message(f"old-{n}", "t", n, clock.now - 60_000) for n in range(1_000))
    store.messages.insert_many(Message(f"new-{n}", "t", n, clock.now) for n in range(100))

    def work(number: int, barrier: Any) -> int:
        barrier.wait()
        if number < 3:
            return store.messages.prune(30)
        for _ in range(5):
            store.messages.acknowledge_many(store.messages.receive(agents[number - 3], limit=200), agents[number - 3])
        return 0

    removed = crew.in_threads(6, work)
    assert sum(removed) + store.messages.prune(30) == 1_000
    assert [message.id for message in store.messages.find_all()] == [f"new-{n}" for n in range(100)]
    for agent in agents:
        while received := store.messages.receive(agent):
            store.messages.acknowledge_many(received, agent)
        assert store.messages.unread(agent) == 0
