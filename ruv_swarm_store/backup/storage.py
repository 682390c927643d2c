"""Where backups are kept: a small protocol, and the two storages that need nothing else, a directory and memory."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol, runtime_checkable

from ruv_swarm_store.errors import InvalidValue, NotFound

CHUNK = 1 << 20
"""Bytes read at a time."""
PART = ".part"
"""How the name of a file ends that is not whole yet, where a storage has to write it in place."""

is_name = re.compile(r"[0-9a-z][0-9a-z.-]{0,199}").fullmatch
"""Whether text may be a file's name."""


@runtime_checkable
class BackupStorage(Protocol):
    """Files by name, written once and whole. Names are of lower-case letters, digits, dots and hyphens.

    What fails may raise any exception; it is tried again unless it is a `StoreError` that says that this is of no use.
    """

    def write(self, name: str, chunks: Iterable[bytes]) -> None:
        """Stores a file so that it is there whole, to stay, or not at all. Replaces one of that name."""
        ...

    def read(self, name: str) -> Iterator[bytes]:
        """A file, piece by piece. Raises `NotFound` or FileNotFoundError where there is none."""
        ...

    def names(self, prefix: str = "") -> Sequence[str]:
        """The names of all files that begin with `prefix`."""
        ...

    def size(self, name: str) -> int:
        """A file's bytes. Raises as `read`."""
        ...

    def delete(self, name: str) -> None:
        """Removes a file. Harmless when it is not there."""
        ...


def checked(name: str) -> str:
    """`name`, if it is one of a file; `InvalidValue` otherwise, so that none leads out of the storage."""
    if not is_name(name):
        raise InvalidValue(f"{name!r} is no name of a backup's file", hint="Use lower-case letters, digits, dots and hyphens")
    return name


class MemoryStorage:
    """Files in this process's memory, gone when it ends."""

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}

    def write(self, name: str, chunks: Iterable[bytes]) -> None:
        """Stores a file."""
        self._files[checked(name)] = b"".join(chunks)

    def read(self, name: str) -> Iterator[bytes]:
        """A file, piece by piece."""
        data = self._find(name)
        return (data[start : start + CHUNK] for start in range(0, len(data), CHUNK))

    def names(self, prefix: str = "") -> Sequence[str]:
        """The names of all files that begin with `prefix`."""
        return [name for name in list(self._files) if name.startswith(prefix)]

    def size(self, name: str) -> int:
        """A file's bytes."""
        return len(self._find(name))

    def delete(self, name: str) -> None:
        """Removes a file."""
        self._files.pop(name, None)

    def _find(self, name: str) -> bytes:
        try:
            return self._files[name]
        except KeyError:
            raise absent(name, self) from None

    def __repr__(self) -> str:
        return "<MemoryStorage>"


def beside(file: str | os.PathLike[str]) -> str:
    """The directory in which the backups of a store in a file are kept unless somebody says otherwise."""
    return f"{os.fspath(file)}.backups"


class DirectoryStorage:
    """Files in a directory, made when the first is written: for its owner only, and on the disk when `write` returns."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory).absolute()

    def write(self, name: str, chunks: Iterable[bytes]) -> None:
        """Stores a file under another name, syncs and renames it; syncs the directory."""
        path = self.directory / checked(name)
        if not self.directory.is_dir():
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync_directory(self.directory.parent)
        part = path.with_name(f"{name}.{secrets.token_hex(4)}{PART}")
        try:
            with open(part, "xb", opener=_private) as file:
                file.writelines(chunks)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise
        sync_directory(self.directory)

    def read(self, name: str) -> Iterator[bytes]:
        """A file, piece by piece."""
        with self._found(name).open("rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk

    def names(self, prefix: str = "") -> Sequence[str]:
        """The names of all files that begin with `prefix`."""
        try:
            return [entry.name for entry in os.scandir(self.directory) if entry.name.startswith(prefix) and is_name(entry.name)]
        except FileNotFoundError:
            return []

    def size(self, name: str) -> int:
        """A file's bytes."""
        return self._found(name).stat().st_size

    def delete(self, name: str) -> None:
        """Removes a file."""
        (self.directory / checked(name)).unlink(missing_ok=True)

    def _found(self, name: str) -> Path:
        path = self.directory / checked(name)
        if not path.exists():
            raise absent(name, self)
        return path

    def __repr__(self) -> str:
        return f"<DirectoryStorage {self.directory}>"


def sync_directory(directory: Path) -> None:
    """Brings names that were given or taken away in a directory to the disk, where the system can do that."""
    with suppress(OSError):  # not on Windows, and not on every file system
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def absent(name: str, storage: BackupStorage) -> NotFound:
    """The error for a file that is not there."""
    return NotFound(f"there is no {name} in {storage!r}", hint="It was deleted, or belongs to another storage", file=name)
