"""The states that can be restored: a backup's, and after it those that shipped changes lead to."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import BinaryIO

from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy import select

from ruv_swarm_store import engines, schema
from ruv_swarm_store.backup.catalog import Catalog, Contents, missing
from ruv_swarm_store.backup.manifest import Backup
from ruv_swarm_store.backup.segments import Reading, Segment
from ruv_swarm_store.engines import Executor, Options
from ruv_swarm_store.errors import CorruptBackup, NotFound, SchemaMismatch, StoreError

NEWEST = select(schema.events.c.position, schema.events.c.timestamp).order_by(schema.events.c.position.desc()).limit(1)
_LOOKED_INTO = 3
"""How many of the last segments may hold the last commit asked for: what is known of a segment's newest event is a look old."""


class Point(Struct, frozen=True, kw_only=True):
    """A state to restore."""

    backup: Backup
    """What it begins with."""
    segments: Sequence[str] = ()
    """The names of the files of changes to apply then, in order."""
    instant: int
    """Everything committed before this is in it, in milliseconds since the epoch."""
    position: int
    """That of the newest event in it; until the segments were applied, of one that is in it for certain."""
    exact: bool = True
    """Whether this is what was asked for, and not the last state before it that can be restored."""
    latest: tuple[int | None, int | None] | None = None
    """The last position and the last instant that an event may have in it, where the last commits are to be left out."""


def of(backup: Backup) -> Point:
    """A backup's own state."""
    return Point(backup=backup, instant=backup.began_at, position=backup.position)


def newest_event(run: Executor) -> tuple[int, int]:
    """The position of the newest event, and its instant; zeros when there is none."""
    row = run.one(NEWEST)
    return (0, 0) if row is None else (int(row[0]), int(row[1]))


def find(catalog: Catalog, contents: Contents, *, at: int | None = None, position: int | None = None) -> Point:
    """The latest state, or the last one not after an instant or position.

    A position is found to the commit. So is an instant where each change has its event, as in a journaled store, told by the events' times;
    elsewhere it is the last look at the log that ended before. Raises `NotFound` when nothing goes back that far, `CorruptBackup`.
    """
    bases = [
        backup
        for id, backup in contents.backups.items()
        if (at is None or backup.created_at <= at) and (position is None or backup.position <= position) and contents.whole(id)
    ]
    if not bases:
        raise NotFound("there is no backup of that time", hint="list() tells which there are, and so does: ruv-swarm backup list")
    newest = bases.pop()
    # While a backup is made, shipping goes on behind the one before, and may have got further. Of that, names tell the truth even when
    # the clock was set back in between.
    further = [backup for backup in bases if contents.last_id(backup.id) > newest.id]
    if at is None and position is None:
        return _reach(catalog, contents, max([newest, *further], key=lambda backup: contents.last_id(backup.id)), None, None)
    found = [_reach(catalog, contents, backup, at, position) for backup in (newest, *reversed(further))]
    return max(found, key=lambda point: (point.exact, point.position if position is not None else point.instant))


def _reach(catalog: Catalog, contents: Contents, backup: Backup, at: int | None, position: int | None) -> Point:
    """How far one backup and its segments lead."""
    taken: list[tuple[str, Segment]] = []
    exact = at is None and (position is None or position == backup.position)
    for name, segment in chain(catalog, contents, backup):
        if at is not None:
            if max(segment.after, (taken[-1][1] if taken else backup).began_at) > at:
                exact = taken[-1][1].journaled if taken else segment.after > at
                break  # all that is in it was committed after that
            if segment.ended_at > at and (segment.coalesced or not segment.journaled):
                break
        taken.append((name, segment))
        if (at is not None and segment.timestamp > at) or (position is not None and segment.position >= position):
            exact = True
            if position is None or segment.position > position:
                break
    if not taken:
        return replace(of(backup), exact=exact)
    last = taken[-1][1]
    known = [
        segment.position
        for _, segment in taken
        if (position is None or segment.position <= position) and (at is None or segment.timestamp <= at)
    ]
    return Point(
        backup=backup,
        segments=[name for name, _ in taken],
        instant=last.began_at if at is None else min(at, last.began_at),
        position=max([backup.position, *known]),
        exact=exact,
        latest=(position, at) if position is not None or (at is not None and last.journaled) else None,
    )


def chain(catalog: Catalog, contents: Contents, backup: Backup) -> Iterator[tuple[str, Segment]]:
    """The segments that begin with a backup, in order. Raises `CorruptBackup` where one is missing or does not tell what it is."""
    names = contents.segments(backup.id)
    known, broken = _headers(catalog, backup, names)
    following: dict[str | None, list[str]] = {}
    last: dict[str, str] = {}
    for earlier in reversed(names):
        if earlier in known:
            last[earlier] = max((last[later] for later in following.get(earlier, ())), default=earlier)
            following.setdefault(known[earlier].parent, []).append(earlier)
    name: str | None = None
    place = backup.place
    while name in following:
        # Two processes may have shipped the same commits: the way that leads furthest is taken.
        name = max(following[name], key=last.__getitem__)
        if known[name].start != place:
            raise _unconnected(name)
        yield name, known[name]
        place = known[name].end
    for left in names:
        if name is None or left > name:
            parent = known[left].parent if left in known else None
            raise broken.get(left) or (_unconnected(left) if parent is None or parent in contents.names else missing(parent))


