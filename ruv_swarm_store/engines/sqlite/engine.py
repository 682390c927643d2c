"""A database opened: its connections, and the scopes that lend them out.

One writer connection, guarded by a lock and opened with BEGIN IMMEDIATE; a read-only connection for each thread.
"""

from __future__ import annotations

import logging
import os
import random
import re
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext, suppress
from pathlib import Path
from threading import get_ident
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from sqlalchemy import Connection, Executable, Text, column, delete, insert, select, table
from sqlalchemy.exc import DBAPIError

from ruv_swarm_store import schema
from ruv_swarm_store.engines.caches import Caches
from ruv_swarm_store.engines.changes import Changes, noting
from ruv_swarm_store.engines.constructs import parameter
from ruv_swarm_store.engines.engine import Capabilities, Engine, Options
from ruv_swarm_store.engines.executor import Executor, Prepared
from ruv_swarm_store.engines.image import Copied, Image
from ruv_swarm_store.engines.lending import Lent
from ruv_swarm_store.engines.log import Log
from ruv_swarm_store.engines.metering import Footprint, Meter, dress
from ruv_swarm_store.engines.sqlite import metering, wal
from ruv_swarm_store.engines.sqlite.connections import Reader, SQLiteExecutor, Writer
from ruv_swarm_store.engines.sqlite.driver import driver
from ruv_swarm_store.engines.sqlite.image import FileImage, Overlay, opened, opened_log, unreadable
from ruv_swarm_store.engines.sqlite.log import SQLiteLog
from ruv_swarm_store.engines.sqlite.watch import Watch
from ruv_swarm_store.errors import Closed, Conflict, InvalidValue, StoreError, Unsupported

if TYPE_CHECKING:
    import sqlite3  # its types speak for every driver

log = logging.getLogger(__name__)

_NEVER_REUSED = {name for name, stored in schema.metadata.tables.items() if stored.info.get("never_reuse_positions")}
_sequences = table("sqlite_sequence", column("name", Text), column("seq", schema.Int64))
_NUMBERS = select(_sequences.c.name, _sequences.c.seq)
_FORGET_NUMBER = delete(_sequences).where(_sequences.c.name == parameter("name"))
_SET_NUMBER = insert(_sequences).values(name=parameter("name"), seq=parameter("number"))

_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")

T = TypeVar("T")

LONGEST_LOG = 4_000
"""Pages in the log from which on it is copied into the database, to be begun anew."""
_LOOK_EVERY = 64
"""Changes of rows between two looks at how long it is."""
_ALWAYS = range(-(2**62), 2**62)
_ALONE = 0.3
"""Seconds that others are given to end their transactions, where the log is not to be copied while somebody writes."""
MOST_READERS = 64
"""Most connections that read; beyond it threads share them."""


def url_of(file: Path | str, drivername: str = "sqlite") -> str:
    """The URL of a database by its name: for people to read, so only what would mean something else is escaped."""
    return f"{drivername}:///{str(file).replace('%', '%25').replace('?', '%3F')}"


def _tables(execute: Callable[[str], sqlite3.Cursor]) -> frozenset[str]:
    found = execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT GLOB 'sqlite_*'")
    return frozenset(name for (name,) in found)


