"""What a storage holds: which backups, in what chains, and what is in their files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import replace

from ruv_swarm_store.backup.encryption import Cipher, Encryption, Key, Keyring
from ruv_swarm_store.backup.frames import Compression, FrameReader, FrameWriter
from ruv_swarm_store.backup.manifest import (
    DRILL,
    MANIFEST,
    SEGMENT,
    Backup,
    Role,
    check_signature,
    decode_backup,
    file_name,
    seal,
    time_of,
    unseal,
)
from ruv_swarm_store.backup.retrying import RetryingStorage
from ruv_swarm_store.backup.storage import BackupStorage
from ruv_swarm_store.errors import CorruptBackup, NotFound, SchemaMismatch, StoreError

S = TypeVar("S", bound=Struct)

Progress = Callable[[int, int], object]
"""Called as work goes on: bytes done, and of how many."""


class Contents(Struct, frozen=True):
    """A storage's files at one time."""

    backups: Mapping[str, Backup]
    """By id, oldest first; not every one can be restored."""
    unreadable: Mapping[str, StoreError]
    """Manifests that cannot be read, by the backup's id, and why."""
    names: frozenset[str]
    """Every file there is."""
    files: Mapping[str, Mapping[str, Sequence[str]]]
    """The same by the backup they belong to, and by what they hold, in order: of segments there may be very many."""
    fitting: frozenset[str] = frozenset()
    """Backups encrypted with the key that was given; without one, those that are not encrypted. Others may be anybody's."""
    origin: str | None = None
    """The database whose backups are meant; None where any are."""

    def of(self, id: str) -> list[str]:
        """The files that belong to a backup."""
        return sorted(name for names in self.files.get(id, {}).values() for name in names)

    def segments(self, id: str) -> list[str]:
        """The segments that begin with a backup, oldest first. Half-written files have longer names."""
        return [name for name in self.files.get(id, {}).get(SEGMENT, ()) if name.count(".") == 2]

    def last_id(self, id: str) -> str:
        """The id of the last segment behind a backup, or its own: greater than that of all that was there before it looked."""
        names = self.files.get(id, {}).get(SEGMENT, ())
        return max(id, next((id_of(name) for name in reversed(names) if name.count(".") == 2), id))

    @property
    def time(self) -> int:
        """The latest time that a name tells."""
        return max((time_of(names[-1]) for kinds in self.files.values() for names in kinds.values()), default=0)

    def chain(self, id: str) -> list[Backup]:
        """What restoring a backup takes: a full backup, then increments. Raises `NotFound` and `CorruptBackup`."""
        chain = [self.get(id)]
        while (parent := chain[-1].parent) is not None:
            name = file_name(parent, MANIFEST)
            if parent in self.unreadable:
                raise self.unreadable[parent]
            if parent not in self.backups or parent >= chain[-1].id:
                raise missing(name)
            chain.append(self.backups[parent])
        for backup in chain:
            for part in backup.files:
                if backup.name(part.role) not in self.names:
                    raise missing(backup.name(part.role))
        return chain[::-1]

    def whole(self, id: str) -> bool:
        """Whether everything is there that restoring a backup takes; what is in the files may still be damaged."""
        try:
            self.chain(id)
        except StoreError:
            return False
        return True

    def get(self, id: str) -> Backup:
        """A backup. Raises `NotFound`, and what is wrong with its manifest."""
        if id in self.unreadable:
            raise self.unreadable[id]
        if id not in self.backups:
            raise NotFound(f"there is no backup {id}", hint="list() tells which there are, and so does: ruv-swarm backup list", id=id)
        return self.backups[id]

    def is_own(self, backup: Backup) -> bool:
        """Whether this database's backups go on from it: it is none of another's, and the key fits."""
        return backup.id in self.fitting and (self.origin is None or backup.origin in (None, self.origin))

    def encryption(self) -> Encryption | None:
        """How the newest backup that the key fits is encrypted."""
        return next((self.backups[id].encryption for id in reversed(list(self.backups)) if id in self.fitting), None)

    def newest(self) -> Backup | None:
        """The last backup of one's own that everything is there of."""
        return next((one for one in reversed(list(self.backups.values())) if self.is_own(one) and self.whole(one.id)), None)

    def only(self, backups: Iterable[Backup]) -> Contents:
        """The same, as if there were no other backups than these."""
        return replace(self, backups={backup.id: backup for backup in backups})


def owner(name: str) -> str:
    """The id of the backup that a file belongs to."""
    return name.partition(".")[0]


def id_of(name: str) -> str:
    """The id that a segment's name ends with."""
    return name.rpartition(".")[2]


def missing(name: str) -> CorruptBackup:
    """The error for a file that should be there."""
    return CorruptBackup(f"{name} is missing", hint="Restore another backup, or bring the file back from a copy", file=name)


