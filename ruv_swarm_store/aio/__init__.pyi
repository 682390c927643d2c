"""Written by tests/programs/aio_stub.py, from the classes that block and the recipes for these: do not edit."""

import os
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Generic, NoReturn, Self, TypeVar

from msgspec import Struct
from sqlalchemy import ColumnElement, Executable, Row, Select

from ruv_swarm_store.backup.catalog import Progress as CatalogProgress
from ruv_swarm_store.backup.continuous import Shipped, Status
from ruv_swarm_store.backup.drill import Drill
from ruv_swarm_store.backup.encryption import Key
from ruv_swarm_store.backup.frames import Compression
from ruv_swarm_store.backup.manifest import Backup, Format, Kind
from ruv_swarm_store.backup.restoring import Restoration
from ruv_swarm_store.backup.retention import Pruning, Retention
from ruv_swarm_store.backup.storage import BackupStorage
from ruv_swarm_store.backup.verification import Verification
from ruv_swarm_store.cache import CacheStats
from ruv_swarm_store.clock import Clock, Moment
from ruv_swarm_store.config import ConfigChanges
from ruv_swarm_store.engines.changes import Changes
from ruv_swarm_store.engines.engine import Capabilities, Durability, Storing
from ruv_swarm_store.engines.executor import Trace
from ruv_swarm_store.engines.journal import Journaling
from ruv_swarm_store.entities import (
    Agent,
    AgentStatus,
    Build,
    ConfigEntry,
    Consumer,
    Delivery,
    DependencyPolicy,
    Event,
    Group,
    Member,
    Message,
    Metric,
    NewEvent,
    NewTask,
    Pause,
    Schedule,
    Seal,
    Task,
    TaskFailure,
    TaskStats,
    Watermark,
)
from ruv_swarm_store.errors import StoreError
from ruv_swarm_store.events import seals
from ruv_swarm_store.events.advancing import Handler
from ruv_swarm_store.events.appending import Append
from ruv_swarm_store.events.cursors import Start
from ruv_swarm_store.events.following import Stop
from ruv_swarm_store.events.groups import Claim, Parked
from ruv_swarm_store.events.projections import Progress, Projection
from ruv_swarm_store.events.snapshots import Snapshots
from ruv_swarm_store.events.upcasting import Upcasters
from ruv_swarm_store.journal import Rebuilt, Report
from ruv_swarm_store.metrics.aggregation import Aggregate
from ruv_swarm_store.metrics.samples import Sample
from ruv_swarm_store.monitor.figures import Snapshot
from ruv_swarm_store.monitor.report import Report as ReportReport
from ruv_swarm_store.query import OnCorrupt
from ruv_swarm_store.store import UnitOfWork
from ruv_swarm_store.tasks.backoff import Backoff

__all__ = [
    "AsyncAgents",
    "AsyncBackups",
    "AsyncBuffer",
    "AsyncCachedConfig",
    "AsyncCachedRepository",
    "AsyncConfig",
    "AsyncConsumerGroup",
    "AsyncEvents",
    "AsyncGroups",
    "AsyncJournal",
    "AsyncMessages",
    "AsyncMetrics",
    "AsyncPerformanceMonitor",
    "AsyncProjector",
    "AsyncQuery",
    "AsyncRepository",
    "AsyncSchedule",
    "AsyncShipping",
    "AsyncStore",
    "AsyncSubscription",
    "AsyncTasks",
    "Opening",
]

E = TypeVar("E", bound=Struct)
S = TypeVar("S")
T = TypeVar("T")

class AsyncQuery(Generic[E]):
    """An immutable SELECT whose rows come back as entities; `str(query)` is its SQL.

    Nothing runs until `all`, `first`, `one`, `count`, `exists`, `pages` or iteration.
    """

    def where(self, *criteria: ColumnElement[bool]) -> Self:
        """Only rows for which every criterion holds. Raises `InvalidValue` for what is not a column expression."""
    def order_by(self, *columns: ColumnElement[Any]) -> Self:
        """Sorted by these columns, after any order given before."""
    def limit(self, count: int, offset: int = 0) -> Self:
        """At most `count` rows, after leaving out `offset`."""
    async def all(self, *, on_corrupt: OnCorrupt = "raise") -> list[E]:
        """Every row. Raises `CorruptRow` for one that cannot be read, unless `on_corrupt` says otherwise."""
    async def first(self) -> E | None:
        """The first row, or None."""
    async def one(self) -> E:
        """The only row. Raises `NotFound` when there is none and `Conflict` when there are several."""
    async def count(self) -> int:
        """How many rows there are."""
    async def exists(self) -> bool:
        """Whether there is any row."""
    def pages(self, size: int = 100) -> AsyncIterator[list[E]]:
        """The rows in lists of up to `size`, by ascending key, each page read on its own.

        Rows are found by the key of the last one, so neither depth nor concurrent writes disturb the walk: each row that
        stays in the result is seen once. Raises `InvalidValue` for a query with a limit.
        """
    @property
    def statement(self) -> Select[*tuple[Any, ...],]: ...
    def __aiter__(self) -> AsyncIterator[E]: ...

class AsyncRepository(Generic[E]):
    """A noun's rows as entities, over a scope: a store's or a unit of work's."""

    def query(self) -> AsyncQuery[E]:
        """All rows, as a query to narrow down."""
    def where(self, *criteria: ColumnElement[bool]) -> AsyncQuery[E]:
        """The rows for which every criterion holds."""
    async def find_by_id(self, id: Any) -> E | None:
        """The row with that key, or None. Raises `CorruptRow` when it cannot be read.

        Inside a unit of work nobody else changes it, or adds it, until that ends: what is decided by it stays right.
        """
    async def get(self, id: Any) -> E:
        """The row with that key, as `find_by_id` finds it. Raises `NotFound` when there is none."""
    async def find_many(self, ids: Iterable[E | str | int]) -> list[E]:
        """The rows with those keys, in no particular order; absent ones are left out."""
    async def find_all(self, *, on_corrupt: OnCorrupt = "raise") -> list[E]:
        """Every row, by position where there is one, else by key."""
    async def count(self) -> int:
        """How many rows there are."""
    async def exists(self, id: Any) -> bool:
        """Whether there is a row with that key."""
    def pages(self, size: int = 100) -> AsyncIterator[list[E]]:
        """Every row, in lists of up to `size`; see `Query.pages`."""
    def cached(self, ttl: float = 2.0, size: int = 1024, probe: float = 0.01) -> AsyncCachedRepository[E]:
        """Rows by key, kept in memory while nobody changes them, at most `size` of them for at most `ttl` seconds. Keep it, and share it.

        It shows what this store commits at once, and what others commit no later than `probe` seconds after. Inside a transaction it
        reads what that sees. Raises `Unsupported` for a unit of work's.
        """
    async def insert(self, entity: E) -> E:
        """Adds a row; returns it as stored. Raises `Conflict` when its key or another unique value is taken."""
    async def insert_many(self, entities: Iterable[E]) -> list[E]:
        """Adds rows, all or none; returns them as stored."""
    async def update(self, entity: E) -> E:
        """Stores a changed copy of a row; returns it with its new version.

        Raises `Conflict` when the row has changed since it was read, `NotFound` when it is gone and `InvalidValue` when
        the copy changes what only this noun's own verbs may.
        """
    async def update_many(self, entities: Iterable[E]) -> list[E]:
        """Stores changed copies of rows, all or none."""
    async def replace(self, entity: E) -> E:
        """Stores a copy over a row whatever its version: the last write wins. Raises `NotFound` when it is gone.

        What only this noun's own verbs may change stays as it is stored.
        """
    async def upsert(self, entity: E) -> E:
        """Adds a row, or stores the copy over the one with the same key whatever its version; see `replace`."""
    async def delete(self, id: E | str | int) -> bool:
        """Removes a row; whether there was one. Raises `Conflict` when others still refer to it."""
    async def delete_many(self, ids: Iterable[E | str | int]) -> int:
        """Removes rows, all or none; how many there were."""

