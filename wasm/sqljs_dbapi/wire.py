"""How values travel between Python and SQLite: as `marshal` has them, which packs and unpacks whole results by one call in C.

Only the types in `adaptation.plain` go there, in `marshal`'s version 2, the last one that knows no references; every later Python reads
it. `js/driver.mjs` reads and writes it at the other end.
"""

from marshal import dumps
from typing import Any

VERSION = 2
TOO_LARGE = -1
NOT_TEXT = -2
"""Beside SQLite's result codes: an int beyond 64 bits, and a text that UTF-8 cannot hold."""

Answer = tuple[list[Any], int, int, bool, int, bool, str | None, bool]
"""What came of a call: rows, result code, changes, in a transaction, last row id, rows have bytes that are not values yet, error, columns
are others than were told."""


def pack(values: Any) -> bytes:
    """The bytes of a sequence of values, or of a list of such sequences.

    Raises BufferError for a memoryview that is not contiguous.
    """
    try:
        return dumps(values, VERSION)
    except ValueError:
        raise BufferError("memoryview: underlying buffer is not C-contiguous") from None
