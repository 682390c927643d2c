"""How a verb waits for others: it says for what and how long, and its caller either blocks or lets the event loop go on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import NamedTuple, TypeVar

from ruv_swarm_store.engines.executor import Scope

T = TypeVar("T")
Steps = Generator[tuple[int, float], None, T]
"""A verb that waits. Each step is what `changes()` gave it, and for how many seconds at most it has nothing to do while that is so."""

_LINGER = 1.0
"""Seconds after which a sentinel that nobody needs any more has ended."""


class Pause(NamedTuple):
    """Where a verb has nothing to do that is carried out away from any event loop: to be awaited by who steps its coroutine there."""

    seen: int
    seconds: float

    def __await__(self) -> Generator[Pause, None, None]:
        yield self


def block(scope: Scope, steps: Steps[T]) -> T:
    """Carries a verb out; its thread sleeps while it waits."""
    try:
        while True:
            scope.wait(*next(steps))
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


async def cooperate(scope: Scope, steps: Steps[T]) -> T:
    """Carries a verb out; the event loop goes on while it waits. Cancelled, it has taken nothing."""
    try:
        while True:
            pause = Pause(*next(steps))
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


class Sentinel:
    """One thread that waits for commits for all coroutines that do; it runs only while there are any."""

    def __init__(self, changes: Callable[[], int], wait: Callable[[int, float], bool]) -> None:
        self._changes = changes
        self._wait = wait
        self._lock = threading.Lock()
        self._sleepers: set[asyncio.Future[None]] = set()
        self._thread: threading.Thread | None = None

    async def wait(self, seen: int, seconds: float) -> bool:
        """Returns when there are other changes than `seen`, after at most `seconds`; whether there are. Raises what looking raises."""
        sleeper = asyncio.get_running_loop().create_future()
        with self._lock:
            self._sleepers.add(sleeper)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._watch, args=[seen], name="store-sentinel", daemon=True)
                self._thread.start()
        try:
            if self._changes() == seen:
                await asyncio.wait([sleeper], timeout=seconds)  # `wait_for` forgets a cancellation that comes with the result, on 3.11
                if sleeper.done():
                    sleeper.result()
            return self._changes() != seen
        finally:
            with self._lock:
                self._sleepers.discard(sleeper)

    def _watch(self, seen: int) -> None:
        failure: Exception | None = None
        while True:
            try:
                self._wait(seen, _LINGER)
                seen = self._changes()  # before it wakes anybody: who comes too late to be woken looks after this
            except Exception as error:
                failure = error
            with self._lock:
                sleepers, self._sleepers = self._sleepers, set()
                if not sleepers or failure is not None:
                    self._thread = None
            for sleeper in sleepers:
                with suppress(RuntimeError):  # its event loop is closed
                    sleeper.get_loop().call_soon_threadsafe(_wake, sleeper, failure)
            if not sleepers or failure is not None:
                return


def _wake(sleeper: asyncio.Future[None], failure: Exception | None) -> None:
    if sleeper.done():
        return
    if failure is None:
        sleeper.set_result(None)
    else:
        sleeper.set_exception(failure)
