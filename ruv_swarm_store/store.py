"""`Store` says where, `UnitOfWork` says together or not at all: the same repositories over two kinds of scope."""

from __future__ import annotations

import inspect
import os
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property, partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypedDict, TypeVar, Unpack

from sqlalchemy import Executable, Row, SelectBase

from ruv_swarm_store import codec, engines, migrations
from ruv_swarm_store.agents import Agents
from ruv_swarm_store.clock import Clock, duration, system_clock
from ruv_swarm_store.config import Config
from ruv_swarm_store.engines import Capabilities, Durability, Engine, Executor, Interest, Lent, Options, Scope, Storing, Trace
from ruv_swarm_store.errors import Closed, InvalidValue, StoreError, Unsupported
from ruv_swarm_store.events import Begin, Events, Upcasters
from ruv_swarm_store.groups import Groups
from ruv_swarm_store.journal import Journal
from ruv_swarm_store.messages import Messages
from ruv_swarm_store.metrics import Metrics
from ruv_swarm_store.tasks import Tasks

if TYPE_CHECKING:
    from ruv_swarm_store.backup.backups import Backups
    from ruv_swarm_store.backup.encryption import Key
    from ruv_swarm_store.backup.frames import Compression
    from ruv_swarm_store.backup.storage import BackupStorage
    from ruv_swarm_store.monitor import PerformanceMonitor
    from ruv_swarm_store.monitor.verbs import Verbs

T = TypeVar("T")


class Repositories:
    """Every repository, over one scope."""

    def __init__(self, scope: Scope, begin: Begin, upcasters: Upcasters | None = None) -> None:
        self._scope = scope
        self._begin = begin
        self._upcasters = upcasters

    @property
    def _plain(self) -> Self:
        """What runs a verb that is timed (see `monitor`)."""
        return self

    # Made when first asked for: most units of work need one or two of them.

    @cached_property
    def agents(self) -> Agents:
        """The agents of the swarm."""
        return Agents(self._scope)

    @cached_property
    def tasks(self) -> Tasks:
        """The queue of tasks."""
        return Tasks(self._scope)

    @cached_property
    def messages(self) -> Messages:
        """Messages between agents."""
        return Messages(self._scope)

    @cached_property
    def metrics(self) -> Metrics:
        """Samples over time, and their aggregates."""
        return Metrics(self._scope)

    @cached_property
    def groups(self) -> Groups:
        """Groups of agents."""
        return Groups(self._scope)

    @cached_property
    def config(self) -> Config:
        """Configuration by key."""
        return Config(self._scope)

    @cached_property
    def events(self) -> Events:
        """Streams of events, and who consumes them."""
        return Events(self._scope, self._begin, self._upcasters)

    def execute(self, statement: Executable, params: Mapping[str, Any] | None = None) -> Sequence[Row[*tuple[Any, ...]]]:
        """Runs any SQLAlchemy statement and returns its rows: the way to joins, reports and your own tables.

        A SELECT reads; anything else runs in a transaction of its own or in the open one.
        """
        if not isinstance(statement, Executable):
            raise InvalidValue(f"{statement!r} is no statement", hint="Give a SQLAlchemy statement, such as select(...) or text(...)")
        # In a unit of work a SELECT that fails must not end the whole of it, as it would on some engines.
        reads = isinstance(statement, SelectBase) and not self._scope.within
        scope = self._scope.read() if reads else self._scope.transaction()
        with scope as run:
            return run.execute(statement, params or {})


_NOUNS = {name: made for name, made in vars(Repositories).items() if isinstance(made, cached_property)}


