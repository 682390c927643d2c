"""The write-ahead log as a log: nothing in it is written over before it was stored elsewhere.

While a read transaction is held, nothing is copied from the log into the database that the transaction does not see, and a log is
begun anew only when all of it was copied. So each look at the log begins with a read transaction, and the one from the look before is
held until what was found is stored: what is committed after a look stays in the log at least until the next. Only when nothing came
after a look can the log begin anew before the next, and what it then begins with follows what that look saw. (See also `image`.)

A process that begins to look goes on from where another has stopped if the log still bears the same salts, and in that place the same
checksum, which no other history has.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ruv_swarm_store.engines.executor import Executor
from ruv_swarm_store.engines.log import Changes, Commit, Discontinuity, Log
from ruv_swarm_store.engines.sqlite import wal
from ruv_swarm_store.engines.sqlite.image import opened_log

if TYPE_CHECKING:
    from ruv_swarm_store.engines.sqlite.engine import SQLiteEngine


_PROVEN = 256
"""Frames to be proven by their checksums; where there are more, asking SQLite is quicker, for which it copies them and syncs the file."""

_COPYING = 0.3
"""Seconds that others are given to end their copying."""


class Logged(Changes):
    """Commits in a log's file, which must not be begun anew until they were read."""

    _commits: list[Commit]

    def __init__(self, log: int | None, header: wal.Header | None, page_size: int, start: str | None, end: str | None) -> None:
        self.page_size = page_size
        self.start = start
        self.end = end
        self.commits = self._commits = []
        self._log = log
        self._header = header
        self._first = 0

    def add(self, commit: wal.Commit) -> None:
        """The next commit."""
        if not self.commits:
            self._first = commit.frame - len(commit.pages) + 1
        self._commits.append(Commit(commit.pages, commit.size))

    def contents(self) -> Iterator[bytes]:
        if self._log is not None and self._header is not None and self.commits:
            yield from wal.read_pages(self._log, self._header, self._first, self.written)
            self._check()

    def coalesce(self) -> Changes:
        numbers = (number for commit in self.commits for number in commit.pages)
        last = {number: frame for frame, number in enumerate(numbers, self._first)}
        return Coalesced(self, last, lambda: self._pages(last.values()))

    def _pages(self, frames: Iterable[int]) -> Iterator[bytes]:
        if self._log is not None and self._header is not None and self.commits:
            for frame in frames:
                yield wal.read_at(self._log, self.page_size, self._header.offset(frame))
            self._check()

    def _check(self) -> None:
        assert self._log is not None
        assert self._header is not None
        if wal.read_at(self._log, wal.HEADER, 0) != self._header.raw:
            raise _interrupted()


class Coalesced(Changes):
    """Several commits as one."""

    coalesced = True

    def __init__(self, changes: Changes, pages: Iterable[int], contents: Callable[[], Iterator[bytes]]) -> None:
        self.page_size = changes.page_size
        self.start = changes.start
        self.end = changes.end
        self.commits = [Commit(tuple(pages), changes.commits[-1].size)] if changes.commits else []
        self._contents = contents

    def contents(self) -> Iterator[bytes]:
        return self._contents()

    def coalesce(self) -> Changes:
        return self


class Loaded(Changes):
    """Commits in memory."""

    def __init__(self, parts: Sequence[Changes], pages: Sequence[bytes]) -> None:
        self.page_size = parts[0].page_size
        self.start = parts[0].start
        self.end = parts[-1].end
        self.coalesced = any(part.coalesced for part in parts)
        self.commits = [commit for part in parts for commit in part.commits]
        self._pages = pages

    def contents(self) -> Iterator[bytes]:
        return iter(self._pages)

    def coalesce(self) -> Changes:
        last = dict(zip((number for commit in self.commits for number in commit.pages), self._pages, strict=True))
        return Coalesced(self, last, lambda: iter(last.values()))


def _interrupted() -> Discontinuity:
    return Discontinuity("the log was begun anew while it was read", hint="A fork has closed the connection that kept it")