class AsyncAgents(AsyncRepository[Agent]):
    """The swarm's workers. `status` follows `register`, `set_status`, `heartbeat`, `reap` and `terminate`."""

    async def register(
        self,
        type: str,
        *,
        name: str | None = None,
        capabilities: Sequence[Any] = (),
        configuration: dict[str, Any] | None = None,
        id: str | None = None,
    ) -> Agent:
        """Adds an agent, idle and alive now; with the `id` of one that exists, revives that one with what is given here.

        `name` is unique among agents that are not terminated: `Conflict` otherwise. One that was terminated finds in its inbox
        what had reached it until then, and what was sent to it alone since; of the rest, what is published from now on.
        """
    async def upsert(self, entity: Agent) -> Agent:
        """Adds an agent, or stores the copy over the one with the same id whatever its version."""
    async def heartbeat(self, agent: Agent | str) -> None:
        """Says the agent is alive; a failed one is idle again. Touches one row, no index, and no version.

        Raises `NotFound` for an unknown agent and `InvalidTransition` for a terminated one.
        """
    async def heartbeat_many(self, agents: Iterable[Agent | str]) -> int:
        """A heartbeat of each agent, in one statement; how many of them are known and not terminated."""
    async def set_status(self, agent: Agent | str, status: AgentStatus | str) -> Agent:
        """Says what the agent is doing: idle, busy or failed. To end it, `terminate` it."""
    async def stale(self, older_than: float) -> list[Agent]:
        """Idle and busy agents not heard of for more than `older_than` seconds, the longest silent first."""
    async def reap(self, older_than: float) -> list[Agent]:
        """Marks stale agents failed and takes their tasks back, in one transaction; a lost task counts as a retry.

        Of several that reap at once one gets each agent.
        """
    async def terminate(self, agent: Agent | str) -> Agent:
        """Ends an agent and returns its tasks to the queue; what it did stays on record. Harmless when repeated.

        Its memberships stay. What is sent to it alone lies there until it is registered again.
        """
    async def delete(self, id: Agent | str | int) -> bool:
        """Removes an agent's row; its tasks return to the queue, its messages, metrics and events stay without its name."""
    async def delete_many(self, ids: Iterable[Agent | str | int]) -> int:
        """Removes agents, all or none; see `delete`."""

class AsyncTasks(AsyncRepository[Task]):
    """The task queue.

    `claim` gives one agent a lease on a task; the verbs that follow take the claimed `Task` and check its fencing token
    in the same statement. They accept a bare id too, and then only the state is checked.
    """

    async def delete(self, id: Task | str | int) -> bool:
        """Removes a task's row; whether there was one. Raises `Conflict` while an agent holds it or others refer to it."""
    async def delete_many(self, ids: Iterable[Task | str | int]) -> int:
        """Removes tasks, all or none; see `delete`."""
    async def enqueue(
        self,
        type: str,
        payload: Any = None,
        *,
        priority: int = 5,
        parent: Task | str | None = None,
        depends_on: Iterable[Task | str] = (),
        run_at: Moment | None = None,
        delay: float | None = None,
        unique_key: str | None = None,
        max_retries: int = 3,
        on_dependency_failure: DependencyPolicy | str = ...,
        id: str | None = None,
        idempotency_key: str | None = None,
        concurrency_key: str | None = None,
    ) -> Task:
        """Adds a task, ready now, at `run_at`, after `delay` seconds, or once all of `depends_on` have completed.

        `priority` is 0 to 100, higher first; equal ones go in order of creation. `max_retries=3` means one first try and three
        more. With a `unique_key` that an unfinished task has, that task is returned and nothing is added; with an
        `idempotency_key`, the first task ever added with it, finished or not, while it is there. `concurrency_key` names what
        `limit` limits. Raises `InvalidValue` for what cannot be stored and `NotFound` for an unknown parent or dependency.
        """
    async def enqueue_many(self, tasks: Iterable[NewTask | tuple[str, Any]]) -> list[Task]:
        """Adds tasks in order, all or none; each is a `NewTask` or a pair of type and payload. See `enqueue`."""
    async def claim(self, agent: Agent | str, *, types: Iterable[str] | None = None, lease: float = 30.0) -> Task | None:
        """The best ready task, now assigned to `agent` for `lease` seconds; None when nothing is ready.

        Best is the highest priority, then the earliest created. `types` restricts it; paused types are passed over. Atomic
        over threads, processes and machines. Raises `NotFound` for an unknown agent and `InvalidTransition` for a terminated one.
        """
    async def claim_many(self, agent: Agent | str, limit: int, *, types: Iterable[str] | None = None, lease: float = 30.0) -> list[Task]:
        """Up to `limit` ready tasks in one go, best first; see `claim`."""
    async def wait(
        self, agent: Agent | str, *, types: Iterable[str] | None = None, lease: float = 30.0, timeout: float | None = None
    ) -> Task | None:
        """Claims, and while nothing is ready blocks until something is; None after `timeout` seconds.

        Woken by commits of this and other processes and by tasks coming due. Whoever waits also returns expired leases to
        the queue, as `rescue` does. Raises `Unsupported` inside a transaction, and where nothing can block.

        `wait`, while the event loop goes on. Cancelled, it has claimed nothing.
        """
    async def start(self, task: Task | str) -> Task:
        """Marks a claimed task as running. Raises `LeaseLost`, `InvalidTransition` or `NotFound`."""
    async def heartbeat(self, task: Task | str, *, lease: float = 30.0) -> bool:
        """Extends the lease to `lease` seconds from now; whether to go on. False: somebody asked for the task's cancellation.

        Who is asked ends with `cancel`, or completes all the same. Raises `LeaseLost`, `InvalidTransition` or `NotFound`.
        """
    async def complete(self, task: Task | str, result: Any = None) -> Task:
        """Ends a task with its result and frees what waits for it. Raises `LeaseLost`, `InvalidTransition` or `NotFound`."""
    async def complete_many(self, tasks: Iterable[tuple[Task | str, Any]]) -> list[Task]:
        """Completes pairs of task and result, all or none; see `complete`."""
    async def fail(
        self, task: Task | str, error: str | BaseException, *, retry: bool = True, delay: float | None = None, backoff: Backoff = ...
    ) -> Task:
        """Ends an attempt. While retries are left the task comes back after `backoff`, or `delay` seconds if given.

        With `retry=False`, or no retries left, it is failed for good, and so or cancelled is what depends on it; a task whose
        cancellation was asked for is cancelled. The error of every attempt is kept: see `failures`. Raises `LeaseLost`,
        `InvalidTransition` or `NotFound`.
        """
    async def fail_many(
        self,
        tasks: Iterable[tuple[Task | str, str | BaseException]],
        *,
        retry: bool = True,
        delay: float | None = None,
        backoff: Backoff = ...,
    ) -> list[Task]:
        """Ends the attempts of pairs of task and error, all or none; see `fail`."""
    async def release(self, task: Task | str, *, delay: float = 0.0) -> Task:
        """Returns a claimed task to the queue unharmed; no retry is counted. Raises as `fail` does."""
    async def release_many(self, tasks: Iterable[Task | str], *, delay: float = 0.0) -> list[Task]:
        """Returns claimed tasks to the queue, all or none; see `release`."""
    async def snooze(self, task: Task | str, delay: float) -> Task:
        """Puts a claimed task off for `delay` seconds; no retry is counted. Raises as `fail` does."""
    async def cancel(self, task: Task | str, *, tree: bool = False, cooperative: bool = False) -> list[Task]:
        """Ends a task that is not finished; with `tree`, every unfinished one below it too. Returns the tasks it changed.

        An agent that holds one learns it from its next call about it. With `cooperative` what is held goes on until the holder
        has learned from `heartbeat` that it should stop, and cancels it, or its attempt ends otherwise than by completing.
        What depends on a cancelled task fails or is cancelled with it. Raises `NotFound`, and without `tree`
        `InvalidTransition` for a finished task.
        """
    async def cancel_many(self, tasks: Iterable[Task | str], *, tree: bool = False, cooperative: bool = False) -> list[Task]:
        """Ends tasks, all or none; see `cancel`."""
    async def rescue(self) -> list[Task]:
        """Takes back tasks whose lease has expired: to the queue while retries are left, else failed. Returns them.

        What others are taking back at the same time is left to them.
        """
    async def dead(self, *, types: Iterable[str] | None = None, limit: int | None = None) -> list[Task]:
        """The tasks that failed for good, oldest failure first: of these `types`, at most `limit`. `requeue` brings one back."""
    async def requeue(self, task: Task | str, *, delay: float = 0.0) -> Task:
        """Puts a failed or cancelled task back into the queue, now or in `delay` seconds, with all its retries.

        Its `failures` stay on record. It waits again for what it depends on. Raises `InvalidTransition` for a task in another
        state, `Conflict` when a dependency has failed or another task has its unique key, and `NotFound`.
        """
    async def requeue_many(self, tasks: Iterable[Task | str], *, delay: float = 0.0) -> list[Task]:
        """Puts tasks back into the queue, all or none, each after those it depends on; see `requeue`."""
    async def prune(self, older_than: float) -> int:
        """Removes trees of tasks that were all finished more than `older_than` seconds ago; how many tasks that were.

        Not one on which an unfinished task depends. Their `failures` go with them; events and messages stay. Many small
        transactions, so others get their turn; it can be ended and begun again at any time.
        """
    async def pause(self, type: str, *, by: Agent | str | None = None) -> bool:
        """Keeps tasks of a type from being claimed, those already held aside; whether it was not paused before."""
    async def resume(self, type: str) -> bool:
        """Lets tasks of a paused type be claimed again; whether it was paused."""
    async def paused(self) -> list[Pause]:
        """The paused types, in order, with when and by whom."""
    async def limit(self, concurrency_key: str, at_once: int | None) -> None:
        """Lets at most `at_once` tasks with this `concurrency_key` be ready or held at a time; None lifts the limit.

        Others stand blocked and are let in, best first, as those end. A lower limit takes effect as they end. Setting the first
        limit of a key waits for every transaction that writes tasks.
        """
    async def limits(self) -> dict[str, int]:
        """Every limit, by concurrency key."""
    async def schedule(
        self,
        name: str,
        cron: str,
        type: str,
        payload: Any = None,
        *,
        timezone: str = "UTC",
        priority: int = 5,
        max_retries: int = 3,
        concurrency_key: str | None = None,
    ) -> Schedule:
        """Enqueues such a task at every time of a cron expression (five fields, or six with seconds first) in a time zone.

        The next occurrence stands among the scheduled tasks. Occurrences that are missed while nobody claims or waits come once,
        late, and the others not at all; one may begin before the last has ended, unless a `concurrency_key` forbids it. A
        schedule of that name is changed, and so is its waiting occurrence. Needs the extra `cron`, here and in at least one of
        the processes that claim or wait: `Unsupported` otherwise. Raises `InvalidValue` for an expression or time zone that
        cannot be read.
        """
    async def unschedule(self, name: str) -> bool:
        """Removes a schedule and cancels its waiting occurrence; whether there was one."""
    async def schedules(self) -> list[Schedule]:
        """Every schedule, by name."""
    async def pause_schedule(self, name: str) -> Schedule:
        """Stops a schedule until `resume_schedule`, and cancels its waiting occurrence. Raises `NotFound`."""
    async def resume_schedule(self, name: str) -> Schedule:
        """Lets a paused schedule go on with its first time from now. Raises `NotFound`."""
    async def failures(self, task: Task | str) -> list[TaskFailure]:
        """Why each failed attempt at a task failed, in order."""
    async def children(self, task: Task | str) -> list[Task]:
        """The tasks whose parent this is, in order of creation."""
    async def stats(self, *, finished: bool = True) -> TaskStats:
        """Counts by type and status, the age of the queue, and the last minute's throughput.

        Counting reads an index entry for each task; `finished=False` leaves out those that have ended, for a long history.
        """