class UnitOfWork(Repositories):
    """One transaction: what is done through it happens together or not at all, at one time `now`.

    It belongs to the thread that began it and ends with its `with` block: committed on leaving, rolled back by an exception.
    """

    def __init__(self, run: Executor, begin: Callable[[], AbstractContextManager[Executor]], upcasters: Upcasters | None = None) -> None:
        self._within = _Within(run, begin)
        super().__init__(self._within, partial(_lasting, type(self), self._within.transaction, begin, upcasters), upcasters)

    @property
    def now(self) -> int:
        """The transaction's time, in milliseconds since the epoch."""
        return self._within.current().now

    def transaction(self) -> AbstractContextManager[UnitOfWork]:
        """A part that can fail on its own: an exception undoes only what was done inside (a savepoint)."""
        return self._begin()

    def lock(self, name: str) -> None:
        """Keeps other units of work that lock the same name waiting until this one ends.

        Needed only where units of work run side by side (`capabilities.concurrent_writers`), for a decision by more rows than those
        read by key, which are held anyway.
        """
        self._within.current().lock(f"user:{codec.text(name, 'name')}")

    def after_commit(self, hook: Callable[[], object]) -> None:
        """Calls `hook` once everything has been committed; never if this part is rolled back. Its errors are logged."""
        if not callable(hook) or inspect.iscoroutinefunction(hook):
            raise InvalidValue(f"{hook!r} is no function to call", hint="Give one without arguments that has done its work when it returns")
        self._within.current().after_commit(hook)

    def __repr__(self) -> str:
        return f"<UnitOfWork {'ended' if self._within.ended else 'open'}>"


def _lasting(
    kind: type[UnitOfWork],
    enter: Callable[[], AbstractContextManager[Executor]],
    begin: Callable[[], AbstractContextManager[Executor]],
    upcasters: Upcasters | None,
) -> AbstractContextManager[UnitOfWork]:
    """A unit of work that ends with its block."""

    def steps() -> Generator[UnitOfWork]:
        with enter() as run:
            work = kind(run, begin, upcasters)
            try:
                yield work
            finally:
                work._within.ended = True

    return Lent(steps())


class _Within:
    """The scope of a unit of work: everything runs on the one executor."""

    def __init__(self, run: Executor, begin: Callable[[], AbstractContextManager[Executor]]) -> None:
        self._run = run
        self._thread = threading.get_ident()
        self._process = os.getpid()
        self.begin = begin
        self.ended = False
        self.clock: Clock = lambda: self.current().now

    def current(self) -> Executor:
        if self.ended:
            raise Closed("this unit of work has ended", hint="Use it inside its with block only")
        if self._thread != threading.get_ident():
            raise StoreError("a unit of work belongs to the thread that began it", hint="Begin another with store.transaction()")
        if self._process != os.getpid():
            raise StoreError("this unit of work belongs to the parent process", hint="Fork outside the with block")
        return self._run

    def read(self) -> AbstractContextManager[Executor]:
        return _Lend(self.current())

    def write(self, step: Callable[[Executor], T]) -> T:
        run = self.current()
        if not run.holding:
            return step(run)
        # Where a statement that fails ends the whole transaction, it gets a savepoint of its own.
        with self.begin() as run:
            return step(run)

    def transaction(self) -> AbstractContextManager[Executor]:
        self.current()
        return self.begin()

    @property
    def within(self) -> bool:
        return True

    def changes(self) -> int:
        raise Unsupported("waiting inside a transaction would keep everybody else out", hint="Wait through the store")

    def wait(self, seen: int, seconds: float) -> bool:
        raise Unsupported("waiting inside a transaction would keep everybody else out", hint="Wait through the store")

    async def wait_async(self, seen: int, seconds: float, interest: Interest | None = None) -> bool:
        return self.wait(seen, seconds)

    def __repr__(self) -> str:
        return "a unit of work"


class _Lend:
    __slots__ = ("_run",)

    def __init__(self, run: Executor) -> None:
        self._run = run

    def __enter__(self) -> Executor:
        return self._run

    def __exit__(self, *_: object) -> None:
        pass


