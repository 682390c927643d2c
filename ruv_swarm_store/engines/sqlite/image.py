"""The pages of a database file in use: what its log holds over what the file itself holds.

While a read transaction is held, SQLite copies nothing into the file but pages from frames that the transaction sees, and all of these are
in the log read after it began: every page is in the log, or is not written to meanwhile. And the log is not written from its beginning
again, with one exception: when the transaction began, all of the log had been copied already. Then nothing more is copied while it is held,
and as soon as the log begins anew, the file alone is what it was with the log. (sqlite.org/src/file/src/wal.c: walCheckpoint,
walTryBeginRead and walRestartLog.)
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ruv_swarm_store.engines.executor import Executor
from ruv_swarm_store.engines.image import Image
from ruv_swarm_store.engines.sqlite import wal
from ruv_swarm_store.engines.sqlite.connections import Reader
from ruv_swarm_store.errors import Unavailable


class Overlay:
    """Which frames of a log hold the pages as its last commit left them."""

    def __init__(self) -> None:
        self._start(None)

    def _start(self, header: wal.Header | None) -> None:
        self._header = header
        self._frames: dict[int, int] = {}
        self._last = (0, (0, 0) if header is None else header.checksum)
        self.size = 0
        """How many pages the database had after that commit."""
        self.place: str | None = None
        """What names that commit, as an `Image` does."""

    def read_on(self, log: int | None, committed: Callable[[], int | None] | None = None) -> None:
        """Takes in what was committed since the last time: up to the frame that `committed` tells, or as far as it can be proven."""
        while True:
            header = None if log is None else wal.read_header(log)
            if log is None or header is None:
                self._start(None)
                return
            if header != self._header or wal.frame_checksum(log, header, self._last[0]) != self._last[1]:
                self._start(header)
            known = None if committed is None else committed()
            if self._begun_anew(log):
                continue
            for commit in wal.read_commits(log, header, *self._last, known=known):
                self._frames.update(zip(commit.pages, range(self._last[0] + 1, commit.frame + 1), strict=True))
                self._last = commit.frame, commit.checksum
                self.size = commit.size
                self.place = wal.place(header, *self._last)
            if not self._begun_anew(log):
                return

    def _begun_anew(self, log: int) -> bool:
        """Whether the frames taken in may have been written over."""
        return self._header is not None and wal.read_at(log, wal.HEADER, 0) != self._header.raw

    def pages(self, log: int, first: int, count: int) -> dict[int, bytes]:
        """Of the pages from `first` on, those in the log."""
        header = self._header
        if header is None:
            return {}
        frames = self._frames
        found = {
            number: wal.read_at(log, header.page_size, header.offset(frames[number]))
            for number in range(first, first + count)
            if number in frames
        }
        if found and self._begun_anew(log):
            self._header = None  # the file alone is the image now: see above
            return {}
        return found


class FileImage(Image):
    """A file's pages, and over them its log's."""

    def __init__(self, file: int, log: int | None, overlay: Overlay, reader: Reader, *, exact: bool) -> None:
        """`reader` holds still, and `overlay` was read since then; `exact` if nothing was committed in between."""
        self.page_size = reader.ask("PRAGMA page_size")
        self.count = reader.ask("PRAGMA page_count") if overlay.place is None else overlay.size
        self.place = overlay.place
        self._reader = reader
        self._exact = exact
        self._file = file
        self._log = log
        self._overlay = overlay

    @property
    def run(self) -> Executor | None:
        return self._reader if self._exact else None

    def read(self, first: int, count: int) -> bytes:
        size = self.page_size
        count = max(0, min(count, self.count - first))
        try:
            data = bytearray(wal.read_at(self._file, count * size, first * size).ljust(count * size, b"\0"))
            logged = {} if self._log is None else self._overlay.pages(self._log, first, count)
        except OSError as error:
            raise unreadable(error) from error
        for number, page in logged.items():
            data[(number - first) * size : (number - first + 1) * size] = page
        self._reader.check_still()
        return bytes(data)


def unreadable(error: OSError) -> Unavailable:
    """What to raise when a database's files cannot be read."""
    return Unavailable(f"the database could not be read ({error})", hint="Check the disk, and the permissions of the database's files")


@contextmanager
def opened_log(path: str) -> Iterator[int | None]:
    """The log of the database at `path`, a file in which SQLite locks nothing; None where there is none."""
    try:
        log = os.open(f"{path}-wal", os.O_RDONLY | _BINARY)
    except FileNotFoundError:
        yield None
        return
    try:
        yield log
    finally:
        os.close(log)


@contextmanager
def opened(path: str) -> Iterator[int]:
    """A descriptor of the database file.

    Where locks are a process's own (POSIX), closing any descriptor of a file gives up all locks on it, SQLite's with them. So there is
    one for each file, which stays open until the file is deleted.
    """
    if os.name != "posix":
        file = os.open(path, os.O_RDONLY | _BINARY)
        try:
            yield file
        finally:
            os.close(file)
        return
    with _turn:
        _close_deleted()
        kept = _keep(path)
        kept.users += 1
    try:
        yield kept.files[0]
    finally:
        with _turn:
            kept.users -= 1


class _Kept:
    """Descriptors of one file, of which the first is used."""

    def __init__(self, file: int) -> None:
        self.files = [file]
        self.users = 0


def _keep(path: str) -> _Kept:
    if (known := _opened.get(_identity(Path(path).stat()))) is not None:
        return known
    file = os.open(path, os.O_RDONLY)
    kept = _opened.setdefault(_identity(os.fstat(file)), _Kept(file))
    if file not in kept.files:
        kept.files.append(file)  # one that is known has come to this path just now: this may not be closed either
    return kept


def _close_deleted() -> None:
    for key, kept in list(_opened.items()):
        if not kept.users and not os.fstat(kept.files[0]).st_nlink:
            del _opened[key]
            for file in kept.files:
                os.close(file)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


_opened: dict[tuple[int, int], _Kept] = {}
_turn = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_turn.acquire, after_in_parent=_turn.release, after_in_child=_turn.release)
_BINARY = getattr(os, "O_BINARY", 0)