class Catalog:
    """The backups in a storage, with a key if any, and of one database if it is named; the database itself is not needed."""

    def __init__(self, storage: BackupStorage, key: Key | None = None, origin: str | None = None) -> None:
        self.storage = RetryingStorage(storage)
        self.keyring = Keyring(key)
        self.origin = origin
        self._known: dict[str, Backup] = {}

    def contents(self, *, fresh: bool = False) -> Contents:
        """What is there. Manifests that were read before are read again only if it is to be `fresh`: they do not change."""
        names = self.storage.names()
        known = {} if fresh else self._known
        backups: dict[str, Backup] = {}
        unreadable: dict[str, StoreError] = {}
        for name in names:
            if name != file_name(id := owner(name), MANIFEST):
                continue
            try:
                backups[id] = known.get(id) or self._load(id, name)
            except NotFound:
                continue  # deleted meanwhile
            except (CorruptBackup, SchemaMismatch) as error:
                unreadable[id] = error
        self._known = backups
        fitting = frozenset(id for id, backup in backups.items() if self.keyring.fits(backup.encryption))
        files: dict[str, dict[str, list[str]]] = {}
        for name in names:
            id, _, rest = name.partition(".")
            files.setdefault(id, {}).setdefault(rest.partition(".")[0], []).append(name)
        return Contents(backups, unreadable, frozenset(names), files, fitting, self.origin)

    def lost(self, contents: Contents) -> list[str]:
        """Backups beyond the latest state, of which only the manifest is missing: each was there, for something was shipped or drilled.

        Who prunes never begins with one of these, and what it leaves when it is killed is not beyond the latest state.
        """
        latest = max(map(contents.last_id, filter(contents.whole, contents.backups)), default="")
        found = []
        for id, files in contents.files.items():
            if MANIFEST in files or not ({"pages", "hashes"} <= files.keys() or "rows" in files) or contents.last_id(id) <= latest:
                continue
            if any(name.count(".") == 2 for kind in (SEGMENT, DRILL) for name in files.get(kind, ())):
                try:
                    self.storage.size(file_name(id, MANIFEST))
                except NotFound:  # not only written while the names were listed
                    found.append(id)
        return found

    def _load(self, id: str, name: str) -> Backup:
        data = b"".join(self.storage.read(name))
        backup = unseal(name, data, decode_backup)
        if backup.id != id:
            raise CorruptBackup(f"{name} belongs to another backup, {backup.id}", hint="Bring the file back from a copy", file=name)
        if self.keyring.fits(backup.encryption):
            check_signature(name, data, self.cipher(backup.encryption))
        return backup

    def cipher(self, encryption: Encryption | None) -> Cipher | None:
        """What decrypts a backup. Raises `InvalidValue` without the right key."""
        return self.keyring.cipher(encryption)

    def read(self, backup: Backup, role: Role, progress: Callable[[int], object] | None = None) -> Iterator[bytes]:
        """What one of a backup's files holds, frame by frame; `progress` is called with the bytes of each.

        Raises `CorruptBackup` when the file is not what the manifest says, at its end at the latest.
        """
        part, name = backup.part(role), backup.name(role)
        reader = self.frames(name, backup.encryption)
        before = 0
        for data in reader:
            yield data
            if progress is not None:
                progress(reader.size - before)
                before = reader.size
        if progress is not None:
            progress(reader.size - before)
        if (reader.size, reader.sha256) != (part.size, part.sha256):
            raise CorruptBackup(f"{name} is not the file its manifest tells of", hint="Bring the file back from a copy", file=name)

    def frames(self, name: str, encryption: Encryption | None) -> FrameReader:
        """A reader of any file of frames. Raises `CorruptBackup` when there is none of that name."""
        return FrameReader(name, self._chunks(name), self.cipher(encryption))

    def _chunks(self, name: str) -> Iterator[bytes]:
        try:
            yield from self.storage.read(name)
        except NotFound as error:
            raise CorruptBackup(
                f"{name} is missing", hint="Restore another backup, or bring the file back from a copy", file=name
            ) from error

    def write(self, name: str, make: Callable[[], Iterable[bytes]]) -> None:
        """Stores a file; `make` is called for each attempt."""
        self.storage.write(name, make)

    def write_frames(
        self, name: str, chunks: Callable[[], Iterable[bytes]], compression: Compression, encryption: Encryption | None
    ) -> FrameWriter:
        """Stores a file of frames, one for each of `chunks`, which is called for each attempt; tells the file's size and checksum."""
        cipher = self.cipher(encryption)
        writer = FrameWriter(name, compression, cipher)

        def make() -> Iterator[bytes]:
            nonlocal writer
            writer = FrameWriter(name, compression, cipher)
            return writer.all(chunks())

        self.storage.write(name, make)
        return writer

    def write_record(self, name: str, record: Struct, encryption: Encryption | None) -> None:
        """Stores a small record with its checksum."""
        data = seal(record, self.cipher(encryption))
        self.storage.write(name, lambda: [data])

    def read_record(self, name: str, decode: Callable[[bytes], S], encryption: Encryption | None = None) -> S:
        """A record. Raises `CorruptBackup` when it was damaged."""
        data = b"".join(self._chunks(name))
        record = unseal(name, data, decode)
        if encryption is not None and self.keyring.fits(encryption):
            check_signature(name, data, self.cipher(encryption))
        return record

    def delete(self, contents: Contents, ids: Sequence[str]) -> None:
        """Removes backups, newest first and each one's manifest before its other files: an end in between leaves no half of one."""
        for id in sorted(ids, reverse=True):
            manifest = file_name(id, MANIFEST)
            if manifest in contents.names:
                self.storage.delete(manifest)
            for name in contents.of(id):
                if name != manifest:
                    self.storage.delete(name)
