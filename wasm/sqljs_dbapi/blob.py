"""A blob that is read and written in pieces, as sqlite3.Blob.

sql.js has no `sqlite3_blob_open`: a piece is read by `substr`, and a piece written is an UPDATE of the value.
"""

import io
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from sqljs_dbapi import errors
from sqljs_dbapi.codes import SQLITE_ABORT, SQLITE_ERROR, SQLITE_READONLY
from sqljs_dbapi.dump import identifier

if TYPE_CHECKING:
    from sqljs_dbapi.connection import Connection


class Blob:
    """One blob or text of one row. Its length cannot change. Made by `Connection.blobopen`."""

    def __init__(self, connection: "Connection", table: str, column: str, row: int, readonly: bool, name: str) -> None:
        self._connection = connection
        self._place = f"{identifier(name)}.{identifier(table)}"
        self._column = identifier(column)
        self._row = row
        self._readonly = readonly
        self._position = 0
        self._closed = False
        found = self._select("typeof({0}), length(CAST({0} AS BLOB))")
        if found is None:
            errors.raise_code(SQLITE_ERROR, f"no such rowid: {row}")
        kind: str = found[0]
        self._length: int = found[1]
        if kind not in {"blob", "text"}:
            errors.raise_code(SQLITE_ERROR, f"cannot open value of type {kind}")

    def _select(self, what: str, *parameters: Any) -> Any:
        cursor = self._connection.cursor()
        cursor.row_factory = None
        query = f"SELECT {what.format(self._column)} FROM {self._place} WHERE rowid = ?"  # noqa: S608 - quoted names
        return cursor.execute(query, (*parameters, self._row)).fetchone()

    def _slice(self, start: int, length: int) -> bytes:
        found = self._select("length(CAST({0} AS BLOB)), CAST(substr(CAST({0} AS BLOB), ?, ?) AS BLOB)", start + 1, length)
        if found is None or found[0] != self._length:
            errors.raise_code(SQLITE_ABORT, "query aborted")
        return bytes(found[1] or b"")

    def _replace(self, start: int, data: bytes) -> None:
        if self._readonly:
            errors.raise_code(SQLITE_READONLY, "attempt to write a readonly database")
        whole = self._slice(0, self._length)
        whole = whole[:start] + data + whole[start + len(data) :]
        query = f"UPDATE {self._place} SET {self._column} = ? WHERE rowid = ?"  # noqa: S608 - quoted names
        connection = self._connection
        begins, connection._begins = connection._begins, None
        try:
            connection.execute(query, (whole, self._row))
        finally:
            connection._begins = begins

    def read(self, length: int = -1, /) -> bytes:
        """Read at most `length` bytes from the current position; all of the rest if negative."""
        self._check()
        rest = self._length - self._position
        length = rest if length < 0 else min(length, rest)
        data = self._slice(self._position, length) if length else b""
        self._position += length
        return data

    def write(self, data: Any, /) -> None:
        """Write at the current position; it cannot make the blob longer."""
        self._check()
        data = bytes(memoryview(data))
        if len(data) > self._length - self._position:
            raise ValueError("data longer than blob length")
        if data:
            self._replace(self._position, data)
        self._position += len(data)

    def seek(self, offset: int, origin: int = io.SEEK_SET, /) -> None:
        """Set the current position, from the start, the current position or the end."""
        self._check()
        if origin not in {io.SEEK_SET, io.SEEK_CUR, io.SEEK_END}:
            raise ValueError("'origin' should be os.SEEK_SET, os.SEEK_CUR, or os.SEEK_END")
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[origin]
        if not 0 <= position <= self._length:
            raise ValueError("offset out of blob range")
        self._position = position

    def tell(self) -> int:
        """The current position."""
        self._check()
        return self._position

    def close(self) -> None:
        """Close it; it cannot be used any more."""
        self._connection._check()
        self._closed = True

    def __len__(self) -> int:
        self._check()
        return self._length

    def __getitem__(self, key: int | slice, /) -> int | bytes:
        self._check()
        if isinstance(key, slice):
            start, stop, step = key.indices(self._length)
            return self._slice(start, max(stop - start, 0))[::step] if step > 0 else self._slice(0, self._length)[key]
        return self._slice(self._index(key), 1)[0]

    def __setitem__(self, key: int | slice, value: Any, /) -> None:
        self._check()
        if isinstance(key, slice):
            data = bytes(memoryview(value))
            places = range(*key.indices(self._length))
            if len(data) != len(places):
                raise IndexError("Blob slice assignment is wrong size")
            if not data:
                return
            whole = bytearray(self._slice(0, self._length))
            whole[key] = data
            self._replace(0, bytes(whole))
            return
        if not isinstance(value, int):
            raise TypeError(f"'{type(value).__name__}' object cannot be interpreted as an integer")
        if not 0 <= value <= 255:
            raise ValueError("byte must be in range(0, 256)")
        self._replace(self._index(key), bytes([value]))

    def _index(self, key: Any) -> int:
        if not isinstance(key, int):
            raise TypeError("Blob indices must be integers")
        index = int(key) + self._length if key < 0 else int(key)
        if not 0 <= index < self._length:
            raise IndexError("Blob index out of range")
        return index

    def __enter__(self) -> Self:
        self._check()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _check(self) -> None:
        self._connection._check()
        if self._closed:
            raise errors.ProgrammingError("Cannot operate on a closed blob.")
