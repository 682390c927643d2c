"""A database's log: every commit, as the pages it wrote."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

from ruv_swarm_store.engines.executor import Executor
from ruv_swarm_store.errors import StoreError


class Discontinuity(StoreError):
    """What was committed since can no longer be told from the log: copy the pages that have changed instead."""


class Commit(NamedTuple):
    """What a transaction wrote."""

    pages: Sequence[int]
    """The numbers, from 0, of the pages it wrote, in order; one may be there more than once, and the last time counts."""
    size: int
    """How many pages the database had then."""


class Changes(ABC):
    """Whole commits that follow each other without a gap."""

    page_size: int
    start: str | None
    """The state before them, as an image's `place` names it."""
    end: str | None
    """The state after them."""
    commits: Sequence[Commit]
    coalesced: bool = False
    """Whether single commits cannot be told apart any more."""

    @abstractmethod
    def contents(self) -> Iterator[bytes]:
        """Each page written, in the order of the commits.

        Raises `Discontinuity` at the end at the latest when the log did not keep them that long.
        """

    @abstractmethod
    def coalesce(self) -> Changes:
        """The same as one commit, in which each page is once."""

    @property
    def written(self) -> int:
        """How many pages were written."""
        return sum(len(commit.pages) for commit in self.commits)


class Log(ABC):
    """What is committed to a database, from a place on, for one who stores it elsewhere.

    It keeps what is not stored, for which the database's own log has to grow: `shorten` it, or give up with `let_go`.
    """

    @abstractmethod
    def hold(self) -> None:
        """From now on nothing that is committed is forgotten."""

    @abstractmethod
    def let_go(self) -> None:
        """Forgets."""

    @abstractmethod
    def resume(self, place: str | None, *, later: bool = False) -> bool:
        """Goes on from a place, if it is certain that everything committed since is there; whether it is.

        `later` says that the place was the database's own after `hold`.
        """

    @abstractmethod
    def read(self) -> Changes:
        """What was committed since what was last `stored`. Raises `Discontinuity`."""

    @abstractmethod
    def stored(self, changes: Changes) -> None:
        """What was last read may be forgotten."""

    @abstractmethod
    def reading(self) -> AbstractContextManager[Executor]:
        """For SELECTs that see nothing beyond what was last read. Raises `Discontinuity` at its end if they may have."""

    @property
    @abstractmethod
    def used(self) -> int:
        """Bytes written to it since it was begun anew, as of what was last read."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Bytes of its file."""

    @abstractmethod
    def shorten(self, changes: Changes, most: int) -> Changes:
        """Lets the log begin anew: takes into memory what was last read, and what was committed since, and counts it as `stored`.

        More than `most` pages are coalesced. Who writes waits, as for another transaction. Raises `Discontinuity`. Whatever it raises,
        some of it may count as stored by then: `resume`.
        """

    @abstractmethod
    def close(self) -> None:
        """Ends. Harmless when repeated."""
