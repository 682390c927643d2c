"""How values travel between Python and SQLite: two buffers of bytes, which `js/driver.mjs` reads and writes at the other end.

A row is `n tags, u8 · n slots of 8 bytes · the texts and blobs, each with a NUL behind it`: what its tags are is known before, so a row
is packed by one `struct` call. Many rows go column by column, because a whole column of one type is packed by one call. Texts are
decoded together and split at their NULs. A slot holds an int64, a float64 or the length of a text or blob; in a row instead where it
ends behind the slots, with its NUL. Everything is little-endian.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from struct import Struct, pack, unpack_from
from struct import error as struct_error
from typing import Any

INTEGER, FLOAT, TEXT, BLOB, NULL, MIXED, CUT_TEXT = range(1, 8)
TAGS: dict[type, int] = {
    int: INTEGER,
    bool: INTEGER,
    float: FLOAT,
    str: TEXT,
    bytes: BLOB,
    bytearray: BLOB,
    memoryview: BLOB,
    type(None): NULL,
}
"""The types that travel as they are. Others are adapted first."""
SLOTS = {INTEGER: "q", FLOAT: "d", TEXT: "q", BLOB: "q", NULL: "8x"}

HEADER = Struct("<iIi??2xqI4x")
"""What came of a call: result code, rows, changes, in a transaction, row by row, last row id, bytes of the error message."""

Row = tuple[Any, ...]
TextFactory = Callable[[bytes], Any]


class Buffers:
    """The two buffers. They only grow; `attach` tells the engine where they are after that."""

    def __init__(self, attach: Callable[[bytearray, bytearray], None]) -> None:
        self.attach = attach
        self.to_engine = bytearray(1 << 19)  # room for the slots of one row, which has at most 32 766 values
        self.to_python = bytearray(1 << 18)
        attach(self.to_engine, self.to_python)

    def reserve(self, size: int) -> bytearray:
        """The buffer to the engine, with room for `size` bytes."""
        if size > len(self.to_engine):
            self.to_engine = bytearray(2 * size)
            self.attach(self.to_engine, self.to_python)
        return self.to_engine

    def reserve_back(self, size: int) -> None:
        """Make room for `size` bytes from the engine."""
        self.to_python = bytearray(2 * size)
        self.attach(self.to_engine, self.to_python)


class _RowLayout:
    """How rows whose values have these tags are packed."""

    __slots__ = ("arrange", "blobs", "head", "last_text", "nulls", "pack", "pieces", "size", "unpack")

    def __init__(self, tags: bytes) -> None:
        slots = Struct("<" + "".join(SLOTS[tag] for tag in tags))
        head = Struct(f"<{len(tags)}s{slots.format[1:]}")
        self.head = tags
        self.size = head.size
        self.pack = head.pack_into
        self.unpack = slots.unpack_from
        self.nulls = [index for index, tag in enumerate(tags) if tag == NULL]
        self.blobs = [index for index, tag in enumerate(tags) if tag in {TEXT, BLOB}]  # and texts: what comes after the slots
        # what is unpacked has no NULLs; then come one None, the texts, and what `split` gives behind the last NUL
        unpacked = len(tags) - len(self.nulls)
        places = iter(range(unpacked))
        texts = iter(range(unpacked + 1, unpacked + 1 + len(tags)))
        found = [(unpacked if tag == NULL else next(places), tag) for tag in tags]
        self.last_text = max((place for place, tag in found if tag == TEXT), default=-1)
        self.pieces = 0 if BLOB in tags else tags.count(TEXT) + 1
        self.arrange = _arrangement([next(texts) if tag == TEXT else place for place, tag in found])


def _arrangement(places: list[int]) -> Callable[[Row], Row]:
    """What makes a tuple of the values in these places of another."""
    return itemgetter(*places) if len(places) > 1 else lambda values: tuple(values[place] for place in places)


_BY_TYPES: dict[tuple[type, ...], _RowLayout] = {}
_BY_TAGS: dict[bytes, _RowLayout] = {}
_LIMIT = 4096  # layouts kept; a program that has more kinds of rows builds some again


def _layout(tags: bytes) -> _RowLayout:
    if (found := _BY_TAGS.get(tags)) is None:
        if len(_BY_TAGS) > _LIMIT:
            _BY_TAGS.clear()
            _BY_TYPES.clear()
        found = _BY_TAGS[tags] = _RowLayout(tags)
    return found


def encode_row(values: Sequence[Any], buffers: Buffers) -> None:
    """Write one row for the engine.

    Raises KeyError for a type that does not travel, OverflowError for an int beyond 64 bits, UnicodeEncodeError for a text that
    UTF-8 cannot hold.
    """
    types = tuple(map(type, values))
    layout = _BY_TYPES.get(types)
    if layout is None:
        layout = _BY_TYPES[types] = _layout(bytes([TAGS[one] for one in types]))
    try:
        if not layout.blobs:
            if layout.nulls:
                values = [value for value in values if value is not None]
            layout.pack(buffers.to_engine, 0, layout.head, *values)
            return
        slots = list(values)
        parts = []
        end = 0
        for index in layout.blobs:
            value = slots[index]
            part = value.encode() if type(value) is str else value if type(value) is bytes else _bytes(value)
            parts.append(part)
            end += len(part) + 1
            slots[index] = end
        parts.append(b"")
        tail = b"\0".join(parts)
        if layout.nulls:
            slots = [value for value in slots if value is not None]
        size = layout.size
        end += size
        buffer = buffers.to_engine if end <= len(buffers.to_engine) else buffers.reserve(end)
        layout.pack(buffer, 0, layout.head, *slots)
        buffer[size:end] = tail
    except struct_error as error:
        raise OverflowError("Python int too large to convert to SQLite INTEGER") from error


def _bytes(value: bytes | bytearray | memoryview) -> bytes:
    if isinstance(value, memoryview) and not value.c_contiguous:
        raise BufferError("memoryview: underlying buffer is not C-contiguous")
    return bytes(value)


def decode_rows(buffer: bytearray, at: int, rows: int, count: int, text: TextFactory | None) -> list[Row]:
    """Read `rows` rows of `count` values. `text` makes the value of a text from its bytes; None is str."""
    found: list[Row] = []
    for _ in range(rows):
        tags = bytes(buffer[at : at + count])
        layout = _BY_TAGS.get(tags) or _layout(tags)
        values = layout.unpack(buffer, at + count)
        at += layout.size
        if not layout.blobs:
            found.append(layout.arrange((*values, None)) if layout.nulls else values)
            continue
        if layout.pieces and text is None:
            end = at + values[layout.last_text]
            texts = buffer[at:end].decode().split("\0")
            if len(texts) == layout.pieces:
                found.append(layout.arrange((*values, None, *texts)))
                at = end
                continue
        slots: list[Any] = list(values)
        for index in layout.nulls:
            slots.insert(index, None)
        start = at
        for index in layout.blobs:
            end = at + slots[index]
            piece = bytes(buffer[start : end - 1])
            slots[index] = piece if tags[index] == BLOB else piece.decode() if text is None else text(piece)
            start = end
        at = start
        found.append(tuple(slots))
    return found


def decode_columns(buffer: bytearray, at: int, rows: int, count: int, text: TextFactory | None) -> list[Row]:
    """Read `rows` rows of `count` values that lie column by column."""
    columns: list[Sequence[Any]] = []
    for _ in range(count):
        kind, nulls = unpack_from("<BI", buffer, at)
        at += 5
        missing: Sequence[int] = ()
        if nulls:
            missing = unpack_from(f"<{nulls}I", buffer, at)
            at += 4 * nulls
        column: Sequence[Any]
        if kind == INTEGER:
            column = unpack_from(f"<{rows}q", buffer, at)
            at += 8 * rows
        elif kind == FLOAT:
            column = unpack_from(f"<{rows}d", buffer, at)
            at += 8 * rows
        elif kind == NULL:
            column = (None,) * rows
        elif kind == MIXED:
            column, at = _decode_mixed(buffer, at, rows, text)
        else:
            lengths: Sequence[int] = ()
            if kind != TEXT:
                lengths = unpack_from(f"<{rows}I", buffer, at)
                at += 4 * rows
            (size,) = unpack_from("<I", buffer, at)
            at += 4
            data = bytes(buffer[at : at + size])
            at += size
            if kind == TEXT:
                column = data.decode().split("\0") if text is None else [text(piece) for piece in data.split(b"\0")]
                column.pop()
                if missing:
                    column, missing = _spread(column, missing, rows), ()
            else:
                column = _cut(data, lengths, kind, text, set(missing))
        if missing:
            column = list(column)
            for index in missing:
                column[index] = None
        columns.append(column)
    return list(zip(*columns, strict=True))


def _spread(values: Sequence[Any], missing: Sequence[int], rows: int) -> list[Any]:
    """The values of a column, with None where they are missing."""
    present = bytearray(b"\1") * rows
    for index in missing:
        present[index] = 0
    following = iter(values)
    return [next(following) if there else None for there in present]


def _cut(data: bytes, lengths: Sequence[int], kind: int, text: TextFactory | None, missing: set[int]) -> list[Any]:
    """Texts of which one has a NUL, each with another one behind it, or blobs. Nothing is there for those that are missing."""
    found: list[Any] = []
    start = 0
    for index, length in enumerate(lengths):
        if index in missing:
            found.append(None)
            continue
        piece = data[start : start + length]
        found.append(piece if kind == BLOB else piece.decode() if text is None else text(piece))
        start += length + (kind == CUT_TEXT)
    return found


def _decode_mixed(buffer: bytearray, at: int, rows: int, text: TextFactory | None) -> tuple[list[Any], int]:
    tags = buffer[at : at + rows]
    slot = at + rows
    at = slot + 8 * rows + 4
    column: list[Any] = []
    for tag in tags:
        if tag == NULL:
            column.append(None)
        elif tag == FLOAT:
            column.append(unpack_from("<d", buffer, slot)[0])
        else:
            (number,) = unpack_from("<q", buffer, slot)
            if tag == INTEGER:
                column.append(number)
            else:
                data = bytes(buffer[at : at + number])
                column.append(data if tag == BLOB else data.decode() if text is None else text(data))
                at += number + (tag == TEXT)
        slot += 8
    return column, at


def encode_columns(rows: Sequence[Sequence[Any]], buffers: Buffers) -> int:
    """Write many rows of equal length for the engine, column by column; gives the number of bytes.

    Raises as `encode_row` does.
    """
    parts: list[bytes] = []
    try:
        for column in zip(*rows, strict=True):
            parts.extend(_encode_column(column))
    except struct_error as error:
        raise OverflowError("Python int too large to convert to SQLite INTEGER") from error
    data = b"".join(parts)
    buffers.reserve(len(data))[: len(data)] = data
    return len(data)


def _encode_column(column: Sequence[Any]) -> Iterator[bytes]:
    count = len(column)
    kinds = {TAGS[one] for one in set(map(type, column))}
    missing: list[int] = []
    if NULL in kinds and len(kinds) == 2:
        kinds.discard(NULL)
        missing = [index for index, value in enumerate(column) if value is None]
    kind = kinds.pop() if len(kinds) == 1 else MIXED
    if kind == MIXED:
        yield from _encode_mixed(column)
        return
    texts = ""
    if kind == TEXT:
        present = [value for value in column if value is not None] if missing else column
        texts = "\0".join(present) + "\0"
        if texts.count("\0") != len(present):
            kind = CUT_TEXT
    elif missing and kind != BLOB:
        column = [0 if value is None else value for value in column]
    yield pack("<BI", kind, len(missing)) + pack(f"<{len(missing)}I", *missing)
    if kind == TEXT:
        data = texts.encode()
        yield pack("<I", len(data)) + data
    elif kind == INTEGER:
        yield pack(f"<{count}q", *column)
    elif kind == FLOAT:
        yield pack(f"<{count}d", *column)
    elif kind != NULL:
        yield from _joined(column, kind)


def _joined(column: Sequence[Any], kind: int) -> Iterable[bytes]:
    """Texts or blobs behind their lengths. Nothing is there for those that are missing."""
    end = b"\0" if kind == CUT_TEXT else b""
    pieces = [b"" if value is None else (value.encode() if kind == CUT_TEXT else _bytes(value)) + end for value in column]
    lengths = [len(piece) - len(end) if piece else 0 for piece in pieces]
    data = b"".join(pieces)
    return pack(f"<{len(column)}I", *lengths), pack("<I", len(data)), data


def _encode_mixed(column: Sequence[Any]) -> Iterator[bytes]:
    tags = bytes([TAGS[type(value)] for value in column])
    slots = []
    pieces = []
    for tag, value in zip(tags, column, strict=True):
        if tag == INTEGER:
            slots.append(pack("<q", value))
        elif tag == FLOAT:
            slots.append(pack("<d", value))
        elif tag == NULL:
            slots.append(b"\0" * 8)
        else:
            piece = value.encode() if tag == TEXT else value if type(value) is bytes else _bytes(value)
            pieces.append(piece + b"\0" if tag == TEXT else piece)
            slots.append(pack("<q", len(piece)))
    data = b"".join(pieces)
    yield pack("<BI", MIXED, 0)
    yield tags
    yield b"".join(slots)
    yield pack("<I", len(data))
    yield data