class SQLiteEngine(Engine):
    """A database file in WAL mode."""

    capabilities = Capabilities()
    driver: ClassVar[str] = "pysqlite"
    """The name of the driver in SQLAlchemy's URLs."""
    _writer: Writer | None

    def __init__(self, path: str | Path, options: Options) -> None:
        self.file = Path(path).resolve()
        self.path = str(self.file)
        if self.file.is_dir():
            raise InvalidValue(f"{self.path} is a directory", hint="Name a file in it")
        if options.private:
            with suppress(OSError):  # it is there, or SQLite will tell what keeps it from being made; its log gets the same mode
                os.close(os.open(self.file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        self._open(url_of(self.file), options)

    def _open(self, name: str, options: Options) -> None:
        self.caches = Caches(self)
        self.name = name
        self.clock = options.clock
        self._driver = driver(self.driver)
        self._options = options
        self._statements: dict[Executable, Prepared] = {}
        self._closed = False
        self._start()
        if options.read_only:
            with self.read():
                pass
        else:
            self._writer = self._open_writer()
        _engines.add(self)

    def _start(self) -> None:
        """Makes what must be new in a new process."""
        self._lock: threading.RLock | metering.TimedLock = threading.RLock()
        self._opening = threading.RLock()
        self._owner = 0
        self._forking = 0
        self._suspended: Sequence[Reader] = ()
        self._writer = None
        self._local = threading.local()
        self._readers: weakref.WeakSet[Reader] = weakref.WeakSet()
        self._further: weakref.WeakSet[Reader] = weakref.WeakSet()
        self._watch = self._new_watch()
        self._watched = -1
        self._copying: Reader | None = None
        self._stepping = False
        """Whether a statement of `write` is under way, or the log is being copied."""
        looks = self._driver.loses_commits and self.capabilities.processes
        self._quiet = range(0) if looks else _ALWAYS
        """While the writer's count of changes is in there nobody looks after the log; SQLite does by itself where it is safe.

        Out of it comes also the count of a new connection, and one that has passed 2**31: it is a C int.
        """

    def _new_watch(self) -> Watch:
        return Watch(self._driver, lambda: self._writer, self._open_reading if self.capabilities.processes else None)

    # Scopes

    @property
    def within(self) -> bool:
        return self._owner == get_ident()

    def read(self) -> AbstractContextManager[Executor]:
        if self._owner == get_ident():
            return self._sharing()  # inside this thread's transaction its own changes are seen
        try:
            return self._local.reader  # type: ignore[no-any-return]
        except AttributeError:
            return self._open_reader()

    def _sharing(self) -> AbstractContextManager[Executor]:
        """The writer, for SELECTs."""
        return Lent(self._share())

    def _share(self) -> Generator[Executor]:
        with self._lock:
            yield self._ready()

    def write(self, step: Callable[[Executor], T]) -> T:
        with self._lock:
            writer = self._ready()
            inside = self._stepping
            try:
                self._stepping = True
                found = step(writer)
            finally:
                self._stepping = inside
            if self._writer is writer and writer.raw.total_changes not in self._quiet:
                self._shorten_log(writer)
            if self._watch.waiting:
                self._watch.note(self._writer)
            return found

    def transaction(self) -> AbstractContextManager[Executor]:
        return Lent(self._transaction())

    def _transaction(self) -> Generator[Executor]:
        hooks: Sequence[Callable[[], object]] = ()
        with self._lock:
            writer = self._ready()
            level = writer.depth
            try:
                if not level:
                    self._owner = get_ident()
                writer.begin()
                if not level:
                    writer.now = self.clock()
                yield writer
                if self._writer is not writer:
                    raise StoreError(
                        "this process was forked inside the transaction, which only its parent can end",
                        hint="Fork outside the with block, or end a child inside it with os._exit",
                    )
                if writer.depth != level + 1:
                    level = 0
                    raise StoreError(
                        "transactions of one thread ended out of order, and were rolled back",
                        hint="Do not await or yield inside a transaction: end it first",
                    )
                writer.commit()
                if not level:
                    hooks = writer.committed()
            except BaseException as error:
                if self._writer is writer:
                    inner = writer.depth > level + 1
                    writer.unwind(level)
                    if inner and isinstance(error, StoreError):
                        writer.refuse(error)  # what is still open inside must not go on by itself
                raise
            finally:
                if not level and self._writer is writer:
                    self._owner = 0
                    if self._watch.waiting:
                        self._watch.note(writer)
            if not level and self._writer is writer and writer.raw.total_changes not in self._quiet:
                self._shorten_log(writer)
        for hook in hooks:
            try:
                hook()
            except Exception:
                log.exception("a hook failed after its transaction had committed")

    def _ready(self) -> Writer:
        """The writer, in no state but the one this thread knows of; call it with the lock held."""
        writer = self.writer() if self._writer is None else self._writer
        if not self._owner:
            if writer.depth or writer.raw.in_transaction:
                writer.unwind(0)  # an interrupt struck between a statement and its bookkeeping
            writer.now = self.clock()
        return writer

    # Connections

    def _connect(self, *, writing: bool, migrating: bool = False) -> sqlite3.Connection:
        if self._closed:
            raise Closed(f"the store at {self.name} is closed", hint="Open it again with Store.open")
        if self.path in _inherited:
            raise StoreError(
                f"this process was forked inside a transaction of its parent's on {self.path} and cannot use that file",
                hint="Fork outside the with block, or start the process by spawn",
            )
        mode = "ro" if self._options.read_only else "rwc" if writing and self._options.create else "rw"
        raw = None
        try:
            raw = self._driver.module.connect(
                f"{Path(self.path).as_uri()}?mode={mode}",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=512,
                timeout=self._options.timeout,
            )
            if writing:
                self._enter_wal(raw, migrating=migrating)
            return self._configure(raw, writing=writing)
        except self._driver.Error as error:
            if raw is not None:
                raw.close()
            raise self._driver.translate(error, self._options.timeout, self.path) from error

    def _enter_wal(self, raw: sqlite3.Connection, *, migrating: bool) -> None:
        # The file may be another program's, which is not to be changed until it is known that it will be a store, too.
        # Switching to WAL does not wait for other openers: ask only when needed, and again when busy.
        deadline = time.monotonic() + self._options.timeout
        while True:
            try:
                if raw.execute("PRAGMA journal_mode").fetchone()[0] != "wal" and (migrating or _tables(raw.execute) >= schema.HISTORY):
                    raw.execute("PRAGMA journal_mode=WAL").fetchone()
                return
            except self._driver.Error as error:
                if not self._driver.is_busy(error) or time.monotonic() > deadline:
                    raise
                time.sleep(random.uniform(0.001, 0.01))

    def _configure(self, raw: sqlite3.Connection, *, writing: bool) -> sqlite3.Connection:
        for name, value in self._pragmas(writing=writing).items():
            raw.execute(f"PRAGMA {name}={value}")
        return raw

    def _pragmas(self, *, writing: bool) -> dict[str, str]:
        pragmas = {
            "foreign_keys": "ON",
            "recursive_triggers": "ON",  # so that INSERT OR REPLACE deletes no event either
            "synchronous": "FULL" if self._options.durability == "full" else "NORMAL",
            "temp_store": "MEMORY",
        }
        if writing:
            # A COMMIT after pages were rearranged looks through the whole cache (SQLite since 3.38): with 64 MB claims took twice as long.
            longest = 0 if self._driver.loses_commits else LONGEST_LOG
            pragmas |= {"busy_timeout": "0", "cache_size": "-8192", "wal_autocheckpoint": str(longest), "journal_size_limit": "67108864"}
        else:
            pragmas |= {"cache_size": "-16384", "query_only": "ON"}
        return pragmas

    def _open_writer(self) -> Writer:
        if self._options.read_only:
            raise Unsupported(f"the store at {self.name} was opened read-only", hint="Open it without read_only=True to write")
        writer = Writer(self._driver, self._connect(writing=True), self._statements, self._options)
        writer.changes = Changes(self._committed)
        return writer

    def _open_reader(self) -> Reader:
        with self._opening:
            if len(self._readers) >= MOST_READERS:
                # Each takes three file handles. Further threads read by turns; entering a reader takes its lock.
                self._local.reader = shared = random.choice(list(self._readers))
                return shared
            reader = Reader(self._driver, self._open_reading(), self._statements, self._options, self._open_reading)
            self._local.reader = reader
            self._readers.add(reader)
            self._dress(reader)
        return reader

    def writer(self) -> Writer:
        """The writer; call it with the lock held."""
        if self._writer is None:
            self._writer = self._open_writer()
            self._dress(self._writer)
        return self._writer

    # The rest of the contract

    def tables(self) -> frozenset[str]:
        with self.read() as run:
            assert isinstance(run, SQLiteExecutor)
            try:
                return _tables(run._execute)
            except self._driver.Error as error:
                raise self._driver.translate(error, self._options.timeout, self.name) from error

    @contextmanager
    def migration(self) -> Iterator[Connection]:
        if self._owner == get_ident():
            raise StoreError("a migration cannot run inside a transaction", hint="Leave the with block first")
        with self._lock:
            raw = self._migration_connection()
            run = Writer(self._driver, raw, {}, self._options)
            try:
                # Rebuilding a parent table with references enforced would delete its children.
                raw.execute("PRAGMA foreign_keys=OFF")
                run.begin()
                try:
                    yield run.alchemy()
                    if broken := raw.execute("PRAGMA foreign_key_check").fetchall():
                        raise Conflict(f"the migration would leave {len(broken)} dangling references, the first in {broken[0][0]}")
                except BaseException:
                    run.unwind(0)
                    raise
                run.commit()
            except DBAPIError as error:
                if isinstance(error.orig, self._driver.refused):
                    raise self._driver.translate(error.orig, self._options.timeout, self.name) from error.orig
                raise
            finally:
                raw.execute("PRAGMA foreign_keys=ON")
                self._release_migration_connection(raw)
        self.caches.clear()
        self._watch.changed()
        if self._quiet != _ALWAYS:
            self._quiet = range(0)  # much may have been written

    def _migration_connection(self) -> sqlite3.Connection:
        return self._connect(writing=True, migrating=True)

    def _release_migration_connection(self, raw: sqlite3.Connection) -> None:
        raw.close()

    def changes(self) -> int:
        return self._watch.look()

    def wait(self, seen: int, seconds: float) -> bool:
        if self._owner == get_ident():
            raise StoreError("waiting inside a transaction would keep everybody else out", hint="Wait outside the with block")
        return self._watch.wait(seen, seconds)

    def check(self) -> list[str]:
        with self.read() as run:
            assert isinstance(run, SQLiteExecutor)
            try:
                found = [line for (line,) in run._execute("PRAGMA integrity_check") if line != "ok"]
                found += [
                    f"{table} row {row} refers to a missing {parent}" for table, row, parent, _ in run._execute("PRAGMA foreign_key_check")
                ]
            except self._driver.Error as error:
                raise self._driver.translate(error, self._options.timeout, self.name) from error
            return found

    def _open_reading(self) -> sqlite3.Connection:
        """A connection that reads."""
        return self._connect(writing=False)

    def snapshot(self) -> AbstractContextManager[Executor]:
        return self._snapshot()

    @contextmanager
    def _snapshot(self) -> Iterator[Executor]:
        with self.further_reader() as reader, reader:
            reader.hold_still()
            yield reader
            reader.check_still()

    # Copying the log

    def copy_log(self, reader: Reader) -> int | None:
        """`Reader.copy_log`, but never so that commits can be lost: see `Driver.loses_commits`.

        Who begins the log anew holds the right to write. Where SQLite is not safe, that is held meanwhile; None where others keep it.
        """
        if not self._driver.loses_commits:
            return reader.copy_log()
        if not self._lock.acquire(timeout=_ALONE):
            return None
        try:
            return None if self._stepping else self._ready().alone(_ALONE, reader.copy_log)
        finally:
            self._lock.release()

    def _shorten_log(self, writer: Writer) -> None:
        """Copies the log if it is long, which SQLite does by itself after a commit where that is safe; call it with the lock held."""
        if writer.raw.in_transaction or self._stepping:
            return  # a signal handler or a finaliser has written, and what it has interrupted is not at its end
        self._stepping = True
        try:
            changes = writer.raw.total_changes
            self._quiet = range(changes, changes + _LOOK_EVERY)
            with suppress(StoreError, OSError, self._driver.Error), opened_log(self.path) as log:  # a failure is the next one's
                header = None if log is None else wal.read_header(log)
                if log is None or header is None or wal.frame_checksum(log, header, LONGEST_LOG) is None:
                    return
                self._quiet = range(changes, changes + 1)  # after each commit, until one has begun it anew
                if self._copying is None:
                    self._copying = self._open_further()
                writer.alone(0, self._copying.copy_log)
        finally:
            self._stepping = False

    @contextmanager
    def further_reader(self) -> Iterator[Reader]:
        """A reader that is no thread's."""
        reader = self._open_further()
        try:
            yield reader
        finally:
            with reader:
                reader.raw.close()

    def _open_further(self) -> Reader:
        with self._opening:
            reader = Reader(self._driver, self._open_reading(), self._statements, self._options, self._open_reading)
            self._further.add(reader)
        return reader

    def _all_readers(self) -> list[Reader]:
        return [*self._readers, *self._further]

    @contextmanager
    def image(self) -> Iterator[Image]:
        self._outside("an image")
        with self.further_reader() as reader, ExitStack() as until:
            with self.reading_files():
                overlay = Overlay()
                with opened_log(self.path) as log:  # most of it, before anybody has to wait
                    overlay.read_on(log, None if self._options.read_only else lambda: self.copy_log(reader))
                file = until.enter_context(opened(self.path))
                with nullcontext() if self._options.read_only else self.transaction():
                    until.enter_context(reader)
                    reader.hold_still()
                    in_wal = reader.ask("PRAGMA journal_mode") == "wal"
                    log = until.enter_context(opened_log(self.path)) if in_wal else None
                    overlay.read_on(log)
                image = FileImage(file, log, overlay, reader, exact=not self._options.read_only)
            yield image

    def _outside(self, what: str) -> None:
        if self._owner == get_ident():
            raise StoreError(f"{what} cannot be taken inside a transaction", hint="Leave the with block first")

    def log(self) -> Log:
        self._outside("a log")
        if self._options.read_only:
            raise Unsupported(f"the store at {self.name} was opened read-only", hint="Who keeps its log must be able to shorten it")
        return SQLiteLog(self)

    @contextmanager
    def reading_files(self) -> Iterator[None]:
        """Translates what reading the database's files by themselves raises."""
        try:
            yield
        except self._driver.Error as error:
            raise self._driver.translate(error, self._options.timeout, self.name) from error
        except OSError as error:
            raise unreadable(error) from error

    def measure(self, meter: Meter | None) -> None:
        with self._lock:
            self.meter = meter
            plain = self._lock.plain if isinstance(self._lock, metering.TimedLock) else self._lock
            self._lock = plain if meter is None else metering.TimedLock(plain, meter)
            self.dress()

    def dress(self) -> None:
        """Has every executor be of the class that what is switched on calls for."""
        with self._lock, self._opening:
            for executor in self._all_readers():
                self._dress(executor)
            if self._writer is not None:
                self._dress(self._writer)

    def _dress(self, executor: SQLiteExecutor) -> None:
        kind: type[Any] = Reader
        if isinstance(executor, Writer):
            kind = noting(Writer) if self.caches.noting else Writer
        dress(executor, kind, self.meter, metering.more)

    def note_changes(self, *, on: bool) -> None:
        if self._options.read_only:
            return
        with self._lock:  # nobody else is in the middle of a transaction
            writer = self.writer()
            if on and writer.depth:  # this thread may be
                writer.changes.everything = True
            self.dress()

    def _committed(self, changes: Changes) -> None:
        self.caches.tell(changes)
        self.caches.look_early()  # while this thread has the writer, which alone can tell others' commits from its own

    def others_committed(self) -> bool:
        try:
            if not self._options.read_only and self._lock.acquire(blocking=False):
                try:
                    return self.writer().others_committed()
                finally:
                    self._lock.release()
            # On any other connection this store's own commits show, too.
            before, self._watched = self._watched, self._watch.look()
            return self._watched != before
        except (StoreError, self._driver.Error):
            return True  # whoever reads next is told why

    def footprint(self) -> Footprint:
        with self.read() as run:
            assert isinstance(run, SQLiteExecutor)
            try:
                size = run._execute("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size").fetchone()[0]
            except self._driver.Error as error:
                raise self._driver.translate(error, self._options.timeout, self.name) from error
        log = None
        if self.file is not None:
            with suppress(OSError):
                log = Path(f"{self.file}-wal").stat().st_size
        return Footprint(size=size, log=log, connections=len(self._readers) + len(self._further) + (self._writer is not None))

    def explain(self, sql: str) -> str:
        values = [None] * _QUOTED.sub("", sql).count("?")
        with self.read() as run:
            assert isinstance(run, SQLiteExecutor)
            try:
                steps = run._execute(f"EXPLAIN QUERY PLAN {sql}", values).fetchall()
            except self._driver.Error as error:
                raise self._driver.translate(error, self._options.timeout, self.name) from error
        depths = {0: -1}
        for id, parent, *_ in steps:
            depths[id] = depths.get(parent, -1) + 1
        return "\n".join(f"{'  ' * depths[id]}{detail}" for id, _, _, detail in steps)

    def numbers(self, run: Executor) -> Mapping[str, int]:
        return {name: number for name, number in run.all(_NUMBERS) if name in _NEVER_REUSED}

    def number_on(self, run: Executor, last: Mapping[str, int]) -> None:
        # Other tables go on from the highest number in them by themselves, and these from the highest they ever had.
        known = self.numbers(run)
        for name in _NEVER_REUSED & last.keys():
            if last[name] > known.get(name, 0):
                run.run(_FORGET_NUMBER, {"name": name})
                run.run(_SET_NUMBER, {"name": name, "number": last[name]})

    def close(self) -> None:
        if self not in _engines:
            return
        if self._owner == get_ident():
            raise StoreError("a store cannot be closed inside its own transaction", hint="Leave the with block first")
        error = Closed(f"the store at {self.name} is closed", hint="Open it again with Store.open")
        with self._opening:
            self._closed = True  # no connection is opened from here on
        # A reader's holder, a backup for one, may yet need what whoever waits for it must not keep: another reader, or the writer.
        for reader in self._all_readers():
            with reader:
                reader.refuse(error)
                reader.raw.close()
        with self._lock:
            self._watch.close()
            if self._writer is not None:
                self._writer.refuse(error)
                self._writer.raw.close()
                self._writer = None
            _engines.discard(self)

    # Forks. SQLite notes in a process's memory which file locks its connections hold. A child inherits the notes without
    # the locks: it would believe itself to hold what others then take, such as the right to delete the log it writes to.

    def before_fork(self) -> None:
        """Closes every connection, so that a child inherits none; each is opened again when it is needed.

        Inside a transaction of this thread's nothing can be closed: the child is kept from the file then.
        """
        if self._owner == get_ident() or not self._hold_everybody():
            return
        self._forking = get_ident()
        for reader in self._suspended:
            reader.suspend()
        self._watch.pause()
        if self._writer is not None:
            self._writer.raw.close()
            self._writer = None

    def _hold_everybody(self) -> bool:
        """Takes the lock of the writer and of every reader, as soon as nobody uses one; whether that was soon enough."""
        deadline = time.monotonic() + self._options.timeout
        while self._lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            self._opening.acquire()
            held: list[Reader] = []
            for reader in self._all_readers():
                if not reader.enter(timeout=0.05):
                    break  # held for a snapshot, perhaps, whose holder may be waiting for what is held here
                held.append(reader)
            else:
                self._suspended = held
                return True
            for reader in held:
                reader.__exit__()
            self._opening.release()
            self._lock.release()
            time.sleep(0.001)
        return False

    def after_fork(self) -> None:
        """In the parent: lets everybody go on."""
        if self._forking != get_ident():
            return
        self._forking = 0
        self._watch.resume()
        for reader in self._suspended:
            reader.__exit__()
        self._suspended = ()
        self._opening.release()
        self._lock.release()

    def forked(self) -> None:
        """In the child: starts anew. Inherited connections, if there are any, may be neither used nor closed here."""
        if self._forking != get_ident():
            error = StoreError("this connection belongs to the parent process", hint="Fork outside the with block")
            for executor in [self._writer, *self._all_readers()]:
                if executor is not None:
                    executor.abandon(error)
            self._watch.abandon()
            _inherited.add(self.path)
        vars(self).pop("_sentinel", None)
        self._start()
        self.measure(self.meter)


class MemoryEngine(SQLiteEngine):
    """A database in memory: one connection that threads take in turn, gone when the store closes."""

    capabilities = Capabilities(processes=False, persistent=False)

    def __init__(self, options: Options, path: str = ":memory:", name: str = "sqlite://") -> None:
        if options.read_only and path == ":memory:":
            raise Unsupported("a database in memory starts empty, so it cannot be read-only", hint="Give the path of a file")
        self.path = path
        self._open(name, options)

    def read(self) -> AbstractContextManager[Executor]:
        return self._sharing()

    def others_committed(self) -> bool:
        return False

    def snapshot(self) -> AbstractContextManager[Executor]:
        return self._sharing()

    @contextmanager
    def image(self) -> Iterator[Image]:
        self._outside("an image")
        with self.read() as run, self.reading_files():
            assert isinstance(run, SQLiteExecutor)
            data = run.raw.serialize()
            (page_size,) = run.raw.execute("PRAGMA page_size").fetchone()
        with ExitStack() as until:

            def load(data: bytes) -> SQLiteExecutor:
                raw = until.enter_context(closing(self._driver.module.connect(":memory:", isolation_level=None)))
                raw.deserialize(data)
                return SQLiteExecutor(self._driver, raw, self._statements, self._options)

            yield Copied(data, page_size, load)

    def log(self) -> Log:
        raise Unsupported(f"{self.name} keeps no log of its commits", hint="Make backups of it in between")

    def _connect(self, *, writing: bool, migrating: bool = False) -> sqlite3.Connection:
        if self._closed:
            raise Closed(f"the store at {self.name} is closed", hint="Open a new one with Store.open")
        raw = self._driver.module.connect(self.path, isolation_level=None, check_same_thread=False, cached_statements=512)
        return self._configure(raw, writing=True)

    def _migration_connection(self) -> sqlite3.Connection:
        return self.writer().raw

    def _release_migration_connection(self, raw: sqlite3.Connection) -> None:
        pass

    def before_fork(self) -> None:
        """Leaves the connection open: without it the database is gone."""

    def forked(self) -> None:
        super().forked()
        self._closed = True


_engines: weakref.WeakSet[SQLiteEngine] = weakref.WeakSet()
_inherited: set[str] = set()
"""Files this process has inherited connections to."""


def open_engines() -> list[SQLiteEngine]:
    """Every engine that is open in this process."""
    return list(_engines)


def _each(step: Callable[[SQLiteEngine], None]) -> Callable[[], None]:
    def hook() -> None:
        for engine in list(_engines):
            step(engine)

    return hook


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_each(lambda engine: engine.before_fork()),
        after_in_parent=_each(lambda engine: engine.after_fork()),
        after_in_child=_each(lambda engine: engine.forked()),
    )
