"""The engines that must keep every promise. What is special to one is said here; the tests name none."""

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, NoReturn
from uuid import uuid4

import pytest
from chorus import Databases
from sqlalchemy import Table, text

from ruv_swarm_store import Store
from ruv_swarm_store.engines import IN_BROWSER, Capabilities
from ruv_swarm_store.errors import Closed
from ruv_swarm_store.schema import Json

if IN_BROWSER:
    import sqljs_dbapi
    from pyodide.ffi import run_sync
    from realm import scratch
    from sqljs_dbapi import storage


JOURNALED = os.environ.get("RUV_SWARM_TEST_JOURNAL") == "1"
"""Whether every store is opened with journal=True, and must agree with its journal at the end of its test."""


class Database:
    """One empty database: `open` gives stores on it, which are closed when the test ends."""

    server: ClassVar[str] = ""
    """The fixture that runs what it needs, if anything."""

    def __init__(self, directory: Path, server: Any, *, absent: bool) -> None:
        self._server = server
        self.address = self.place(directory, absent)
        self._stores: list[Store] = []
        self._damaged = False

    def place(self, directory: Path, absent: bool) -> str | None:
        """Its address; there must be nothing yet if it is to be `absent`, otherwise the schema may be in place."""
        raise NotImplementedError

    def open(self, **options: Any) -> Store:
        if JOURNALED and not options.get("read_only"):
            options.setdefault("journal", True)
        store = Store.open(self.address, **options)
        self._stores.append(store)
        return store

    def damage(self, store: Store, table: Table, key: str, id: str, column: str, value: str) -> None:
        """Puts into one row what the store itself would refuse; for JSON, if not this value then another that cannot be read."""
        raise NotImplementedError

    def unguard(self, store: Store, table: Table) -> None:
        """Takes away what keeps an append-only table's rows from being changed."""
        raise NotImplementedError

    def close(self) -> None:
        for store in self._stores:
            if JOURNALED and not self._damaged:
                with suppress(Closed):
                    assert (found := store.journal.rebuild()).agrees, found.differences
            store.close()


class _SQLite(Database):
    def damage(self, store: Store, table: Table, key: str, id: str, column: str, value: str) -> None:
        self._damaged = True
        with store.transaction() as work:
            work.execute(text("PRAGMA ignore_check_constraints=ON"))
            work.execute(text(f"UPDATE {table.name} SET {column} = :value WHERE {key} = :id"), {"value": value, "id": id})
            work.execute(text("PRAGMA ignore_check_constraints=OFF"))

    def unguard(self, store: Store, table: Table) -> None:
        for verb in ("update", "delete"):
            store.execute(text(f"DROP TRIGGER {table.name}_no_{verb}"))


class File(_SQLite):
    _empty: ClassVar[bytes] = b""

    def place(self, directory: Path, absent: bool) -> str | None:
        path = directory / "swarm.db"
        if not absent:
            if not File._empty:  # copied for each test: making one takes longer than most tests
                Store.open(path).close()
                File._empty = path.read_bytes()
            path.write_bytes(File._empty)
        return str(path)


class Memory(_SQLite):
    def place(self, directory: Path, absent: bool) -> str | None:
        return None


class Sqljs(_SQLite):
    """What a browser's page keeps under a name; on Node names are files."""

    _empty: ClassVar[bytes] = b""

    def place(self, directory: Path, absent: bool) -> str | None:
        self._name = f"{scratch()}conformance-{uuid4()}"
        if not absent:
            if not Sqljs._empty:
                Store.open(f"sqlite+sqljs:///{self._name}").close()
                Sqljs._empty = self._storage("export_image")
            else:
                self._storage("import_image", Sqljs._empty)
        return f"sqlite+sqljs:///{self._name}"

    def _storage(self, verb: str, *arguments: Any) -> Any:
        return run_sync(getattr(storage, verb)(self._name, *arguments))

    def close(self) -> None:
        super().close()
        for _ in range(100):
            with suppress(sqljs_dbapi.OperationalError):
                return self._storage("remove")
            run_sync(asyncio.sleep(0.01))  # a store that was dropped open is being closed
        raise TimeoutError(f"{self._name} is still open")


