"""Many at once: threads of one store, and processes with stores of their own."""

import crew
import pytest

from ruv_swarm_store import NewTask, Store, TaskStatus

threads = pytest.mark.needs("threads")


def processes(test):
    """Marks a test of several processes; starting them takes its time, and what they meet in is the database, not Python."""
    return pytest.mark.long(pytest.mark.needs("processes")(test))


def check_streams(store: Store, writers: int, batches: int, size: int) -> None:
    """Nothing lost, numbers without gaps, each batch in one piece."""
    everything = list(store.events.walk())
    assert len(everything) == writers * batches * size
    assert len({tuple(event.event_data) for event in everything}) == len(everything)
    assert [event.position for event in everything] == sorted(event.position for event in everything)
    streams: dict[str, list] = {}
    for event in everything:
        streams.setdefault(event.aggregate_id, []).append(event)
    assert len(streams) == writers + 1
    for events in streams.values():
        assert [event.sequence_number for event in events] == list(range(1, len(events) + 1))
    for start in range(0, len(everything), size):
        batch = everything[start : start + size]
        assert [event.event_data[2] for event in batch] == list(range(size))
        assert len({(event.event_data[0], event.event_data[1]) for event in batch}) == 1


@threads
@pytest.mark.parametrize("count", [100, 1_000])
def test_agents_registering_at_once_are_all_there(store: Store, count):
    ids = crew.in_threads(count, crew.register, store)
    assert len(set(ids)) == count
    assert {agent.id for agent in store.agents.find_all()} == set(ids)


@processes
def test_agents_registering_in_processes_are_all_there(database, store: Store):
    ids = [id for part in crew.in_processes(4, crew.with_own_threads, database.address, 25, crew.register) for id in part]
    assert len(set(ids)) == 100
    assert {agent.id for agent in store.agents.find_all()} == set(ids)


def check_winner(store: Store, answers: list, agents: list[str], task_id: str) -> None:
    winners = [agent for agent, answer in zip(agents, answers, strict=True) if answer == task_id]
    assert len(winners) == 1
    assert answers.count(None) == len(agents) - 1
    task = store.tasks.get(task_id)
    assert (task.agent_id, task.status, task.fence) == (winners[0], TaskStatus.ASSIGNED, 1)


@threads
def test_one_of_ten_threads_wins_a_task(store: Store):
    for _ in range(5):
        agents = [store.agents.register("worker").id for _ in range(10)]
        task = store.tasks.enqueue("t")
        check_winner(store, crew.in_threads(10, crew.claim, store, agents), agents, task.id)


@processes
def test_one_of_ten_processes_wins_a_task(database, store: Store):
    agents = [store.agents.register("worker").id for _ in range(10)]
    task = store.tasks.enqueue("t")
    check_winner(store, crew.in_processes(10, crew.with_own_store, database.address, crew.claim, agents), agents, task.id)


def check_shared(store: Store, answers: list[str | None], tasks: list) -> None:
    taken = [answer for answer in answers if answer is not None]
    assert sorted(taken) == sorted(task.id for task in tasks)
    assert {task.status for task in store.tasks.find_all()} == {TaskStatus.ASSIGNED}
    assert {task.fence for task in store.tasks.find_all()} == {1}


@threads
def test_twenty_threads_share_ten_tasks(store: Store):
    agents = [store.agents.register("worker").id for _ in range(20)]
    tasks = store.tasks.enqueue_many([("t", n) for n in range(10)])
    check_shared(store, crew.in_threads(20, crew.claim, store, agents), tasks)


@processes
def test_twenty_workers_in_processes_share_ten_tasks(database, store: Store):
    agents = [store.agents.register("worker").id for _ in range(20)]
    tasks = store.tasks.enqueue_many([("t", n) for n in range(10)])
    answers = crew.in_processes(4, crew.with_own_threads, database.address, 5, crew.claim, agents)
    check_shared(store, [answer for part in answers for answer in part], tasks)


