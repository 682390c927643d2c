"""Tells of commits: this process's at once, other processes' by looking."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from ruv_swarm_store.engines.sqlite.connections import Writer, leak
from ruv_swarm_store.engines.sqlite.driver import Driver

if TYPE_CHECKING:
    import sqlite3  # its types speak for every driver

POLL = 0.002
"""Seconds between two looks at other processes' commits while somebody waits."""


class Watch:
    """Counts commits. Of all who wait, one leads: it looks for other processes' commits and wakes the rest."""

    def __init__(self, driver: Driver, writer: Callable[[], Writer | None], probe: Callable[[], sqlite3.Connection] | None) -> None:
        """`probe` opens a connection on which other processes' commits show; without one there are no others."""
        self.waiting = 0
        self._driver = driver
        self._writer = writer
        self._open_probe = probe
        self._changed = threading.Condition()
        self._led = False
        self._looking = threading.RLock()  # a signal handler may close the store in the middle of a look
        self._probe: sqlite3.Connection | None = None
        self._version = 0
        self._count = 0
        self._noted = 0

    def note(self, writer: Writer | None) -> None:
        """Wakes who waits, if this writer has changed anything since it was last noted."""
        if writer is not None and (total := writer.raw.total_changes) != self._noted:
            self._noted = total
            self.changed()

    def changed(self) -> None:
        """Wakes who waits."""
        with self._changed:
            self._count += 1
            self._changed.notify_all()

    def look(self) -> int:
        """How many commits have been seen by now, this look included."""
        if self._open_probe is not None:
            with self._looking:
                if self._probe is None:
                    self._probe = self._open_probe()
                version: int = self._probe.execute("PRAGMA data_version").fetchone()[0]
                if version != self._version:
                    self._version = version
                    self.changed()
        else:
            with suppress(self._driver.module.ProgrammingError):  # closed just now: whoever waits learns it from its next statement
                self.note(self._writer())
        return self._count

    def wait(self, seen: int, seconds: float) -> bool:
        """Blocks until there are more commits than `seen`, at most `seconds`; whether there are."""
        deadline = time.monotonic() + seconds
        with self._changed:
            self.waiting += 1
        try:
            while (left := deadline - time.monotonic()) > 0:
                with self._changed:
                    if self._count != seen:
                        break
                    if self._led:
                        self._changed.wait(left)
                        continue
                    self._led = True
                try:
                    self._lead(seen, deadline)
                finally:
                    with self._changed:
                        self._led = False
                        self._changed.notify_all()
            return self._count != seen
        finally:
            with self._changed:
                self.waiting -= 1

    def _lead(self, seen: int, deadline: float) -> None:
        while self.look() == seen and (left := deadline - time.monotonic()) > 0:
            with self._changed:
                if self._count == seen:
                    self._changed.wait(min(left, POLL))

    def close(self) -> None:
        """Ends the looking, and wakes who waits."""
        with self._looking:
            if self._probe is not None:
                self._probe.close()
                self._probe = None
        self.changed()

    def pause(self) -> None:
        """Closes the probe, and holds up who looks until `resume`."""
        self._looking.acquire()
        if self._probe is not None:
            self._probe.close()
            self._probe = None
        self._version = self._noted = 0  # both are a connection's own

    def resume(self) -> None:
        """Lets them look again."""
        self._looking.release()

    def abandon(self) -> None:
        """Leaves the parent process's connection alone."""
        if self._probe is not None:
            leak(self._probe)
