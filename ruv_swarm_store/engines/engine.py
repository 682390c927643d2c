"""What a store asks of its database, whichever it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct
from sqlalchemy import Connection

from ruv_swarm_store.clock import Clock, system_clock
from ruv_swarm_store.engines.caches import Caches
from ruv_swarm_store.engines.executor import Executor, Interest, Scope, Trace
from ruv_swarm_store.engines.image import Image
from ruv_swarm_store.engines.log import Log
from ruv_swarm_store.engines.metering import Footprint, Meter
from ruv_swarm_store.engines.waiting import Sentinel
from ruv_swarm_store.errors import Unsupported

Durability = Literal["normal", "full"]


class Capabilities(Struct, frozen=True):
    """What an engine can do; asking for the rest is a clear error."""

    threads: bool = True
    """One store may be used from several threads."""
    processes: bool = True
    """Several processes may open the same database."""
    persistent: bool = True
    """The database outlives the store."""
    concurrent_writers: bool = False
    """Transactions that write run side by side, rather than one after the other."""
    blocking: bool = True
    """A call may block until others have done something, as `tasks.wait` does; where not, its form for asyncio is to be awaited."""


class Storing(Struct, frozen=True, kw_only=True):
    """How far what was committed is stored as `durability` promises; all of it where each commit waits for that."""

    lag: int = 0
    """How many milliseconds ago the oldest commit was made that is not stored; 0 when all are."""
    pending: int = 0
    """How many commits are not stored."""
    stored_at: int | None = None
    """When something was last stored, in milliseconds since the epoch, where that is known."""
    failure: str | None = None
    """What kept something from being stored in the background, until a verb has raised it."""
    details: Mapping[str, Any] = {}
    """What else the storage has to tell, in its own words."""


class Options(Struct, frozen=True, kw_only=True):
    """How to open a database."""

    durability: Durability = "normal"
    """`full` survives power loss with every commit; `normal` may lose the last commits then, never on a crash of the process."""
    read_only: bool = False
    create: bool = True
    """Whether a file that is not there is made."""
    private: bool = False
    """Whether a file that is made is for its owner only, as what others put into it may be."""
    clock: Clock = system_clock
    trace: Trace | None = None
    timeout: float = 30.0
    """Seconds a write waits for other processes' transactions."""


class Engine(Scope, ABC):
    """A database opened: a scope in which each call is a transaction of its own."""

    name: str
    """The engine's address, without secrets."""
    capabilities: Capabilities
    clock: Clock
    file: Path | None = None
    """The file that the database is in, where it is in one."""
    meter: Meter | None = None
    """What is told of every statement; see `measure`."""
    caches: Caches
    """The caches over this database."""

    def __repr__(self) -> str:
        return self.name

    @abstractmethod
    def tables(self) -> frozenset[str]:
        """The names of the tables that exist, and of the views, which are in their way; not of those the database made for itself."""

    @abstractmethod
    def migration(self) -> AbstractContextManager[Connection]:
        """A connection inside one transaction that excludes every other writer, references unchecked until its end."""

    async def wait_async(self, seen: int, seconds: float, interest: Interest | None = None) -> bool:
        if self.within:
            return self.wait(seen, seconds)  # which says why not
        return await self._sentinel.wait(seen, seconds, interest)

    @cached_property
    def _sentinel(self) -> Sentinel:
        made: Sentinel = vars(self).setdefault("_sentinel", Sentinel(self.changes, self.wait))  # two threads may be here
        return made

    @abstractmethod
    def note_changes(self, *, on: bool) -> None:
        """Whether executors are to note what they change, and tell the caches.

        What is under way elsewhere when this returns, unnoted, must look like others' commits.
        """

    @abstractmethod
    def others_committed(self) -> bool:
        """Whether others than this store may have committed anything since this was last asked."""

    @abstractmethod
    def check(self) -> list[str]:
        """What is wrong with the database's integrity; nothing in a whole one."""

    def snapshot(self) -> AbstractContextManager[Executor]:
        """An executor for SELECTs that all see the database as it was at the first of them, whatever others commit meanwhile."""
        raise Unsupported(f"{self.name} cannot be read as of one instant", hint="This engine cannot be copied from")

    def image(self) -> AbstractContextManager[Image]:
        """The pages of the database as they are now, whatever others commit meanwhile; nobody waits for who reads them."""
        raise Unsupported(f"{self.name} has no pages to copy", hint="Copy its rows instead")

    def log(self) -> Log:
        """What is committed from now on, as pages. Close it: meanwhile it keeps what is committed."""
        raise Unsupported(f"{self.name} has no log to follow", hint="Back up its rows instead")

    @abstractmethod
    def measure(self, meter: Meter | None) -> None:
        """From now on tells a meter what every statement takes, and what it waits for; None ends that."""

    @abstractmethod
    def footprint(self) -> Footprint:
        """What the database takes up, as far as it tells."""

    @abstractmethod
    def explain(self, sql: str) -> str:
        """How the database would go about a statement, whatever its parameters; nothing is run."""

    def numbers(self, run: Executor) -> Mapping[str, int]:
        """The last number given in each table whose numbers are never given twice, though its row may be gone; for `number_on`."""
        raise Unsupported(f"{self.name} does not tell its numbers", hint="This engine cannot be copied from")

    def number_on(self, run: Executor, last: Mapping[str, int]) -> None:
        """Lets each table's next row have a number above all in it, and above `last` where the table is named there.

        For after rows were inserted under numbers of their own; inside a transaction.
        """
        raise Unsupported(f"{self.name} does not take numbers", hint="This engine cannot be copied to")

    async def flush(self) -> None:
        """Returns once everything committed is stored as `durability` promises. Where each commit waits for that itself, at once."""

    def storing(self) -> Storing:
        """How far what was committed is stored."""
        return Storing()

    @abstractmethod
    def close(self) -> None:
        """Ends every connection. Harmless when repeated."""

    async def close_async(self) -> None:
        """`close`, returning once everything committed is stored."""
        self.close()

    def drop(self) -> None:
        """`close`, for whoever cannot wait."""
        self.close()