class AsyncMessages(AsyncRepository[Message]):
    """What agents tell each other."""

    async def publish(
        self,
        topic: str,
        content: Any = None,
        *,
        sender: Agent | str | None = None,
        to: Agent | str | None = None,
        to_group: Group | str | None = None,
        correlation_id: str | None = None,
        expires_at: Moment | None = None,
        ttl: float | None = None,
    ) -> Message:
        """Sends to one agent, to those who are members of a group now, or with neither to every agent registered at this moment.

        `ttl` is seconds from now, `expires_at` an instant; an expired message is no longer delivered. What is sent to an agent
        that is terminated lies there until it is registered again. Raises `NotFound` for an unknown sender, recipient or group.
        """
    async def reply(self, message: Message | str, content: Any = None, *, sender: Agent | str | None = None) -> Message:
        """Answers the sender of `message`, on its topic, under its correlation id (its own id where it has none).

        Raises `NotFound` for the id of a message that is not there, and `InvalidValue` for one without a sender.
        """
    async def request(
        self,
        topic: str,
        content: Any = None,
        *,
        sender: Agent | str,
        to: Agent | str | None = None,
        to_group: Group | str | None = None,
        timeout: float | None = 30.0,
        ttl: float | None = None,
    ) -> Message | None:
        """Publishes a message and blocks until somebody replies to it; the first `reply`, acknowledged, or None after `timeout` seconds.

        A request nobody waits for any more expires: it lives as long as `timeout`, if `ttl` says nothing else. Raises `NotFound` for
        an unknown sender, recipient or group, and `Unsupported` inside a transaction: nobody could see the request there.

        `request`, while the event loop goes on.
        """
    async def receive(
        self, agent: Agent | str, topic: str | None = None, *, limit: int = 100, visibility: float = 30.0, since: Moment | None = None
    ) -> list[Message]:
        """What this agent has not acknowledged, oldest first, now marked delivered to it.

        A message it has been given comes again when `visibility` seconds pass without its acknowledgement. In `topic`, dots
        separate segments: `*` stands for any one of them, `**` at the end for any rest. With `since`, an instant, it is what was
        published from then on, before the agent was registered or joined a group, too. Raises `NotFound` for an unknown agent.
        """
    async def wait(
        self, agent: Agent | str, topic: str | None = None, *, limit: int = 100, visibility: float = 30.0, timeout: float | None = None
    ) -> list[Message]:
        """Receives, and while there is nothing blocks until there is; nothing after `timeout` seconds. See `receive`.

        Woken by commits of this and other processes, and by messages that come again. Raises `Unsupported` inside a transaction.

        `wait`, while the event loop goes on. Cancelled, it has received nothing.
        """
    async def acknowledge(self, message: Message | str, agent: Agent | str) -> None:
        """Says this agent is done with a message; it is not delivered to it again. Harmless when repeated.

        Raises `NotFound` for an unknown message or agent, and `InvalidValue` for an agent that a direct message was not sent to.
        """
    async def acknowledge_many(self, messages: Iterable[Message | str], agent: Agent | str) -> int:
        """Says this agent is done with messages, all at once; how many there are. Raises `NotFound` for an unknown agent.

        Those that are not there, or were sent to another agent alone, are left out.
        """
    async def release(self, message: Message | str, agent: Agent | str, *, delay: float = 0.0) -> bool:
        """Gives a received message back: it comes to this agent again after `delay` seconds; whether it will.

        It will not when it was acknowledged, or not received yet. Raises `NotFound` for an unknown message.
        """
    async def deliveries(self, message: Message | str) -> list[Delivery]:
        """How a message stands with each agent it has been delivered to, in order of the last delivery. Raises `NotFound`."""
    async def delivery(self, message: Message | str, agent: Agent | str) -> Delivery | None:
        """How a message stands with one agent: how often it was delivered, when it comes again; None when it never was.

        Raises `NotFound` for an unknown message.
        """
    async def unread(self, agent: Agent | str, topic: str | None = None) -> int:
        """How many messages this agent has not acknowledged, delivered to it or not; on a topic, or those a pattern stands for."""
    async def unread_by_topic(self, agent: Agent | str, topic: str | None = None) -> dict[str, int]:
        """What `unread` counts, for each topic there are any of."""
    async def replay(
        self, agent: Agent | str, topic: str | None = None, *, after: int = 0, since: Moment | None = None, limit: int = 100
    ) -> list[Message]:
        """What has ever been sent to this agent, its groups and everybody, oldest first, read or not; at most `limit`.

        Nothing is marked by it. It goes on from the `position` of the last one as `after`; `since` leaves out what was published
        before an instant. What has expired is gone.
        """
    def conversation(self, a: Agent | str, b: Agent | str) -> AsyncQuery[Message]:
        """What two agents wrote each other directly, in order."""
    async def prune(self, older_than: float) -> int:
        """Removes messages published more than `older_than` seconds ago, read or not, and those that have expired; how many.

        Their deliveries go with them. In small transactions of its own, so that nobody waits for it long.
        """

