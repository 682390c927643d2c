"""A storage that fails now and then: tried again after short, growing waits."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from ruv_swarm_store.backup.storage import BackupStorage
from ruv_swarm_store.errors import NotFound, StoreError, Unavailable

T = TypeVar("T")

ATTEMPTS = 6
FIRST_WAIT = 0.05
"""Seconds before the second attempt, on average; each wait is twice the one before."""
_FINAL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR}
"""What is not over in a moment."""


class RetryingStorage:
    """A storage whose calls are made up to `ATTEMPTS` times. Raises `NotFound`, and `Unavailable` for what goes on failing.

    Writing takes what makes the chunks rather than the chunks, for another attempt needs them anew.
    """

    def __init__(self, storage: BackupStorage) -> None:
        self.storage = storage

    def write(self, name: str, make: Callable[[], Iterable[bytes]]) -> None:
        """Stores a file whole or not at all. What making the chunks raises is not tried again."""
        failures: list[Exception] = []

        def chunks() -> Iterator[bytes]:
            try:
                yield from make()
            except Exception as error:
                failures.append(error)
                raise

        def attempt() -> None:
            try:
                self.storage.write(name, chunks())
            except Exception:
                if failures:
                    raise _NotTheStorage from failures[0]
                raise

        try:
            self._again("write", name, attempt)
        except _NotTheStorage:
            raise failures[0] from failures[0].__cause__

    def read(self, name: str) -> Iterator[bytes]:
        """A file, piece by piece; after a failure it goes on where it was."""
        done = 0
        for attempt in range(1, ATTEMPTS + 1):
            skip = done
            try:
                for chunk in self.storage.read(name):
                    fresh = chunk[skip:] if skip else chunk
                    skip -= len(chunk) - len(fresh)
                    done += len(fresh)
                    if fresh:
                        yield fresh
                return
            except Exception as error:
                self._wait(error, "read", name, attempt)

    def names(self, prefix: str = "") -> Sequence[str]:
        """The names of all files that begin with `prefix`, in order."""
        return sorted(self._again("list", prefix or "its files", lambda: self.storage.names(prefix)))

    def size(self, name: str) -> int:
        """A file's bytes."""
        return self._again("read", name, lambda: self.storage.size(name))

    def delete(self, name: str) -> None:
        """Removes a file."""
        self._again("delete", name, lambda: self.storage.delete(name))

    def _again(self, verb: str, name: str, call: Callable[[], T]) -> T:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return call()
            except Exception as error:
                self._wait(error, verb, name, attempt)
        raise AssertionError  # the last attempt's failure was raised

    def _wait(self, error: Exception, verb: str, name: str, attempt: int) -> None:
        """Waits before the next attempt, or raises what `error` means."""
        if isinstance(error, FileNotFoundError) and verb == "read":
            raise NotFound(f"there is no {name} in {self}", hint="It was deleted, or belongs to another storage", file=name) from error
        if isinstance(error, _NotTheStorage) or (isinstance(error, StoreError) and not error.retryable):
            raise error
        final = isinstance(error, OSError) and error.errno in _FINAL
        if final or attempt == ATTEMPTS:
            raise Unavailable(
                f"{self} could not {verb} {name} ({str(error) or type(error).__name__})",
                hint="Free some space, or check the storage; nothing half-written counts as a backup",
                file=name,
            ) from error
        time.sleep(FIRST_WAIT * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))

    def __repr__(self) -> str:
        return repr(self.storage)


class _NotTheStorage(Exception):
    """What was to be stored could not be made."""
