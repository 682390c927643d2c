"""SQLite's write-ahead log, read from its file: the commits in it, each proven whole by its checksums, as SQLite's recovery proves them.

The format is described at https://www.sqlite.org/fileformat2.html#walformat. A log is written from its beginning again once all of it has
been copied into the database; its header then bears another salt, and of the frames only those with this salt belong to it.
"""

from __future__ import annotations

import os
import struct
import sys
from array import array
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice, repeat
from typing import Any, NamedTuple

HEADER = 32
FRAME_HEADER = 24
_WORD = 0xFFFFFFFF
_header = struct.Struct(">8I")
_AT_ONCE = 1 << 20
"""Bytes read and proven together."""
_STEPS = 20
"""Steps of the checksum until a lane is full: with each, sums of 32 bits grow by less than 1.5 bits."""

Checksum = tuple[int, int]


class Header(NamedTuple):
    """The beginning of a log."""

    raw: bytes
    page_size: int
    big_endian: bool
    """Whether its checksums are sums of big-endian words."""
    generation: str
    """What sets this log apart from those before it in the same file."""
    salts: bytes
    checksum: Checksum

    def offset(self, frame: int) -> int:
        """Where in the file a frame's page begins; frames are numbered from 1."""
        return HEADER + (frame - 1) * (FRAME_HEADER + self.page_size) + FRAME_HEADER


class Commit(NamedTuple):
    """What one transaction wrote."""

    pages: tuple[int, ...]
    """The numbers, from 0, of the pages in its frames, in the frames' order."""
    size: int
    """How many pages the database had after it."""
    frame: int
    """Its last frame."""
    checksum: Checksum
    """What its last frame bears: no two histories of one log agree in it."""


class Place(NamedTuple):
    """What names a state of the database: a log, a commit's last frame in it, and what that bears."""

    generation: str
    frame: int
    checksum: Checksum


def place(header: Header, frame: int, checksum: Checksum) -> str:
    """A place as text."""
    return f"{header.generation}-{frame}-{checksum[0]:08x}{checksum[1]:08x}"


def parse_place(text: str) -> Place | None:
    """The place that a text names; None where it names none."""
    try:
        generation, frame, checksum = text.split("-")
        return Place(generation, int(frame), (int(checksum[:8], 16), int(checksum[8:], 16)))
    except ValueError:
        return None


def read_at(file: int, size: int, offset: int) -> bytes:
    """What a file has there; less than `size` bytes where it ends."""
    data = _pread(file, size, offset)
    while 0 < len(data) < size and (more := _pread(file, size - len(data), offset + len(data))):
        data += more
    return data


def read_header(file: int) -> Header | None:
    """The log's header; None where the file has none that SQLite would accept."""
    raw = read_at(file, HEADER, 0)
    if len(raw) < HEADER:
        return None
    magic, version, page_size, _, _, _, first, second = _header.unpack(raw)
    if magic & ~1 != 0x377F0682 or version != 3007000 or not 512 <= page_size <= 65536 or page_size & (page_size - 1):
        return None
    if _sum(struct.unpack(">6I" if magic & 1 else "<6I", raw[:24])) != (first, second):
        return None
    return Header(raw, page_size, bool(magic & 1), raw[12:24].hex(), raw[16:24], (first, second))


def read_commits(
    file: int, header: Header, frame: int = 0, checksum: Checksum | None = None, *, known: int | None = None
) -> Iterator[Commit]:
    """The commits behind a frame that bears `checksum`, or all of them, up to the first frame that is not one of this log.

    Each is proven by the checksums; or, where SQLite itself has told which frame is the last that is committed, up to that frame none is.
    """
    if known is not None:
        yield from _known_commits(file, header, frame, known)
        return
    (a, b), (c, d) = _passage(header.page_size)
    first, second = header.checksum if checksum is None else checksum
    pages: list[int] = []
    # What has no commit behind it yet, such as much of a long transaction, need not be proven in vain.
    last = max((n for n, head, _ in _frames(file, header, frame) if head[1]), default=frame)
    for n, (page, size, _, *stored), (x, y) in _frames(file, header, frame, last, proving=True):
        first, second = (a * first + b * second + x) & _WORD, (c * first + d * second + y) & _WORD
        if [first, second] != stored:
            return
        pages.append(page - 1)
        if size:
            yield Commit(tuple(pages), size, n, (first, second))
            pages = []


