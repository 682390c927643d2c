"""A worker: one process that claims tasks, does them, and records what it did in the transaction that completes them.

It ends when its standard input ends: the coordinator closes it, or dies, which comes to the same.
"""

from __future__ import annotations

import argparse
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ruv_swarm_store.demo import run as runs
from ruv_swarm_store.demo.leash import when_input_ends
from ruv_swarm_store.demo.liveness import whereabouts
from ruv_swarm_store.demo.run import FILE, TYPES, Run
from ruv_swarm_store.demo.work import BEAT, INDEXER, LEASE, examine, record
from ruv_swarm_store.entities import Agent, AgentStatus, Task
from ruv_swarm_store.errors import InvalidTransition, LeaseLost, StoreError
from ruv_swarm_store.store import Store


class Heart:
    """Keeps the agent's heartbeat and the lease on its task going, on a thread of its own."""

    def __init__(self, store: Store, agent: Agent, drain: threading.Event) -> None:
        self._store = store
        self._agent = agent
        self._drain = drain
        self._task: Task | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heart", daemon=True)
        self._thread.start()

    @contextmanager
    def hold(self, task: Task) -> Iterator[None]:
        """Extends the lease on `task` for as long as the block runs."""
        self._task = task
        try:
            yield
        finally:
            self._task = None

    def stop(self) -> None:
        """Ends the heartbeat."""
        self._stopped.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._stopped.wait(BEAT):
            try:
                self._store.agents.heartbeat(self._agent)
                if (task := self._task) is not None:
                    self._store.tasks.heartbeat(task, lease=LEASE)
            except InvalidTransition as error:
                if error.data.get("id") == self._agent.id:  # else the task was completed just now
                    self._drain.set()
            except StoreError:
                pass  # the task is lost, which its completion will find out; or else the next beat gets through


class Worker:
    """What one process does from its start to its end."""

    def __init__(self, store: Store, run: Run, agent: Agent, drain: threading.Event, pace: float) -> None:
        self._store = store
        self._root = Path(run.path)
        self._agent = agent
        self._drain = drain
        self._pace = pace

    def work(self) -> None:
        """Does tasks until told to drain. The one in hand is finished first."""
        heart = Heart(self._store, self._agent, self._drain)
        status = AgentStatus.IDLE
        try:
            while not self._drain.is_set():
                task = self._store.tasks.wait(self._agent, types=TYPES, lease=LEASE, timeout=0.3)
                if (now := AgentStatus.IDLE if task is None else AgentStatus.BUSY) is not status:
                    self._store.agents.set_status(self._agent, status := now)
                if task is not None:
                    with heart.hold(task):
                        self._do(task)
        finally:
            heart.stop()

    def _do(self, task: Task) -> None:
        try:
            task = self._store.tasks.start(task)
            found = examine(self._root, task)
            if self._pace and task.type == FILE:
                self._drain.wait(self._pace)
            record(self._store, self._agent, task, found)
        except (LeaseLost, InvalidTransition):
            pass  # somebody else has the task by now: nothing of this attempt was kept
        except Exception as error:
            self._store.tasks.fail(task, error, delay=0.5)


def main() -> None:
    """Runs a worker: what the coordinator starts."""
    arguments = argparse.ArgumentParser(description="A worker of the demo swarm; `ruv-swarm demo` starts it.")
    for name in ("store", "run", "agent", "name"):
        arguments.add_argument(f"--{name}", required=True)
    arguments.add_argument("--pace", type=float, default=0.0)
    given = arguments.parse_args()
    warnings.simplefilter("ignore")  # about the code that is read

    drain = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the coordinator, which lets its workers drain
    signal.signal(signal.SIGTERM, lambda *_: drain.set())
    when_input_ends(drain.set)
    with Store.open(given.store, migrate=False) as store:
        run = runs.find(store, given.run)
        agent = store.agents.register(
            INDEXER, id=given.agent, name=given.name, capabilities=["python"], configuration={**whereabouts(), "run": run.id}
        )
        try:
            Worker(store, run, agent, drain, given.pace).work()
        except InvalidTransition:
            pass  # this agent was terminated: it was taken for dead, and its tasks were given to others
        finally:
            store.agents.terminate(agent)


if __name__ == "__main__":
    main()