class AsyncMetrics(AsyncRepository[Metric]):
    """What is measured about agents and the swarm.

    `record`, `record_many` and `buffer` write samples, `aggregate` sums them up, `rollup` sums them up ahead of time, and `prune`
    removes what is old.
    """

    async def record(
        self,
        name: str,
        value: float,
        *,
        agent: Agent | str | None = None,
        type: str = "gauge",
        unit: str = "",
        tags: dict[str, Any] | None = None,
        at: Moment | None = None,
    ) -> Metric:
        """Stores one value, measured now or `at` an instant. Raises `InvalidValue` for NaN and infinities."""
    async def record_many(self, samples: Iterable[Sample]) -> list[Metric]:
        """Stores values in order, all or none. Raises `NotFound` for an unknown agent."""
    def buffer(self, *, size: int = 500, seconds: float | None = 1.0, limit: int | None = None) -> AsyncBuffer:
        """Gathers samples and writes them together: `size` at a time, after `seconds` at the latest, and when its block ends.

            with store.metrics.buffer() as buffer:
                buffer.record("latency", 12.5, unit="ms")

        While nothing can be written it holds up to `limit` samples, ten times `size` if left out, and then refuses more. When the
        process dies, what it holds is lost: at most what was recorded in the last `seconds`.
        """
    def samples(
        self,
        name: str,
        *,
        since: Moment = 0,
        until: Moment | None = None,
        agent: Agent | str | None = None,
        type: str | None = None,
        unit: str | None = None,
        tags: dict[str, str | int | float | bool] | None = None,
    ) -> AsyncQuery[Metric]:
        """The samples of a metric from `since` up to before `until`, oldest first, as a query to narrow down."""
    async def aggregate(
        self,
        name: str,
        *,
        since: Moment = 0,
        until: Moment | None = None,
        bucket: int | None = None,
        agent: Agent | str | None = None,
        type: str | None = None,
        unit: str | None = None,
        tags: dict[str, str | int | float | bool] | None = None,
        by_agent: bool = False,
        by_tag: str | None = None,
        resolution: int | None = None,
        fill: bool = False,
    ) -> list[Aggregate]:
        """What the values from `since` up to before `until` add up to, in spans of `bucket` milliseconds.

        Spans are aligned to the epoch; without `bucket` the whole range is one. Units are never mixed: there is one `Aggregate`
        for each unit and span that has values, and with `by_agent` or `by_tag` for each agent or value of that tag. `tags` must
        all be there and equal. With `fill` there is one for spans without values, too.

        Rollups answer for what they cover: the coarsest whose buckets lie inside the range and each inside one span. The samples
        answer for the rest: the edges of the range, and what is not rolled up yet. So count, sum, min and max are those of the
        samples, whatever answers; percentiles are exact when only samples do, otherwise within 1 % (`Aggregate.exact`).
        `resolution` names the one to use, in milliseconds, beside the samples; 0 leaves all to the samples.
        """
    async def rollup(self, *, batch: int = 10000) -> int:
        """Adds the samples that came since the last time to the rollups by minute, hour and day; how many were added here.

        Each sample counts exactly once, late and back-dated ones too, however many processes do this at once; `batch` samples
        make one transaction. Call it now and then, every minute say. In a unit of work nobody else records until that ends.
        """
    async def prune(self, older_than: float, *, resolution: int = 0, only_rolled_up: bool = True, batch: int = 5000) -> int:
        """Removes samples measured more than `older_than` seconds ago, to the millisecond, in transactions of `batch`; how many.

        Samples that are not rolled up yet stay, unless `only_rolled_up` is False. With a `resolution` it is that one's rollups that
        go, those whose whole bucket is older. Where detail is gone, aggregates come from coarser rollups; what cannot be told
        without it is missing from them, which `Aggregate.complete` says.
        """
    async def watermarks(self) -> list[Watermark]:
        """How far rollups and pruning have come, finest resolution first; resolution 0 stands for the samples."""
    async def replace(self, entity: Metric) -> Metric:
        """Stores a copy over a sample whatever its version. Raises `Conflict` when it is rolled up, `NotFound` when it is gone."""
    async def upsert(self, entity: Metric) -> Metric:
        """Adds a sample, or stores the copy over the one with the same number. Raises `Conflict` when that is rolled up."""

class AsyncGroups(AsyncRepository[Group]):
    """Named sets of agents, each agent with a role or none."""

    async def create(self, name: str, *, type: str = "", configuration: dict[str, Any] | None = None, id: str | None = None) -> Group:
        """Adds a group. Raises `Conflict` when the name is taken."""
    async def join(self, group: Group | str, agent: Agent | str, *, role: str | None = None) -> Member:
        """Makes an agent a member, or gives a member another role. Raises `NotFound` for an unknown group or agent.

        From now on it receives what is published to the group. Without a `role` a member keeps the one it has: to have none again
        it leaves, and joins.
        """
    async def leave(self, group: Group | str, agent: Agent | str) -> bool:
        """Ends a membership; whether there was one. What was published to the group until now still reaches the agent."""
    async def delete(self, id: Group | str | int) -> bool:
        """Removes a group; whether there was one. Its messages stay, and still reach those who were members."""
    async def delete_many(self, ids: Iterable[Group | str | int]) -> int:
        """Removes groups, all or none; see `delete`."""
    async def members(self, group: Group | str) -> list[Member]:
        """Who is in a group, in order of joining."""
    async def groups_of(self, agent: Agent | str) -> list[Group]:
        """The groups an agent is in, by name."""

class AsyncConfig(AsyncRepository[ConfigEntry]):
    """The swarm's settings. Keys are free text; a dotted path and `prefix` make a tree of them."""

    async def get(self, id: ConfigEntry | str, default: Any = None) -> Any:
        """The value of a key, or `default` when it is not set or has expired. `entry` tells a stored None from a missing key.

        Inside a unit of work nobody else changes it until that ends.
        """
    async def entry(self, key: ConfigEntry | str) -> ConfigEntry | None:
        """The whole entry of a key: value, version, who and when; None when it is not set or has expired."""
    def cached(self, ttl: float = 2.0, size: int = 1024, probe: float = 0.01) -> AsyncCachedConfig:
        """Entries by key, kept in memory while nobody changes them and until they expire; see `Repository.cached`."""
    def query(self) -> AsyncQuery[ConfigEntry]:
        """All entries that have not expired by now, as a query to narrow down."""
    async def set(
        self, key: str, value: Any, *, by: Agent | str | None = None, ttl: float | None = None, expires_at: Moment | None = None
    ) -> ConfigEntry:
        """Stores a value whatever was there; `ttl` seconds or until the instant `expires_at`. Returns the entry."""
    async def compare_and_set(
        self,
        key: str,
        value: Any,
        *,
        expected: int,
        by: Agent | str | None = None,
        ttl: float | None = None,
        expires_at: Moment | None = None,
    ) -> ConfigEntry:
        """Stores a value if the entry is at version `expected`; 0 means the key must not be set.

        Raises `Conflict` carrying the `actual` version otherwise.
        """
    async def delete(self, id: ConfigEntry | str | int, *, by: Agent | str | None = None) -> bool:
        """Removes a key; whether it was set. Set again later, it goes on with its version: no entry is mistaken for an older one."""
    async def delete_many(self, ids: Iterable[ConfigEntry | str | int]) -> int:
        """Removes keys, all or none; how many were set. See `delete`."""
    async def prefix(self, prefix: str) -> dict[str, Any]:
        """Every key that starts with `prefix`, with its value, in order of the keys' code points."""
    async def changed_since(self, since: Moment) -> list[ConfigEntry]:
        """Entries set at an instant or after it, oldest change first. To follow changes, use `changes_since`."""
    async def changes_since(self, since: Moment, *, overlap: float = 10.0) -> ConfigChanges:
        """What was set, was deleted or has expired at an instant or after it. Ask again from the answer's `until`.

        Who does so misses nothing, as long as `expire` leaves deleted keys for longer than the time between two questions. A
        change shows when its transaction ends and carries the time that began: `until` stays `overlap` seconds behind the present,
        so changes come again for that long; their versions tell.
        """
    async def expire(self, *, kept: float = 86400.0) -> int:
        """Removes for good what expired, or was deleted, more than `kept` seconds ago; how many there were.

        Reading never shows it, removed or not. Until it is removed its version goes on when the key is set again, and
        `changes_since` tells of it: `kept` should be longer than anybody holds an entry or goes without asking for changes.
        """

