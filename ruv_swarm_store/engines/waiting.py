"""How a verb waits for others: it says for what and how long, and its caller either blocks or lets the event loop go on."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import NamedTuple, TypeVar

from ruv_swarm_store.engines.executor import Interest, Scope

T = TypeVar("T")

_LINGER = 1.0
"""Seconds after which a sentinel that nobody needs any more has ended, and between two looks for those who have an interest in common."""


class Pause(NamedTuple):
    """Where a verb has nothing to do. Away from any event loop it is to be awaited by who steps its coroutine there."""

    seen: int
    """What `changes()` gave before it looked."""
    seconds: float
    """How long at most it has nothing to do while that is so."""
    interest: Interest | None = None
    """What can be looked for on its behalf."""

    def __await__(self) -> Generator[Pause, None, None]:
        yield self


Steps = Generator[Pause, None, T]
"""A verb that waits."""


def block(scope: Scope, steps: Steps[T]) -> T:
    """Carries a verb out; its thread sleeps while it waits."""
    try:
        while True:
            pause = next(steps)
            scope.wait(pause.seen, pause.seconds)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


async def cooperate(scope: Scope, steps: Steps[T]) -> T:
    """Carries a verb out; the event loop goes on while it waits. Cancelled, it has taken nothing."""
    try:
        while True:
            pause = next(steps)
            if scope.within or _on_a_loop():
                await scope.wait_async(*pause)
            else:
                await pause
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


async def give_way(scope: Scope) -> None:
    """Lets others go on, between two parts of a verb that has more to do at once."""
    if scope.within or _on_a_loop():
        await asyncio.sleep(0)
    else:
        await Pause(0, 0.0)


def _on_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


Sleeper = asyncio.Future[None]


class Sentinel:
    """One thread that waits for commits for all coroutines that do; it runs only while there are any.

    Who has no interest to tell is woken by every commit. For those with the same interest the thread looks, once, and wakes
    as many as there is something for, who has waited longest first.
    """

    def __init__(self, changes: Callable[[], int], wait: Callable[[int, float], bool]) -> None:
        self._changes = changes
        self._wait = wait
        self._lock = threading.Lock()
        self._sleepers: dict[Sleeper, Interest | None] = {}
        self._thread: threading.Thread | None = None
        self._seen = 0
        """The changes that those who are asleep have been looked for after."""
        self._again = 0.0
        """When it looks for them at the latest."""

    async def wait(self, seen: int, seconds: float, interest: Interest | None = None) -> bool:
        """Returns when there are other changes than `seen`, after at most `seconds`; whether there are. Raises what looking raises.

        With an interest, when there is something for it, or after its `seconds`.
        """
        sleeper: Sleeper = asyncio.get_running_loop().create_future()
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._seen, self._again = seen, time.monotonic() + _LINGER
                self._thread = threading.Thread(target=self._watch, name="store-sentinel", daemon=True)
                self._thread.start()
            self._sleepers[sleeper] = interest
            late = self._seen > seen  # for this one nobody has looked
            alone = interest is None or time.monotonic() + seconds < self._again
        try:
            if not late and (interest is not None or self._changes() == seen):
                # `wait_for` forgets a cancellation that comes with the result, on 3.11
                await asyncio.wait([sleeper], timeout=seconds if alone or interest is None else interest.seconds)
                if sleeper.done():
                    sleeper.result()
            return self._changes() != seen
        finally:
            with self._lock:
                self._sleepers.pop(sleeper, None)

    def _watch(self) -> None:
        ticked, pause = time.monotonic(), _LINGER
        while True:
            failure: Exception | None = None
            woken: list[Sleeper] = []
            try:
                self._wait(self._seen, pause)
                seen = self._changes()
                with self._lock:
                    self._seen = seen  # before anybody is looked for: who comes too late to be looks after this
                    sleepers = dict(self._sleepers)
                tick = time.monotonic() - ticked >= _LINGER
                if tick:
                    ticked = time.monotonic()
                woken, pause = _look(sleepers, tick)
            except Exception as error:
                failure = error
            with self._lock:
                if failure is not None:
                    woken = list(self._sleepers)
                for sleeper in woken:
                    self._sleepers.pop(sleeper, None)
                self._again = time.monotonic() + pause
                ended = failure is not None or not (woken or self._sleepers)
                if ended:
                    self._thread = None
            for sleeper in woken:
                with suppress(RuntimeError):  # its event loop is closed
                    sleeper.get_loop().call_soon_threadsafe(_wake, sleeper, failure)
            if ended:
                return


def _look(sleepers: dict[Sleeper, Interest | None], tick: bool) -> tuple[list[Sleeper], float]:
    """Whom to wake, and after how many seconds to look again though nothing is committed."""
    woken: list[Sleeper] = []
    groups: dict[object, list[tuple[Sleeper, Interest]]] = {}
    for sleeper, interest in sleepers.items():
        if interest is None or sleeper.get_loop().is_closed():
            woken.append(sleeper)
        else:
            groups.setdefault(interest.key, []).append((sleeper, interest))
    pause = _LINGER
    for group in groups.values():
        chosen, seconds = group[0][1].look([interest for _, interest in group], tick)
        woken += [group[index][0] for index in chosen]
        pause = min(pause, max(seconds, 0.001))
    return woken, pause


def _wake(sleeper: asyncio.Future[None], failure: Exception | None) -> None:
    if sleeper.done():
        return
    if failure is None:
        sleeper.set_result(None)
    else:
        sleeper.set_exception(failure)
