"""A segment: a file of commits that follow each other, as the pages they wrote. It continues a backup, or another segment.

Its first frame tells what is in it. The others hold the pages, in order. For a compression that sees no further back than a few pages, a
page that was in the segment before is there as the difference from it, which is nearly all zeros.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO

import msgspec
from msgspec import Struct

from ruv_swarm_store.backup.catalog import Catalog
from ruv_swarm_store.backup.frames import FRAME
from ruv_swarm_store.backup.manifest import FORMAT, SEGMENT, Backup, file_name
from ruv_swarm_store.clock import new_id
from ruv_swarm_store.engines.log import Changes
from ruv_swarm_store.errors import CorruptBackup, SchemaMismatch


class Segment(Struct, frozen=True, kw_only=True):
    """What a segment says of itself. Instants are milliseconds since the epoch."""

    format_version: int = FORMAT
    parent: str | None
    """The segment that it continues; None when that is the backup."""
    start: str | None
    """The state that it continues, as the engine names it."""
    end: str | None
    """The state that it leads to."""
    began_at: int
    """Everything committed before is in it, or in what it continues."""
    after: int = 0
    """Nothing committed before is in it: then the look before it began, which may have found nothing. 0 where that was not noted."""
    ended_at: int
    """Nothing committed after is in it."""
    position: int
    """That of the newest event at `began_at`; at its end there may be newer ones."""
    timestamp: int
    """That event's."""
    journaled: bool
    """Whether every change had its event."""
    coalesced: bool
    """Whether it is one commit in place of several."""
    differences: bool
    """Whether pages are there as differences."""
    page_size: int
    commits: tuple[tuple[int, int], ...]
    """For each commit, how many pages the database had then, and how many it wrote."""
    pages: tuple[int, ...]
    """The numbers of the pages written, from 0, in order."""


_decode = msgspec.json.Decoder(Segment).decode
_PAGE_SIZES = {1 << power for power in range(9, 17)}
_MOST_PAGES = 2**32


class Written(Struct, frozen=True):
    """A segment stored."""

    name: str
    segment: Segment
    size: int
    """Bytes in the storage."""


def name_of(backup: Backup, now: int) -> str:
    """A name for a segment that begins, directly or not, with a backup: names sort by time, and go when the backup goes."""
    return file_name(backup.id, SEGMENT, new_id(now))


def chunks(segment: Segment, changes: Changes) -> Iterator[bytes]:
    """A segment's frames."""
    yield msgspec.json.encode(segment)
    chunk = bytearray()
    before: dict[int, bytes] = {}
    left = Counter(segment.pages if segment.differences else ())
    for number, page in zip(segment.pages, changes.contents(), strict=True):
        if segment.differences:
            chunk += _difference(page, before.pop(number)) if number in before else page
            left[number] -= 1
            if left[number]:
                before[number] = page
        else:
            chunk += page
        if len(chunk) >= FRAME:
            yield bytes(chunk)
            chunk.clear()
    if chunk:
        yield bytes(chunk)


class Reading:
    """A segment being read. Raises `CorruptBackup` for anything but what was written, at its end at the latest."""

    def __init__(self, catalog: Catalog, backup: Backup, name: str) -> None:
        self.name = name
        self._reader = catalog.frames(name, backup.encryption)
        self._frames = iter(self._reader)
        try:
            self.segment = _decode(next(self._frames, b""))
        except msgspec.MsgspecError as error:
            raise self._damaged(f"does not say what is in it ({error})") from error
        if self.segment.format_version > FORMAT:
            self._to_the_end()
            raise SchemaMismatch(
                f"{name} is of form {self.segment.format_version}, and this release reads {FORMAT}", hint="Upgrade ruv-swarm-store"
            )
        if not self._makes_sense(self.segment):  # its checksum comes last
            raise self._damaged("contradicts itself")

    @staticmethod
    def _makes_sense(segment: Segment) -> bool:
        sizes, counts = [size for size, _ in segment.commits], [count for _, count in segment.commits]
        return (
            segment.page_size in _PAGE_SIZES
            and sum(counts) == len(segment.pages)
            and min(counts, default=0) >= 0
            and all(0 <= number < _MOST_PAGES for number in (*segment.pages, *sizes))
        )

    @property
    def size(self) -> int:
        """Bytes read so far."""
        return self._reader.size

    def close(self) -> None:
        """Reads no more of it."""
        self._frames.close()

    def pages(self) -> Iterator[bytes]:
        """What was stored for each page."""
        size = self.segment.page_size
        left = len(self.segment.pages)
        rest = b""
        for frame in self._frames:
            data = rest + frame
            whole = len(data) // size * size
            for start in range(0, whole, size):
                yield data[start : start + size]
            left -= whole // size
            rest = data[whole:]
        if left or rest:
            raise self._damaged("holds other pages than it says")

    def apply(self, file: BinaryIO, commits: int | None = None) -> None:
        """Writes its pages, those of the first `commits` or of all, into a file in the state that it continues."""
        segment = self.segment
        size = segment.page_size
        taken = segment.commits[:commits]
        changed: set[int] = set()
        pages = self.pages()
        try:
            for number, page in zip(segment.pages[: sum(count for _, count in taken)], pages, strict=False):
                file.seek(number * size)
                if segment.differences and number in changed:
                    before = file.read(size)
                    file.seek(number * size)
                    file.write(_difference(page, before))
                else:
                    file.write(page)
                    changed.add(number)
            if taken:
                file.truncate(taken[-1][0] * size)
        except OSError:
            self._to_the_end()
            raise
        for _ in pages:
            pass  # to its end, where the checksum is

    def _to_the_end(self) -> None:
        """Reads what is left: whatever else is wrong with it, a file that is damaged is told as that."""
        for _ in self._frames:
            pass

    def _damaged(self, what: str) -> CorruptBackup:
        return CorruptBackup(f"{self.name} {what}", hint="Restore an earlier state, or bring the file back from a copy", file=self.name)


def _difference(page: bytes, before: bytes) -> bytes:
    """Where two pages differ; with one of them it gives the other."""
    return (int.from_bytes(page, "little") ^ int.from_bytes(before, "little")).to_bytes(len(page), "little")