class AsyncEvents(AsyncRepository[Event]):
    """The event store.

    A stream is named by an aggregate's id and type. Its events are numbered from 1 without gaps by the store; its version is
    the number of its last event. `position` orders all events, and is never filled in later below one already read.
    """

    async def append(
        self, aggregate_id: str, events: Iterable[NewEvent], *, type: str, expected_version: int = -1, cause: Event | None = None
    ) -> int:
        """Adds events to a stream, all or none; returns its new version.

        `expected_version` is the version the caller has seen, `NONE` (0) for a stream that must not exist, `EXISTS` for one that must,
        `ANY` for whatever it is; `Conflict` carries the `expected` and the `actual` one otherwise. An append whose events all carry
        ids stored before, in this stream, is taken as a repetition: nothing is added, and the version it led to then is returned.
        Their types, data and metadata must be those stored, or it is a `Conflict`; nothing else of them is compared.

        Events that come from another, the `cause`, have its id as `causation_id`, and as `correlation_id` the one it has, or its
        id, unless they carry their own.
        """
    async def append_many(self, appends: Iterable[Append]) -> list[int]:
        """Adds events to several streams, all or none; returns the version that each append led to.

        Events have ascending positions in the order given, with nobody else's between. A stream may be named more than once: a
        later append finds the version that an earlier one leads to. Where one conflicts, `Conflict` also carries its `index`.
        """
    async def version(self, aggregate_id: str, *, type: str) -> int:
        """The number of a stream's last event; 0 when it has none."""
    async def read(
        self,
        aggregate_id: str,
        *,
        type: str | None = None,
        after: int = 0,
        until: int | None = None,
        limit: int | None = None,
        backward: bool = False,
    ) -> list[Event]:
        """A stream's events with numbers above `after` and up to `until`, in order, or from the last one `backward`; at most `limit`.

        Without `type`, the events of every stream with this aggregate id, number by number. A `limit` must not come between two that
        have the same number: `InvalidValue` asks for the type then.
        """
    def walk_stream(
        self, aggregate_id: str, *, type: str | None = None, after: int = 0, until: int | None = None, backward: bool = False
    ) -> AsyncIterator[Event]:
        """What `read` gives, read in pages: memory stays the same however long the stream is."""
    async def read_all(
        self,
        *,
        after: int = 0,
        before: int | None = None,
        types: Iterable[str] | None = None,
        correlation: str | None = None,
        causation: str | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        backward: bool = False,
        limit: int = 1000,
    ) -> list[Event]:
        """Events of every stream in order of position, or the newest first `backward`; at most `limit`.

        Those with positions above `after` and below `before`; of these types; with this correlation or causation id; with times from
        `since` up to before `until`. Go on after the last one's position, or backward before it.
        """
    def walk(
        self,
        *,
        after: int = 0,
        before: int | None = None,
        types: Iterable[str] | None = None,
        correlation: str | None = None,
        causation: str | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        backward: bool = False,
    ) -> AsyncIterator[Event]:
        """Every event that `read_all` would give, read in pages: memory stays the same however many there are."""
    async def last_position(self) -> int:
        """The position of the newest event; 0 when there is none."""
    async def fold(
        self,
        aggregate_id: str,
        initial: S,
        apply: Callable[[S, Event], S],
        *,
        type: str,
        until: int | None = None,
        snapshot: Snapshots | None = None,
    ) -> S:
        """The state a stream adds up to: `apply` over its events in order, from `initial`, up to number `until`.

        With `snapshot` it goes on from the newest usable snapshot, and keeps a new one at the end of the stream when that is far
        enough. A snapshot that is damaged, or of another version, counts as not there.
        """
    async def seal(self, *, block: int = 1000) -> Seal | None:
        """Adds links to the hash chain over all events since the newest, each over `block` of them at most; returns the newest.

        Its `hash` vouches for every event up to its `position`. None in a store without events. Nobody who appends waits for it, and
        several may seal at once.
        """
    async def verify(self, *, head: str | None = None) -> seals.Audit:
        """Reads every link of the hash chain and every event under it again, and says whether they match, or where they do not.

        Whoever can write everything can write the chain anew: a `head` kept elsewhere, the hash of a seal, must be part of it.
        """
    async def subscribe(self, name: str, *, types: Iterable[str] | None = None, start: Start = 0) -> AsyncSubscription:
        """The durable consumer of that name, for events of these types; a new one begins after position `start`, or `now`.

        Without `types` it is for all but the journal's, which come to who names their types: it would go on for ever with those that
        tell of its own work. Where there is one it goes on from where it was. Raises `Conflict` when the name is a group's.
        """
    async def group(self, name: str, *, types: Iterable[str] | None = None, start: Start = 0, max_attempts: int = 5) -> AsyncConsumerGroup:
        """The group of competing consumers of that name; see `subscribe`, for `types` too. What fails `max_attempts` times is parked."""
    def project(self, projection: Projection, *, types: Iterable[str] | None = None) -> AsyncProjector:
        """What builds a projection from events of these types, and keeps it up with them. Nothing happens yet.

        Without `types` it takes in all but the journal's.
        """
    async def live(self, name: str) -> str | None:
        """The slot in which readers find the projection of that name; see `Projector.live`."""
    async def consumers(self) -> Sequence[Consumer]:
        """Every subscription, group and slot of a projection, by name: how far it is, and what it has failed at."""
    def follow(
        self,
        *,
        after: int = 0,
        types: Iterable[str] | None = None,
        limit: int = 1000,
        timeout: float | None = None,
        stop: Stop | None = None,
    ) -> AsyncIterator[Event]:
        """Events above a position, in order, and then those to come; read at most `limit` at a time. Nothing is written.

        Without `types` all but the journal's.
        It ends when nothing has come for `timeout` seconds, or soon after `stop()` is true. Raises `StoreError` inside a transaction,
        and `Unsupported` where nothing can block.
        """
    async def insert(self, entity: Event) -> NoReturn:
        """Refuses: `append` numbers events."""
    async def insert_many(self, entities: Iterable[Event]) -> NoReturn:
        """Refuses: `append` numbers events."""
    async def update(self, entity: Event) -> NoReturn:
        """Refuses: events are facts."""
    async def update_many(self, entities: Iterable[Event]) -> NoReturn:
        """Refuses: events are facts."""
    async def replace(self, entity: Event) -> NoReturn:
        """Refuses: events are facts."""
    async def upsert(self, entity: Event) -> NoReturn:
        """Refuses: events are facts."""
    async def delete(self, id: Event | str | int) -> NoReturn:
        """Refuses: events are facts."""
    async def delete_many(self, ids: Iterable[Event | str | int]) -> NoReturn:
        """Refuses: events are facts."""

class AsyncCachedRepository(Generic[E]):
    """A noun's rows by key, from memory where that is as good; see `Repository.cached`.

    Close it when it is not needed any more, or drop it; it ends with its store. From then on each read is the store's own.
    """

    async def find_by_id(self, id: Any) -> E | None:
        """The row with that key, or None; see `Repository.find_by_id`."""
    def peek(self, id: Any, default: Any = None) -> Any:
        """The row with that key, or None, if it can be told without reading or waiting, as a hit is; `default` if not."""
    async def get(self, id: Any) -> E:
        """The row with that key. Raises `NotFound` when there is none."""
    async def exists(self, id: Any) -> bool:
        """Whether there is a row with that key."""
    async def find_many(self, ids: Iterable[E | str | int]) -> list[E]:
        """The rows with those keys, in no particular order; absent ones are left out."""
    def invalidate(self, id: Any) -> None:
        """Lets go of one row: the next read of it is the store's own. Commits do that by themselves."""
    def clear(self) -> None:
        """Lets go of every row."""
    async def forget(self, changes: Changes) -> None:
        """Lets go of what was changed. The engine calls it for every commit of this store's."""
    def close(self) -> None:
        """Lets go of everything for good. Harmless when repeated."""
    async def forked(self) -> None:
        """Begins anew in a child process, where others' locks are held for ever."""
    def stats(self) -> CacheStats:
        """What it has been good for so far."""
    @property
    def name(self) -> str: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None: ...

class AsyncCachedConfig(AsyncCachedRepository[ConfigEntry]):
    """Configuration from memory; see `Config.cached`."""

    async def get(self, id: ConfigEntry | str, default: Any = None) -> Any:
        """The value of a key, or `default` when it is not set or has expired."""
    async def entry(self, key: ConfigEntry | str) -> ConfigEntry | None:
        """The whole entry of a key; None when it is not set or has expired."""

