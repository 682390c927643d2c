"""Pages of a database file: which differ from an earlier state, and a file put together from those of several backups.

Frames hold runs of pages, or of their hashes: how many runs (4 bytes, big-endian), for each its first page, numbered from 0 (8), and
their count (4); then the pages or hashes, one after another.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import BinaryIO, Protocol

from ruv_swarm_store.backup.catalog import Catalog, Progress
from ruv_swarm_store.backup.frames import FRAME
from ruv_swarm_store.backup.manifest import Backup
from ruv_swarm_store.errors import CorruptBackup

HASH = 16
"""Bytes of a page's hash, which is BLAKE2b's."""

Run = tuple[int, int]
"""The first page, and how many follow each other."""

_COUNT, _RUN, _HASHES = struct.Struct(">I"), struct.Struct(">QI"), struct.Struct(f"{HASH}s")


class Pages(Protocol):
    """A database file's pages, numbered from 0, which do not change."""

    @property
    def page_size(self) -> int: ...  # noqa: D102
    @property
    def count(self) -> int: ...  # noqa: D102
    def read(self, first: int, count: int) -> bytes: ...  # noqa: D102


def hashes_of(data: bytes | memoryview, page_size: int) -> bytes:
    """The hashes of pages, one after another."""
    blake2b = hashlib.blake2b
    with memoryview(data) as view:
        return b"".join([blake2b(view[at : at + page_size], digest_size=HASH).digest() for at in range(0, len(data), page_size)])


