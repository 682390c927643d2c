"""A rehearsal of the disaster: restores to a temporary place, examines what comes out, and records that beside the backup."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct

from ruv_swarm_store.backup.catalog import Catalog, Contents, Progress
from ruv_swarm_store.backup.manifest import DRILL, FORMAT, file_name
from ruv_swarm_store.backup.points import Point
from ruv_swarm_store.backup.restoring import assemble, assembling, examine
from ruv_swarm_store.clock import Clock, new_id
from ruv_swarm_store.errors import CorruptBackup, NotFound, StoreError

log = logging.getLogger(__name__)


class Drill(Struct, frozen=True, kw_only=True):
    """How a rehearsal went."""

    format_version: int = FORMAT
    id: str
    backup: str
    """The id of the backup that was restored."""
    segments: int = 0
    """How many files of changes after it were applied."""
    at: int
    """When, in milliseconds since the epoch."""
    seconds: float
    """How long it took."""
    passed: bool
    """Whether everything was as it had been."""
    problems: Sequence[str]
    revision: str = ""
    position: int = 0
    rows: Mapping[str, int] = {}
    """How many there were in each table."""


decode = msgspec.json.Decoder(Drill).decode


def drill(
    catalog: Catalog,
    contents: Contents,
    point: Point,
    clock: Clock,
    progress: Progress = lambda *_: None,
    *,
    known: Sequence[str] = (),
) -> Drill:
    """Restores a point to a temporary place and checks it; see `Backups.drill`. What is known to be wrong counts, too."""
    began = time.monotonic()
    at = clock()
    found = None
    try:
        with assembling() as assembly:
            point = assemble(catalog, contents, point, assembly, progress)
            with assembly.engine() as engine:
                found, problems = examine(point, engine)
    except CorruptBackup as error:
        if point.backup.manifest not in catalog.storage.names():
            raise NotFound(
                f"backup {point.backup.id} was removed while it was drilled", hint="Drill another one", id=point.backup.id
            ) from error
        problems = [error.message]
    problems = [*known, *problems]
    record = Drill(
        id=new_id(at),
        backup=point.backup.id,
        segments=len(point.segments),
        at=at,
        seconds=round(time.monotonic() - began, 3),
        passed=not problems,
        problems=problems,
        revision="" if found is None else found.revision,
        position=0 if found is None else found.position,
        rows={} if found is None else found.rows,
    )
    try:
        catalog.write_record(file_name(point.backup.id, DRILL, record.id), record, point.backup.encryption)
    except StoreError as error:  # a storage that this one may only read, perhaps: what was found is worth more than its record
        log.warning("a drill of %s could not be recorded: %s", point.backup.id, error.message)
    return record


def is_record(name: str) -> bool:
    """Whether a file is the record of a drill."""
    words = name.split(".")
    return len(words) == 3 and words[1] == DRILL


def records(catalog: Catalog, contents: Contents, id: str) -> list[Drill]:
    """The drills of a backup, oldest first. Raises `CorruptBackup` for a damaged record."""
    encryption = contents.get(id).encryption
    return [catalog.read_record(name, decode, encryption) for name in contents.of(id) if is_record(name)]