def _options(
    durability: Durability = "normal",
    read_only: bool = False,
    clock: Clock = system_clock,
    trace: Trace | None = None,
    timeout: float = 30.0,
    *,
    create: bool = True,
) -> Options:
    if durability not in ("normal", "full"):
        raise InvalidValue(f"durability is {durability!r}", hint="Use 'normal' or 'full'")
    duration(timeout, "timeout")
    try:
        codec.integer(clock(), "what clock returns")
    except (InvalidValue, TypeError) as error:  # seconds would pass for milliseconds where an engine makes whole numbers of them
        raise InvalidValue(
            error.message if isinstance(error, InvalidValue) else f"clock cannot be called ({error})",
            hint="Give a function that returns whole milliseconds since the epoch: lambda: time.time_ns() // 1_000_000",
        ) from error
    return Options(durability=durability, read_only=read_only, create=create, clock=clock, trace=trace, timeout=timeout)


class _Beginning:
    """Begins units of work in the way that holds now, for whoever keeps it."""

    __slots__ = ("now",)

    def __init__(self, now: Begin) -> None:
        self.now = now

    def __call__(self) -> AbstractContextManager[UnitOfWork]:
        return self.now()


class Opening(TypedDict, total=False):
    """How to open a store; see `Store.open`."""

    durability: Durability
    read_only: bool
    clock: Clock
    trace: Trace | None
    timeout: float


