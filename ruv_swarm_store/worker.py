"""A worker: claims tasks, calls a function with each, and stores what it returns or why it failed.

    def crawl(task):
        return {"links": count_links(task.payload["url"])}

    with Store.open("swarm.db") as store:
        Worker(store, crawl, types=["crawl"], concurrency=4).run()

`ruv-swarm work module:crawl` does the same from the command line.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import logging
import os
import platform
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from types import FrameType
from typing import Any, TypeVar

from ruv_swarm_store import codec
from ruv_swarm_store.clock import duration, new_id, system_clock
from ruv_swarm_store.entities import Agent, AgentStatus, Task, TaskStatus
from ruv_swarm_store.errors import Conflict, CorruptRow, InvalidTransition, InvalidValue, LeaseLost, NotFound, StoreError, Unsupported
from ruv_swarm_store.schema import agents
from ruv_swarm_store.store import Store
from ruv_swarm_store.tasks import DEFAULT_BACKOFF, Backoff

log = logging.getLogger(__name__)

T = TypeVar("T")
Function = Callable[[Task], Any]
"""What does a task. What it returns, if JSON can hold it, is the task's result; what it raises is why the task failed."""

WORKER = "worker"
"""The type of agent a worker registers."""
BEAT = 10.0
"""Most seconds from one heartbeat to the next."""
SILENCE = 3 * BEAT
"""Seconds without a heartbeat after which another worker may take an agent's name."""
PATIENCE = 1.0
"""Most seconds that a worker waits for tasks before it looks whether it is to stop."""
LOOK = 0.2
"""The same while it waits for anything else."""
RECONNECT = Backoff(initial=0.1, factor=2.0, maximum=5.0, jitter=0.2)
"""The waits between attempts to reach a database that is away."""

_DRAIN, _LEAVE = 1, 2


class GiveUp(Exception):
    """Raise it from a function to fail the task for good, whatever retries it has left."""


class Stopped(BaseException):
    """Raised inside a function by `check` and `pause` once it should stop: like `asyncio.CancelledError`, no `Exception`."""


class Attempt:
    """What a function can know of the attempt it makes; `current()` gives it."""

    def __init__(self, task: Task, store: Store) -> None:
        self.task = task
        self.store = store
        self.reason = ""
        """Why it should stop."""
        self.dropped = False
        """Whether the task is not this worker's any more, so that nothing of the attempt will be kept."""
        self._stop = threading.Event()

    @property
    def should_stop(self) -> bool:
        """Whether to stop: the task was cancelled, its lease was lost, or the worker has to leave at once."""
        return self._stop.is_set()

    def check(self) -> None:
        """Raises `Stopped` if the function should stop; the task is cancelled then if that is what was asked for."""
        if self._stop.is_set():
            raise Stopped(self.reason)

    def pause(self, seconds: float) -> None:
        """Sleeps, and raises `Stopped` as soon as the function should stop."""
        self._stop.wait(seconds)
        self.check()

    def stop(self, reason: str, *, dropped: bool) -> None:
        """Asks the function to stop."""
        self.reason = self.reason or reason
        self.dropped = self.dropped or dropped
        self._stop.set()


_current: ContextVar[Attempt] = ContextVar("attempt")


def current() -> Attempt:
    """The attempt that the calling function makes: its task, its store, and whether it should stop.

    Raises `StoreError` outside of one. A thread that the function starts itself has to be handed it.
    """
    try:
        return _current.get()
    except LookupError:
        raise StoreError("no task is being done here", hint="Call it in the function that a worker calls") from None


def find(reference: str) -> Function:
    """The function named by `module:function`.

    Raises `InvalidValue` for another form, `NotFound` for a module or a function that is not there, and `StoreError` for a
    module that cannot be imported.
    """
    module, _, path = reference.partition(":")
    if not module or not path:
        raise InvalidValue(f"{reference!r} names no function", hint="Write module:function, such as jobs:crawl")
    try:
        found: Any = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise NotFound(f"there is no module {error.name}", hint="Start in the directory it is in, or set PYTHONPATH") from error
        raise StoreError(f"{module} cannot be imported: {_one_line(error)}") from error
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise NotFound(f"{module} has no {path}", hint="Check its spelling") from None
    if not callable(found):
        raise InvalidValue(f"{reference} is a {type(found).__name__} and cannot be called", hint="Name a function that takes a task")
    function: Function = found
    return function


