"""How values travel between Python and SQLite: through two buffers of bytes, which `js/driver.mjs` reads and writes at the other end.

They lie there as `marshal` has them: it packs and unpacks values of any types, and whole results, by one call in C. Only the types in
`adaptation.plain` come here, and its version 2, the last one that knows no references; every later Python reads it.
"""

from collections.abc import Callable
from functools import partial
from marshal import dumps, loads
from typing import Any

VERSION = 2
TOO_LARGE = -1
NOT_TEXT = -2
"""Beside SQLite's result codes: an int beyond 64 bits, and a text that UTF-8 cannot hold."""

Answer = tuple[list[Any], int, int, bool, int, bool, str | None]
"""What came of a call: rows, result code, changes, in a transaction, last row id, rows have bytes that are not values yet, error."""


class Buffers:
    """The two buffers. They only grow; `attach` tells the engine where they are after that."""

    def __init__(self, attach: Callable[[bytearray, bytearray], None]) -> None:
        self.attach = attach
        self.to_engine = bytearray(1 << 18)
        self.to_python = bytearray(1 << 18)
        self._announce()

    def _announce(self) -> None:
        self.room = len(self.to_engine)
        self._view = memoryview(self.to_engine)  # which is written to in half the time
        self.receive: Callable[[], Any] = partial(loads, self.to_python)
        """Reads what came from the engine."""
        self.attach(self.to_engine, self.to_python)

    def send(self, values: Any) -> int:
        """Write a sequence of values, or a list of such sequences, for the engine; gives the number of bytes.

        Raises BufferError for a memoryview that is not contiguous.
        """
        try:
            data = dumps(values, VERSION)
        except ValueError:
            raise BufferError("memoryview: underlying buffer is not C-contiguous") from None
        size = len(data)
        if size > self.room:
            self.reserve(size)
        self._view[:size] = data
        return size

    def reserve(self, size: int) -> bytearray:
        """The buffer to the engine, with room for `size` bytes."""
        if size > self.room:
            self.to_engine = bytearray(2 * size)
            self._announce()
        return self.to_engine

    def reserve_back(self, size: int) -> None:
        """Make room for `size` bytes from the engine."""
        self.to_python = bytearray(2 * size)
        self._announce()