class AsyncSubscription:
    """A named consumer of all events, one after the other.

    Its position moves in the transaction in which events are handled, so each takes effect exactly once in this database, whatever
    dies when. Any number of threads and processes may share a name: they take turns, and the order is kept. Let them ask for the
    same types. An exception undoes what was done and leaves the position: the same events come again.
    """

    @property
    def name(self) -> str:
        """The consumer's name."""
    async def position(self) -> int:
        """The position up to which everything was handled. Raises `NotFound` once it was removed."""
    async def consumer(self) -> Consumer:
        """How it stands: its position, and how often it has failed there, with what error. Raises `NotFound`."""
    async def lag(self) -> int:
        """How many events it has still to handle. Raises `NotFound`."""
    async def reset(self, position: Start = 0) -> None:
        """Puts it at a position, to handle what follows, again or for the first time; `now` leaves out all there is.

        Waits for who is handling events under this name. Raises `NotFound`, and `InvalidValue` for a position that no event has yet.
        """
    async def remove(self) -> bool:
        """Forgets the name and its position; whether it was known. Who follows it gets `NotFound`."""
    async def batch(self, function: Callable[[UnitOfWork, list[Event]], T], *, limit: int = 100) -> T:
        """A unit of work and the next events, at most `limit`, none when there are none.

        The block handles them all or not at all: the position moves when the unit of work commits.

        The block is a function here: it is called with them in a thread, and its value returned.
        """
    async def handle(self, handler: Handler, *, limit: int = 100) -> int:
        """Calls `handler(work, event)` for the next events, at most `limit`, all in one transaction; how many there were.

        What the handler raises is raised here, undoes the effects of the whole batch and counts as a failure of the consumer. A
        handler whose transaction has to give way to another one's (a deadlock) is called again.
        """
    async def follow(self, handler: Handler, *, limit: int = 100, timeout: float | None = None, stop: Stop | None = None) -> int:
        """Handles events as they come, at most `limit` in a transaction; how many it has handled in the end.

        It ends when nothing has come for `timeout` seconds, or soon after `stop()` is true, and raises what the handler does. Woken
        by commits as `tasks.wait` is. Raises `StoreError` inside a transaction, and `Unsupported` where nothing can block.

        `follow`, while the event loop goes on. The handler runs in a transaction: it cannot await.
        """

class AsyncConsumerGroup:
    """Consumers that compete for events: each goes to one member, under a lease, until somebody has acknowledged it.

    A claim is acknowledged in the transaction that holds what was done about its event: then each takes effect exactly once in this
    database. Who is too slow, and whose event has gone to another member, gets `LeaseLost`, and its transaction rolls back. Events
    are handed out in order; several members finish them in any. Let all members ask for the same types.
    """

    @property
    def name(self) -> str:
        """The group's name."""
    async def position(self) -> int:
        """The position up to which events were handed out. Raises `NotFound` once it was removed."""
    async def consumer(self) -> Consumer:
        """How the group stands. Raises `NotFound`."""
    async def lag(self) -> int:
        """How many events are not acknowledged yet: handed out, to be tried again, or still to come. Parked ones do not count."""
    async def reset(self, position: Start = 0) -> None:
        """Begins again after a position; `now` leaves out all there is. All claims are lost, and nothing is parked any more."""
    async def remove(self) -> bool:
        """Forgets the group, its claims and what it has parked; whether it was known. Its members get `NotFound` or `LeaseLost`."""
    async def claim(self, member: str, limit: int = 1, *, lease: float = 30.0) -> list[Claim]:
        """Up to `limit` events in order, for `lease` seconds this member's alone; none when there are none.

        Events whose lease has run out, or whose delay is over, come before those never handed out. One that was tried
        `max_attempts` times is parked instead, and at once one that cannot be loaded, because it is damaged or an upcaster is missing.
        Raises `NotFound` once the group was removed.
        """
    async def wait(
        self, member: str, limit: int = 1, *, lease: float = 30.0, timeout: float | None = None, stop: Stop | None = None
    ) -> list[Claim]:
        """Claims, and while there is nothing blocks until there is; none after `timeout` seconds, or once `stop()` is true.

        Woken by commits as `tasks.wait` is, and by leases and delays that run out. Raises `StoreError` inside a transaction.

        `wait`, while the event loop goes on. Cancelled, it has claimed nothing.
        """
    async def acknowledge(self, claims: Claim | Iterable[Claim]) -> None:
        """Ends claims for good, all or none: call it in the transaction that holds what was done about their events.

        Raises `LeaseLost` when an event was taken over, given back, parked or acknowledged before: let it roll that back.
        """
    async def renew(self, claim: Claim, *, lease: float = 30.0) -> Claim:
        """The claim with its lease extended to `lease` seconds from now. Raises `LeaseLost`."""
    async def retry(self, claim: Claim, error: str | BaseException, *, delay: float = 0.0) -> bool:
        """Gives an event back, to come again after `delay` seconds; whether it does. False: that was its last attempt, it is parked.

        Raises `LeaseLost`.
        """
    async def release(self, claim: Claim) -> None:
        """Gives an event back unharmed; no attempt is counted. Raises `LeaseLost`."""
    async def park(self, claim: Claim, error: str | BaseException) -> None:
        """Gives an event up: it is put aside until `unpark` or `discard`, and holds nobody up. Raises `LeaseLost`."""
    async def parked(self, *, after: int = 0, limit: int = 100) -> list[Parked]:
        """What was given up of the events above a position, in order; at most `limit`."""
    async def unpark(self, events: Iterable[Parked | Event | int] | None = None) -> int:
        """Lets parked events, or all of them, be tried again from the first attempt on; how many. A number is a position."""
    async def discard(self, events: Iterable[Parked | Event | int] | None = None) -> int:
        """Drops parked events, or all of them: they are done with; how many. A number is a position."""
    async def handle(self, member: str, handler: Handler, *, limit: int = 10, lease: float = 30.0, delay: float = 1.0) -> int:
        """Claims up to `limit` events and calls `handler(work, event)` for each, in a transaction that acknowledges it; how many succeeded.

        What a handler raises undoes what it did; its event comes again after `delay` seconds, twice that the next time and so on, and
        is parked after `max_attempts`. An event that has gone to another member meanwhile is left to it. What claiming, or the
        database, raises is raised here.
        """
    async def follow(
        self,
        member: str,
        handler: Handler,
        *,
        limit: int = 10,
        lease: float = 30.0,
        delay: float = 1.0,
        timeout: float | None = None,
        stop: Stop | None = None,
    ) -> int:
        """`handle` for events as they come; how many succeeded in the end.

        It ends when nothing has come for `timeout` seconds, or once `stop()` is true; what was claimed and not begun by then is given
        back.

        `follow`, while the event loop goes on. The handler runs in a transaction: it cannot await.
        """

class AsyncProjector:
    """Keeps a projection: builds it, keeps it up with the events, and builds it again beside what readers see.

    Any number of threads and processes may do this for one projection: they take turns, and what was done when one of them dies is
    done once.
    """

    async def live(self) -> str | None:
        """The slot to read; None before the first build is done.

        In a unit of work it stays the one to read until that ends; outside, a switch may come between asking and reading.
        """
    async def builds(self) -> Sequence[Build]:
        """What the slots hold, by slot."""
    async def due(self) -> bool:
        """Whether a build is due: there is none for readers, or that was made by an older version of the projection."""
    async def lag(self) -> int:
        """How many events the live slot has still to take in. Raises `NotFound` when there is none."""
    async def rebuild(self, *, progress: Progress | None = None, batch: int = 500, stop: Stop | None = None) -> bool:
        """Builds the projection from the first event on in the slot that nobody reads, and switches readers over once it has caught up.

        Until then what readers see is as it was, and may be kept up to date by others. A build that was begun by this version of the
        projection, and given up or killed, goes on where it stopped. The switch is one transaction; then the old slot is cleared.
        `batch` is how many events a transaction takes in. False when `stop()` ended it before. Raises `Conflict` when a build of
        another version takes its place, and what `apply` raises, after undoing that transaction.
        """
    async def tidy(self) -> None:
        """Clears a slot that readers were switched away from, where whoever did that has not got to it."""
    async def remove(self) -> None:
        """Clears both slots and forgets the projection."""
    async def catch_up(self, *, batch: int = 500) -> int:
        """Takes in what the live slot has not yet; how many events that was.

        Raises `NotFound` before the first build and `Conflict` when the slot was built by another version of the projection.
        """
    async def run(
        self, *, progress: Progress | None = None, batch: int = 500, timeout: float | None = None, stop: Stop | None = None
    ) -> int:
        """Builds the projection if that is due, then keeps it up with the events as they come; how many it has taken in since then.

        It ends when nothing has come for `timeout` seconds, or soon after `stop()` is true. When the projection is built again by
        others it goes on with what they have built. Raises `Conflict` when that, or what is there, is of a newer version.

        `run`, while the event loop goes on; not while it builds.
        """
    @property
    def projection(self) -> Projection: ...
    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...

