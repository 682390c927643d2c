"""The demo swarm without processes, as a browser has it: coroutines that take turns over one open store."""

import asyncio

import pytest

from ruv_swarm_store import AgentStatus, Conflict, Store
from ruv_swarm_store.demo import run
from ruv_swarm_store.demo.cooperative import Orders, conduct
from ruv_swarm_store.demo.outcome import Finished, Stopped
from ruv_swarm_store.demo.recount import recount
from ruv_swarm_store.demo.run import FAILED, RUN
from ruv_swarm_store.demo.verification import Mismatch


@pytest.fixture
def tree(tmp_path):
    for directory in ("a", "b/c", "b/.hidden"):
        (tmp_path / directory).mkdir(parents=True)
        for n in range(12):
            (tmp_path / directory / f"{n}.py").write_text(f"import os\n\n\ndef f{n}():\n    return os\n")
    (tmp_path / "broken.py").write_text("def (\n")
    return tmp_path


@pytest.fixture
def store():
    with Store.open() as store:
        yield store


def test_a_swarm_of_coroutines_finds_what_a_recount_finds(store, tree):
    views = []
    done = asyncio.run(conduct(store, str(tree), Orders(3, 0.0), views.append))
    assert isinstance(done, Finished)
    assert done.totals == recount(str(tree)).totals
    assert (done.totals.files, done.totals.unparsable) == (25, 1)
    assert done.run.audit() == []
    assert "broken.py does not parse" in " ".join(text for view in views for text in view.said)
    assert {agent.status for agent in store.agents.find_all()} == {AgentStatus.TERMINATED}


def test_what_a_killed_agent_was_doing_is_done_again(store, tree):
    orders = Orders(2, 0.05)
    killed = []

    def watch(view):
        busy = [worker for worker in view.progress.workers if worker.doing and worker.doing.endswith(".py")]
        if busy and not killed:
            killed.append(busy[0].agent)
            orders.kill.add(busy[0].agent.id)
            orders.pace = 0.2
        elif killed and any("was killed" in text for text in view.said):
            orders.pace = 0.0

    done = asyncio.run(conduct(store, str(tree), orders, watch))
    assert isinstance(done, Finished)
    assert done.effort.retries == 1
    assert done.effort.workers == 3
    assert done.run.audit() == []


def test_a_stopped_run_goes_on_and_another_tree_has_to_wait(store, tree, tmp_path_factory):
    orders = Orders(2, 0.1)

    def stop(view):
        orders.stop = orders.stop or view.progress.files[0] > 2

    stopped = asyncio.run(conduct(store, str(tree), orders, stop))
    assert isinstance(stopped, Stopped)
    assert 2 < stopped.files < 25
    with pytest.raises(Conflict, match="unfinished run"):
        asyncio.run(conduct(store, str(tmp_path_factory.mktemp("other")), Orders(1, 0.0), lambda view: None))
    done = asyncio.run(conduct(store, str(tree), Orders(2, 0.0), lambda view: None))
    assert isinstance(done, Finished)
    assert done.effort.sessions == 2
    assert done.run.audit() == []


def test_fewer_agents_are_let_go_of_and_more_join(store, tree):
    orders = Orders(4, 0.05)
    seen = []

    def watch(view):
        seen.append(len(view.progress.workers))
        orders.agents = {2: 1, 4: 3}.get(len(seen), orders.agents)
        orders.pace = 0.0 if len(seen) > 6 else orders.pace

    done = asyncio.run(conduct(store, str(tree), orders, watch))
    assert isinstance(done, Finished)
    assert max(seen) == 4
    assert done.effort.retries == 0


def test_a_wrong_outcome_is_an_error_and_noted(store, tree):
    def change(view):  # the recount has read it by now, and no agent has
        if 0 < view.progress.files[0] < 20:
            (tree / "b" / "c" / "9.py").write_text("import os\nimport sys\n")

    with pytest.raises(Mismatch, match="differ"):
        asyncio.run(conduct(store, str(tree), Orders(1, 0.05), change))
    root, ended = run.latest(store)
    assert ended
    assert store.events.read(root.id, type=RUN)[-1].event_type == FAILED
