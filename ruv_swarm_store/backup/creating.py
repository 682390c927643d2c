"""Makes a backup of a database while others go on using it: its files first, its manifest last."""

from __future__ import annotations

import logging
from contextlib import ExitStack

from msgspec.structs import replace

from ruv_swarm_store.backup import census, rows
from ruv_swarm_store.backup.catalog import Catalog, Contents, Progress
from ruv_swarm_store.backup.frames import FRAME, Compression
from ruv_swarm_store.backup.manifest import Backup, Format, Kind, Part, file_name, time_of
from ruv_swarm_store.backup.pages import Difference, known_hashes
from ruv_swarm_store.backup.restoring import assembling
from ruv_swarm_store.clock import new_id
from ruv_swarm_store.engines import Engine
from ruv_swarm_store.engines.image import Image
from ruv_swarm_store.errors import CorruptBackup, Unavailable, Unsupported

log = logging.getLogger(__name__)


class Overtaken(Unavailable):
    """The files of a backup were removed while it was made."""


def create(
    catalog: Catalog, engine: Engine, kind: Kind, form: Format | None, compression: Compression, progress: Progress = lambda *_: None
) -> Backup:
    """Makes a backup and returns its manifest; see `Backups.create`."""
    contents = catalog.contents()
    began_at = engine.clock()
    id = _next_id(contents, began_at)
    with ExitStack() as held:
        try:
            image = None if form == "rows" else held.enter_context(engine.image())
        except Unsupported:
            if form == "pages":
                raise
            image = None
        if image is None:
            encryption = catalog.keyring.begin(contents.encryption())
            backup = rows.create(catalog, engine, id=id, compression=compression, encryption=encryption, progress=progress)
            backup = replace(backup, origin=catalog.origin)
            _finish(catalog, backup)
            if not _is_whole(catalog, backup):
                raise _overtaken(catalog, backup)
            return backup
        parent = _parent(contents, image) if kind == "incremental" else None
        while True:
            backup = _of_pages(catalog, contents, engine, image, id, began_at, parent, compression, progress)
            if parent is None or _is_whole(catalog, parent):
                _finish(catalog, backup)
                # Only now: who prunes removes a manifest first, and then looks for what adds to it. One of the two sees the other.
                if _is_whole(catalog, backup):
                    return backup
                if parent is None:
                    raise _overtaken(catalog, backup)
            # Meanwhile somebody has pruned what this one would add to. What has been a backup's id is not another's.
            catalog.delete(catalog.contents(), [id])
            id, parent = _next_id(contents, began_at), None


def _next_id(contents: Contents, now: int) -> str:
    """An id above those of all backups and segments there are, though clocks differ and are set back."""
    id = new_id(now)
    return id if time_of(id) > contents.time else new_id(contents.time + 1)


def _finish(catalog: Catalog, backup: Backup) -> None:
    catalog.write_record(backup.manifest, backup, backup.encryption)


def _overtaken(catalog: Catalog, backup: Backup) -> Overtaken:
    """Takes away what is left of it."""
    catalog.delete(catalog.contents(), [backup.id])
    return Overtaken(
        "the files of a backup were removed while it was made",
        hint="Somebody has made a newer one and pruned this one at once: keep more than one; or a clock is wrong by a day, after which "
        "pruning takes them for leftovers",
    )


def _is_whole(catalog: Catalog, backup: Backup) -> bool:
    return catalog.contents().whole(backup.id)


def _parent(contents: Contents, image: Image) -> Backup | None:
    """The newest backup that an increment can add to."""
    for backup in reversed(list(contents.backups.values())):
        fits = contents.is_own(backup) and backup.format == "pages" and backup.page_size == image.page_size
        if fits and contents.whole(backup.id):
            return backup
    return None


def _of_pages(
    catalog: Catalog,
    contents: Contents,
    engine: Engine,
    image: Image,
    id: str,
    began_at: int,
    parent: Backup | None,
    compression: Compression,
    progress: Progress,
) -> Backup:
    """Writes the files of a backup; its manifest is still to be written."""
    known = b""
    if parent is not None:
        try:
            known = bytes(known_hashes(catalog, contents.chain(parent.id)))
        except CorruptBackup as error:
            log.warning("an increment was asked for, but its base is damaged: a full backup is made (%s)", error.message)
            parent = None
    encryption = catalog.keyring.begin(contents.encryption())
    difference = Difference(image, known)
    # Hashes do not compress.
    pages = catalog.write_frames(file_name(id, "pages"), lambda: difference.chunks(progress), compression, encryption)
    hashes = catalog.write_frames(file_name(id, "hashes"), difference.hashes, "none", encryption)
    found = _census(engine, image)
    return Backup(
        id=id,
        kind="full" if parent is None else "incremental",
        parent=None if parent is None else parent.id,
        origin=catalog.origin,
        began_at=began_at,
        created_at=engine.clock(),
        revision=found.revision,
        position=found.position,
        rows=found.rows,
        page_size=image.page_size,
        page_count=image.count,
        pages=difference.pages,
        image=difference.image,
        place=image.place,
        files=(Part("pages", pages.size, pages.sha256), Part("hashes", hashes.size, hashes.sha256)),
        compression=compression,
        encryption=encryption,
    )


def _census(engine: Engine, image: Image) -> census.Census:
    if image.run is not None:
        return census.take(image.run, engine.tables())
    # A store that may not write cannot hold others back for the instant that it takes to see just this state.
    with assembling() as assembly:
        with assembly.file() as file:
            step = max(1, FRAME // image.page_size)
            file.writelines(image.read(first, step) for first in range(0, image.count, step))
        with assembly.engine() as copied, copied.snapshot() as run:
            return census.take(run, copied.tables())
