"""Agents: registered once, heard of often, and never leaving a task behind."""

import pytest
from msgspec import structs

from ruv_swarm_store import AgentStatus, Conflict, InvalidTransition, InvalidValue, NewEvent, NotFound, Store, TaskStatus
from ruv_swarm_store.entities import Agent


def test_register_gives_an_idle_agent_alive_now(store: Store, clock):
    agent = store.agents.register("scout", name="s-1", capabilities=["crawl", {"depth": 2}], configuration={"k": [1.0, None]})
    assert agent == Agent(
        agent.id, "scout", clock.now, clock.now, "s-1", AgentStatus.IDLE, ["crawl", {"depth": 2}], {"k": [1.0, None]}, None, 1
    )
    assert store.agents.get(agent.id) == agent
    assert store.agents.find_all() == [agent]


def test_register_takes_the_id_it_is_given(store: Store):
    assert store.agents.register("scout", id="mine").id == "mine"
    assert store.agents.register("scout").id != store.agents.register("scout").id


def test_ids_sort_by_the_time_they_were_made(store: Store, clock):
    made = []
    for _ in range(50):
        clock.advance(ms=1)
        made.append(store.agents.register("scout").id)
    assert made == sorted(made)


def test_registering_an_existing_id_revives_the_agent(store: Store, clock):
    first = store.agents.register("scout", name="s-1", capabilities=["a"], configuration={"a": 1}, id="x")
    store.agents.terminate("x")
    clock.advance(5)
    again = store.agents.register("miner", name="m-1", capabilities=["b"], id="x")
    assert again == structs.replace(
        first, type="miner", name="m-1", capabilities=["b"], configuration={}, last_heartbeat=clock.now, version=again.version
    )
    assert again.version > first.version
    assert store.agents.find_all() == [again]


def test_a_failed_agent_is_revived_too(store: Store):
    store.agents.register("scout", id="x")
    store.agents.set_status("x", "failed")
    assert store.agents.register("scout", id="x").status is AgentStatus.IDLE


def test_two_live_agents_never_share_a_name(store: Store):
    store.agents.register("scout", name="s")
    with pytest.raises(Conflict, match="'s'") as caught:
        store.agents.register("scout", name="s")
    assert caught.value.data == {"kind": "unique", "name": "s"}
    assert store.agents.count() == 1


def test_a_name_is_free_again_after_termination(store: Store):
    old = store.agents.register("scout", name="s")
    store.agents.terminate(old)
    new = store.agents.register("scout", name="s")
    assert {agent.name for agent in store.agents.find_all()} == {"s"}
    with pytest.raises(Conflict):
        store.agents.register("scout", name="s", id=old.id)
    assert store.agents.get(old).status is AgentStatus.TERMINATED
    assert store.agents.get(new).status is AgentStatus.IDLE


def test_a_failed_agent_keeps_its_name(store: Store):
    store.agents.set_status(store.agents.register("scout", name="s"), AgentStatus.FAILED)
    with pytest.raises(Conflict):
        store.agents.register("scout", name="s")


def test_agents_without_a_name_are_many(store: Store):
    for _ in range(3):
        store.agents.register("scout")
    assert store.agents.count() == 3


def test_a_heartbeat_changes_the_time_and_nothing_else(store: Store, clock):
    agents = [store.agents.register("scout") for _ in range(3)]
    clock.advance(ms=1)
    store.agents.heartbeat(agents[1])
    by_id = {agent.id: agent for agent in store.agents.find_all()}
    assert by_id[agents[1].id] == structs.replace(agents[1], last_heartbeat=clock.now)
    assert by_id[agents[0].id] == agents[0]
    assert by_id[agents[2].id] == agents[2]


def test_a_heartbeat_takes_an_id_as_well(store: Store, clock):
    agent = store.agents.register("scout")
    clock.advance(1)
    store.agents.heartbeat(agent.id)
    assert store.agents.get(agent).last_heartbeat == clock.now


def test_a_heartbeat_brings_a_failed_agent_back(store: Store):
    agent = store.agents.set_status(store.agents.register("scout"), "failed")
    store.agents.heartbeat(agent)
    assert store.agents.get(agent).status is AgentStatus.IDLE


def test_a_heartbeat_leaves_a_busy_agent_busy(store: Store):
    agent = store.agents.set_status(store.agents.register("scout"), "busy")
    store.agents.heartbeat(agent)
    assert store.agents.get(agent).status is AgentStatus.BUSY


def test_the_dead_and_the_unknown_have_no_heartbeat(store: Store):
    agent = store.agents.register("scout")
    store.agents.terminate(agent)
    with pytest.raises(InvalidTransition, match="terminated"):
        store.agents.heartbeat(agent)
    with pytest.raises(NotFound):
        store.agents.heartbeat("nobody")


