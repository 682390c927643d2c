"""The same run without processes, for a browser: agents are coroutines that take turns, in one thread and over one open store.

An agent gives way to the others between its look at a file and the transaction that records it, so there are leases to be lost here
too: `Agents.kill` ends one in the middle of its work, and closing the tab ends all of them.
"""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from msgspec import Struct, to_builtins

from ruv_swarm_store.demo.enlistment import discharge, enlist, silent
from ruv_swarm_store.demo.liveness import whereabouts
from ruv_swarm_store.demo.outcome import Finished, Stopped, conclude
from ruv_swarm_store.demo.progress import Progress, Throughput, look
from ruv_swarm_store.demo.recount import counting
from ruv_swarm_store.demo.run import FILE, STOPPED, TYPES, Run, begin
from ruv_swarm_store.demo.totals import Recount
from ruv_swarm_store.demo.work import BEAT, FINDINGS, INDEXER, LEASE, examine, record
from ruv_swarm_store.entities import Agent, AgentStatus, Task
from ruv_swarm_store.errors import InvalidTransition, LeaseLost
from ruv_swarm_store.schema import agents as agents_table
from ruv_swarm_store.store import Store

TICK = 0.2
"""Seconds from one look at everything to the next."""
PAUSE = 0.3
"""Seconds an agent waits for a task before it asks whether to go on."""
SLICE = 0.02
"""Seconds the recount takes before the agents have their turn again."""


class View(Struct, frozen=True):
    """What there is to see at one moment."""

    run: Run
    elapsed: float
    progress: Progress
    rate: float
    said: list[str]
    """What happened since the last one."""
    stage: str | None
    """What is being waited for, unless it is the work itself."""


class Orders:
    """What the one who watches wants of a run while it goes on; each may be set at any time."""

    def __init__(self, agents: int, pace: float) -> None:
        """`pace` is in seconds for each file."""
        self.agents = agents
        self.pace = pace
        self.stop = False
        self.kill: set[str] = set()
        """Ids of agents to end in the middle of what they do."""


class Agents:
    """As many coroutines as wanted, for as long as wanted."""

    def __init__(self, store: Store, run: Run, orders: Orders) -> None:
        self._store = store
        self._run = run
        self._root = Path(run.path)
        self._orders = orders
        self._at_work: dict[str, tuple[Agent, asyncio.Task[None]]] = {}
        self._held: dict[str, Task] = {}
        self._leaving: set[str] = set()
        self._numbered = store.agents.where(agents_table.c.type == INDEXER).count()

    def tend(self, wanted: int) -> list[str]:
        """Takes note of agents that ended, starts new ones and lets go of others until there are as many as wanted; what happened."""
        for id in self._orders.kill & self._at_work.keys():
            self._at_work[id][1].cancel()
        self._orders.kill.clear()
        said = []
        for id in [id for id, (_, doing) in self._at_work.items() if doing.done()]:
            agent, doing = self._at_work.pop(id)
            self._held.pop(id, None)
            self._leaving.discard(id)
            if self._store.agents.get(id).status is not AgentStatus.TERMINATED:
                self._store.agents.terminate(agent)  # its task is free again at once, rather than when the lease expires
            if doing.cancelled():
                said.append(f"{agent.name} was killed; what it was doing is back in the queue")
            elif (error := doing.exception()) is not None and not isinstance(error, InvalidTransition):  # that one was given up
                raise error
        while len(self._at_work) - len(self._leaving) < wanted:
            said.append(f"{self._start().name} joins")
        for id in list(self._at_work.keys() - self._leaving)[: max(0, len(self._at_work) - len(self._leaving) - wanted)]:
            self._leaving.add(id)
        return said

    @property
    def are_gone(self) -> bool:
        """Whether none is left."""
        return not self._at_work

    def beat(self) -> None:
        """A sign of life of all of them, and an extension of every lease."""
        self._store.agents.heartbeat_many(list(self._at_work))
        for task in list(self._held.values()):
            with suppress(LeaseLost, InvalidTransition):  # its completion will find out
                self._store.tasks.heartbeat(task, lease=LEASE)

    async def dismiss(self) -> None:
        """Ends every agent at once; what one was doing returns to the queue."""
        self._orders.kill.update(self._at_work)
        for _, doing in self._at_work.values():
            doing.cancel()
        await asyncio.gather(*(doing for _, doing in self._at_work.values()), return_exceptions=True)
        self.tend(0)

    def _start(self) -> Agent:
        self._numbered += 1
        about = {**whereabouts(), "run": self._run.id}
        agent = self._store.agents.register(INDEXER, name=f"{INDEXER}-{self._numbered}", capabilities=["python"], configuration=about)
        self._at_work[agent.id] = agent, asyncio.ensure_future(self._work(agent))
        return agent

    async def _work(self, agent: Agent) -> None:
        status = AgentStatus.IDLE
        while agent.id not in self._leaving:
            task = await self._store.tasks.wait_async(agent, types=TYPES, lease=LEASE, timeout=PAUSE)
            if (now := AgentStatus.IDLE if task is None else AgentStatus.BUSY) is not status:
                self._store.agents.set_status(agent, status := now)
            if task is not None:
                self._held[agent.id] = task
                await self._do(agent, task)
                del self._held[agent.id]

    async def _do(self, agent: Agent, task: Task) -> None:
        try:
            task = self._held[agent.id] = self._store.tasks.start(task)
            found = examine(self._root, task)
            await asyncio.sleep(self._orders.pace if task.type == FILE else 0)
            record(self._store, agent, task, found)
        except (LeaseLost, InvalidTransition):
            pass  # somebody else has the task by now: nothing of this attempt was kept
        except Exception as error:
            self._store.tasks.fail(task, error, delay=0.5)