class Worker:
    """Does tasks: claims them as an agent of its own, calls `function` with each, at most `concurrency` at a time in threads.

    `types` restricts what it claims. A claim lasts `lease` seconds and is extended while the function runs. A function that
    raises has failed: the task is tried again after `backoff` while it has retries left, unless `GiveUp` was raised; a result
    that JSON cannot hold fails it for good. A function may complete, fail or release its task itself, together with what else
    it writes: the worker leaves that as it is. An async function is run in an event loop of its own.

    `name` is the agent's. A name in use is taken over once its holder has been silent for 30 seconds; `Conflict` if it is not.
    The worker needs an engine that can have threads, and outlives a database that is away for a while.
    """

    def __init__(
        self,
        store: Store,
        function: Function,
        *,
        types: Iterable[str] | None = None,
        concurrency: int = 1,
        lease: float = 30.0,
        name: str | None = None,
        backoff: Backoff = DEFAULT_BACKOFF,
    ) -> None:
        if not callable(function):
            raise InvalidValue(f"{function!r} is no function", hint="Give one that takes a task")
        if isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1:
            raise InvalidValue(f"concurrency is {concurrency!r}", hint="Give a whole number from 1 on")
        if isinstance(types, str):
            raise InvalidValue(f"types is the string {types!r}", hint="Give a list of task types")
        if duration(lease, "lease") < 100:
            raise InvalidValue(f"lease is {lease!r}", hint="Give at least 0.1 seconds")
        if not store.capabilities.threads:
            raise Unsupported(f"{store.address} cannot be used from threads, which a worker needs", hint="Await tasks.wait_async in a loop")
        self._store = store
        self._function = function
        self._types = None if types is None else list(types)
        self._concurrency = concurrency
        self._lease = lease
        self._backoff = backoff
        self._id = new_id(system_clock())
        self.name = name or f"{platform.node()}-{os.getpid()}-{self._id[-4:]}"
        """The agent's name."""
        self._stopping = 0  # a plain number, for a signal handler may find any lock taken
        self._attempts: set[Attempt] = set()  # a task may be in two of them: the lease of one is lost then
        self._changed = threading.Condition()
        self._jobs: queue.SimpleQueue[Attempt | None] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._shown = AgentStatus.IDLE

    def __repr__(self) -> str:
        return f"<Worker {self.name!r} of {self._store.address}>"

    def run(self, *, signals: bool = False) -> bool:
        """Works until `stop`; whether everything begun was ended. Call it once.

        With `signals`, SIGTERM and Ctrl-C call `stop`, and a second one `stop(at_once=True)`: the main thread has to call it.
        """
        with _handling(self._signalled) if signals else nullcontext():
            agent = self._insist("registering", self._register, until=_DRAIN)
            if agent is None:
                return True
            log.info("%s is ready for %s, %d at a time", self.name, " ".join(self._types or ["any task"]), self._concurrency)
            threads = [threading.Thread(target=self._work, name=f"worker-{n}", daemon=True) for n in range(self._concurrency)]
            heart = threading.Thread(target=self._beat, args=[agent], name="worker-heart", daemon=True)
            for thread in (*threads, heart):
                thread.start()
            try:
                try:
                    self._claim(agent)
                finally:
                    self._drain()
            finally:
                clean = self._leave(agent)
            if clean:
                for thread in (*threads, heart):
                    thread.join()
            return clean

    def stop(self, *, at_once: bool = False) -> None:
        """Takes nothing new, and ends when what runs is done; `at_once`, returns that to the queue. From any thread or signal handler."""
        self._stopping = max(self._stopping, _LEAVE if at_once else _DRAIN)

    # In the thread that runs it

    def _told(self, urgency: int) -> bool:
        """Whether `stop` was called, as urgently as that."""
        return self._stopping >= urgency

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        self.stop(at_once=self._told(_DRAIN))

    def _register(self) -> Agent | None:
        whereabouts = {"pid": os.getpid(), "host": platform.node(), "concurrency": self._concurrency}
        deadline = time.monotonic() + SILENCE + BEAT
        while True:
            try:
                # With an id, repeating it after an unclear outcome adds no second agent.
                return self._store.agents.register(
                    WORKER, id=self._id, name=self.name, capabilities=self._types or [], configuration=whereabouts
                )
            except Conflict as conflict:
                if conflict.data.get("name") != self.name or time.monotonic() > deadline:
                    raise
                holder = self._store.agents.where(agents.c.name == self.name, agents.c.status != AgentStatus.TERMINATED).first()
                if holder is not None and holder.type != WORKER:
                    raise
                if holder is not None and any(silent.id == holder.id for silent in self._store.agents.stale(SILENCE)):
                    log.warning("%s takes the place of one that fell silent", self.name)
                    self._store.agents.terminate(holder)
                    continue
                log.warning("another worker is named %s: waiting for it to fall silent", self.name)
            if self._sleep(BEAT / 2, until=_DRAIN):
                return None

    def _claim(self, agent: Agent) -> None:
        while not self._told(_DRAIN):
            with self._changed:
                if len(self._attempts) >= self._concurrency:
                    self._changed.wait(LOOK)
                    continue
            try:
                task = self._insist("waiting for tasks", lambda: self._wait(agent), until=_DRAIN)
            except CorruptRow as error:
                log.warning("%s", error)  # it stays claimed: the others can be done
                continue
            except NotFound as error:
                if error.data.get("id") != agent.id:
                    raise
                # Deleted, or lost when the database's machine went down just after it was registered.
                log.warning("this worker's agent is gone, and is registered anew")
                self._insist("registering", self._register, until=_DRAIN)
                continue
            except InvalidTransition as error:
                log.warning("this worker ends: %s", error.message)
                self.stop()
                return
            if task is None:
                continue
            attempt = Attempt(task, self._store)
            with self._changed:
                self._attempts.add(attempt)
            if self._told(_DRAIN):
                self._insist("returning a task", partial(self._release, attempt), until=_LEAVE)
            else:
                self._jobs.put(attempt)

    def _wait(self, agent: Agent) -> Task | None:
        return self._store.tasks.wait(agent, types=self._types, lease=self._lease, timeout=PATIENCE)

    def _drain(self) -> None:
        """Waits for what runs to end."""
        with self._changed:
            if self._attempts:
                log.info("%s finishes %d of its tasks", self.name, len(self._attempts))
            while self._attempts and not self._told(_LEAVE):
                self._changed.wait(LOOK)

    def _leave(self, agent: Agent) -> bool:
        left = self._running()
        for _ in range(self._concurrency):
            self._jobs.put(None)
        self._ended.set()
        try:
            for attempt in left:
                self._release(attempt)
            self._insist("terminating the agent", lambda: self._store.agents.terminate(agent), until=0 if left else _LEAVE)
        except NotFound:
            pass
        except StoreError as error:
            log.warning("%s leaves without taking leave, and its tasks return when their leases expire: %s", self.name, error.message)
        log.info("%s has ended", self.name)
        return not left

    def _release(self, attempt: Attempt) -> None:
        """Gives a task back unharmed. Raises `StoreError` when the database is away."""
        attempt.stop("the worker had to leave", dropped=True)
        try:
            self._store.tasks.release(attempt.task)
            log.info("%s returned to the queue", _named(attempt.task))
        except (Conflict, NotFound) as error:
            log.info("%s: %s", _named(attempt.task), error.message)  # it has just ended
        finally:
            self._forget(attempt)

    def _running(self) -> list[Attempt]:
        with self._changed:
            return list(self._attempts)

    def _forget(self, attempt: Attempt) -> None:
        with self._changed:
            self._attempts.discard(attempt)
            self._changed.notify_all()

    def _insist(self, what: str, call: Callable[[], T], *, until: int) -> T | None:
        """Calls until the database answers; None when it did not before the worker had to stop (`until` says how urgently)."""
        tries = 0
        while True:
            try:
                return call()
            except StoreError as error:
                if not error.retryable:
                    raise
                wait = RECONNECT.seconds(tries)
                log.warning("%s: no answer from the database, trying again in %.1f s: %s", what, wait, error.message)
            tries += 1
            if self._sleep(wait, until=until):
                return None

    def _sleep(self, seconds: float, *, until: int) -> bool:
        """Sleeps; cut short and true when the worker has to stop that urgently."""
        deadline = time.monotonic() + seconds
        while not self._told(until) and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, LOOK))
        return self._told(until)

    # In the threads that do the tasks

    def _work(self) -> None:
        while (attempt := self._jobs.get()) is not None:
            try:
                self._do(attempt)
            except Exception:
                log.exception("%s could not be ended, and returns when its lease expires", _named(attempt.task))
            self._forget(attempt)

    def _do(self, attempt: Attempt) -> None:
        try:
            attempt.task = self._store.tasks.start(attempt.task)
        except (LeaseLost, NotFound) as error:
            log.warning("%s was not begun: %s", _named(attempt.task), error.message)
            return
        except InvalidTransition as error:
            if error.data.get("actual") != TaskStatus.RUNNING:
                log.warning("%s was not begun: %s", _named(attempt.task), error.message)
                return
        except StoreError as error:
            if not error.retryable:
                raise
            log.warning("%s could not be marked as running: %s", _named(attempt.task), error.message)  # which changes nothing else
        token = _current.set(attempt)
        began = time.monotonic()
        try:
            result = self._function(attempt.task)
            if inspect.iscoroutine(result):
                result = asyncio.run(result)
        except BaseException as error:  # what would end a thread must not end the worker
            self._end(attempt, partial(self._failed, attempt, error))
        else:
            self._end(attempt, partial(self._completed, attempt, result, time.monotonic() - began))
        finally:
            _current.reset(token)

    def _end(self, attempt: Attempt, verb: Callable[[], object]) -> None:
        """Stores how an attempt ended, for as long as it takes to reach the database."""
        task = attempt.task
        try:
            self._insist(_named(task), verb, until=_LEAVE)
        except (LeaseLost, InvalidTransition, NotFound) as error:
            found = self._insist(_named(task), lambda: self._store.tasks.find_by_id(task.id), until=_LEAVE)
            if found is not None and found.fence == task.fence and found.status == TaskStatus.COMPLETED:
                # By the function itself; or the first time round, before an answer that never came.
                log.info("%s is completed", _named(task))
            else:
                log.warning("%s: what came of it is dropped: %s", _named(task), error.message)

    def _completed(self, attempt: Attempt, result: Any, seconds: float) -> None:
        task = attempt.task
        if attempt.dropped:
            log.warning("%s: its result is dropped: %s", _named(task), attempt.reason)
            return
        try:
            self._store.tasks.complete(task, result)
            log.info("%s completed in %.3f s", _named(task), seconds)
        except InvalidValue as error:
            log.warning("%s failed for good: %s", _named(task), error)
            self._store.tasks.fail(task, f"the function returned what cannot be stored: {error}", retry=False)

    def _failed(self, attempt: Attempt, error: BaseException) -> None:
        task = attempt.task
        if attempt.dropped:
            log.info("%s stopped: %s", _named(task), attempt.reason)
        elif attempt.should_stop:
            self._store.tasks.cancel(task)
            log.info("%s is cancelled", _named(task))
        else:
            failed = self._store.tasks.fail(task, error, retry=not isinstance(error, GiveUp), backoff=self._backoff)
            left = "for good" if failed.status == TaskStatus.FAILED else f"with {failed.max_retries - failed.retry_count + 1} retries left"
            log.warning("%s failed %s", _named(task), left, exc_info=error)

    # In the thread of the heart

    def _beat(self, agent: Agent) -> None:
        pause = usual = min(self._lease / 3, BEAT)
        while not self._ended.wait(pause):
            try:
                for attempt in self._running():
                    self._extend(attempt)
                self._show(agent)
                pause = usual
            except StoreError as error:
                if self._ended.is_set():
                    pass
                elif isinstance(error, InvalidTransition):
                    log.warning("this worker ends: %s", error.message)
                    self.stop()
                elif isinstance(error, NotFound):
                    pass  # the thread that waits for tasks registers it anew
                elif error.retryable:
                    pause = min(usual, 1.0)
                    log.warning("no heartbeat: %s", error.message)
                else:
                    log.exception("no heartbeat")

    def _extend(self, attempt: Attempt) -> None:
        renew: Callable[..., bool | None] = self._store.tasks.heartbeat
        try:
            if renew(attempt.task, lease=self._lease) is False:
                attempt.stop("the task was cancelled", dropped=False)
        except (LeaseLost, InvalidTransition, NotFound) as error:
            if error.data.get("actual") != TaskStatus.COMPLETED:  # or else it has just ended
                attempt.stop(error.message, dropped=True)

    def _show(self, agent: Agent) -> None:
        status = AgentStatus.BUSY if self._attempts else AgentStatus.IDLE
        if status is not self._shown:
            self._store.agents.set_status(agent, status)
            self._shown = status
        self._store.agents.heartbeat(agent)


def _named(task: Task) -> str:
    return f"{task.type} {task.id}"


def _one_line(error: BaseException) -> str:
    return " ".join(codec.reason(error).split())


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