class AsyncBuffer:
    """Samples on their way into the store: written when there are enough, when the oldest has waited long enough, and on closing.

    Any number of threads may record. Nothing is dropped in silence: what cannot be written for now is kept and tried again, up to
    `limit` samples; then `record` raises and takes no more. A store's buffer is not written inside a transaction of its thread, which
    might take back what others recorded; a unit of work's is that transaction's.
    """

    @property
    def pending(self) -> int:
        """How many samples are not written yet."""
    async def record(
        self,
        name: str,
        value: float,
        *,
        agent: Agent | str | None = None,
        type: str = "gauge",
        unit: str = "",
        tags: dict[str, Any] | None = None,
        at: Moment | None = None,
    ) -> None:
        """Takes one value, measured now or `at` an instant, to be written with others.

        Raises `InvalidValue` for what cannot be stored. `NotFound` tells of samples taken earlier whose agents do not exist: they
        are in its `data["samples"]`; this value was taken. Any other error says that the buffer is full and why it cannot be
        written (`Unavailable` while the database is away, `StoreError` inside a transaction): this value was not taken.
        """
    async def flush(self) -> None:
        """Writes everything taken so far. Raises what keeps it from that, `StoreError` inside a transaction; the samples are kept then.

        Raises `NotFound` like `record`.
        """
    async def close(self) -> None:
        """Writes what is left and ends the buffer. Raises like `flush`, and may be repeated then. Harmless when repeated."""
    @property
    def failure(self) -> StoreError | None: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None: ...

class AsyncJournal:
    """Events of every change to a store's agents, tasks, groups and configuration, written by the database itself."""

    async def status(self) -> Journaling | None:
        """Since when it is being written; None when it is not, or not all of it since one of its triggers is gone, off or another."""
    async def start(self) -> Journaling:
        """Has it written from now on, whoever changes something, after an event for each row there is; since when it is written.

        Raises `Unavailable` where others' transactions leave no moment for it, and `StoreError` inside a transaction.
        """
    async def stop(self) -> bool:
        """Has it written no longer; whether it was. What it says stays; started again, it begins anew. Raises as `start`."""
    async def rebuild(
        self, *, until_position: int | None = None, into: str | os.PathLike[str] | None = None, report: Report | None = None
    ) -> Rebuilt:
        """Adds up the journal; see the function of that name."""

class AsyncBackups:
    """The backups of a store in one storage: made while others use the store, checked, and restored.

    `progress` is called with the bytes done and of how many. Any number of threads and processes may use one storage.
    """

    @property
    def storage(self) -> BackupStorage:
        """Where they are kept."""
    async def create(self, kind: Kind = "full", *, format: Format | None = None, progress: CatalogProgress = ...) -> Backup:
        """Makes a backup of the store as it is now. Who writes does not wait.

        An increment holds the pages that have changed since the newest backup of this store with this key; where there is none to add to,
        a full one is made.
        `format="rows"` writes rows instead of pages, full each time, to be restored on any engine; it is what engines without pages do.
        Raises `Unavailable` when the storage cannot be written: nothing half-made is left to be taken for a backup.
        """
    async def list(self) -> Sequence[Backup]:
        """Every backup of which everything is there, oldest first; `verify` tells of others."""
    async def newest(self) -> Backup | None:
        """The last backup of this store, or of any if this was opened without one, that the key fits; None when there is none."""
    async def get(self, id: str | Backup) -> Backup:
        """A backup by its id. Raises `NotFound`, and `CorruptBackup` for one whose manifest is damaged."""
    async def chain(self, id: str | Backup) -> Sequence[Backup]:
        """What restoring a backup takes: a full one, and increments. Raises `NotFound`, and `CorruptBackup` when one is missing."""
    async def verify(self, id: str | Backup | None = None, *, integrity: bool = True, progress: CatalogProgress = ...) -> Verification:
        """Reads a backup and all it adds to, or every one: compares each file with its checksum, each page with its hash, the chains.

        With `integrity` each is put together in a temporary place, too, for the database's own check of itself and of references; without
        it takes a fraction of the time and no space. Without an id, those of another key are only named, in `passed_over`, where it fits
        some. Raises `InvalidValue` without the right key, `Unavailable` when the storage cannot be read. What is wrong with a backup is not
        raised but told.
        """
    async def restore(
        self,
        id: str | Backup | None = None,
        *,
        into: str | os.PathLike[str],
        at: Moment | None = None,
        position: int | None = None,
        overwrite: bool = False,
        dry_run: bool = False,
        progress: CatalogProgress = ...,
    ) -> Restoration:
        """Restores a backup, the state of an instant or of an event's position, or the latest there is, into a path or URL.

        A file is put together beside its place, checked — every page, the database's integrity, references, numbers of rows — and then
        there at once. One that exists is replaced with `overwrite=True` only, and only while nobody has it open. Other databases must be
        without rows. When it fails, nothing was touched. `dry_run` tells what would be done, without reading more than manifests.

        Without an id, only what was encrypted with the key counts, if one was given, and of several stores' only this one's.

        The schema is as it was; opening the store brings it up to date. Raises `NotFound` when nothing goes back that far, `CorruptBackup`
        (for the latest state also when a newer backup is damaged: restore an earlier one by its id or `at=`), `Conflict` for a place that
        is taken, and `InvalidValue` without the right key, and where it cannot be told which store's is meant.
        """
    async def drill(self, id: str | Backup | None = None, *, progress: CatalogProgress = ...) -> Drill:
        """Restores a backup, or the latest state, into a temporary place, checks it as `restore` does, and records how it went.

        That it did not pass is told, not raised; that it could not be recorded, in a storage that may only be read, is logged. Raises
        `NotFound`, also when somebody removes the backup meanwhile, `InvalidValue` without the right key, and `Unavailable`.
        """
    async def drills(self, id: str | Backup) -> Sequence[Drill]:
        """How a backup's drills went, oldest first."""
    async def prune(self, keep: Retention | int, *, dry_run: bool = False) -> Pruning:
        """Removes the backups that are not to be kept: all but the last so many, or as a `Retention` says.

        What a kept one adds to stays, and so do the newest and what leads to the latest state. Each store's are counted by themselves, and
        so are those that the key fits. Files that killed processes have left are removed after a day.
        """
    async def delete(self, id: str | Backup) -> None:
        """Removes one backup, also a damaged one or one of another key, and what was shipped after it, whether it is the latest or not.

        Raises `NotFound`, and `Conflict` while others add to it, or damaged ones may.
        """
    def schedule(self, every: float, *, full_every: int = 24, keep: Retention | int | None = None) -> AsyncSchedule:
        """Makes a backup every so many seconds while its `with` block lasts, every `full_every`th of them full, and prunes.

        Raises `Unsupported` where there are no threads: call `create` there when it suits.
        """
    def continuous(self, interval: float = 0.3) -> AsyncShipping:
        """Ships what is committed every `interval` seconds while its `with` block lasts; see `Shipping`."""
    @property
    def now(self) -> Callable[[], int]: ...

class AsyncSchedule:
    """Makes a backup every so often, while its `with` block lasts.

    When the next one is due is told by what is in the storage: who starts later, or again, goes on from there.
    """

    async def run_due(self) -> bool:
        """Makes the backup that is due, if one is, and prunes; whether it made one. Raises what goes wrong."""
    async def due_in(self) -> int:
        """Milliseconds until the next one is due; 0 or less when it is."""
    async def stop(self) -> None:
        """Ends it, after the backup that is being made."""
    @property
    def made(self) -> int: ...
    @property
    def failure(self) -> StoreError | None: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None: ...

