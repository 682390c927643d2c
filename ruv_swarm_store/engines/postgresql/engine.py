"""A database opened: its pool of connections, and the scopes that lend them out.

Transactions run side by side, READ COMMITTED; each thread has its own. What one decides by, it holds (see `Executor.hold`).
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import select
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import unquote

import psycopg
import sqlalchemy
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.pq import TransactionStatus
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout
from sqlalchemy import URL, Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from ruv_swarm_store import codec, schema
from ruv_swarm_store.engines import alchemy
from ruv_swarm_store.engines.caches import Caches
from ruv_swarm_store.engines.changes import Changes, noting
from ruv_swarm_store.engines.engine import Capabilities, Engine, Options
from ruv_swarm_store.engines.executor import Executor, Prepared
from ruv_swarm_store.engines.metering import Footprint, Meter, dress
from ruv_swarm_store.engines.postgresql import metering
from ruv_swarm_store.engines.postgresql.codes import REFUSED, translate
from ruv_swarm_store.engines.postgresql.connections import PostgreSQLExecutor, Session
from ruv_swarm_store.engines.postgresql.others import Others, TellingExecutor
from ruv_swarm_store.engines.postgresql.watch import Watch
from ruv_swarm_store.errors import Closed, InvalidValue, StoreError, Unavailable

log = logging.getLogger(__name__)

T = TypeVar("T")

POOL_SIZE = 16
"""Most connections of one store, unless its URL says `?pool_size=`."""
CONNECT_TIMEOUT = 10
"""Seconds until a server that does not answer is given up, unless its URL says `?connect_timeout=`."""
_SECRETS = ("password", "sslpassword")


class PostgreSQLEngine(Engine):
    """A schema of a PostgreSQL database.

    The URL is `postgresql://user:password@host/database`; `?schema=` names the schema, so that several swarms share a database,
    and `?pool_size=` the most connections. Other options go to the server's client library as they are: `?application_name=`, for one.
    """

    capabilities = Capabilities(concurrent_writers=True)

    def __init__(self, url: URL, options: Options) -> None:
        self.caches = Caches(self)
        query = {key: value if isinstance(value, str) else value[-1] for key, value in url.query.items()}
        self.schema = codec.text(query.pop("schema", "public"), "schema")
        pool_size = query.pop("pool_size", str(POOL_SIZE))
        if not pool_size.isdecimal() or not int(pool_size):
            raise InvalidValue(f"pool_size is {pool_size!r}", hint="Give a number of connections, 1 or more")
        if not self.schema or len(self.schema.encode()) > 63:
            raise InvalidValue(f"{self.schema!r} is no name of a schema", hint="Use up to 63 bytes")
        self._pool_size = int(pool_size)
        shown = {key: value for key, value in url.query.items() if key not in _SECRETS}
        self.name = url.set(drivername="postgresql", query=shown).render_as_string(hide_password=True)
        self._conninfo = self._understand(url, query)
        self.clock = options.clock
        self._options = options
        self._settings: Mapping[str, str] = {
            "search_path": '"{}"'.format(self.schema.replace('"', '""')),
            "synchronous_commit": "on" if options.durability == "full" else "off",
            "lock_timeout": str(round(options.timeout * 1000)),
            "default_transaction_read_only": "on" if options.read_only else "off",
            "default_transaction_isolation": "read committed",
        }
        self._statements: dict[Any, Prepared] = {}
        self._closed = False
        self._start()
        try:
            self._connect().close()  # a wrong address is told at once, not when the pool gives up
        except psycopg.Error as error:
            said = " ".join(str(error).split())
            for password in (url.password, *(query.get(key) for key in _SECRETS)):
                if password and password not in self.name:  # what is shown anyway is no secret, and may be the user's name
                    said = said.replace(password, "***")
            raise Unavailable(
                f"{self.name} cannot be opened ({said})",
                hint="Check the URL's host, port, database, user and password, and that the server runs",
                kind="connection",
            ) from error
        self._pool.open()
        _engines.add(self)

    def _understand(self, url: URL, query: Mapping[str, str]) -> str:
        """A URL in the words of the client library, which reads another kind of URL: its own knows no + for a blank, for one."""
        given: dict[str, str | int | None] = {
            "connect_timeout": CONNECT_TIMEOUT,
            "fallback_application_name": "ruv_swarm_store",
            "host": url.host and unquote(url.host),
            "port": url.port,
            "dbname": url.database,
            "user": url.username,
            "password": url.password,
            **query,
        }
        if given.pop("ssl", None) == "true":
            given.setdefault("sslmode", "require")
        try:
            made = make_conninfo("", **{key: value for key, value in given.items() if value not in (None, "")})
        except (psycopg.Error, TypeError) as error:
            raise InvalidValue(
                f"{self.name} cannot be understood ({' '.join(str(error).split())})",
                hint="After its question mark it may say schema, pool_size, and what the client library (libpq) knows",
            ) from error
        except UnicodeEncodeError:  # which tells the whole of it, with the password
            made = "\0"
        if "\0" in made:  # the library would read no further
            raise InvalidValue(f"{self.name} cannot be understood", hint="Give text without NUL characters, that UTF-8 can hold")
        return made

    def _start(self) -> None:
        """Makes what must be new in a new process."""
        self._local = threading.local()
        self._alchemy: sqlalchemy.Engine | None = None
        self._lending = threading.Lock()
        self._dressing = threading.RLock()
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        self._spare: list[Session] = []
        """The connection that was used last, if it is free."""
        self._waiting: list[None] = []
        """As many as those who wait for the pool, or are about to."""
        self._lent: psycopg.Connection[Any] | None = None
        self._pool: ConnectionPool[Session] = ConnectionPool(
            self._conninfo,
            connection_class=Session,
            kwargs={"autocommit": True},
            min_size=1,
            max_size=self._pool_size,
            timeout=max(self._options.timeout, 0.1),
            configure=self._furnish,
            check=Session.check,
            open=False,
            name=f"ruv_swarm_store {self.schema}",
            num_workers=1,
        )
        digest = hashlib.sha256(self.schema.encode()).hexdigest()[:16]
        self._others = Others(self._connect)
        self._watch = Watch(self._connect, f"ruv_swarm_{digest}", self._others.own)

    # Connections

    def _connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        """A connection outside the pool."""
        connection = psycopg.connect(self._conninfo, autocommit=True)
        try:
            self._set(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _set(self, connection: psycopg.Connection[Any]) -> None:
        calls = ", ".join("set_config(%s, %s, false)" for _ in self._settings)
        connection.execute(f"SELECT {calls}", [part for setting in self._settings.items() for part in setting])
        connection.prepared_max = 1_000

    def _furnish(self, session: Session) -> None:
        """Makes a new connection of the pool this store's."""
        self._set(session)
        session.poll = select.poll()
        session.poll.register(session.fileno(), select.POLLIN)
        session.executor = PostgreSQLExecutor(session, self._statements, self._options, self._lend)
        session.executor.changes = Changes(self.caches.tell)
        session.others = self._others
        with self._dressing:
            self._sessions.add(session)
            self._dress(session.executor)

    def _lend(self, raw: psycopg.Connection[Any]) -> Connection:
        with self._lending:
            if self._alchemy is None:
                self._alchemy = sqlalchemy.create_engine(
                    "postgresql+ruv_swarm://",
                    creator=lambda: alchemy.Lent(self._lent),
                    poolclass=NullPool,
                    isolation_level="AUTOCOMMIT",
                    json_serializer=codec.encode,
                    json_deserializer=codec.decode,
                    use_native_hstore=False,
                )
                if self._options.trace is not None:
                    alchemy.trace_engine(self._alchemy, self._options.trace)
            self._lent = raw
            return self._alchemy.connect()

    def _take(self) -> Session:
        if self._closed:
            raise Closed(f"the store at {self.name} is closed", hint="Open it again with Store.open")
        if (spare := self._warm()) is not None:
            return spare
        # Who gives one back looks here after it has put it by, who takes one looks for that after it has signed in here: one of them
        # sees the other.
        waiting = self._waiting
        waiting.append(None)
        try:
            return self._warm() or self._pool.getconn()
        except PoolTimeout as error:
            raise Unavailable(
                f"no connection to {self.name} was free or could be made within {self._options.timeout:g} s",
                hint=f"Check the server; keep transactions short; the pool holds {self._pool_size} connections: see ?pool_size=",
                kind="connection",
            ) from error
        except PoolClosed as error:
            raise Closed(f"the store at {self.name} is closed", hint="Open it again with Store.open") from error
        finally:
            waiting.pop()

    def _warm(self) -> Session | None:
        try:
            session = self._spare.pop()
        except IndexError:
            return None
        try:
            session.check()
        except psycopg.Error:
            self._pool.putconn(session)  # which makes another in its place
            return None
        return session

    def _give_back(self, session: Session) -> None:
        # The pool gives its connections in turn. The same one again finds its server process warm.
        idle = session.pgconn.transaction_status == TransactionStatus.IDLE
        if not idle or self._spare or self._closed:
            self._pool.putconn(session)
            return
        self._spare.append(session)
        if self._waiting:
            with suppress(IndexError):
                self._pool.putconn(self._spare.pop())

    # Scopes

    @property
    def within(self) -> bool:
        return getattr(self._local, "run", None) is not None

    def read(self) -> AbstractContextManager[Executor]:
        run: PostgreSQLExecutor | None = getattr(self._local, "run", None)
        return _Taken(self, changes=False) if run is None else _Here(run)

    def write(self, step: Callable[[Executor], T]) -> T:
        with self.transaction() if self.within else _Taken(self, changes=True) as run:
            return step(run)

    @contextmanager
    def transaction(self) -> Iterator[Executor]:
        run: PostgreSQLExecutor | None = getattr(self._local, "run", None)
        if run is not None:
            with self._level(run):
                yield run
            return
        session, local = self._take(), self._local
        run = session.executor
        hooks: Sequence[Callable[[], object]] = ()
        try:
            run.now = self.clock()
            local.run = run
            with self._level(run):
                yield run
            hooks = run.committed()
        finally:
            local.run = None
            if self._local is local:
                self._give_back(session)
        self._watch.committed()
        for hook in hooks:
            try:
                hook()
            except Exception:
                log.exception("a hook failed after its transaction had committed")

    @contextmanager
    def _level(self, run: PostgreSQLExecutor) -> Iterator[None]:
        level, local = run.depth, self._local
        try:
            run.begin()
            yield
            if self._local is not local:
                raise StoreError(
                    "this process was forked inside the transaction, which only its parent can end",
                    hint="Fork outside the with block, or end a child inside it with os._exit",
                )
            if run.depth != level + 1:
                level = 0
                raise StoreError(
                    "transactions of one thread ended out of order, and were rolled back",
                    hint="Do not await or yield inside a transaction: end it first",
                )
            run.commit()
        except BaseException as error:
            if self._local is local:
                inner = run.depth > level + 1
                run.unwind(level)
                if inner and isinstance(error, StoreError):
                    run.refuse(error)  # what is still open inside must not go on by itself
            raise

    # The rest of the contract

    def tables(self) -> frozenset[str]:
        with self.read() as run:
            assert isinstance(run, PostgreSQLExecutor)
            return frozenset(name for (name,) in run.raw.execute(_TABLES, (self.schema,)).fetchall())

    @contextmanager
    def migration(self) -> Iterator[Connection]:
        if self.within:
            raise StoreError("a migration cannot run inside a transaction", hint="Leave the with block first")
        try:
            with self._connect() as raw:
                raw.execute("BEGIN")
                raw.execute("SET LOCAL synchronous_commit = on")  # who goes on working must not find the schema gone after a crash
                raw.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 1))", (self.schema,))
                if raw.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (self.schema,)).fetchone() is None:
                    raw.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(self.schema)))
                yield self._lend(raw)
                raw.execute("COMMIT")
        except DBAPIError as error:
            if isinstance(error.orig, REFUSED):
                raise translate(error.orig, self._options.timeout, self.name) from error.orig
            raise
        except REFUSED as error:
            raise translate(error, self._options.timeout, self.name) from error
        self.caches.clear()
        self._watch.committed()

    def changes(self) -> int:
        return self._watch.look()

    def wait(self, seen: int, seconds: float) -> bool:
        if self.within:
            raise StoreError("waiting inside a transaction would keep others waiting for it", hint="Wait outside the with block")
        changed = self._watch.wait(seen, seconds)
        if self._closed:
            raise Closed(f"the store at {self.name} is closed", hint="Open it again with Store.open")
        return changed

    def check(self) -> list[str]:
        with self.read() as run:
            assert isinstance(run, PostgreSQLExecutor)
            try:
                return [f"{kind} {name} of {table} is not in force" for kind, name, table in run.raw.execute(_IDLE, [self.schema] * 3)]
            except REFUSED as error:
                raise translate(error, self._options.timeout, self.name) from error

    @contextmanager
    def snapshot(self) -> Iterator[Executor]:
        session = self._take()
        try:
            session.executor.now = self.clock()
            session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            yield session.executor
        except psycopg.Error as error:
            raise translate(error, self._options.timeout, self.name) from error
        finally:
            with suppress(psycopg.Error):
                session.execute("ROLLBACK")
            self._give_back(session)

    def measure(self, meter: Meter | None) -> None:
        with self._dressing:
            self.meter = meter
            vars(self).pop("_take", None)
            if meter is not None:
                vars(self)["_take"] = metering.taking(self._take, meter)
            self.dress()

    def dress(self) -> None:
        """Has every executor be of the class that what is switched on calls for."""
        with self._dressing:
            for session in self._sessions:
                self._dress(session.executor)

    def _dress(self, executor: PostgreSQLExecutor) -> None:
        kind: type[PostgreSQLExecutor] = noting(TellingExecutor) if self.caches.noting else PostgreSQLExecutor
        dress(executor, kind, self.meter, metering.more)

    def note_changes(self, *, on: bool) -> None:
        with self._dressing:
            self.dress()
            for session in self._sessions:  # what stands alone and has begun is taken for another's: nobody tells its number
                if on and session.executor.depth:
                    session.executor.changes.everything = True

    def others_committed(self) -> bool:
        try:
            return self._others.committed()
        except psycopg.Error:
            return True  # whoever reads next is told why

    def footprint(self) -> Footprint:
        with self.read() as run:
            assert isinstance(run, PostgreSQLExecutor)
            try:
                size, hits, reads = run.raw.execute(_FOOTPRINT, [self.schema]).fetchone() or (None, 0, 0)
            except REFUSED as error:
                raise translate(error, self._options.timeout, self.name) from error
        connections = self._pool.get_stats().get("pool_size", 0)
        return Footprint(size=size, cache_hits=float(hits / (hits + reads)) if hits + reads else None, connections=connections)

    def explain(self, sql: str) -> str:
        numbers = iter(range(1, 1_000_000))
        numbered = _PLACEHOLDERS.sub(lambda found: "%" if found[0] == "%%" else f"${next(numbers)}", sql)
        values = ", ".join(["NULL"] * (next(numbers) - 1))
        try:
            with self._connect() as raw:
                raw.execute("SET plan_cache_mode = force_generic_plan")
                raw.execute(f"PREPARE explained AS {numbered}".encode())
                rows = raw.execute(f"EXPLAIN EXECUTE explained{f'({values})' if values else ''}".encode()).fetchall()
        except REFUSED as error:
            raise translate(error, self._options.timeout, self.name) from error
        return "\n".join(line for (line,) in rows)

    def numbers(self, run: Executor) -> Mapping[str, int]:
        assert isinstance(run, PostgreSQLExecutor)
        found = run.raw.execute("SELECT sequencename, last_value FROM pg_sequences WHERE schemaname = %s", (self.schema,)).fetchall()
        given = {name: last for name, last in found if last is not None}
        return {table: given[sequence] for table, _, sequence in _SEQUENCES if sequence in given}

    def number_on(self, run: Executor, last: Mapping[str, int]) -> None:
        assert isinstance(run, PostgreSQLExecutor)
        known = self.numbers(run)
        for table, column, sequence in _SEQUENCES:
            newest = sql.SQL("SELECT coalesce(max({}), 0) FROM {}").format(sql.Identifier(column), sql.Identifier(table))
            (highest,) = run.raw.execute(newest).fetchone() or (0,)
            if (number := max(highest, last.get(table, 0), known.get(table, 0))) > 0:
                run.raw.execute("SELECT setval(%s, %s)", (sequence, number))

    def close(self) -> None:
        if self._closed:
            return
        if self.within:
            raise StoreError("a store cannot be closed inside its own transaction", hint="Leave the with block first")
        self._closed = True
        self._watch.close()
        self._others.close()
        deadline = time.monotonic() + self._options.timeout
        while time.monotonic() < deadline:
            while self._spare:
                self._pool.putconn(self._spare.pop())
            stats = self._pool.get_stats()
            if stats.get("pool_available", 0) >= stats.get("pool_size", 0):
                break
            time.sleep(0.005)
        self._pool.close()
        if self._alchemy is not None:
            self._alchemy.dispose()
        _engines.discard(self)

    def forked(self) -> None:
        """In the child: starts anew. Inherited connections belong to the parent: they are neither used nor closed."""
        run: PostgreSQLExecutor | None = getattr(self._local, "run", None)
        if run is not None:
            run.refuse(StoreError("this connection belongs to the parent process", hint="Fork outside the with block"))
        _inherited.append((self._pool, self._spare, self._watch, self._others, self._alchemy, self._local, run))
        vars(self).pop("_sentinel", None)
        self._start()
        if not self._closed:
            self._pool.open()


