"""The caches over an engine: told what it commits, and emptied when others may have committed anything."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any, Protocol

from ruv_swarm_store.engines.changes import Changes


class Cache(Protocol):
    """What keeps copies of rows."""

    name: str
    """The table they are of."""
    probe: float
    """It has others' commits looked for when it is read, unless that was done so many seconds ago or less."""

    def forget(self, changes: Changes) -> None:
        """Lets go of what was changed. It comes from whoever has just committed that."""
        ...

    def clear(self) -> None:
        """Lets go of everything."""
        ...

    def close(self) -> None:
        """Lets go of everything for good."""
        ...

    def forked(self) -> None:
        """Begins anew in a child process."""
        ...

    def stats(self) -> Any:
        """What it has been good for."""
        ...


class Engine(Protocol):
    """What this asks of an engine."""

    def note_changes(self, *, on: bool) -> None:
        """Whether executors are to note what they change. What is under way unnoted must look like others' commits."""
        ...

    def others_committed(self) -> bool:
        """Whether others than this store may have committed anything since this was last asked."""
        ...


class Caches:
    """Those that are in use; iterating gives them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = weakref.ref(engine)
        self.noting = False
        """Whether there are any, and so executors note what they change."""
        self.looked = float("-inf")
        """The time of the last look at others' commits (`time.monotonic`), all of which are known by now."""
        self._members: tuple[weakref.ref[Cache], ...] = ()
        self._start()
        _all.add(self)

    def _start(self) -> None:
        # A signal handler, or a finaliser, may read in the middle of a look.
        self._looking = threading.RLock()
        self._amid = False
        self._joining = threading.RLock()

    def __iter__(self) -> Iterator[Cache]:
        for member in self._members:
            if (cache := member()) is not None:
                yield cache

    def add(self, cache: Cache) -> None:
        """From now on it is told; it must be empty."""
        engine = self._engine()
        assert engine is not None
        with self._joining:
            self._members = (*(member for member in self._members if member() is not None), weakref.ref(cache))
            self.noting = True
        engine.note_changes(on=True)  # without the lock: who holds the writer may be joining, too

    def remove(self, cache: Cache) -> None:
        """From now on it is told of nothing."""
        with self._joining:
            self._members = tuple(member for member in self._members if member() not in (cache, None))

    def tell(self, changes: Changes) -> None:
        """Has them let go of what this store has committed."""
        alone = True
        for cache in self:
            cache.forget(changes)
            alone = False
        if alone:
            self._rest()

    def _rest(self) -> None:
        """Nobody listens any more."""
        with self._joining:
            if any(True for _ in self):
                return
            self.noting = False
        if (engine := self._engine()) is not None:
            engine.note_changes(on=False)  # unless one has joined meanwhile: `noting` tells

    def look(self, probe: float) -> None:
        """Has them let go of everything if others may have committed since the last look, unless that was `probe` seconds ago or less."""
        engine = self._engine()
        with self._looking:
            if self._amid:  # the answer is on its way to whoever was interrupted, and is not given again
                self.clear()
                return
            began = time.monotonic()
            if engine is None or began - self.looked <= probe:
                return
            try:
                self._amid = True
                if engine.others_committed():
                    self.clear()
                self.looked = began
            except BaseException:
                self.clear()  # the answer may be lost
                raise
            finally:
                self._amid = False

    def look_early(self) -> None:
        """Looks before a reader has to, for whom it may be harder to tell others' commits from this store's."""
        soon = min((cache.probe for cache in self), default=float("inf")) / 2
        if time.monotonic() - self.looked > soon:
            self.look(soon)

    def clear(self) -> None:
        """Has them let go of everything."""
        for cache in self:
            cache.clear()

    def close(self) -> None:
        """Ends them all."""
        for cache in self:
            cache.close()

    def forked(self) -> None:
        """Begins anew in a child process: others may have held the locks."""
        self._start()
        self.looked = float("-inf")
        for cache in self:
            cache.forked()


_all: weakref.WeakSet[Caches] = weakref.WeakSet()


def _forked() -> None:
    for caches in list(_all):
        caches.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