class Difference:
    """What of an image differs from an earlier state of it, told by the hashes of that. All else is known once `chunks` has ended."""

    def __init__(self, image: Pages, known: bytes = b"") -> None:
        self._image = image
        self._known = known
        self._sum = hashlib.sha256()
        self._changed: list[tuple[Run, bytes]] = []

    @property
    def image(self) -> str:
        """SHA-256 of the hashes of all its pages, in hexadecimal: one checksum of the whole image."""
        return self._sum.hexdigest()

    @property
    def pages(self) -> int:
        """How many pages differ."""
        return sum(count for (_, count), _ in self._changed)

    def chunks(self, progress: Progress = lambda *_: None) -> Iterator[bytes]:
        """Runs of pages that differ, for the frames of a file. May be asked for again."""
        size = self._image.page_size
        self._sum = hashlib.sha256()
        self._changed = []
        return _frames(self._differing(size, max(1, FRAME // size), progress))

    def hashes(self) -> Iterator[bytes]:
        """Runs of hashes of the pages that differ, for the frames of a file."""
        return _frames(self._changed)

    def _differing(self, size: int, step: int, progress: Progress) -> Iterator[tuple[Run, bytes]]:
        for start in range(0, self._image.count, step):
            data = self._image.read(start, min(step, self._image.count - start))
            found = hashes_of(data, size)
            self._sum.update(found)
            for (first, count), hashes in self._new(start, found):
                self._changed.append(((first, count), hashes))
                yield (first, count), data[(first - start) * size : (first - start + count) * size]
            progress(start * size + len(data), self._image.count * size)

    def _new(self, start: int, hashes: bytes) -> Iterator[tuple[Run, bytes]]:
        """The runs of pages, from `start` on, whose hashes are not what was known."""
        known = self._known[start * HASH : start * HASH + len(hashes)]
        if known == hashes:
            return
        pairs = zip_longest(_HASHES.iter_unpack(hashes), _HASHES.iter_unpack(known))
        changed = [number for number, (new, old) in enumerate(pairs) if new != old]
        for first, length in _runs(changed):
            yield (start + first, length), hashes[first * HASH : (first + length) * HASH]


def _runs(numbers: Sequence[int]) -> Iterator[Run]:
    """Ascending numbers as runs."""
    first = length = 0
    for number in numbers:
        if length and number == first + length:
            length += 1
            continue
        if length:
            yield first, length
        first, length = number, 1
    if length:
        yield first, length


def _frames(runs: Iterable[tuple[Run, bytes]]) -> Iterator[bytes]:
    """Runs, put together to frames of about the usual size."""
    held: list[tuple[Run, bytes]] = []
    waiting = 0
    for run, data in runs:
        held.append((run, data))
        waiting += len(data)
        if waiting >= FRAME:
            yield packed(held)
            held, waiting = [], 0
    if held:
        yield packed(held)


def packed(held: Sequence[tuple[Run, bytes]]) -> bytes:
    """Runs and what is in them, as one frame."""
    runs = [_RUN.pack(*run) for run, _ in held]
    return b"".join([_COUNT.pack(len(runs)), *runs, *(data for _, data in held)])


def unpacked(backup: Backup, role: str, frame: bytes, unit: int) -> Iterator[tuple[Run, memoryview]]:
    """The runs of a frame, each page of `unit` bytes. Raises `CorruptBackup` for what `packed` did not make, or beyond the image."""
    view = memoryview(frame)
    try:
        (count,) = _COUNT.unpack_from(view)
        runs = [_RUN.unpack_from(view, _COUNT.size + number * _RUN.size) for number in range(count)]
        at = _COUNT.size + count * _RUN.size
        if at + sum(length for _, length in runs) * unit != len(view) or any(sum(run) > backup.page_count for run in runs):
            raise ValueError(role)
    except (struct.error, ValueError) as error:
        name = f"{backup.id}.{role}"
        raise CorruptBackup(f"{name} holds no runs of pages", hint="Bring the file back from a copy", file=name) from error
    for first, length in runs:
        yield (first, length), view[at : at + length * unit]
        at += length * unit


def known_hashes(catalog: Catalog, chain: Sequence[Backup], report: Callable[[int], object] | None = None) -> bytearray:
    """The hashes of every page of the state that a chain of backups ends with. Raises `CorruptBackup`."""
    hashes = bytearray()
    for backup in chain:
        write_hashes(catalog, backup, hashes, report)
    return hashes


def write_hashes(catalog: Catalog, backup: Backup, hashes: bytearray, report: Callable[[int], object] | None = None) -> None:
    """Brings hashes from the state of a backup's parent to that of the backup. Raises `CorruptBackup`."""
    hashes[:] = hashes[: backup.page_count * HASH].ljust(backup.page_count * HASH, b"\0")
    for frame in catalog.read(backup, "hashes", report):
        for (first, length), data in unpacked(backup, "hashes", frame, HASH):
            hashes[first * HASH : (first + length) * HASH] = data


def write_pages(catalog: Catalog, backup: Backup, file: BinaryIO, report: Callable[[int], object] | None = None) -> None:
    """Brings a file from the state of a backup's parent to that of the backup. Raises `CorruptBackup`."""
    for frame in catalog.read(backup, "pages", report):
        for (first, _), data in unpacked(backup, "pages", frame, backup.page_size):
            file.seek(first * backup.page_size)
            file.write(data)
    file.truncate(backup.page_count * backup.page_size)


def check_image(backup: Backup, file: BinaryIO, hashes: bytes | bytearray) -> None:
    """Raises `CorruptBackup` unless the file is what was backed up: `hashes` are those that its chain gives."""
    step = max(1, FRAME // backup.page_size)
    file.seek(0)
    for start in range(0, backup.page_count, step):
        data = file.read(min(step, backup.page_count - start) * backup.page_size)
        if hashes_of(data, backup.page_size) != hashes[start * HASH : (start + step) * HASH]:
            name = backup.name("pages")
            raise CorruptBackup(f"{name} does not give the pages whose hashes were noted", hint="Restore another backup", file=name)
    if file.read(1) or hashlib.sha256(hashes).hexdigest() != backup.image:
        name = backup.manifest
        raise CorruptBackup(f"{name} does not tell of the database that its files give", hint="Restore another backup", file=name)
