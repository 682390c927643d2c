"""Continuous backup: a thread that ships what is committed, every few hundred milliseconds."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable
from contextlib import closing
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

from msgspec import Struct

from ruv_swarm_store.backup import points, segments
from ruv_swarm_store.backup.catalog import Contents
from ruv_swarm_store.backup.creating import Overtaken
from ruv_swarm_store.backup.manifest import Backup
from ruv_swarm_store.backup.segments import Segment
from ruv_swarm_store.clock import duration
from ruv_swarm_store.engines import journal
from ruv_swarm_store.engines.journal import Journaling
from ruv_swarm_store.engines.log import Changes, Discontinuity, Log
from ruv_swarm_store.errors import Closed, InvalidValue, NotFound, StoreError, Unavailable, Unsupported

if TYPE_CHECKING:
    from ruv_swarm_store.backup.backups import Backups

logger = logging.getLogger(__name__)

SHORTEN = 12 << 20
"""Bytes that the database's log may have before it is begun anew; somewhat less than where writers begin to look after it themselves."""
BETWEEN = 0.2
"""Seconds between two attempts at that, which somebody who reads for long can foil."""
GIVE_UP = 512 << 20
"""Bytes it may grow to while the storage fails; then it is let go, and what was changed is found by comparing pages."""
CROWDED = 128 << 20
"""Bytes, once to twice as many, that it may grow to while others, such as who ships the same elsewhere, keep it from being begun anew."""
ASIDE = 1.0
"""Seconds for which it is let go then. Two who hold it keep each other from it for ever."""
MOST = 16_000
"""Pages in a segment. Of more, each is shipped once, as one commit: what is committed faster than that must not pile up."""
LOOK_AROUND = 10.0
"""Seconds between two looks for backups that others have made."""
OVERTAKEN = 4
"""How often to look again when somebody has made a newer backup than the one that was being made, and pruned that at once."""
IN_MEMORY = 64 << 20
"""Bytes that are taken into memory for that at the most; more is stored first, and the log begun anew when there is less in it."""
LONGEST_WAIT = 5.0
"""Most seconds until what failed is tried again."""


class Shipped(Struct, frozen=True):
    """How far the storage has got."""

    instant: int
    """Everything committed before this is stored, in milliseconds since the epoch."""
    position: int
    """That of the newest event known to be stored."""
    name: str
    """The file that leads there: of the last segment, or of the backup that it would continue."""


class Status(Struct, frozen=True, kw_only=True):
    """How shipping goes."""

    shipped: Shipped | None
    """None until the first backup is there."""
    lag: int
    """Milliseconds since `shipped.instant`."""
    segments: int
    """How many were stored."""
    bytes: int
    """How many bytes they have in the storage."""
    backups: int
    """How many backups were made, to have something to continue."""
    log_bytes: int
    """What the database's log has grown to."""
    failures: int
    """How many attempts have failed."""
    failure: StoreError | None
    """Why the last one failed; None when it did not."""