async def conduct(store: Store, path: str, orders: Orders, show: Callable[[View], None]) -> Finished | Stopped:
    """Runs the swarm over a tree until all is done or `orders` say stop, showing it every now and then.

    Raises `Mismatch` when the outcome is not what a recount finds, and `Conflict` when the store is in use, or holds an unfinished
    run over another tree.
    """
    me = enlist(store)
    try:
        run, resumed = begin(store, path)
        discharge(store)
        agents = Agents(store, run, orders)
        recounting = asyncio.ensure_future(_recount(path))
        try:
            said = ["Going on with a run that was not finished"] if resumed else []
            recount = await _keep(store, run, me, agents, orders, recounting, show, said)
        finally:
            recounting.cancel()
            await agents.dismiss()
        if recount is None:
            stopped = Stopped(0, *look(store, run).files)
            run.note(STOPPED, to_builtins(stopped))
            return stopped
        return conclude(store, run, recount)
    finally:
        store.agents.terminate(me)


async def _keep(
    store: Store,
    run: Run,
    me: Agent,
    agents: Agents,
    orders: Orders,
    recounting: asyncio.Future[Recount],
    show: Callable[[View], None],
    said: list[str],
) -> Recount | None:
    """Keeps a run going to its end, or until asked to stop: None."""
    began, next_round, throughput = time.monotonic(), 0.0, Throughput()
    while True:
        progress = look(store, run)
        over = progress.is_over
        said += agents.tend(0 if over or orders.stop else orders.agents)
        if (now := time.monotonic()) >= next_round:
            next_round = now + BEAT
            said += _make_rounds(store, me, agents, orders)
        said += _listen(store, me)
        stage = "stopping: agents finish the files in hand" if orders.stop else "recounting everything" if over else None
        show(View(run, now - began, progress, throughput.measure(progress.completed), said, stage))
        said = []
        if agents.are_gone:
            if orders.stop and not over:
                return None
            if recounting.done():
                return recounting.result()
        await asyncio.sleep(TICK)


def _make_rounds(store: Store, me: Agent, agents: Agents, orders: Orders) -> list[str]:
    """Signs of life, and a look for those who give none."""
    store.agents.heartbeat(me)
    agents.beat()
    store.tasks.rescue()
    said = []
    for agent in silent(store):
        said.append(f"{agent.name} has fallen silent and is given up")
        store.agents.terminate(agent)
        orders.kill.add(agent.id)
    return said


def _listen(store: Store, me: Agent) -> list[str]:
    said = []
    for message in store.messages.receive(me, FINDINGS):
        said.append(f"{message.content['path']} {message.content['what']}")
        store.messages.acknowledge(message, me)
    return said


async def _recount(path: str) -> Recount:
    """The recount, taking turns with the agents."""
    steps = counting(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the code that is read
        while True:
            until = time.monotonic() + SLICE
            try:
                while time.monotonic() < until:
                    next(steps)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            await asyncio.sleep(0)