def test_many_heartbeats_happen_at_one_time(store: Store, clock):
    agents = [store.agents.register("scout") for _ in range(4)]
    store.agents.terminate(agents[3])
    clock.advance(1)
    assert store.agents.heartbeat_many([*agents, "nobody"]) == 3
    assert [agent.last_heartbeat == clock.now for agent in map(store.agents.get, agents)] == [True, True, True, False]


def test_many_heartbeats_bring_failed_agents_back_and_count_each_once(store: Store, clock):
    a, b = store.agents.register("scout"), store.agents.register("scout")
    store.agents.set_status(a, "failed")
    b = store.agents.set_status(b, "busy")
    clock.advance(1)
    assert store.agents.heartbeat_many(iter([b, a.id, a, b.id])) == 2
    assert store.agents.get(a) == structs.replace(a, last_heartbeat=clock.now, version=2)
    assert store.agents.get(b) == structs.replace(b, last_heartbeat=clock.now)
    assert store.agents.heartbeat_many([]) == 0
    with pytest.raises(InvalidValue):
        store.agents.heartbeat_many([a, 5])


@pytest.mark.parametrize("status", ["idle", "busy", "failed"])
def test_an_agent_says_what_it_is_doing(store: Store, status):
    agent = store.agents.register("scout")
    changed = store.agents.set_status(agent, status)
    assert changed == structs.replace(agent, status=AgentStatus(status), version=2)
    assert store.agents.get(agent) == changed


def test_setting_the_status_terminated_terminates(store: Store, clock):
    agent = store.agents.register("scout")
    task = store.tasks.enqueue("t")
    store.tasks.claim(agent)
    ended = store.agents.set_status(agent, AgentStatus.TERMINATED)
    assert (ended.status, ended.terminated_at) == (AgentStatus.TERMINATED, clock.now)
    assert store.tasks.get(task).agent_id is None


def test_a_status_must_be_one_of_the_four(store: Store):
    agent = store.agents.register("scout")
    with pytest.raises(InvalidValue, match="idle, busy, failed, terminated"):
        store.agents.set_status(agent, "sleeping")
    with pytest.raises(NotFound):
        store.agents.set_status("nobody", "idle")
    store.agents.terminate(agent)
    with pytest.raises(InvalidTransition):
        store.agents.set_status(agent, "idle")


def test_stale_is_exact_to_the_millisecond(store: Store, clock):
    agent = store.agents.register("scout")
    clock.advance(10)
    assert store.agents.stale(10) == []
    clock.advance(ms=1)
    assert store.agents.stale(10) == [agent]
    assert store.agents.stale(10.001) == []


def test_stale_lists_the_longest_silent_first_and_only_the_living(store: Store, clock):
    a, b, failed, dead = (store.agents.register("scout") for _ in range(4))
    store.agents.set_status(failed, "failed")
    store.agents.terminate(dead)
    b = store.agents.set_status(b, "busy")
    clock.advance(1)
    store.agents.heartbeat(a)
    clock.advance(60)
    assert [agent.id for agent in store.agents.stale(30)] == [b.id, a.id]


@pytest.mark.parametrize("span", [-1, float("nan"), float("inf"), "10", None, True])
def test_a_span_of_silence_is_a_number_of_seconds(store: Store, span):
    with pytest.raises(InvalidValue):
        store.agents.stale(span)
    with pytest.raises(InvalidValue):
        store.agents.reap(span)


def test_reap_fails_the_silent_and_frees_their_tasks(store: Store, clock):
    silent, alive = store.agents.register("scout"), store.agents.register("scout")
    first, second = store.tasks.enqueue("t"), store.tasks.enqueue("t")
    held = store.tasks.claim(silent, lease=600)
    store.tasks.claim(alive, lease=600)
    clock.advance(31)
    store.agents.heartbeat(alive)
    reaped = store.agents.reap(30)
    assert reaped == [structs.replace(silent, status=AgentStatus.FAILED, version=2)]
    assert store.agents.get(silent).status is AgentStatus.FAILED
    assert store.agents.get(alive).status is AgentStatus.IDLE
    freed = store.tasks.get(first)
    assert (freed.status, freed.agent_id, freed.retry_count, freed.lease_expires_at) == (TaskStatus.PENDING, None, 1, None)
    assert store.tasks.get(second).agent_id == alive.id
    [failure] = store.tasks.failures(first)
    assert (failure.fence, failure.agent_id, failure.failed_at) == (held.fence, silent.id, clock.now)
    assert store.agents.reap(30) == []


def test_reap_fails_a_task_whose_retries_are_spent(store: Store, clock):
    agent = store.agents.register("scout")
    task = store.tasks.enqueue("t", max_retries=0)
    store.tasks.claim(agent, lease=600)
    clock.advance(31)
    store.agents.reap(30)
    assert store.tasks.get(task).status is TaskStatus.FAILED