def _known_commits(file: int, header: Header, frame: int, last: int) -> Iterator[Commit]:
    size = FRAME_HEADER + header.page_size
    layout = struct.Struct(f">2I8s2I{header.page_size}x")
    salts = header.salts
    most = max(1, _AT_ONCE // size)
    pages: list[int] = []
    while frame < last:
        data = read_at(file, min(most, last - frame) * size, HEADER + frame * size)
        for page, truncation, salt, first, second in layout.iter_unpack(memoryview(data)[: len(data) // size * size]):
            if salt != salts:
                return
            frame += 1
            pages.append(page - 1)
            if truncation:
                yield Commit(tuple(pages), truncation, frame, (first, second))
                pages = []
        if len(data) < size:
            return


def has_more_behind(file: int, header: Header, frame: int, count: int) -> bool:
    """Whether more than so many frames that seem to belong to the log follow a frame."""
    return sum(1 for _ in islice(_frames(file, header, frame), count + 1)) > count


def read_pages(file: int, header: Header, first: int, count: int) -> Iterator[bytes]:
    """What `count` frames from `first` on hold."""
    size = FRAME_HEADER + header.page_size
    most = max(1, _AT_ONCE // size)
    for start in range(first, first + count, most):
        data = read_at(file, min(most, first + count - start) * size, header.offset(start) - FRAME_HEADER)
        for at in range(FRAME_HEADER, len(data), size):
            yield data[at : at + header.page_size]


def _frames(
    file: int, header: Header, after: int, last: int | None = None, *, proving: bool = False
) -> Iterator[tuple[int, tuple[Any, ...], Checksum]]:
    """Numbers and headers of the frames that bear this log's salts, with what each makes of the checksum where that is asked for."""
    size = FRAME_HEADER + header.page_size
    layout = struct.Struct(f">2I8s2I{header.page_size}x")
    while last is None or after < last:
        most = min(max(64, _AT_ONCE // size), sys.maxsize if last is None else last - after)
        data = read_at(file, most * size, HEADER + after * size)
        heads = list(layout.iter_unpack(memoryview(data)[: len(data) // size * size]))
        known = next((n for n, head in enumerate(heads) if head[2] != header.salts or not head[0]), len(heads))
        sums = _contributions(data, known, header) if proving else repeat((0, 0))
        yield from zip(range(after + 1, after + known + 1), heads, sums, strict=False)
        if known < most:
            return
        after += most


def frame_checksum(file: int, header: Header, frame: int) -> Checksum | None:
    """What a frame of this log bears as its checksum, not proven; None where there is no such frame. Frame 0 is the header."""
    if not frame:
        return header.checksum
    head = read_at(file, FRAME_HEADER, header.offset(frame) - FRAME_HEADER)
    if len(head) < FRAME_HEADER or head[8:16] != header.salts:
        return None
    first, second = struct.unpack(">2I", head[16:])
    return first, second


def _sum(words: tuple[int, ...]) -> Checksum:
    """The checksum of a few words."""
    first = second = 0
    for x, y in zip(words[::2], words[1::2], strict=True):
        first = (first + x + second) & _WORD
        second = (second + y + first) & _WORD
    return first, second


@cache
def _passage(page_size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """What a frame makes of the checksum before it, its own words aside: the checksum is linear in both, modulo 2**32."""
    a, b, c, d = 1, 0, 0, 1
    for _ in range((8 + page_size) // 8):
        a, b, c, d = (a + c) & _WORD, (b + d) & _WORD, (a + 2 * c) & _WORD, (b + 2 * d) & _WORD
    return (a, b), (c, d)


def _contributions(data: bytes, frames: int, header: Header) -> Iterator[Checksum]:
    """The checksum of each of the first frames, as if it were the log's first and its seed 0.

    All frames at once, each in 64 bits of a long integer: an addition of two such is hundreds of additions.
    """
    if not frames:
        return iter(())
    stride = (FRAME_HEADER + header.page_size) // 8
    data = data[: frames * stride * 8]
    if header.big_endian:
        words = array("I", data)
        words.byteswap()
        data = words.tobytes()
    pairs = memoryview(data).cast("Q")
    low = int.from_bytes(_WORD.to_bytes(8, "little") * frames, "little")
    first = second = 0
    for step, column in enumerate((0, *range(FRAME_HEADER // 8, stride))):
        pair = int.from_bytes(pairs[column::stride].tobytes(), "little")
        first += (pair & low) + second
        second += (pair >> 32 & low) + first
        if step % _STEPS == 0:
            first &= low
            second &= low
    lanes = struct.Struct(f"<{frames}Q")
    return zip(
        lanes.unpack((first & low).to_bytes(8 * frames, "little")), lanes.unpack((second & low).to_bytes(8 * frames, "little")), strict=True
    )


def _seek_and_read(file: int, size: int, offset: int, /) -> bytes:
    os.lseek(file, offset, os.SEEK_SET)
    return os.read(file, size)


_pread: Callable[[int, int, int], bytes] = getattr(os, "pread", _seek_and_read)  # Windows has none, and nobody shares a descriptor there
