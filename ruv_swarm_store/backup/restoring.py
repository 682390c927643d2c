"""Puts a backup back: assembled and checked where nobody sees it, then there at once, or not at all."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct
from msgspec.structs import replace

from ruv_swarm_store import engines, migrations, schema, transfer
from ruv_swarm_store.backup import census, points, rows
from ruv_swarm_store.backup.catalog import Catalog, Contents, Progress
from ruv_swarm_store.backup.pages import check_image, known_hashes, write_pages
from ruv_swarm_store.backup.points import Point
from ruv_swarm_store.backup.storage import sync_directory
from ruv_swarm_store.engines import IN_BROWSER, Engine, Options
from ruv_swarm_store.errors import CorruptBackup, CorruptDatabase, InvalidValue, Unavailable, Unsupported

ABANDONED = 86_400
"""Seconds after which a directory that a killed process has left behind is removed by the next one that makes one there."""
_NAME = 200
"""Bytes of a file's name that the name of the directory beside it begins with: file systems take 255, and some is still to come."""
DRILL = "ruv-swarm-drill-"
"""How the names of directories for temporary databases begin."""


class Restoration(Struct, frozen=True, kw_only=True):
    """What was restored, or would be. Instants are milliseconds since the epoch."""

    backup: str
    """The id of the backup that it ends with."""
    chain: tuple[str, ...]
    """The ids of all it takes, the full one first."""
    segments: tuple[str, ...] = ()
    """The files of shipped changes that follow the backup."""
    into: str
    instant: int
    """Everything committed before is in it."""
    exact: bool = True
    """Whether `instant`, or the position, is the one asked for, and not the last one before it that can be restored."""
    encrypted: bool = False
    """Whether what it was made of is encrypted and signed with the key. What is not may have been written by anybody."""
    passed_over: tuple[str, ...] = ()
    """The ids of later backups that were not looked at, as the key that was given does not fit them."""
    revision: str
    """The schema's; opening a store brings it up to date."""
    position: int
    """That of the newest event in it."""
    rows: Mapping[str, int]
    """How many there are in each table; in a dry run, those of the backup."""
    size: int
    """Bytes read from the storage, or to be read."""
    replaces: bool
    """Whether there was a database."""
    dry_run: bool = False


class Assembly:
    """A backup's database, in a place of its own."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._memory = io.BytesIO()

    @property
    def path(self) -> Path:
        """Its file."""
        assert self._path is not None
        return self._path

    @contextmanager
    def file(self) -> Iterator[BinaryIO]:
        """Its bytes, to read and write."""
        if self._path is None:
            yield self._memory
            return
        with open(self._path, "r+b" if self._path.exists() else "x+b", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            yield file

    @contextmanager
    def engine(self, *, writing: bool = False) -> Iterator[Engine]:
        """The database, opened."""
        if self._path is not None:
            engine = engines.connect(self._path, Options(read_only=not writing, private=writing, durability="full"))
        else:
            engine = engines.connect(None, Options())
            if self._memory.getbuffer().nbytes:
                engines.load(engine, self._memory.getvalue())
        try:
            yield engine
            if writing and self._path is None:
                with engine.image() as image:
                    self._memory = io.BytesIO(image.read(0, image.count))
        finally:
            engine.close()

    def sync(self) -> None:
        """Brings the file to the disk."""
        with self.file() as file:
            os.fsync(file.fileno())


@contextmanager
def assembling(beside: Path | None = None) -> Iterator[Assembly]:
    """A place to assemble a database in: in the directory of `beside`, or that for temporary files; in a browser, in memory."""
    if IN_BROWSER:
        yield Assembly(None)
        return
    directory = None
    try:
        if beside is None:
            _sweep(Path(tempfile.gettempdir()), DRILL)
            directory = Path(tempfile.mkdtemp(prefix=DRILL))
        else:
            prefix = f".{beside.name.encode()[:_NAME].decode(errors='ignore')}.restoring-"
            _sweep(beside.parent, prefix)
            directory = Path(tempfile.mkdtemp(prefix=prefix, dir=beside.parent))
        yield Assembly(directory / "store.db")
    except OSError as error:
        place = tempfile.gettempdir() if beside is None else beside.parent
        raise Unavailable(
            f"a database could not be put together in {place} ({error})", hint="Free some space, or name another place"
        ) from error
    finally:
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)


def _sweep(directory: Path, prefix: str) -> None:
    """Removes one's own directories in which nothing was written for long: what is in them may have been encrypted for a reason."""
    with suppress(OSError):
        for left in directory.iterdir():
            if not left.name.startswith(prefix):
                continue
            with suppress(OSError):
                mine = not hasattr(os, "geteuid") or left.lstat().st_uid == os.geteuid()
                if mine and time.time() - max(path.lstat().st_mtime for path in (left, *left.iterdir())) > ABANDONED:
                    shutil.rmtree(left, ignore_errors=True)