def test_terminate_ends_an_agent_and_returns_its_tasks(store: Store, clock):
    agent = store.agents.register("scout")
    task = store.tasks.enqueue("t")
    store.tasks.start(store.tasks.claim(agent))
    clock.advance(1)
    ended = store.agents.terminate(agent)
    assert ended == structs.replace(agent, status=AgentStatus.TERMINATED, terminated_at=clock.now, version=2)
    assert store.tasks.get(task).status is TaskStatus.PENDING
    clock.advance(1)
    assert store.agents.terminate(agent.id) == ended
    with pytest.raises(NotFound):
        store.agents.terminate("nobody")


def test_deleting_an_agent_returns_its_tasks(store: Store):
    agent = store.agents.register("scout")
    held, done = store.tasks.enqueue("t"), store.tasks.enqueue("t")
    store.tasks.claim(agent)
    store.tasks.complete(store.tasks.claim(agent))
    assert store.agents.delete(agent)
    assert not store.agents.delete(agent)
    assert store.agents.find_by_id(agent.id) is None
    assert (store.tasks.get(held).status, store.tasks.get(held).agent_id) == (TaskStatus.PENDING, None)
    assert (store.tasks.get(done).status, store.tasks.get(done).agent_id) == (TaskStatus.COMPLETED, None)
    assert len(store.tasks.failures(held)) == 1


def test_history_survives_the_agent(store: Store):
    agent, other = store.agents.register("scout"), store.agents.register("scout")
    message = store.messages.publish("t", 1, sender=agent, to=other)
    broadcast = store.messages.publish("t", 2, sender=agent)
    metric = store.metrics.record("m", 1.0, agent=agent)
    store.events.append(agent.id, [NewEvent("joined")], type="agent")
    store.groups.join(store.groups.create("g"), agent)
    store.agents.delete(agent)
    assert store.messages.get(message.id) == structs.replace(message, from_agent=None)
    assert store.messages.get(broadcast.id) == structs.replace(broadcast, from_agent=None)
    assert store.metrics.get(metric.id) == structs.replace(metric, agent_id=None)
    assert [event.event_type for event in store.events.read(agent.id)] == ["joined"]
    assert store.groups.members(store.groups.find_all()[0]) == []
    assert [m.content for m in store.messages.receive(other)] == [1, 2]


def test_deleting_many_agents_is_all_or_none(store: Store):
    agents = [store.agents.register("scout") for _ in range(3)]
    task = store.tasks.enqueue("t")
    store.tasks.claim(agents[0])
    assert store.agents.delete_many([agents[0], agents[1].id, "nobody"]) == 2
    assert store.agents.find_all() == [agents[2]]
    assert store.tasks.get(task).agent_id is None


def test_a_heartbeat_does_not_stand_in_the_way_of_an_update(store: Store, clock):
    agent = store.agents.register("scout")
    clock.advance(1)
    store.agents.heartbeat(agent)
    updated = store.agents.update(structs.replace(agent, capabilities=["new"]))
    assert updated == structs.replace(agent, capabilities=["new"], last_heartbeat=clock.now, version=2)


def test_a_stale_copy_cannot_undo_another_update(store: Store):
    agent = store.agents.register("scout", configuration={"n": 0})
    store.agents.update(structs.replace(agent, configuration={"n": 1}))
    with pytest.raises(Conflict) as caught:
        store.agents.update(structs.replace(agent, configuration={"n": 2}))
    assert (caught.value.data["expected"], caught.value.data["actual"]) == (1, 2)
    assert store.agents.get(agent).configuration == {"n": 1}


def test_an_agent_added_by_the_plain_verbs_can_work(store: Store, clock):
    inserted = store.agents.insert(Agent("a", "scout", 1, 2))
    upserted = store.agents.upsert(Agent("b", "scout", 1, 2))
    store.messages.publish("t", "hello")
    task = store.tasks.enqueue("t")
    assert store.tasks.claim(inserted).id == task.id
    assert [m.content for m in store.messages.receive(inserted)] == ["hello"]
    assert [m.content for m in store.messages.receive(upserted)] == ["hello"]


def test_upserting_an_agent_that_exists_keeps_what_only_its_verbs_change(store: Store, clock):
    agent = store.agents.set_status(store.agents.register("scout"), "busy")
    stored = store.agents.upsert(structs.replace(agent, type="miner", status=AgentStatus.IDLE, last_heartbeat=0, version=1))
    assert stored == structs.replace(agent, type="miner", version=3)


def test_registration_refuses_what_cannot_be_stored(store: Store):
    for wrong in (
        {"type": 5},
        {"type": "t", "name": 5},
        {"type": "t", "capabilities": [object()]},
        {"type": "t", "configuration": {1: 2}},
        {"type": "t", "configuration": {"x": float("nan")}},
        {"type": "t", "id": 7},
    ):
        with pytest.raises(InvalidValue):
            store.agents.register(**wrong)
    assert store.agents.count() == 0
