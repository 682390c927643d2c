"""`Backups`: of a store, in a storage."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from msgspec.structs import replace

from ruv_swarm_store import engines
from ruv_swarm_store.backup import creating, drill, points, restoring, retention, verification
from ruv_swarm_store.backup.catalog import Catalog, Contents, Progress, id_of, missing
from ruv_swarm_store.backup.drill import Drill
from ruv_swarm_store.backup.encryption import Key
from ruv_swarm_store.backup.frames import Compression, best_compression, known
from ruv_swarm_store.backup.manifest import MANIFEST, Backup, Format, Kind, file_name
from ruv_swarm_store.backup.points import Point
from ruv_swarm_store.backup.remote import FsspecStorage
from ruv_swarm_store.backup.restoring import Restoration
from ruv_swarm_store.backup.retention import Pruning, Retention
from ruv_swarm_store.backup.schedule import Schedule
from ruv_swarm_store.backup.storage import BackupStorage, DirectoryStorage
from ruv_swarm_store.backup.verification import Verification
from ruv_swarm_store.clock import Moment, duration, milliseconds, system_clock
from ruv_swarm_store.codec import integer, text
from ruv_swarm_store.engines import Engine
from ruv_swarm_store.errors import CorruptBackup, InvalidValue, NotFound, StoreError, Unsupported

if TYPE_CHECKING:
    from ruv_swarm_store.backup.continuous import Shipping


def _no_progress(done: int, total: int) -> None:
    pass


class Backups:
    """The backups of a store in one storage: made while others use the store, checked, and restored.

    `progress` is called with the bytes done and of how many. Any number of threads and processes may use one storage.
    """

    def __init__(
        self,
        storage: BackupStorage,
        engine: Engine | None,
        *,
        compression: Compression | None = None,
        key: Key | None = None,
        origin: str | None = None,
    ) -> None:
        if engine is not None:
            origin = engine.name if engine.capabilities.persistent else None
        self._catalog = Catalog(storage, key, None if origin is None else engines.name_of(origin))
        self._engine = engine
        self._compression: Compression = best_compression() if compression is None else known(compression)
        self.now = system_clock if engine is None else engine.clock
        """The present, in milliseconds since the epoch."""

    @classmethod
    def of(cls, storage: BackupStorage | str | os.PathLike[str], *, key: Key | None = None, origin: str | None = None) -> Self:
        """What is in a storage, without the store: to list, verify, drill, restore and prune. `create` raises `Unsupported`.

        `origin` says which store's latest is meant, by its address, if the storage has those of several.
        """
        return cls(storage_at(storage), None, key=key, origin=origin)

    @property
    def storage(self) -> BackupStorage:
        """Where they are kept."""
        return self._catalog.storage.storage

    def create(self, kind: Kind = "full", *, format: Format | None = None, progress: Progress = _no_progress) -> Backup:
        """Makes a backup of the store as it is now. Who writes does not wait.

        An increment holds the pages that have changed since the newest backup of this store with this key; where there is none to add to,
        a full one is made.
        `format="rows"` writes rows instead of pages, full each time, to be restored on any engine; it is what engines without pages do.
        Raises `Unavailable` when the storage cannot be written: nothing half-made is left to be taken for a backup.
        """
        if kind not in ("full", "incremental"):
            raise InvalidValue(f"kind is {kind!r}", hint="Use 'full' or 'incremental'")
        if format not in (None, "pages", "rows"):
            raise InvalidValue(f"format is {format!r}", hint="Use 'pages' or 'rows'")
        engine = self._open_engine()
        if engine.within:
            raise StoreError("a backup would not hold what this transaction has not committed", hint="Make it outside the with block")
        return creating.create(self._catalog, engine, kind, format, self._compression, progress)

    def list(self) -> Sequence[Backup]:
        """Every backup of which everything is there, oldest first; `verify` tells of others."""
        contents = self._catalog.contents()
        return [backup for id, backup in contents.backups.items() if contents.whole(id)]

    def newest(self) -> Backup | None:
        """The last backup of this store, or of any if this was opened without one, that the key fits; None when there is none."""
        contents = self._catalog.contents()
        if self._engine is None and not self._catalog.keyring:
            return next(reversed(self.list()), None)
        return contents.newest()

    def get(self, id: str | Backup) -> Backup:
        """A backup by its id. Raises `NotFound`, and `CorruptBackup` for one whose manifest is damaged."""
        return self._catalog.contents().get(_id(id))

    def chain(self, id: str | Backup) -> Sequence[Backup]:
        """What restoring a backup takes: a full one, and increments. Raises `NotFound`, and `CorruptBackup` when one is missing."""
        return self._catalog.contents().chain(_id(id))

    def verify(self, id: str | Backup | None = None, *, integrity: bool = True, progress: Progress = _no_progress) -> Verification:
        """Reads a backup and all it adds to, or every one: compares each file with its checksum, each page with its hash, the chains.

        With `integrity` each is put together in a temporary place, too, for the database's own check of itself and of references; without
        it takes a fraction of the time and no space. Without an id, those of another key are only named, in `passed_over`, where it fits
        some. Raises `InvalidValue` without the right key, `Unavailable` when the storage cannot be read. What is wrong with a backup is not
        raised but told.
        """
        return verification.verify(self._catalog, None if id is None else _id(id), integrity=integrity, progress=progress)

    def restore(
        self,
        id: str | Backup | None = None,
        *,
        into: str | os.PathLike[str],
        at: Moment | None = None,
        position: int | None = None,
        overwrite: bool = False,
        dry_run: bool = False,
        progress: Progress = _no_progress,
    ) -> Restoration:
        """Restores a backup, the state of an instant or of an event's position, or the latest there is, into a path or URL.

        A file is put together beside its place, checked — every page, the database's integrity, references, numbers of rows — and then
        there at once. One that exists is replaced with `overwrite=True` only, and only while nobody has it open. Other databases must be
        without rows. When it fails, nothing was touched. `dry_run` tells what would be done, without reading more than manifests.

        Without an id, only what was encrypted with the key counts, if one was given, and of several stores' only this one's.

        The schema is as it was; opening the store brings it up to date. Raises `NotFound` when nothing goes back that far, `CorruptBackup`
        (for the latest state also when a newer backup is damaged: restore an earlier one by its id or `at=`), `Conflict` for a place that
        is taken, and `InvalidValue` without the right key, and where it cannot be told which store's is meant.
        """
        contents = self._catalog.contents()
        point = self._point(contents, id, at, position)
        if id is None and at is None and position is None and (damage := _damage(self._catalog, self._meant(contents), point)) is not None:
            raise damage
        over = [] if id is not None or position is not None else self._passed_over(contents, point, at)
        done = restoring.restore(self._catalog, contents, point, into, overwrite=overwrite, dry_run=dry_run, progress=progress)
        return replace(done, passed_over=tuple(over), exact=False) if over else done

    def drill(self, id: str | Backup | None = None, *, progress: Progress = _no_progress) -> Drill:
        """Restores a backup, or the latest state, into a temporary place, checks it as `restore` does, and records how it went.

        That it did not pass is told, not raised; that it could not be recorded, in a storage that may only be read, is logged. Raises
        `NotFound`, also when somebody removes the backup meanwhile, `InvalidValue` without the right key, and `Unavailable`.
        """
        contents = self._catalog.contents()
        point = self._point(contents, id, None, None)
        damage = _damage(self._catalog, self._meant(contents), point) if id is None else None
        return drill.drill(self._catalog, contents, point, self.now, progress, known=[] if damage is None else [damage.message])

    def drills(self, id: str | Backup) -> Sequence[Drill]:
        """How a backup's drills went, oldest first."""
        return drill.records(self._catalog, self._catalog.contents(), _id(id))

    def prune(self, keep: Retention | int, *, dry_run: bool = False) -> Pruning:
        """Removes the backups that are not to be kept: all but the last so many, or as a `Retention` says.

        What a kept one adds to stays, and so do the newest and what leads to the latest state. Each store's are counted by themselves, and
        so are those that the key fits. Files that killed processes have left are removed after a day.
        """
        return retention.prune(self._catalog, keep, self.now(), dry_run=dry_run)

    def delete(self, id: str | Backup) -> None:
        """Removes one backup, also a damaged one or one of another key, and what was shipped after it, whether it is the latest or not.

        Raises `NotFound`, and `Conflict` while others add to it, or damaged ones may.
        """
        retention.delete(self._catalog, _id(id))

    def schedule(self, every: float, *, full_every: int = 24, keep: Retention | int | None = None) -> Schedule:
        """Makes a backup every so many seconds while its `with` block lasts, every `full_every`th of them full, and prunes.

        Raises `Unsupported` where there are no threads: call `create` there when it suits.
        """
        interval = duration(every, "every")
        if not interval:
            raise InvalidValue("every is 0", hint="Give a number of seconds")
        if keep is not None and not isinstance(keep, Retention):
            integer(keep, "keep", 1)
        engine = self._open_engine()
        if not engine.capabilities.threads:
            raise Unsupported(f"{engine.name} has no threads for a schedule", hint="Call create() and prune() yourself")
        return Schedule(self, interval, integer(full_every, "full_every", 1), keep)

    def continuous(self, interval: float = 0.3) -> Shipping:
        """Ships what is committed every `interval` seconds while its `with` block lasts; see `Shipping`."""
        from ruv_swarm_store.backup.continuous import Shipping

        return Shipping(self, interval)

    def _point(self, contents: Contents, id: str | Backup | None, at: Moment | None, position: int | None) -> Point:
        if sum(given is not None for given in (id, at, position)) > 1:
            raise InvalidValue("more than one of id, at and position was given", hint="Say in one way what to restore")
        if id is not None:
            return points.of(contents.get(_id(id)))
        if not contents.backups and not contents.unreadable and not self._catalog.lost(contents):
            raise NotFound(f"there are no backups in {self.storage!r}", hint="Make one: create(), or ruv-swarm backup create")
        if at is None and position is None and not any(map(contents.whole, contents.backups)):
            raise _damage(self._catalog, contents, None) or NotFound(
                f"there are no whole backups in {self.storage!r}", hint="verify() says what is wrong, and so does: ruv-swarm backup verify"
            )
        return points.find(
            self._catalog,
            self._meant(contents),
            at=None if at is None else milliseconds(at, "at"),
            position=None if position is None else integer(position, "position", 0),
        )

    def _meant(self, contents: Contents) -> Contents:
        """What may be the latest where none is named: what the key fits, if there is one, and of one store. Raises `InvalidValue`."""
        backups = list(contents.backups.values())
        if self._catalog.keyring and backups:
            backups = [backup for backup in backups if backup.id in contents.fitting]
            if not backups:
                raise InvalidValue(
                    f"the key is not the one of any backup in {self.storage!r}",
                    hint="Give the key they were made with, or name one that is not encrypted by its id",
                )
        if any(backup.origin == contents.origin for backup in backups):
            backups = [backup for backup in backups if backup.origin in (None, contents.origin)]
        origins = sorted({backup.origin for backup in backups if backup.origin is not None})
        if len(origins) > 1:
            raise InvalidValue(
                f"there are backups of several stores in {self.storage!r}: {', '.join(origins)}",
                hint="Name one by its id, or say of which: Backups.of(…, origin=…)",
                origins=origins,
            )
        return contents.only(backups)

    def _passed_over(self, contents: Contents, point: Point, at: Moment | None) -> Sequence[str]:
        """Later backups that the key does not fit."""
        until = None if at is None else milliseconds(at, "at")
        return [
            id
            for id, backup in contents.backups.items()
            if self._catalog.keyring
            and id not in contents.fitting
            and backup.began_at >= point.instant
            and id > point.backup.id
            and (until is None or backup.created_at <= until)
            and (contents.origin is None or backup.origin in (None, contents.origin))
        ]

    def _open_engine(self) -> Engine:
        if self._engine is None:
            raise Unsupported("these backups were opened without their store", hint="Open the store, and use its backups or backup_to")
        return self._engine

    def __repr__(self) -> str:
        return f"<Backups in {self.storage!r}>"


