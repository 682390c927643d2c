"""What a backup says of itself: one JSON text and its checksum, written last. A backup is there when its manifest is.

file = JSON on one line, its SHA-256, and where the backup is encrypted a space and the JSON's HMAC-SHA-256 under the same key
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Mapping
from typing import Literal, TypeVar

import msgspec
from msgspec import Struct, field

from ruv_swarm_store.backup.encryption import Cipher, Encryption
from ruv_swarm_store.backup.frames import Compression
from ruv_swarm_store.errors import CorruptBackup, SchemaMismatch

FORMAT = 1
"""The version of the form of backups that this release writes; it reads all up to this."""

Kind = Literal["full", "incremental"]
Format = Literal["pages", "rows"]
Role = Literal["pages", "hashes", "rows"]
"""What a file of a backup holds, which is how its name ends."""

MANIFEST = "manifest"
SEGMENT = "log"
DRILL = "drill"


class Part(Struct, frozen=True):
    """A file of a backup."""

    role: Role
    size: int
    """Bytes."""
    sha256: str
    """In hexadecimal."""


class Backup(Struct, frozen=True, kw_only=True):
    """A backup, as its manifest tells. Instants are milliseconds since the epoch."""

    format_version: int = FORMAT
    id: str
    """A UUID version 7: ids sort by when backups began."""
    kind: Kind
    format: Format = "pages"
    parent: str | None = None
    """What an increment adds to."""
    origin: str | None = None
    """The database, as its engine names it; None for one that no other process can open."""
    began_at: int
    """When it began: everything committed before is in it."""
    created_at: int
    """When it was there."""
    revision: str
    """The schema's."""
    position: int
    """That of the newest event in it; 0 when there is none."""
    rows: Mapping[str, int]
    """How many there are in each table."""
    checksums: Mapping[str, str] = {}
    """For format `rows`: SHA-256 of each table's rows in order of their keys, whichever engine held them, in hexadecimal."""
    page_size: int = 0
    """Bytes; 0 for format `rows`."""
    page_count: int = 0
    """How many pages the database had."""
    pages: int = 0
    """How many of them this backup holds."""
    image: str = ""
    """SHA-256 of the hashes of all pages, in hexadecimal: one checksum of the whole database file."""
    place: str | None = None
    """Where the engine's log stood, in its own words: shipping goes on from there."""
    files: tuple[Part, ...]
    compression: Compression
    encryption: Encryption | None = None

    @property
    def size(self) -> int:
        """Bytes in the storage, its manifest aside."""
        return sum(part.size for part in self.files)

    @property
    def manifest(self) -> str:
        """The manifest's name in the storage."""
        return file_name(self.id, MANIFEST)

    def name(self, role: Role) -> str:
        """The name of one of its files in the storage."""
        return file_name(self.id, role)

    def part(self, role: Role) -> Part:
        """What is known of one of its files. Raises `CorruptBackup` where it has none of that kind."""
        for part in self.files:
            if part.role == role:
                return part
        raise CorruptBackup(f"{self.manifest} names no file of {role}", hint="Restore another backup", file=self.manifest)


def file_name(id: str, *words: str) -> str:
    """The name of a file that belongs to a backup: it begins with the backup's id and goes when the backup goes."""
    return ".".join((id, *words))


def time_of(name: str) -> int:
    """When what a name tells of was begun, in milliseconds since the epoch: the latest time of the ids in it, 0 without any."""
    return max((int(high + low, 16) for high, low in _id.findall(name)), default=0)


_id = re.compile(r"([0-9a-f]{8})-([0-9a-f]{4})-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


# Decoders are made here, not where they are used: msgspec crashes when two threads have it look at a type for the first time.
decode_backup = msgspec.json.Decoder(Backup).decode


class _Beginning(Struct):
    """What every version of the form has."""

    format_version: int = field(default=0)


_decode_beginning = msgspec.json.Decoder(_Beginning).decode

S = TypeVar("S", bound=Struct)


def seal(record: Struct, cipher: Cipher | None = None) -> bytes:
    """A manifest's file, or that of another record."""
    text = msgspec.json.encode(record, order="deterministic")
    signature = "" if cipher is None else f" {cipher.sign(text)}"
    return text + f"\n{hashlib.sha256(text).hexdigest()}{signature}\n".encode()


def unseal(name: str, data: bytes, decode: Callable[[bytes], S]) -> S:
    """What `seal` was given, by the decoder of its type; what later releases have added is passed over.

    Raises `CorruptBackup` for a file that was not written so, and `SchemaMismatch` for one of a later form.
    """
    text, _, rest = data.partition(b"\n")
    checksum, _, signature = rest.removesuffix(b"\n").partition(b" ")
    whole = rest.endswith(b"\n") and (not signature or len(signature) == 64) and checksum == hashlib.sha256(text).hexdigest().encode()
    try:
        if not whole:
            raise ValueError("it does not match its checksum")
        if (version := _decode_beginning(text).format_version) > FORMAT:
            raise SchemaMismatch(
                f"{name} is of form {version}, and this release reads {FORMAT}",
                hint="Upgrade ruv-swarm-store",
                actual=version,
                expected=FORMAT,
            )
        return decode(text)
    except (ValueError, msgspec.MsgspecError) as error:
        raise CorruptBackup(f"{name} is damaged ({error})", hint="Bring the file back from a copy", file=name) from error


def check_signature(name: str, data: bytes, cipher: Cipher | None) -> None:
    """Raises `CorruptBackup` unless `data` was sealed with this key; without one, unless it was sealed without."""
    text, _, rest = data.partition(b"\n")
    _, _, signature = rest.removesuffix(b"\n").partition(b" ")
    if not hmac.compare_digest(signature, b"" if cipher is None else cipher.sign(text).encode()):
        raise CorruptBackup(f"{name} was not signed with the backup's key", hint="Bring the file back from a copy", file=name)
