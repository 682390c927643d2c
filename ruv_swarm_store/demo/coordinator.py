"""The coordinator: begins or resumes a run, keeps its workers going, and checks the outcome before anybody reports it."""

from __future__ import annotations

import time
from collections import deque

from msgspec import to_builtins

from ruv_swarm_store.demo.crew import Crew
from ruv_swarm_store.demo.display import Display, Scene
from ruv_swarm_store.demo.enlistment import discharge, enlist, silent
from ruv_swarm_store.demo.fresh import forget
from ruv_swarm_store.demo.outcome import Finished, Stopped, conclude
from ruv_swarm_store.demo.progress import Progress, Throughput, look
from ruv_swarm_store.demo.run import STOPPED, Run, begin
from ruv_swarm_store.demo.stopping import Stop, stop_signals
from ruv_swarm_store.demo.totals import Recount
from ruv_swarm_store.demo.verification import Recounting
from ruv_swarm_store.demo.work import BEAT, FINDINGS
from ruv_swarm_store.entities import Agent
from ruv_swarm_store.errors import Unsupported
from ruv_swarm_store.store import Store

TICK = 0.1
"""Seconds from one look at everything to the next."""
PATIENCE = 5.0
"""Seconds that workers with nothing left to do have for ending."""
REMEMBERED = 6
"""Findings kept for display."""


def conduct(address: str, path: str, *, workers: int, slowdown: float, fresh: bool, display: Display) -> Finished | Stopped:
    """Runs the swarm over a tree until all is done or somebody asks to stop.

    `slowdown` is in seconds for each file. Raises `Mismatch` when the outcome is not what a recount finds, and `Conflict` when
    the store is in use, or holds an unfinished run over another tree.
    """
    if fresh:
        forget(address)
    with Store.open(address) as store, stop_signals() as stop:
        if not store.capabilities.processes:
            raise Unsupported("the demo's workers are processes, and this store is one process's own", hint="Give the path of a file")
        me = enlist(store)
        try:
            run, resumed = begin(store, path)
            discharge(store)
            recounting = Recounting(path)
            crew = Crew(store, address, run, workers, slowdown)
            try:
                with display:
                    if resumed:
                        display.say("Going on with a run that was not finished.")
                    ended = _Watch(store, run, me, crew, recounting, display, stop).keep()
            finally:
                crew.dismiss()
                recounting.stop()
            if isinstance(ended, Stopped):
                run.note(STOPPED, to_builtins(ended))
                return ended
            return conclude(store, run, ended)
        finally:
            store.agents.terminate(me)


class _Watch:
    """The coordinator at work."""

    def __init__(self, store: Store, run: Run, me: Agent, crew: Crew, recounting: Recounting, display: Display, stop: Stop) -> None:
        self._store = store
        self._run = run
        self._me = me
        self._crew = crew
        self._recounting = recounting
        self._display = display
        self._stop = stop
        self._findings: deque[str] = deque(maxlen=REMEMBERED)
        self._throughput = Throughput()
        self._next_round = 0.0

    def keep(self) -> Stopped | Recount:
        """Keeps the run going to its end, or until asked to stop."""
        began = time.monotonic()
        over: float | None = None
        progress = look(self._store, self._run)
        while True:
            if not progress.is_over:
                for news in self._crew.tend():
                    self._display.say(news)
            self._make_rounds()
            self._listen()
            progress = look(self._store, self._run)
            now = time.monotonic()
            if over is None and progress.is_over:
                over = now
                self._crew.drain()
            recount = self._recounting.result()
            self._show(progress, now - began, over is not None)
            if self._stop.signal is not None:
                self._crew.drain()
                if self._stop.at_once:
                    self._crew.kill()
                self._crew.tend()
                if self._crew.is_gone:
                    return Stopped(self._stop.signal, *look(self._store, self._run).files)
            elif over is not None:
                self._crew.tend()
                if not self._crew.is_gone and now - over > PATIENCE:
                    self._crew.kill()
                elif self._crew.is_gone and recount is not None:
                    return recount
            time.sleep(TICK)

    def _make_rounds(self) -> None:
        """Once in a while: a sign of life, and a look for those who give none."""
        if (now := time.monotonic()) < self._next_round:
            return
        self._next_round = now + BEAT
        self._store.agents.heartbeat(self._me)
        self._store.tasks.rescue()
        for agent in silent(self._store):
            self._display.say(f"{agent.name} has fallen silent and is given up")
            self._store.agents.terminate(agent)
            self._crew.kill(agent.id)

    def _listen(self) -> None:
        for message in self._store.messages.receive(self._me, FINDINGS):
            self._findings.append(f"{message.content['path']} {message.content['what']}")
            self._store.messages.acknowledge(message, self._me)

    def _show(self, progress: Progress, elapsed: float, over: bool) -> None:
        rate = self._throughput.measure(progress.completed)
        stage = None
        if self._stop.signal is not None:
            stage = "stopping: workers finish the files in hand"
        elif over:
            stage = "everything is done, waiting for the recount"
        self._display.show(Scene(self._run.path, elapsed, progress, rate, list(self._findings), stage))