class Store(Repositories):
    """A swarm's state, in a database. Each call is a transaction of its own; `transaction` joins several.

    One store serves any number of threads, and any number of processes open the same file. Close it, or use it in a `with`.
    """

    def __init__(self, engine: Engine, upcasters: Upcasters | None = None) -> None:
        self._engine = engine
        self._closed = False
        self._backups: Backups | None = None
        self._beginning = _Beginning(partial(_lasting, UnitOfWork, engine.transaction, engine.transaction, upcasters))
        super().__init__(engine, self._beginning, upcasters)

    @classmethod
    def open(
        cls,
        address: str | os.PathLike[str] | None = None,
        *,
        migrate: bool = True,
        durability: Durability = "normal",
        read_only: bool = False,
        clock: Clock = system_clock,
        trace: Trace | None = None,
        timeout: float = 30.0,
        journal: bool = False,
        monitor: bool = False,
        upcasters: Upcasters | None = None,
    ) -> Self:
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
        engine = engines.connect(address, _options(durability, read_only, clock, trace, timeout, create=migrate))
        try:
            migrations.prepare(engine, migrate=migrate and not read_only)
            if journal:
                Journal(engine).start()
        except BaseException:
            engine.close()
            raise
        store = cls(engine, upcasters)
        if monitor:
            store.monitor.start()
        return store

    @classmethod
    async def open_async(
        cls,
        address: str | os.PathLike[str] | None = None,
        *,
        migrate: bool = True,
        journal: bool = False,
        monitor: bool = False,
        upcasters: Upcasters | None = None,
        **options: Unpack[Opening],
    ) -> Self:
        """`open`, for places where loading the database must be awaited."""
        engine = await engines.connect_async(address, _options(**options, create=migrate))
        try:
            migrations.prepare(engine, migrate=migrate and not options.get("read_only", False))
            if journal:
                Journal(engine).start()
        except BaseException:
            await engine.close_async()
            raise
        store = cls(engine, upcasters)
        if monitor:
            store.monitor.start()
        return store

    @property
    def address(self) -> str:
        """Where the store is, as a URL that opens it; for people, so one that has a password is without it, and opens nothing then."""
        return self._engine.name

    @property
    def capabilities(self) -> Capabilities:
        """What the engine underneath can do."""
        return self._engine.capabilities

    def transaction(self) -> AbstractContextManager[UnitOfWork]:
        """A unit of work: committed when the block ends, rolled back when an exception leaves it.

        While it is open nobody else writes, so keep it short. On the thread that opened it the store's own verbs take part.
        """
        return self._beginning.now()

    @property
    def backups(self) -> Backups:
        """The store's backups, where they are kept unless you say otherwise.

        Those of a file are in a directory beside it, of its name and `.backups`; those of a store that no other process can open are in
        memory, until it is closed. Raises `Unsupported` for a database on a server: use `backup_to`.
        """
        if self._backups is None:
            from ruv_swarm_store.backup import Backups, DirectoryStorage, MemoryStorage
            from ruv_swarm_store.backup.storage import beside

            if (file := self._engine.file) is not None:
                self._backups = Backups(DirectoryStorage(beside(file)), self._engine)
            elif not self.capabilities.processes:
                self._backups = Backups(MemoryStorage(), self._engine)
            else:
                raise Unsupported(
                    f"there is no place beside {self.address} to keep backups in", hint="Say where: store.backup_to('backups')"
                )
        return self._backups

    def backup_to(
        self, storage: BackupStorage | str | os.PathLike[str], *, compression: Compression | None = None, key: Key | None = None
    ) -> Backups:
        """The store's backups in a directory, at a fsspec URL such as `s3://bucket/backups`, or in any `BackupStorage`.

        `compression` is `none`, `zlib` or `zstd`, the default where it is installed. A `key` encrypts (AES-256-GCM): 32 bytes, or a
        passphrase. Raises `Unsupported` when what a URL, Zstandard or encryption takes is not installed.
        """
        from ruv_swarm_store.backup.backups import Backups, storage_at

        return Backups(storage_at(storage), self._engine, compression=compression, key=key)

    @property
    def journal(self) -> Journal:
        """Whether the database keeps a journal of every change; and the state that it adds up to."""
        return Journal(self._engine)

    @cached_property
    def monitor(self) -> PerformanceMonitor:
        """What this store's verbs and statements take, counted from `monitor.start()` on."""
        from ruv_swarm_store.monitor import PerformanceMonitor

        made: PerformanceMonitor = vars(self).setdefault("monitor", PerformanceMonitor(self._engine, self))  # two threads may be here
        return made

    def _time(self, verbs: Verbs | None) -> None:
        """Has the verbs of this store, and of the units of work that it begins, timed from now on; None ends that."""
        from ruv_swarm_store.monitor.verbs import put_off

        kind = UnitOfWork if verbs is None else verbs.unit(UnitOfWork, _NOUNS)
        begin = partial(_lasting, kind, self._engine.transaction, self._engine.transaction, self._upcasters)
        self._beginning.now = begin if verbs is None else verbs.begin(begin)
        for noun, made in _NOUNS.items():
            repository = getattr(self, noun)
            put_off(repository)
            if verbs is not None:
                verbs.put(repository, made.func(self), noun)
        put_off(self)
        if verbs is not None:
            self.__class__ = verbs.executing(type(self))

    def check(self) -> list[str]:
        """What is wrong with the database's integrity; an empty list for a whole one."""
        return self._engine.check()

    async def flush(self) -> None:
        """Returns once everything committed is stored as `durability` promises. Raises `Unavailable` when it could not be.

        Only where commits do not wait for their storing, in a browser, is there anything to wait for.
        """
        if self._closed:
            raise Closed(f"the store at {self.address} is closed", hint="Open it again with Store.open")
        await self._engine.flush()

    def storing(self) -> Storing:
        """How far what was committed is stored: what `flush` has to wait for, and what keeps it from being stored."""
        return self._engine.storing()

    def close(self) -> None:
        """Ends every connection; waits for other threads' transactions. Harmless when repeated.

        In a browser, what is not stored yet is stored before this returns only where Python can be suspended; `close_async` is sure.
        """
        self._closed = True
        self._engine.caches.close()
        self._engine.close()

    async def close_async(self) -> None:
        """`close`, returning once everything committed is stored. Raises as `flush`."""
        self._closed = True
        self._engine.caches.close()
        await self._engine.close_async()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await self.close_async()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def __del__(self, _warn: Callable[..., None] = warnings.warn, _exiting: Callable[[], bool] = sys.is_finalizing) -> None:
        if not getattr(self, "_closed", True):
            _warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=2)
            if not _exiting():  # then other threads are gone, and what they held is held for ever
                self._engine.caches.close()
                self._engine.drop()

    def __repr__(self) -> str:
        return f"<Store {self._engine.name}{' closed' if self._closed else ''}>"