class Shipping:
    """Ships what is committed while its `with` block lasts, in segments that continue a backup; it makes one where there is none.

    Whoever commits waits for nothing but, once in some 12 MB of the database's log, about 10 ms for its being begun anew.

    While the storage fails, the log keeps what is to be stored. What it cannot keep, because a process without this has cut it off or
    because it would grow beyond measure, an incremental backup makes good: then single commits in between cannot be restored.
    """

    def __init__(self, backups: Backups, interval: float) -> None:
        self.backups = backups
        """Where it ships to."""
        self._catalog = backups._catalog
        self._engine = backups._open_engine()
        if not self._engine.capabilities.threads:
            raise Unsupported(f"{self._engine.name} has no threads to ship from", hint="Call create('incremental') now and then")
        self._interval = duration(interval, "interval") / 1000
        if not self._interval:
            raise InvalidValue("interval is 0", hint="Give a number of seconds")
        self._process = os.getpid()
        self._turn = threading.RLock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._log: Log | None = None
        self._base: Backup | None = None
        self._root: str | None = None
        """The full backup below it."""
        self._passed_over: str | None = None
        """The last increment that others have made; it may be one that the log does not go back to."""
        self._sent: tuple[str | None, str | None] = None, None
        """The last segment, None when there is none behind the backup; and the state that it, or the backup, leads to."""
        self._newest = 0
        """The time in the newest name that is known in the storage."""
        self._journaling: Journaling | None = None
        self._waiting: _Look | None = None
        """What was taken out of the log and is not stored."""
        self._shortened = self._looked_around = 0.0
        self._tried = 0
        """What was used of the log when it was last to be begun anew."""
        self._crowded = CROWDED * random.uniform(1, 2)  # not for all the same: one who lets go is enough
        self._shipped: Shipped | None = None
        self._segments = self._bytes = self._made = self._failures = 0
        self._failure: StoreError | None = None

    def start(self) -> Self:
        """Begins, in a thread of its own. Raises `Unsupported` where there is no log to ship."""
        self._log = self._engine.log()
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="ruv-swarm-shipping", daemon=True)
        self._thread.start()
        return self

    def ship(self) -> Shipped:
        """Ships what is committed by now, and returns when it is stored. Raises `Unavailable` when it could not be."""
        if self._process != os.getpid():
            raise StoreError("the parent process ships", hint="Only what it commits itself is sure to be in what it tells")
        with self._turn:
            self._ship(self._running())
            assert self._shipped is not None
            return self._shipped

    def status(self) -> Status:
        """How it goes."""
        log, shipped = self._log, self._shipped
        return Status(
            shipped=shipped,
            lag=0 if shipped is None else max(0, self._engine.clock() - shipped.instant),
            segments=self._segments,
            bytes=self._bytes,
            backups=self._made,
            log_bytes=0 if log is None else log.size,
            failures=self._failures,
            failure=self._failure,
        )

    def stop(self) -> None:
        """Ships the rest and ends. Raises `Unavailable` when that could not be stored; it has ended then, too. Harmless when repeated."""
        if self._process != os.getpid() or self._log is None:
            return
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        with self._turn:
            log, self._log = self._log, None
            try:
                self._ship(log, ending=True)
            finally:
                log.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            self.stop()
        except StoreError as failure:
            if error is None:
                raise
            logger.warning("the last changes were not shipped: %s", failure)

    def _running(self) -> Log:
        if self._log is None:
            raise Closed("shipping has ended", hint="Begin it again with continuous()")
        return self._log

    def _run(self) -> None:
        failed = 0
        while not self._stopping.wait(min(self._interval * 2**failed, max(LONGEST_WAIT, self._interval))):
            with self._turn:
                try:
                    self._ship(self._running())
                    failed, self._failure = 0, None
                except Closed as error:
                    self._failure = error
                    return
                except Exception as error:  # whatever a storage raises
                    failed = min(failed + 1, 10)
                    self._failures += 1
                    self._failure = error if isinstance(error, StoreError) else Unavailable(f"shipping failed ({error!r})")
                    logger.warning("shipping failed, and is tried again: %s", error)
                    self._give_up()

    # One step

    def _ship(self, log: Log, *, ending: bool = False) -> None:
        self._ship_on(log)
        if ending or time.monotonic() - self._looked_around > LOOK_AROUND:
            self._look_around()
            if self._base is None:
                self._ship_on(log)
            self._looked_around = time.monotonic()

    def _ship_on(self, log: Log) -> None:
        for left in reversed(range(OVERTAKEN + 1)):
            if self._base is None:
                self._begin(log)
            try:
                self._ship_changes(log)
                break
            except Discontinuity as gap:
                if not left:
                    raise
                logger.warning("%s", gap)
                self._forget()

    def _forget(self) -> None:
        """Lets the next step begin anew."""
        self._base = self._waiting = None

    def _begin(self, log: Log) -> None:
        """Goes on behind the newest backup and its segments if nothing is missing in between, else behind an increment."""
        log.hold()
        try:
            newest, contents = self._go_on(log)
        except BaseException:
            log.let_go()
            raise
        self._newest = max(self._newest, contents.time)
        self._root = contents.chain(newest.id)[0].id
        assert self._shipped is not None
        with log.reading() as run:
            since = journal.journaling(run)
            self._journaling = since if since is not None and since.started_at < self._shipped.instant else None
        self._base = newest

    def _go_on(self, log: Log) -> tuple[Backup, Contents]:
        """What to go on behind, and what there was in the storage then; nobody has pruned it by then."""
        for left in reversed(range(OVERTAKEN + 1)):
            contents = self._catalog.contents()
            newest = contents.newest()
            if newest is not None and self._continue(log, contents, newest):
                return newest, contents
            try:
                made = self._make(log)
                contents = self._catalog.contents()
                if contents.whole(made.id):
                    return made, contents
            except Overtaken:
                if not left:
                    raise
        raise Overtaken("each backup that was made to go on behind was pruned at once", hint="Keep more than one")

    def _make(self, log: Log) -> Backup:
        """Makes an increment to go on behind."""
        made = self.backups.create("incremental")
        self._made += 1
        if not log.resume(made.place, later=True):
            raise Discontinuity("the log was begun anew while a backup was made", hint="A fork has closed the connection that kept it")
        self._sent = None, made.place
        self._shipped = Shipped(made.began_at, made.position, made.manifest)
        return made

    def _continue(self, log: Log, contents: Contents, backup: Backup) -> bool:
        try:
            chain = list(points.chain(self._catalog, contents, backup))
        except StoreError as error:
            logger.warning("shipping begins anew: %s", error)
            return False
        if not log.resume(chain[-1][1].end if chain else backup.place):
            return False
        if chain:
            name, last = chain[-1]
            self._sent = name, last.end
            self._shipped = Shipped(last.began_at, last.position, name)
        else:
            self._sent = None, backup.place
            self._shipped = Shipped(backup.began_at, backup.position, backup.manifest)
        return True

    def _look_around(self) -> None:
        """Has it change over to a newer backup if there is one: segments go when old backups go, and fewer are to be applied."""
        contents = self._catalog.contents()
        self._newest = max(self._newest, contents.time)
        newest = contents.newest()
        assert self._base is not None
        if newest is None or self._base.id not in contents.backups or contents.chain(newest.id)[0].id != self._root:
            self._forget()
        elif newest.id not in (self._base.id, self._passed_over) and not self._engine.within:
            self._passed_over = newest.id
            with closing(self._engine.log()) as log:
                log.hold()
                # Not at the price of another increment, behind which all others who ship would change over, too.
                if self._continue(log, contents, newest):
                    self._forget()

    def _name(self, base: Backup, look: _Look) -> str:
        """A name for the next segment, which tells when it looked, and that it was after all that was there, though the clock be set back.

        Of two who ship to one storage, who has looked last leads furthest, not who is last to store what was found.
        """
        now = look.began_at
        if now <= look.newest:
            now = max(self._newest, self._catalog.contents().time) + 1
        self._newest = max(self._newest, now)
        return segments.name_of(base, now)

    def _ship_changes(self, log: Log) -> None:
        self._send_waiting()
        look = self._look(log, log.read)
        if log.used > self._tried > self._crowded:  # in vain
            self._send(look)
            log.stored(look.changes)
            self._step_aside(log)
        elif self._is_to_be_shortened(log, look.changes):
            # Into memory first: what is committed while the storage is written to would only make the log longer.
            self._shortened = time.monotonic()
            try:
                rest = self._look(log, lambda: log.shorten(look.changes, MOST))
                self._waiting = rest._replace(journaled=look.journaled and rest.journaled)
            except BaseException:
                self._forget()  # some of it counts as stored by now, and is not
                raise
            self._tried = log.used
            self._send_waiting()
        else:
            self._send(look)
            log.stored(look.changes)

    def _step_aside(self, log: Log) -> None:
        """Lets others begin the log anew, and goes on if nobody did."""
        logger.warning("others keep the log, of %d bytes, from being begun anew: it is let go for a moment", log.used)
        self._tried = 0
        log.let_go()
        self._stopping.wait(ASIDE)
        log.hold()
        if not log.resume(self._sent[1]):
            raise Discontinuity(
                "the log was begun anew for others who keep it", hint="An increment makes good what was committed meanwhile"
            )

    def _is_to_be_shortened(self, log: Log, changes: Changes) -> bool:
        if not changes.commits or log.used <= SHORTEN or time.monotonic() - self._shortened <= BETWEEN:
            return False
        size = changes.written * changes.page_size
        return size <= IN_MEMORY or log.used - size > GIVE_UP

    def _look(self, log: Log, read: Callable[[], Changes]) -> _Look:
        newest, began_at = self._newest, self._engine.clock()
        changes = read()
        ended_at = self._engine.clock()
        with log.reading() as run:
            position, timestamp = points.newest_event(run)
            journaling = journal.journaling(run)
        journaled = journaling is not None and journaling == self._journaling
        self._journaling = journaling
        return _Look(changes, newest, began_at, ended_at, position, timestamp, journaled)

    def _send_waiting(self) -> None:
        if self._waiting is not None:
            self._send(self._waiting)
            self._waiting = None

    def _send(self, look: _Look) -> None:
        """Stores what a look has found, if anything."""
        assert self._base is not None
        assert self._shipped is not None
        name = self._shipped.name
        if look.changes.commits:
            parent, place = self._sent
            if look.changes.start != place:
                raise Discontinuity("the log goes on from another state than the one that was shipped last")
            name = self._name(self._base, look)
            changes = look.changes if look.changes.written <= MOST else look.changes.coalesce()
            compression = self.backups._compression
            segment = Segment(
                parent=parent,
                start=changes.start,
                end=changes.end,
                began_at=look.began_at,
                after=min(self._shipped.instant, look.began_at),
                ended_at=look.ended_at,
                position=look.position,
                timestamp=look.timestamp,
                journaled=look.journaled,
                coalesced=changes.coalesced,
                differences=compression == "zlib",
                page_size=changes.page_size,
                commits=tuple((commit.size, len(commit.pages)) for commit in changes.commits),
                pages=tuple(number for commit in changes.commits for number in commit.pages),
            )
            writer = self._catalog.write_frames(name, lambda: segments.chunks(segment, changes), compression, self._base.encryption)
            # Only now: who prunes removes a manifest first, and then looks for what was shipped after it. One of the two sees the other.
            try:
                self._catalog.storage.size(self._base.manifest)
            except NotFound:
                raise Discontinuity("the backup that was continued has been removed", hint="A newer one is continued") from None
            self._segments += 1
            self._bytes += writer.size
            self._sent = name, changes.end
        self._shipped = Shipped(look.began_at, look.position, name)

    def _give_up(self) -> None:
        log = self._log
        if log is not None and log.size > GIVE_UP:
            logger.warning("the log has grown to %d bytes: it is let go, and the next backup compares pages", log.size)
            self._forget()
            log.let_go()


class _Look(NamedTuple):
    """What was in the log, and what was known of it."""

    changes: Changes
    newest: int
    """The time in the newest name that was known before."""
    began_at: int
    ended_at: int
    position: int
    timestamp: int
    journaled: bool
