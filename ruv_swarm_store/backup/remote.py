"""Storages that fsspec knows: S3, Google Cloud Storage, Azure, SFTP and many more, by their URLs."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from ruv_swarm_store.backup.storage import PART, absent, checked, is_name
from ruv_swarm_store.errors import InvalidValue, Unsupported

BLOCK = 1 << 23
"""Bytes asked for at a time: each time is a request."""
_APPEAR_WHOLE = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "oci", "cos", "obs"}
"""Protocols of storages in which an object is not there before all of it is."""


class FsspecStorage:
    """Files below a URL such as `s3://bucket/backups`. `options` are those of the file system, credentials for example.

    Raises `Unsupported` when fsspec, or what it needs for this protocol, is not installed, and `InvalidValue` for what is no URL.
    """

    def __init__(self, url: str, **options: Any) -> None:
        try:
            from fsspec import AbstractFileSystem
            from fsspec.core import url_to_fs
        except ImportError as error:
            raise Unsupported("fsspec is not installed", hint="pip install 'ruv-swarm-store[backup]'") from error
        try:
            self._files, root = url_to_fs(url, **options)
        except ImportError as error:
            raise Unsupported(f"fsspec cannot open {url} here: {error}", hint="Install the package it names") from error
        except (ValueError, FileNotFoundError) as error:  # an archive that is not there, for example
            raise InvalidValue(f"fsspec cannot open {url}: {error}", hint="Give a URL such as s3://bucket/backups") from error
        self.url = url
        self._root = str(root).rstrip("/")
        protocol = self._files.protocol
        self._renames = type(self._files).mv is not AbstractFileSystem.mv
        self._appears_whole = bool(_APPEAR_WHOLE & ({protocol} if isinstance(protocol, str) else set(protocol)))

    def write(self, name: str, chunks: Iterable[bytes]) -> None:
        """Stores a file: at once where the storage does that by itself, elsewhere under another name that it is then moved from."""
        path = self._path(checked(name))
        if self._appears_whole:
            self._write(path, chunks)
            return
        self._files.makedirs(self._root, exist_ok=True)
        part = f"{path}.{secrets.token_hex(4)}{PART}"
        self._write(part, chunks)
        try:
            if self._renames:
                self._files.mv(part, path)
            else:  # what fsspec does then, but without taking `*`, `?` and `[` in the URL for patterns
                self._files.cp_file(part, path)
                self._files.rm_file(part)
        except BaseException:
            self._discard(part)
            raise

    def _write(self, path: str, chunks: Iterable[bytes]) -> None:
        file = self._files.open(path, "wb")
        try:
            for chunk in chunks:
                file.write(chunk)
        except BaseException:
            with suppress(Exception):
                file.discard()  # closing would complete it
            with suppress(Exception):
                file.close()
            self._discard(path)
            raise
        file.close()

    def _discard(self, path: str) -> None:
        with suppress(Exception):
            self._files.rm_file(path)

    def read(self, name: str) -> Iterator[bytes]:
        """A file, piece by piece."""
        try:
            with self._files.open(self._path(name), "rb", block_size=BLOCK) as file:
                while chunk := file.read(BLOCK):
                    yield chunk
        except FileNotFoundError as error:
            raise absent(name, self) from error

    def names(self, prefix: str = "") -> Sequence[str]:
        """The names of all files that begin with `prefix`."""
        self._files.invalidate_cache()  # others write, too
        try:
            paths = self._files.ls(self._root, detail=False)
        except FileNotFoundError:
            return []
        names = [str(path).rstrip("/").rpartition("/")[2] for path in paths]
        return [name for name in names if name.startswith(prefix) and is_name(name)]

    def size(self, name: str) -> int:
        """A file's bytes."""
        try:
            return int(self._files.size(self._path(name)))
        except FileNotFoundError as error:
            raise absent(name, self) from error

    def delete(self, name: str) -> None:
        """Removes a file."""
        with suppress(FileNotFoundError):
            self._files.rm_file(self._path(checked(name)))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def __repr__(self) -> str:
        return f"<FsspecStorage {self.url}>"