class AsyncShipping:
    """Ships what is committed while its `with` block lasts, in segments that continue a backup; it makes one where there is none.

    Whoever commits waits for nothing but, once in some 12 MB of the database's log, about 10 ms for its being begun anew.

    While the storage fails, the log keeps what is to be stored. What it cannot keep, because a process without this has cut it off or
    because it would grow beyond measure, an incremental backup makes good: then single commits in between cannot be restored.
    """

    async def start(self) -> Self:
        """Begins, in a thread of its own. Raises `Unsupported` where there is no log to ship."""
    async def ship(self) -> Shipped:
        """Ships what is committed by now, and returns when it is stored. Raises `Unavailable` when it could not be."""
    async def status(self) -> Status:
        """How it goes."""
    async def stop(self) -> None:
        """Ships the rest and ends. Raises `Unavailable` when that could not be stored; it has ended then, too. Harmless when repeated."""
    @property
    def backups(self) -> AsyncBackups: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None: ...

class AsyncPerformanceMonitor:
    """What the verbs and statements of a store take, counted while it is on. `report()` prints it.

    It sees this process's use of this store. Memory stays the same however much is counted. Off, it costs nothing.
    """

    @property
    def on(self) -> bool:
        """Whether it counts just now."""
    async def start(self, *, slow: float = 0.1, keep: int = 20) -> None:
        """Counts from now on, adding to what was counted before.

        Of the statements that take `slow` seconds or longer the last `keep` are kept, with their SQL, never with values. Started again,
        it goes on with these. Units of work that are open are not timed.
        """
    async def stop(self) -> None:
        """Counts no longer; what was counted stays, until `reset`."""
    async def reset(self) -> None:
        """Forgets everything counted."""
    async def opentelemetry(self, tracer_provider: Any = None, meter_provider: Any = None) -> None:
        """Also has every operation be a span, every statement one inside it, and both recorded in histograms, until `stop`.

        The providers are OpenTelemetry's, its global ones unless given; the monitor is started if it is not on. Raises `Unsupported`
        where opentelemetry-api is not installed.
        """
    def track(self, name: str) -> AbstractContextManager[None]:
        """Times a block of the caller's own as an operation of that name; not at all while the monitor is off."""
    async def snapshot(self, *, plans: bool = True) -> Snapshot:
        """What was counted until now, as plain data. With `plans` the database is asked for those of the slow statements."""
    async def report(self) -> ReportReport:
        """What was counted until now, as a table: text to print, and HTML in a notebook."""
    async def prometheus(self) -> str:
        """What was counted until now in Prometheus's text format. Raises `Unsupported` where prometheus-client is not installed."""
    def collector(self) -> Any:
        """A collector to register: `prometheus_client.REGISTRY.register(store.monitor.collector())`. Raises as `prometheus`."""

class AsyncStore:
    """A swarm's state, in a database, for coroutines: the nouns and verbs of `Store`, each to be awaited.

        async with AsyncStore.open("swarm.db") as store:
            scout = await store.agents.register("scout")
            await store.tasks.enqueue("crawl", {"url": "https://example.com"})
            task = await store.tasks.wait(scout)

    The work is done in threads, one of which writes. Whoever is cancelled has done nothing if his turn had not come; what had begun is done
    to its end, and a task or message it took for him is given back. Any number of event loops may share one.
    """

    @property
    def agents(self) -> AsyncAgents:
        """The agents of the swarm."""
    @property
    def tasks(self) -> AsyncTasks:
        """The queue of tasks."""
    @property
    def messages(self) -> AsyncMessages:
        """Messages between agents."""
    @property
    def metrics(self) -> AsyncMetrics:
        """Samples over time, and their aggregates."""
    @property
    def groups(self) -> AsyncGroups:
        """Groups of agents."""
    @property
    def config(self) -> AsyncConfig:
        """Configuration by key."""
    @property
    def events(self) -> AsyncEvents:
        """Streams of events, and who consumes them."""
    async def execute(self, statement: Executable, params: Mapping[str, Any] | None = None) -> Sequence[Row[*tuple[Any, ...],]]:
        """Runs any SQLAlchemy statement and returns its rows: the way to joins, reports and your own tables.

        A SELECT reads; anything else runs in a transaction of its own or in the open one.
        """
    @property
    def address(self) -> str:
        """Where the store is, as a URL that opens it; for people, so one that has a password is without it, and opens nothing then."""
    @property
    def capabilities(self) -> Capabilities:
        """What the engine underneath can do."""
    async def transaction(self, function: Callable[[UnitOfWork], T]) -> T:
        """A unit of work: committed when the block ends, rolled back when an exception leaves it.

        While it is open nobody else writes, so keep it short. On the thread that opened it the store's own verbs take part.

        The block is a function here: it is called with it in a thread, and its value returned.
        """
    @property
    def backups(self) -> AsyncBackups:
        """The store's backups, where they are kept unless you say otherwise.

        Those of a file are in a directory beside it, of its name and `.backups`; those of a store that no other process can open are in
        memory, until it is closed. Raises `Unsupported` for a database on a server: use `backup_to`.
        """
    def backup_to(
        self, storage: BackupStorage | str | os.PathLike[str], *, compression: Compression | None = None, key: Key | None = None
    ) -> AsyncBackups:
        """The store's backups in a directory, at a fsspec URL such as `s3://bucket/backups`, or in any `BackupStorage`.

        `compression` is `none`, `zlib` or `zstd`, the default where it is installed. A `key` encrypts (AES-256-GCM): 32 bytes, or a
        passphrase. Raises `Unsupported` when what a URL, Zstandard or encryption takes is not installed.
        """
    @property
    def journal(self) -> AsyncJournal:
        """Whether the database keeps a journal of every change; and the state that it adds up to."""
    @property
    def monitor(self) -> AsyncPerformanceMonitor:
        """What this store's verbs and statements take, counted from `monitor.start()` on."""
    async def check(self) -> list[str]:
        """What is wrong with the database's integrity; an empty list for a whole one."""
    async def flush(self) -> None:
        """Returns once everything committed is stored as `durability` promises. Raises `Unavailable` when it could not be.

        Only where commits do not wait for their storing, in a browser, is there anything to wait for.
        """
    async def storing(self) -> Storing:
        """How far what was committed is stored: what `flush` has to wait for, and what keeps it from being stored."""
    @classmethod
    def open(
        cls,
        address: str | os.PathLike[str] | None = None,
        *,
        migrate: bool = True,
        durability: Durability = "normal",
        read_only: bool = False,
        clock: Clock = ...,
        trace: Trace | None = None,
        timeout: float = 30.0,
        journal: bool = False,
        monitor: bool = False,
        upcasters: Upcasters | None = None,
    ) -> Opening:
        """Opens the store at a path or SQLAlchemy URL, created where there is none; in memory without an address.

        The schema is brought up to date unless `migrate=False`. `durability="full"` also survives power loss with every commit;
        `normal` can lose the last ones then, though never when a process dies. `clock` returns milliseconds since the epoch.
        `trace` is called with every statement's SQL and its seconds. `timeout` is how many seconds a write waits for others'.
        `journal=True` has the database write an event for every change to agents, tasks, groups and configuration from now on, whoever
        makes it and however they opened it, until `store.journal.stop()`. `monitor=True` counts what verbs and statements take from now on,
        as `store.monitor.start()` does. `upcasters` bring old events to today's form when they are read.

        In a browser an address is the name of a database that the page's origin keeps. Opening waits up to `timeout` seconds for
        another tab that has it open; where it cannot wait it raises `Unsupported`, and `open_async` is what to await. `normal`
        stores commits within a second there, `full` at once; see `flush`.

        Raises `SchemaMismatch` for a database of a newer release or of another program, an edited migration, or an old schema with
        `migrate=False`, and changes nothing then;
        `CorruptDatabase` for a file that is no database; `Unavailable` when it cannot be opened.
        """
    async def close(self) -> None:
        """Ends every connection once all that was asked for before is done; what is asked for later raises `Closed`.

        Harmless when repeated. Who is cancelled here does not wait for it; it ends all the same.
        """
    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None: ...

class Opening:
    """A store that is being opened: await it, or let `async with` open it and close it in the end."""

    def __await__(self) -> Generator[Any, None, AsyncStore]: ...
    async def __aenter__(self) -> AsyncStore: ...
    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None: ...
