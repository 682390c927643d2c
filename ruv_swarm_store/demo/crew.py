"""The worker processes: started, watched, replaced when they die, drained at the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import IO

from msgspec import Struct

from ruv_swarm_store.clock import new_id
from ruv_swarm_store.demo.run import Run
from ruv_swarm_store.demo.work import INDEXER
from ruv_swarm_store.errors import StoreError
from ruv_swarm_store.schema import agents
from ruv_swarm_store.store import Store

CRASHES = 5
"""Workers that end in an error of their own, after which it is no use starting more."""


def spawn(module: str, *arguments: str, stdout: int | IO[bytes], stderr: int | IO[bytes]) -> subprocess.Popen[bytes]:
    """Starts one of this package's modules in a process of its own, whose input ends when this process does."""
    return subprocess.Popen(
        # -P and this process's own path: the package is found where this process found it, whatever lies in the directory.
        [sys.executable, "-P", "-m", f"ruv_swarm_store.demo.{module}", *arguments],
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=stderr,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.curdir for entry in sys.path)},
        # A group of its own keeps the terminal's Ctrl-C away: the workers are drained instead.
        process_group=0 if os.name == "posix" else None,
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )


class Hand(Struct):
    """One worker's process."""

    agent: str
    name: str
    process: subprocess.Popen[bytes]
    errors: IO[bytes]


class Crew:
    """As many workers as wanted, for as long as wanted."""

    def __init__(self, store: Store, address: str, run: Run, size: int, pace: float) -> None:
        self._store = store
        self._address = address
        self._run = run
        self.size = size
        self._pace = pace
        self._hands: list[Hand] = []
        self._numbered = store.agents.where(agents.c.type == INDEXER).count()
        self._crashes = 0
        self._draining = False

    def tend(self) -> list[str]:
        """Takes note of workers that ended, and starts new ones until there are enough; what happened, in words.

        Raises `StoreError` when workers keep failing by themselves.
        """
        news = []
        for hand in [hand for hand in self._hands if hand.process.poll() is not None]:
            self._hands.remove(hand)
            self._let_go(hand)
            returned = hand.process.returncode
            hand.errors.seek(0)
            said = hand.errors.read().decode(errors="replace").strip()
            hand.errors.close()
            if (lost := self._store.agents.find_by_id(hand.agent)) is not None:
                self._store.agents.terminate(lost)  # its task is free again at once, rather than when the lease expires
            if self._draining and returned == 0:
                continue
            news.append(f"{hand.name} (pid {hand.process.pid}) {_ended(returned)}")
            if returned > 0:
                self._crashes += 1
                news += [said] if said else []
            if self._crashes >= CRASHES and not self._draining:
                raise StoreError(f"workers keep failing: {_last_line(said)}", hint="The run can be resumed once that is put right")
        if not self._draining:
            while len(self._hands) < self.size:
                self._start()
        return news

    def _start(self) -> None:
        self._numbered += 1
        agent, name = new_id(time.time_ns() // 1_000_000), f"{INDEXER}-{self._numbered}"
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the process has ended
        arguments = {"store": self._address, "run": self._run.id, "agent": agent, "name": name, "pace": str(self._pace)}
        flags = [text for key, value in arguments.items() for text in (f"--{key}", value)]
        process = spawn("worker", *flags, stdout=subprocess.DEVNULL, stderr=errors)
        self._hands.append(Hand(agent, name, process, errors))

    @property
    def is_gone(self) -> bool:
        """Whether no worker is left."""
        return not self._hands

    def drain(self) -> None:
        """Lets every worker finish the task in hand and end; no new one is started."""
        self._draining = True
        for hand in self._hands:
            self._let_go(hand)

    def _let_go(self, hand: Hand) -> None:
        assert hand.process.stdin is not None
        hand.process.stdin.close()

    def dismiss(self) -> None:
        """Ends every worker at once, for good; what one was doing returns to the queue."""
        self.drain()
        self.kill()
        self.tend()

    def kill(self, agent: str | None = None) -> None:
        """Ends the worker that is this agent, or every one, at once; `tend` sees to what it was doing."""
        for hand in self._hands:
            if agent in (None, hand.agent):
                hand.process.kill()
                hand.process.wait()


def _ended(returned: int) -> str:
    if returned >= 0:
        return f"ended with exit code {returned}"
    try:
        return f"was killed by {signal.Signals(-returned).name}"
    except ValueError:
        return f"was killed by signal {-returned}"


def _last_line(text: str) -> str:
    lines: Sequence[str] = text.splitlines()
    return lines[-1] if lines else "they said nothing"