_TABLES = """
SELECT relname FROM pg_class
WHERE relkind IN ('r', 'p', 'f', 'v', 'm') AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = %s)
"""
_FOOTPRINT = """
SELECT sum(pg_total_relation_size(oid))::int8, sum(coalesce(heap_blks_hit, 0) + coalesce(idx_blks_hit, 0))::int8,
  sum(coalesce(heap_blks_read, 0) + coalesce(idx_blks_read, 0))::int8
FROM pg_class LEFT JOIN pg_statio_user_tables ON relid = oid
WHERE relkind = 'r' AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = %s)
"""
_PLACEHOLDERS = re.compile(r"%(?:%|s|\(\w+\)s)")


_IDLE = """
SELECT 'the constraint', conname, conrelid::regclass::text FROM pg_constraint
WHERE NOT convalidated AND connamespace = (SELECT oid FROM pg_namespace WHERE nspname = %s)
UNION ALL
SELECT 'the index', indexrelid::regclass::text, indrelid::regclass::text FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
WHERE NOT (indisvalid AND indisready) AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = %s)
UNION ALL
SELECT 'the trigger', tgname, tgrelid::regclass::text FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid
WHERE tgenabled = 'D' AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = %s)
"""


_SEQUENCES = [
    (table.name, number.name, f"{table.name}_{number.name}_seq")
    for table in schema.metadata.sorted_tables
    if (number := table.autoincrement_column) is not None
]
"""The tables whose rows are numbered, the column, and what numbers them."""


class _Here:
    """The executor of this thread's transaction."""

    __slots__ = ("_run",)

    def __init__(self, run: PostgreSQLExecutor) -> None:
        self._run = run

    def __enter__(self) -> PostgreSQLExecutor:
        return self._run

    def __exit__(self, *_: object) -> None:
        pass


class _Taken:
    """A connection of the pool, for statements that are transactions of their own."""

    __slots__ = ("_changes", "_engine", "_session")

    def __init__(self, engine: PostgreSQLEngine, *, changes: bool) -> None:
        self._engine = engine
        self._changes = changes

    def __enter__(self) -> PostgreSQLExecutor:
        self._session = session = self._engine._take()
        run = session.executor
        run.now = self._engine.clock()
        return run

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._engine._give_back(self._session)
        if self._changes and error is None:
            self._engine._watch.committed()


_engines: weakref.WeakSet[PostgreSQLEngine] = weakref.WeakSet()
_inherited: list[object] = []
"""What belongs to the process this one was forked from, kept from ever being closed here."""


def _forked() -> None:
    for engine in list(_engines):
        engine.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