def assemble(catalog: Catalog, contents: Contents, point: Point, assembly: Assembly, progress: Progress = lambda *_: None) -> Point:
    """Puts a database together and checks its files, pages and checksum; what it came to.

    Raises `CorruptBackup`, and `InvalidValue` for a wrong key.
    """
    chain = contents.chain(point.backup.id)
    total = sum(backup.size for backup in chain) + sum(catalog.storage.size(name) for name in point.segments)
    done = 0

    def report(size: int) -> None:
        nonlocal done
        done += size
        progress(min(done, total), total)

    if point.backup.format == "rows":
        with assembly.engine(writing=True) as engine:
            rows.restore(catalog, point.backup, engine, report)
        return point
    with assembly.file() as file:
        hashes = known_hashes(catalog, chain, report)
        for backup in chain:
            write_pages(catalog, backup, file, report)
        check_image(point.backup, file, hashes)
        point = points.apply(catalog, point, file, report)
        file.flush()
    return point


def examine(point: Point, engine: Engine) -> tuple[census.Census, list[str]]:
    """What a restored database holds, and what is wrong with it."""
    try:
        problems = engine.check()
        with engine.snapshot() as run:
            found = census.take(run, engine.tables())
    except CorruptDatabase as error:
        return census.Census("", 0, {}), [error.message]
    if not point.segments:
        backup = point.backup
        problems += census.Census(backup.revision, backup.position, backup.rows).differences(found)
    elif found.position != point.position:
        problems.append(f"the newest event is {found.position} instead of {point.position}")
    return found, problems


def restore(
    catalog: Catalog,
    contents: Contents,
    point: Point,
    into: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress = lambda *_: None,
) -> Restoration:
    """Restores a point into a database; see `Backups.restore`."""
    if not isinstance(into, (str, os.PathLike)) or "\0" in str(into):
        raise InvalidValue(f"{into!r} is no place to restore to", hint="Give a path or a URL")
    target = engines.file_of(into)
    if target is not None:
        engines.vacant(target, overwrite=overwrite)
        if not target.parent.is_dir():
            raise InvalidValue(f"there is no directory {target.parent}", hint="Make it first")
    elif overwrite:
        raise Unsupported("only a file can be overwritten", hint="Restore to a database without rows")
    chain = contents.chain(point.backup.id)
    plan = Restoration(
        backup=point.backup.id,
        chain=tuple(backup.id for backup in chain),
        segments=tuple(point.segments),
        into=os.fspath(into),
        instant=point.instant,
        exact=point.exact,
        encrypted=point.backup.encryption is not None,
        revision=point.backup.revision,
        position=point.position,
        rows=point.backup.rows,
        size=sum(backup.size for backup in chain) + sum(catalog.storage.size(name) for name in point.segments),
        replaces=target is not None and target.exists(),
        dry_run=dry_run,
    )
    catalog.cipher(point.backup.encryption)
    if dry_run:
        return plan
    with assembling(target) as assembly:
        point = assemble(catalog, contents, point, assembly, progress)
        with assembly.engine() as engine:
            found, problems = examine(point, engine)
        if problems:
            raise CorruptBackup(
                f"what {point.backup.manifest} gives is not whole: {'; '.join(problems[:5])}",
                hint="Nothing was touched. Restore another backup",
                file=point.backup.manifest,
                problems=problems,
            )
        if target is None or point.backup.format == "rows":
            found = _without_projections(assembly)
        if target is None:
            _transfer(assembly, into)
        else:
            assembly.sync()
            engines.install(assembly.path, target, overwrite=overwrite)
            sync_directory(target.parent)
    return replace(plan, instant=point.instant, exact=point.exact, revision=found.revision, position=found.position, rows=found.rows)


def _without_projections(assembly: Assembly) -> census.Census:
    """What an assembled database holds once projections are to be built in it: rows come without the tables they are kept in."""
    with assembly.engine(writing=True) as engine:
        names = engine.tables()
        if schema.event_projections.name in names:
            with engine.transaction() as run:
                transfer.forget_projections(run)
        with engine.snapshot() as run:
            return census.take(run, names)


def _transfer(assembly: Assembly, into: str | os.PathLike[str]) -> None:
    """Copies an assembled database into one on a server, or one that a browser keeps."""
    with assembly.engine(writing=True) as source:
        migrations.prepare(source, migrate=True)  # rows go between equal schemas only
        target = engines.connect(into, Options(durability="full"))
        try:
            if not target.capabilities.persistent:
                raise InvalidValue(f"what is restored to {target.name} would be gone at once", hint="Name a file or a server's database")
            migrations.prepare(target, migrate=True)
            transfer.copy_between(source, target)
        finally:
            target.close()