class PostgreSQL(Database):
    server = "postgresql"

    def place(self, directory: Path, absent: bool) -> str | None:
        return self._server.new(absent=absent)

    def damage(self, store: Store, table: Table, key: str, id: str, column: str, value: str) -> None:
        self._damaged = True
        with store.transaction() as work:
            if isinstance(table.c[column].type, Json):
                # The column takes nothing but JSON; of that, a number beyond every float is what no reader takes.
                value, cast = f"{10**400}.5", "JSONB"
            else:
                work.execute(text(f"ALTER TABLE {table.name} DROP CONSTRAINT ck_{table.name}_{column}"))
                cast = "TEXT"
            work.execute(text(f"UPDATE {table.name} SET {column} = CAST(:value AS {cast}) WHERE {key} = :id"), {"value": value, "id": id})

    def unguard(self, store: Store, table: Table) -> None:
        store.execute(text(f"DROP TRIGGER {table.name}_append_only ON {table.name}"))

    def close(self) -> None:
        super().close()
        self._server.drop(self.address)


ENGINES: dict[str, type[Database]] = (
    {"memory": Memory, "sqljs": Sqljs} if IN_BROWSER else {"file": File, "memory": Memory, "postgresql": PostgreSQL}
)


class _Capabilities:
    known: ClassVar[dict[str, Capabilities]] = {}
    missed: ClassVar[Counter[str]] = Counter()
    """Why tests did not run, and how many for each reason."""

    @classmethod
    def miss(cls, reason: str) -> NoReturn:
        cls.missed[reason] += 1
        pytest.skip(reason)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*capabilities): what the engine must be able to do for this test")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for reason, count in sorted(_Capabilities.missed.items()):
        terminalreporter.write_line(f"conformance: {count} tests did not run: {reason}", yellow=True)


def server_of(name: str, request: pytest.FixtureRequest) -> Any:
    """What an engine needs running; skips the test where it is not there."""
    fixture = ENGINES[name].server
    try:
        return request.getfixturevalue(fixture) if fixture else None
    except pytest.skip.Exception as reason:
        _Capabilities.miss(f"the {name} engine: {reason}")


# What is in memory differs from a file only in what no Python and no browser has to do with.
_AGAIN = (pytest.mark.long, pytest.mark.in_memory)


@pytest.fixture(params=[pytest.param(name, marks=_AGAIN) if name == "memory" else name for name in ENGINES])
def new_database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Database]]:
    """Makes empty databases of one engine."""
    server = server_of(request.param, request)
    made: list[Database] = []

    def new(*, absent: bool = False) -> Database:
        database = ENGINES[request.param](tmp_path_factory.mktemp(request.param), server, absent=absent)
        made.append(database)
        return database

    if request.param not in _Capabilities.known:
        with new().open() as probe:
            _Capabilities.known[request.param] = probe.capabilities
    for mark in request.node.iter_markers("needs"):
        for capability in mark.args:
            if not getattr(_Capabilities.known[request.param], capability):
                _Capabilities.miss(f"the {request.param} engine cannot do {capability}")
    yield new
    for database in made:
        database.close()


@pytest.fixture
def new_chorus(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Databases]]:
    """Makes sets of an empty database of each engine there is, to be opened as one store whose parts must agree."""
    servers = {}
    for name in ENGINES:
        with suppress(pytest.skip.Exception):  # told of in the end
            servers[name] = server_of(name, request)
    made: list[Databases] = []

    def new() -> Databases:
        one_each = {name: ENGINES[name](tmp_path_factory.mktemp(name), server, absent=False) for name, server in servers.items()}
        made.append(Databases(one_each))
        return made[-1]

    yield new
    for databases in made:
        databases.close()


@pytest.fixture
def database(new_database: Callable[..., Database]) -> Database:
    return new_database()


@pytest.fixture
def store(database: Database, clock: Any) -> Store:
    """A store whose clock stands still until told."""
    return database.open(clock=clock)