def _headers(catalog: Catalog, backup: Backup, names: Sequence[str]) -> tuple[dict[str, Segment], dict[str, StoreError]]:
    known: dict[str, Segment] = {}
    broken: dict[str, StoreError] = {}
    for name in names:
        try:
            with closing(Reading(catalog, backup, name)) as reading:
                known[name] = reading.segment
        except (CorruptBackup, SchemaMismatch) as error:
            broken[name] = error
    return known, broken


def _unconnected(name: str) -> CorruptBackup:
    return CorruptBackup(f"{name} does not continue what is before it", hint="Restore an earlier state", file=name)


def apply(catalog: Catalog, point: Point, file: BinaryIO, report: Callable[[int], object] = lambda _: None) -> Point:
    """Brings a file from the state of the point's backup to the point; what it came to. Raises `CorruptBackup`."""
    for left, name in zip(range(len(point.segments) - 1, -1, -1), point.segments, strict=True):
        reading = Reading(catalog, point.backup, name)
        if point.latest is not None and left < _LOOKED_INTO:
            with tempfile.TemporaryFile() as pages:
                before = _Before(file, reading.segment, pages)
                reading.apply(file)
                if _is_beyond(point, file):
                    _cut(catalog, point, file, name, len(reading.segment.commits), before)
                    break
        else:
            reading.apply(file)
        report(reading.size)
    if not point.segments:
        return point
    position, instant = _look(file)
    if point.latest is None or point.latest[0] is None:
        return replace(point, position=position)
    return replace(point, position=position, instant=instant, exact=position == point.latest[0])


class _Before:
    """What a file held where a segment changes it."""

    def __init__(self, file: BinaryIO, segment: Segment, into: BinaryIO) -> None:
        self._file = file
        self._page_size = segment.page_size
        self._numbers = list(dict.fromkeys(segment.pages))
        self._pages = into
        self._size = file.seek(0, io.SEEK_END)
        for number in self._numbers:
            file.seek(number * self._page_size)
            into.write(file.read(self._page_size).ljust(self._page_size, b"\0"))

    def restore(self) -> None:
        """Gives it back."""
        self._pages.seek(0)
        for number in self._numbers:
            self._file.seek(number * self._page_size)
            self._file.write(self._pages.read(self._page_size))
        self._file.truncate(self._size)


def _cut(catalog: Catalog, point: Point, file: BinaryIO, name: str, commits: int, before: _Before) -> None:
    """Goes back to the last of a segment's commits that is not beyond the point."""

    def go(commits: int) -> None:
        before.restore()
        if commits:
            Reading(catalog, point.backup, name).apply(file, commits)

    within, beyond = 0, commits
    while beyond - within > 1:
        middle = (within + beyond) // 2
        go(middle)
        if _is_beyond(point, file):
            beyond = middle
        else:
            within = middle
    go(within)


def _is_beyond(point: Point, file: BinaryIO) -> bool:
    position, instant = _look(file)
    assert point.latest is not None
    last_position, last_instant = point.latest
    return (last_position is not None and position > last_position) or (last_instant is not None and instant > last_instant)


def _look(file: BinaryIO) -> tuple[int, int]:
    """The newest event in a database file."""
    file.flush()
    in_memory = isinstance(file, io.BytesIO)
    with closing(engines.connect(None if in_memory else file.name, Options())) as engine:
        if isinstance(file, io.BytesIO):
            engines.load(engine, file.getvalue())
        with engine.snapshot() as run:
            return newest_event(run)


def verify(catalog: Catalog, contents: Contents, backup: Backup) -> Sequence[tuple[str, str]]:
    """Which segments of a backup are damaged, and what is wrong with each."""
    names = contents.segments(backup.id)
    found: list[tuple[str, str]] = []
    known: dict[str, Segment] = {}
    for name in names:
        try:
            reading = Reading(catalog, backup, name)
            for _ in reading.pages():
                pass
            known[name] = reading.segment
        except (CorruptBackup, SchemaMismatch) as error:
            found.append((name, error.message))
    for name, segment in known.items():
        if segment.parent is not None and segment.parent not in contents.names:
            found.append((name, f"continues {segment.parent}, which is missing"))
        elif segment.parent is None or segment.parent in known:
            before = backup.place if segment.parent is None else known[segment.parent].end
            if segment.start != before:
                found.append((name, "does not continue what is before it"))
    return found