@threads
def test_every_way_of_claiming_gives_a_task_once(store: Store, clock):
    agents = [store.agents.register("worker").id for _ in range(8)]
    tasks = store.tasks.enqueue_many(NewTask("ab"[n % 2], n, delay=0.001 if n % 3 == 0 else None, priority=n % 7) for n in range(400))
    clock.advance(1)
    taken = [id for part in crew.in_threads(8, crew.claim_in_many_ways, store, agents) for id in part]
    assert sorted(taken) == sorted(task.id for task in tasks)
    assert {task.fence for task in store.tasks.find_all()} == {1}


@processes
def test_every_way_of_claiming_gives_a_task_once_over_processes(database, store: Store, clock):
    agents = [store.agents.register("worker").id for _ in range(8)]
    tasks = store.tasks.enqueue_many(NewTask("ab"[n % 2], n, run_at=clock.now - 1) for n in range(400))
    answers = crew.in_processes(2, crew.with_own_threads, database.address, 4, crew.claim_in_many_ways, agents)
    taken = [id for process in answers for thread in process for id in thread]
    assert sorted(taken) == sorted(task.id for task in tasks)
    assert {task.fence for task in store.tasks.find_all()} == {1}


@threads
def test_increments_of_threads_add_up(store: Store):
    store.config.set("n", 0)
    crew.in_threads(20, crew.increment, store)
    assert store.config.get("n") == 20
    crew.in_threads(20, crew.increment_by_version, store)
    assert store.config.entry("n").value == 40
    assert store.config.entry("n").version == 41


@processes
def test_increments_of_processes_add_up(database, store: Store):
    store.config.set("n", 0)
    crew.in_processes(5, crew.with_own_store, database.address, crew.increment)
    assert store.config.get("n") == 5
    crew.in_processes(3, crew.with_own_threads, database.address, 4, crew.increment_by_version)
    assert store.config.entry("n").value == 17


@threads
def test_one_key_makes_one_task_among_threads(store: Store):
    assert len(set(crew.in_threads(20, crew.enqueue_one_key, store))) == 1
    assert store.tasks.count() == 1


@processes
def test_one_key_makes_one_task_among_processes(database, store: Store):
    answers = crew.in_processes(3, crew.with_own_threads, database.address, 4, crew.enqueue_one_key)
    assert len({id for part in answers for id in part}) == 1
    assert store.tasks.count() == 1


@threads
def test_thirty_thousand_events_of_ten_threads_are_all_there(store: Store):
    crew.in_threads(10, crew.append, store, 60, 50)
    check_streams(store, 10, 60, 50)


@processes
def test_thirty_thousand_events_of_ten_writers_in_processes_are_all_there(database, store: Store):
    crew.in_processes(5, crew.with_own_threads, database.address, 2, crew.append, 60, 50)
    check_streams(store, 10, 60, 50)


@threads
def test_one_of_ten_threads_begins_a_stream(store: Store):
    assert crew.in_threads(10, crew.append_expecting, store).count(True) == 1
    assert store.events.version("one", type="x") == 1


@processes
def test_one_of_five_processes_begins_a_stream(database, store: Store):
    assert crew.in_processes(5, crew.with_own_store, database.address, crew.append_expecting).count(True) == 1
    assert store.events.version("one", type="x") == 1


@threads
def test_a_message_goes_to_one_of_an_agent_s_threads(store: Store):
    agent = store.agents.register("worker").id
    for n in range(60):
        store.messages.publish("t", n, to=agent)
    received = [n for part in crew.in_threads(8, crew.receive, store, agent) for n in part]
    assert sorted(received) == list(range(60))


@processes
def test_processes_opening_a_new_store_at_once_all_succeed(new_database):
    database = new_database(absent=True)
    assert crew.in_processes(6, crew.open_new, database.address) == [[]] * 6
    assert database.open().agents.count() == 6


@processes
def test_a_commit_of_another_process_wakes_who_waits(database, store: Store):
    made, *woken = crew.in_processes(4, crew.wait_or_enqueue, database.address, 3)
    assert sorted(id for id, _ in woken) == sorted(id for id, _ in made)
    at = dict(made)
    delays = sorted(time - at[id] for id, time in woken)
    assert delays[0] < 0.1  # on a busy machine the others may take longer, but not until everybody looks anyway
    assert delays[-1] < 0.8
