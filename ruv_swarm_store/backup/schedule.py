"""Backups at intervals, made by a thread of this process."""

from __future__ import annotations

import logging
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ruv_swarm_store.backup.retention import Retention
from ruv_swarm_store.errors import StoreError

if TYPE_CHECKING:
    from ruv_swarm_store.backup.backups import Backups

log = logging.getLogger(__name__)

LONGEST_WAIT = 60.0
"""Most seconds between two looks at the clock, which may be set."""


class Schedule:
    """Makes a backup every so often, while its `with` block lasts.

    When the next one is due is told by what is in the storage: who starts later, or again, goes on from there.
    """

    def __init__(self, backups: Backups, every: int, full_every: int, keep: Retention | int | None) -> None:
        self._backups = backups
        self._every = every
        self._full_every = full_every
        self._keep = keep
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.made = 0
        """How many backups it has made."""
        self.failure: StoreError | None = None
        """Why the last attempt failed; None when it did not. It tries again after a tenth of the interval."""

    def __repr__(self) -> str:
        return f"<Schedule of {self._backups!r}, every {self._every / 1000:g} s>"

    def run_due(self) -> bool:
        """Makes the backup that is due, if one is, and prunes; whether it made one. Raises what goes wrong."""
        if self.due_in() > 0:
            return False
        self._backups.create("full" if self._is_full_due() else "incremental")
        self.made += 1
        if self._keep is not None:
            self._backups.prune(self._keep)
        return True

    def due_in(self) -> int:
        """Milliseconds until the next one is due; 0 or less when it is."""
        newest = self._backups._catalog.contents().newest()
        # One from further ahead than an interval was made when the clock was wrong: until that time comes nobody waits.
        return 0 if newest is None else self._every - abs(newest.began_at - self._backups.now())

    def _is_full_due(self) -> bool:
        contents = self._backups._catalog.contents()
        kinds = [backup.kind for backup in reversed(self._backups.list()) if contents.is_own(backup)]
        return "full" not in kinds[: self._full_every - 1]

    def stop(self) -> None:
        """Ends it, after the backup that is being made."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.run_due()
                self.failure = None
                wait = self.due_in() / 1000
            except StoreError as error:
                log.warning("a scheduled backup failed: %s", error)
                self.failure = error
                wait = self._every / 10_000
            except Exception:
                log.exception("a scheduled backup failed")
                wait = self._every / 10_000
            self._stopping.wait(min(max(wait, 0.0), LONGEST_WAIT))

    def __enter__(self) -> Self:
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="ruv-swarm-backups", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()
