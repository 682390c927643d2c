"""The form of a backup's files: chunks, each compressed and encrypted on its own, and at the end a checksum of all.

    file   = MAGIC frame* last
    frame  = method (1 byte), bytes stored (4), bytes when restored (4, big-endian), what is stored
    last   = a frame with LAST in its method, which holds the SHA-256 of everything before it

A file's name and a frame's number are authenticated with what is encrypted: no frame can be moved, left out or exchanged.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Any, Literal

from ruv_swarm_store.backup.encryption import Cipher
from ruv_swarm_store.errors import CorruptBackup, InvalidValue, Unsupported

Compression = Literal["none", "zlib", "zstd"]

FRAME = 1 << 20
"""Bytes a frame is meant to hold."""
LARGEST = 1 << 28
"""Most bytes in one frame."""
MAGIC = b"ruvswarm1\n"
ENCRYPTED, LAST = 0x40, 0x80
_METHODS: tuple[Compression, ...] = ("none", "zlib", "zstd")
_HEADER = struct.Struct(">BII")


def best_compression() -> Compression:
    """Zstandard where it is installed, zlib elsewhere: at their fastest, for a backup must not take long."""
    return "zlib" if _zstd() is None else "zstd"


def known(compression: str) -> Compression:
    """`compression`, if it is one that works here. Raises `InvalidValue` or `Unsupported` otherwise."""
    for method in _METHODS:
        if method == compression:
            if method == "zstd" and _zstd() is None:
                raise _no_zstd()
            return method
    raise InvalidValue(f"compression is {compression!r}", hint="Use 'none', 'zlib' or 'zstd'")


class FrameWriter:
    """Makes a file, frame by frame. `size` and `sha256` are those of the file so far, `plain` counts the bytes that went in."""

    def __init__(self, name: str, compression: Compression, cipher: Cipher | None = None) -> None:
        self._name = name.encode()
        self._method = _METHODS.index(known(compression))
        self._compress = _compressor(compression)
        self._cipher = cipher
        self._number = 0
        self._sum = hashlib.sha256(MAGIC)
        self.size = len(MAGIC)
        self.plain = 0

    def frame(self, data: bytes) -> bytes:
        """A frame as it is stored. The first has the file's beginning before it."""
        self.plain += len(data)
        packed = self._compress(data)
        if len(packed) >= len(data):
            return self._stored(0, data, len(data))
        return self._stored(self._method, packed, len(data))

    def end(self) -> bytes:
        """The last frame."""
        return self._stored(LAST, self._sum.digest(), 32)

    @property
    def sha256(self) -> str:
        """The checksum of the file so far, in hexadecimal."""
        return self._sum.hexdigest()

    def _stored(self, method: int, packed: bytes, plain: int) -> bytes:
        if self._cipher is not None:
            method |= ENCRYPTED
            packed = self._cipher.encrypt(packed, _associated(self._name, self._number, method, plain))
        whole = _HEADER.pack(method, len(packed), plain) + packed
        self._sum.update(whole)
        self.size += len(whole)
        self._number += 1
        return whole if self._number > 1 else MAGIC + whole

    def all(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """A whole file."""
        for chunk in chunks:
            yield self.frame(chunk)
        yield self.end()


class FrameReader:
    """Iterates over what the frames of a file hold. `size` and `sha256` are those of the file as far as it was read.

    Raises `CorruptBackup` for anything that was not written so, though not before it has yielded the frames before that: only at the
    end it is sure that all of it was right.
    """

    def __init__(self, name: str, chunks: Iterable[bytes], cipher: Cipher | None = None) -> None:
        self.name = name
        self._chunks = iter(chunks)
        self._cipher = cipher
        self._buffer = bytearray()
        self._sum = hashlib.sha256()
        self.size = 0

    @property
    def sha256(self) -> str:
        """The checksum of the file so far, in hexadecimal."""
        return self._sum.hexdigest()

    def __iter__(self) -> Generator[bytes, None, None]:
        if self._take(len(MAGIC)) != MAGIC:
            raise self._damaged("does not begin as a backup's file does")
        number = 0
        while True:
            expected = self._sum.digest()
            header = self._take(_HEADER.size)
            method, stored, plain = _HEADER.unpack(header)
            if max(stored, plain) > LARGEST:
                raise self._damaged("has a frame of impossible size")
            packed = self._take(stored)
            if bool(method & ENCRYPTED) != (self._cipher is not None):
                raise self._damaged("has a frame that is encrypted unlike the others")
            try:
                if self._cipher is not None:
                    packed = self._cipher.decrypt(packed, _associated(self.name.encode(), number, method, plain))
                is_last = method & ~ENCRYPTED == LAST
                data = packed if is_last else _decompress(method & ~ENCRYPTED, packed, plain)
            except (ValueError, EOFError, zlib.error, _zstd_error()) as error:
                raise self._damaged(f"has a frame that cannot be read ({error})") from error
            if len(data) != plain:
                raise self._damaged("has a frame of another length than it says")
            if is_last:
                if data != expected:
                    raise self._damaged("does not match its checksum")
                if self._fill(1):
                    raise self._damaged("goes on after its end")
                return
            yield data
            number += 1

    def _fill(self, size: int) -> bool:
        while len(self._buffer) < size:
            chunk = next(self._chunks, None)
            if chunk is None:
                return False
            self._buffer += chunk
        return True

    def _take(self, size: int) -> bytes:
        if not self._fill(size):
            raise self._damaged("ends too early")
        with memoryview(self._buffer) as view:
            data = bytes(view[:size])
        del self._buffer[:size]
        self._sum.update(data)
        self.size += size
        return data

    def _damaged(self, what: str) -> CorruptBackup:
        return CorruptBackup(f"{self.name} {what}", hint="Restore another backup, or bring the file back from a copy", file=self.name)


def _associated(name: bytes, number: int, method: int, plain: int) -> bytes:
    return b"%s\0%d\0%d\0%d" % (name, number, method, plain)


def _compressor(compression: Compression) -> Callable[[bytes], bytes]:
    if compression == "zstd":
        zstd = _zstd()
        return lambda data: zstd.compress(data, level=1)
    return (lambda data: zlib.compress(data, 1)) if compression == "zlib" else (lambda data: data)


def _decompress(method: int, packed: bytes, plain: int) -> bytes:
    """What was compressed, at most one byte more than `plain`. Raises ValueError for a method that is not known."""
    match _METHODS[method] if method < len(_METHODS) else method:
        case "none":
            return packed
        case "zlib":
            return zlib.decompressobj().decompress(packed, plain + 1)
        case "zstd":
            if (zstd := _zstd()) is None:
                raise _no_zstd()
            data: bytes = zstd.ZstdDecompressor().decompress(packed, max_length=plain + 1)
            return data
    raise ValueError(f"method {method} is not known")


@cache
def _zstd() -> Any:
    for name in ("compression.zstd", "backports.zstd"):  # Python has it since 3.14
        with suppress(ImportError):
            return import_module(name)
    return None


def _zstd_error() -> type[Exception]:
    error: type[Exception] = zlib.error if _zstd() is None else _zstd().ZstdError
    return error


def _no_zstd() -> Unsupported:
    return Unsupported("Zstandard is not installed", hint="pip install 'ruv-swarm-store[backup]', or use compression='zlib'")
