"""Where a job is measured: an engine at a durability, with empty databases for us, the floor and the peers."""

from __future__ import annotations

import importlib
import itertools
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from floor import Floor, PostgreSQLFloor, SQLiteFloor

from ruv_swarm_store import Store

PROGRAMS = Path(__file__).resolve().parent.parent / "tests" / "programs"
Durability = Literal["normal", "full"]
COMMITS = 100
"""Commits in a timed round where each waits for the disk: that may take milliseconds."""


@contextmanager
def on_cpus(*, client: bool) -> Iterator[None]:
    """Keeps this process, and what it starts, to the first CPU if it is the client, or to the others if it is to start the server.

    Where the scheduler puts the two otherwise, on one CPU or on two, changes from connection to connection, and with it the time
    of a round trip by half: more than there is to measure.
    """
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cpus) < 2:
        yield
        return
    os.sched_setaffinity(0, cpus[:1] if client else cpus[1:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cpus)


class NoServer(Exception):
    """There is no PostgreSQL to measure on."""


class Place(ABC):
    """An engine at a durability."""

    engine: str

    def __init__(self, durability: Durability) -> None:
        self.durability: Durability = durability

    @property
    def id(self) -> str:
        return f"{self.engine}-{self.durability}"

    @property
    @abstractmethod
    def round(self) -> int:
        """Operations of one statement in a timed round: some tens of milliseconds."""

    @abstractmethod
    def new(self) -> str:
        """The address of an empty database."""

    @abstractmethod
    def floor(self) -> Floor:
        """A floor on a new database of its own, with the same schema."""

    def store(self) -> Store:
        """A store on a new database of its own."""
        return Store.open(self.new(), durability=self.durability)

    @abstractmethod
    def settle(self) -> None:
        """Does for every database so far what a server does by itself in time, after they were filled."""

    @abstractmethod
    def close(self) -> None:
        """Removes all databases."""


class SQLitePlace(Place):
    """Files in a directory."""

    engine = "sqlite"

    def __init__(self, durability: Durability, directory: Path) -> None:
        super().__init__(durability)
        self._directory = directory
        self._numbers = itertools.count(1)

    @property
    def round(self) -> int:
        return 1_000 if self.durability == "normal" else COMMITS

    def new(self) -> str:
        return str(self._directory / f"{next(self._numbers)}.db")

    def floor(self) -> Floor:
        path = self.new()
        Store.open(path).close()  # the schema, nothing else
        return SQLiteFloor(path, full=self.durability == "full")

    def settle(self) -> None:
        pass

    def close(self) -> None:
        pass


class PostgreSQLPlace(Place):
    """Schemas of one database."""

    engine = "postgresql"

    def __init__(self, durability: Durability, server: PostgreSQLServer) -> None:
        super().__init__(durability)
        self.url = server.url
        self._schemas = server.schemas
        self._used: list[str] = []

    @property
    def round(self) -> int:
        return 200 if self.durability == "normal" else COMMITS

    def new(self) -> str:
        address: str = self._schemas.new(absent=True)
        self._used.append(address)
        return address

    def empty_schema(self) -> str:
        """The name of a new schema with nothing in it, for tables of somebody else's."""
        schema = self.new().rpartition("schema=")[2]
        with self._schemas.connect(self._used[-1]) as connection:
            connection.execute(f'CREATE SCHEMA "{schema}"')
        return schema

    def floor(self) -> Floor:
        address = self.new()
        Store.open(address).close()
        return PostgreSQLFloor(self._schemas.connect(address), full=self.durability == "full")

    def settle(self) -> None:
        for address in self._used:
            with self._schemas.connect(address) as connection:
                tables = "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname = current_schema()"
                for (table,) in connection.execute(tables).fetchall():
                    connection.execute(f"VACUUM (ANALYZE) {table}")

    def close(self) -> None:
        for address in self._used:
            self._schemas.drop(address)


class PostgreSQLServer:
    """The database that RUV_SWARM_TEST_POSTGRES names, or a server of one's own, which writes to the disk as a real one does."""

    def __init__(self) -> None:
        """Raises `NoServer`."""
        if str(PROGRAMS) not in sys.path:
            sys.path.insert(0, str(PROGRAMS))
        try:
            tests: Any = importlib.import_module("pg_server")
        except ImportError as error:
            raise NoServer(f"there is no PostgreSQL driver: {error}") from error
        self._server: Any = None
        yours = os.environ.get(tests.YOURS)
        if yours:
            self.url = yours
        else:
            try:
                with on_cpus(client=False):
                    self._server = tests.Server(quick=False)  # the tests' own does without what makes a commit durable
            except tests.NoServer as error:
                raise NoServer(f"{error}; install it, or name a database in {tests.YOURS}") from error
            self.url = self._server.url()
        self.schemas: Any = tests.Yours(self.url)
        version, fsync = self.schemas._admin.execute("SELECT current_setting('server_version'), current_setting('fsync')").fetchone()
        self.version = f"PostgreSQL {version}" + ("" if fsync == "on" else ", fsync off: 'full' means little")

    def close(self) -> None:
        self.schemas.close()
        if self._server is not None:
            self._server.close()