class SQLiteLog(Log):
    """Looks at the log of an engine's database, with connections of its own. For one thread at a time."""

    def __init__(self, engine: SQLiteEngine) -> None:
        self._engine = engine
        self._until = ExitStack()
        self._opened = ExitStack()
        self._held, self._looking, self._copying = (self._until.enter_context(engine.further_reader()) for _ in range(3))
        self._resumed = False
        self._header: wal.Header | None = None
        self._last: tuple[int, wal.Checksum] = (0, (0, 0))
        """The frame up to which all is stored, and its checksum."""
        self._place: str | None = None
        self._seen_all = False
        """Whether that is all that the transaction held sees: only then a log begun anew goes on from there."""
        self._seen = 0
        with self._copying as reader:
            self._page_size: int = reader.ask("PRAGMA page_size")

    def hold(self) -> None:
        self.let_go()
        with self._held as reader:
            reader.hold_still()

    def let_go(self) -> None:
        self._resumed = False
        self._opened.close()
        for reader in (self._held, self._looking):
            with reader:
                reader.let_go()

    def resume(self, place: str | None, *, later: bool = False) -> bool:
        self._resumed = False
        with self._engine.reading_files(), opened_log(self._engine.path) as log:
            known = None if place is None else wal.parse_place(place)
            while True:
                header = None if log is None else wal.read_header(log)
                if known is not None and log is not None and header is not None and known.generation == header.generation:
                    self._resumed = wal.frame_checksum(log, header, known.frame) == known.checksum and (
                        later or known.frame <= self._committed(log, header)
                    )
                    self._header, self._last = header, (known.frame, known.checksum)
                    if not self._resumed and wal.read_at(log, wal.HEADER, 0) != header.raw:
                        continue  # begun anew after its header was read
                elif later:
                    self._resumed = self._held.is_still()
                    self._header, self._last = None, (0, (0, 0))  # what there is now was begun after that place
                break
        self._place = place
        self._seen_all = later
        return self._resumed

    def _committed(self, log: int, header: wal.Header) -> int:
        """The last frame that SQLite counts as committed: those that a power failure has cut off may still be in the file behind it."""
        if (frame := self._copy()) is not None:
            return frame
        return max((commit.frame for commit in wal.read_commits(log, header)), default=0)

    def read(self) -> Changes:
        with self._looking as reader:
            reader.hold_still()
        with self._engine.reading_files():
            return self._look()

    def _look(self) -> Changes:
        self._opened.close()
        log = self._opened.enter_context(opened_log(self._engine.path))
        while True:
            header = None if log is None else wal.read_header(log)
            last = self._start(log, header)
            if last is None:
                if log is not None and header is not None and wal.read_at(log, wal.HEADER, 0) != header.raw:
                    continue  # begun anew after its header was read
                self._resumed = False
                raise Discontinuity("what was committed since cannot be told from the log", hint="Copy the pages that have changed")
            changes = Logged(log, header, self._page_size, self._place, self._place)
            self._found = (self._header, self._last)
            if log is None or header is None:
                return changes
            known = self._copy() if wal.has_more_behind(log, header, last[0], _PROVEN) else None
            if wal.read_at(log, wal.HEADER, 0) != header.raw:
                continue
            for commit in wal.read_commits(log, header, *last, known=known):
                changes.add(commit)
                last = commit.frame, commit.checksum
            if wal.read_at(log, wal.HEADER, 0) == header.raw:
                self._found = (header, last)
                self._seen = last[0]
                if changes.commits:
                    changes.end = wal.place(header, *last)
                return changes

    def _start(self, log: int | None, header: wal.Header | None) -> tuple[int, wal.Checksum] | None:
        """Behind which frame of the log what is not stored begins; None where that cannot be told."""
        held = self._held.is_still()  # after the header was read: whatever it says, it was held until then
        if self._resumed and log is not None and header is not None and header == self._header:
            if wal.frame_checksum(log, header, self._last[0]) == self._last[1]:
                return self._last
        elif self._resumed and self._seen_all and held:
            return 0, (0, 0) if header is None else header.checksum
        return None

    def stored(self, changes: Changes) -> None:
        self._opened.close()
        self._header, self._last = self._found
        self._place = changes.end
        self._seen_all = True
        self._held, self._looking = self._looking, self._held
        with self._looking as reader:
            reader.let_go()

    @contextmanager
    def reading(self) -> Iterator[Executor]:
        reader = self._looking if self._looking.is_still() else self._held
        with reader:
            yield reader
            if not reader.is_still():
                raise _interrupted()

    @property
    def used(self) -> int:
        return self._seen * (wal.FRAME_HEADER + self._page_size)

    @property
    def size(self) -> int:
        try:
            return Path(f"{self._engine.path}-wal").stat().st_size
        except FileNotFoundError:
            return 0

    def shorten(self, changes: Changes, most: int) -> Changes:
        parts: list[Changes] = []
        pages: list[bytes] = []

        def take(changes: Changes) -> None:
            part = changes if changes.written <= most else changes.coalesce()
            pages.extend(part.contents())
            parts.append(part)
            self.stored(changes)

        take(changes)
        self._copy()  # most of it, before anybody has to wait
        with self._engine.transaction():
            take(self.read())
            # Nobody can write now, so nothing is missed between two of our transactions. Once all is copied, the second needs no log.
            with self._held as reader:
                reader.let_go()
                self._copy()
                reader.hold_still()
        return Loaded(parts, pages)

    def _copy(self) -> int | None:
        """`SQLiteEngine.copy_log`, when others have ended their copying: writers do that, too, after their commits."""
        until = time.monotonic() + _COPYING
        while (frame := self._engine.copy_log(self._copying)) is None and time.monotonic() < until:
            time.sleep(0.0005)
        return frame

    def close(self) -> None:
        self._resumed = False
        self._opened.close()
        self._until.close()
