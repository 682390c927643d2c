"""What a store asks of its database, whichever it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Literal

from msgspec import Struct
from sqlalchemy import Connection

from ruv_swarm_store.clock import Clock, system_clock
from ruv_swarm_store.engines.executor import Executor, Scope, Trace
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


class Options(Struct, frozen=True, kw_only=True):
    """How to open a database."""

    durability: Durability = "normal"
    """`full` survives power loss with every commit; `normal` may lose the last commits then, never on a crash of the process."""
    read_only: bool = False
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

    @abstractmethod
    def tables(self) -> frozenset[str]:
        """The names of the tables that exist."""

    @abstractmethod
    def migration(self) -> AbstractContextManager[Connection]:
        """A connection inside one transaction that excludes every other writer, references unchecked until its end."""

    @abstractmethod
    def check(self) -> list[str]:
        """What is wrong with the database's integrity; nothing in a whole one."""

    def snapshot(self) -> AbstractContextManager[Executor]:
        """An executor for SELECTs that all see the database as it was at the first of them, whatever others commit meanwhile."""
        raise Unsupported(f"{self.name} cannot be read as of one instant", hint="This engine cannot be copied from")

    def numbers(self, run: Executor) -> Mapping[str, int]:
        """The last number given in each table whose numbers are never given twice, though its row may be gone; for `number_on`."""
        raise Unsupported(f"{self.name} does not tell its numbers", hint="This engine cannot be copied from")

    def number_on(self, run: Executor, last: Mapping[str, int]) -> None:
        """Lets each table's next row have a number above all in it, and above `last` where the table is named there.

        For after rows were inserted under numbers of their own; inside a transaction.
        """
        raise Unsupported(f"{self.name} does not take numbers", hint="This engine cannot be copied to")

    @abstractmethod
    def close(self) -> None:
        """Ends every connection. Harmless when repeated."""
