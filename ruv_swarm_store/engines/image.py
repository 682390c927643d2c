"""A database as pages: what of it a backup copies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from ruv_swarm_store.engines.executor import Executor


class Image(ABC):
    """The pages of a database at one instant, whatever others commit meanwhile."""

    page_size: int
    """Bytes in a page."""
    count: int
    """Pages in the database."""
    place: str | None = None
    """What the database's log had come to, in the engine's words; None where it keeps none, or an empty one."""

    @property
    @abstractmethod
    def run(self) -> Executor | None:
        """For SELECTs that see exactly what the pages hold; None where the engine may not keep writers out until it is sure of that."""

    @abstractmethod
    def read(self, first: int, count: int) -> bytes:
        """`count` pages from `first` on, numbered from 0; fewer where the database ends. Raises `StoreError` when the instant is lost."""


class Copied(Image):
    """An image held in memory."""

    def __init__(self, data: bytes, page_size: int, load: Callable[[bytes], Executor]) -> None:
        """`load` opens such an image."""
        self.page_size = page_size
        self.count = len(data) // page_size
        self._data = data
        self._load = load
        self._run: Executor | None = None

    @property
    def run(self) -> Executor:
        if self._run is None:
            self._run = self._load(self._data)
        return self._run

    def read(self, first: int, count: int) -> bytes:
        return self._data[first * self.page_size : (first + count) * self.page_size]