def storage_at(place: BackupStorage | str | os.PathLike[str]) -> BackupStorage:
    """A storage by its path or fsspec URL."""
    if isinstance(place, str) and "://" in place:
        return DirectoryStorage(place.removeprefix("file://")) if place.startswith("file://") else FsspecStorage(place)
    if isinstance(place, (str, os.PathLike)) and os.fspath(place):
        return DirectoryStorage(place)
    if isinstance(place, BackupStorage) and not isinstance(place, type):  # of a class, too, isinstance sees the methods
        return place
    raise InvalidValue(f"{place!r} is no storage", hint="Give a directory, a URL such as s3://bucket/backups, or a BackupStorage")


def _damage(catalog: Catalog, contents: Contents, point: Point | None) -> StoreError | None:
    """What is wrong with a backup of later than a point, if anything is."""
    lost = catalog.lost(contents)
    for id in sorted({*lost, *contents.unreadable, *contents.backups}, reverse=True):
        if point is not None:
            until = id_of(point.segments[-1]) if point.segments else point.backup.id
            if contents.last_id(id) <= until:
                continue
        try:
            if id in lost:
                raise missing(file_name(id, MANIFEST))
            contents.chain(id)
        except CorruptBackup as error:
            return CorruptBackup(
                error.message if point is None else f"the newest backup is damaged: {error.message}",
                hint="Bring the file back from a copy"
                + ("" if point is None else f", or restore an earlier state: {point.backup.id}, or at="),
                **error.data,
            )
        except StoreError as error:
            return error
    return None


def _id(backup: str | Backup) -> str:
    return backup.id if isinstance(backup, Backup) else text(backup, "backup id")
