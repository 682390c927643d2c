"""A backup as rows: from any engine, into any engine. Its one file holds lines of JSON, as read at one instant.

file  = header table* numbers
table = row* references* end, in the header's order: what others refer to comes before them
row   = an array of the columns' values, JSON as text; then, for each reference to the table's own rows, the part of it that
        need not wait until they are all there, or null
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import Column, ForeignKey, MetaData, PrimaryKeyConstraint, Table, Text

from ruv_swarm_store import migrations, schema, transfer
from ruv_swarm_store.backup import census
from ruv_swarm_store.backup.catalog import Catalog, Progress
from ruv_swarm_store.backup.encryption import Encryption
from ruv_swarm_store.backup.frames import FRAME, Compression
from ruv_swarm_store.backup.manifest import Backup, Part, file_name
from ruv_swarm_store.engines import Engine, Executor, journal
from ruv_swarm_store.errors import CorruptBackup, SchemaMismatch, StoreError
from ruv_swarm_store.transfer import Content, Digest, Plan, Rows

_TYPES: Mapping[str, type[Any]] = {"integer": schema.Int64, "real": schema.Real, "json": schema.Json, "text": Text}


class _Column(Struct, frozen=True):
    name: str
    type: str
    refers: str | None = None
    """The column of the same table that it refers to."""


class _Table(Struct, frozen=True):
    name: str
    columns: Sequence[_Column]
    key: Sequence[str]


class _Header(Struct, frozen=True, tag="header"):
    tables: Sequence[_Table]
    journaled: bool = True
    """Whether a journal that had begun was still being written."""


class _References(Struct, frozen=True, tag="references"):
    rows: Sequence[Sequence[Any]]
    """Of each, the key and what it refers to."""


class _End(Struct, frozen=True, tag="end"):
    table: str
    content: Content


class _Numbers(Struct, frozen=True, tag="numbers"):
    last: Mapping[str, int]
    """What `Engine.numbers` told."""


_encoder = msgspec.json.Encoder()
_rows = msgspec.json.Decoder(list[Any])
_decode_header = msgspec.json.Decoder(_Header).decode
_decode_references = msgspec.json.Decoder(_References).decode
_decode_end = msgspec.json.Decoder(_End).decode
_decode_numbers = msgspec.json.Decoder(_Numbers).decode
_is_name = re.compile(r"[a-z][a-z0-9_]{0,62}").fullmatch


# Writing


def create(
    catalog: Catalog, engine: Engine, *, id: str, compression: Compression, encryption: Encryption | None, progress: Progress
) -> Backup:
    """Writes the file of a backup; its manifest is still to be written. Raises `SchemaMismatch` unless the schema is this release's."""
    began_at = engine.clock()
    transfer.warn_of_others(engine)
    names = engine.tables()
    with engine.snapshot() as run:
        found = census.take(run, names)
        if found.revision != schema.REVISION:
            raise SchemaMismatch(
                f"{engine.name} {f'is at revision {found.revision}' if found.revision else 'has no schema of this store'}, "
                f"and this release backs up the rows of {schema.REVISION}",
                hint=migrations.UPGRADE,
                actual=found.revision,
                expected=schema.REVISION,
            )
        contents: dict[str, Content] = {}
        total = sum(found.rows.values())
        file = catalog.write_frames(
            file_name(id, "rows"), lambda: _frames(_written(engine, run, contents, total, progress)), compression, encryption
        )
    return Backup(
        id=id,
        kind="full",
        format="rows",
        began_at=began_at,
        created_at=engine.clock(),
        revision=found.revision,
        position=found.position,
        rows=found.rows,
        checksums={name: content.checksum for name, content in contents.items()},
        files=(Part("rows", file.size, file.sha256),),
        compression=compression,
        encryption=encryption,
    )


def _written(engine: Engine, run: Executor, contents: dict[str, Content], total: int, progress: Progress) -> Iterator[bytes]:
    """The file, in pieces that end with a line; `contents` is told of each table."""
    streams = transfer.leaving(run)
    journaled = schema.event_journal.name in engine.tables() and journal.journaling(run) is not None
    yield _line(_Header([_described(stream.plan.table) for stream in streams], journaled))
    size = done = 0
    for stream in streams:
        table = str(stream.plan.table.name)
        for rows in stream.pages():
            data = _encoder.encode_lines(rows)
            yield data
            size, done = size + len(data), done + len(rows)
            progress(size, max(size, size * total // done))  # rows not read yet are taken to be like the others
        for references in stream.late():
            yield _line(_References(references))
        contents[table] = stream.content()
        yield _line(_End(table, contents[table]))
    yield _line(_Numbers(engine.numbers(run)))
    progress(size, size)


def _line(value: Struct) -> bytes:
    return _encoder.encode(value) + b"\n"


def _frames(pieces: Iterable[bytes]) -> Iterator[bytes]:
    buffer = bytearray()
    for piece in pieces:
        buffer += piece
        while len(buffer) >= FRAME:
            yield bytes(buffer[:FRAME])
            del buffer[:FRAME]
    yield bytes(buffer)


def _described(table: Table) -> _Table:
    columns = []
    for column in table.columns:
        own = [reference.column.name for reference in column.foreign_keys if reference.column.table is table]
        kind = next((kind for kind, type_ in _TYPES.items() if isinstance(column.type, type_)), "text")
        columns.append(_Column(str(column.name), kind, str(own[0]) if own else None))
    return _Table(str(table.name), columns, [str(column.name) for column in table.primary_key])


# Reading


def restore(catalog: Catalog, backup: Backup, engine: Engine, report: Callable[[int], object] | None = None) -> None:
    """Inserts every row of a backup into a database without any, all or none, and compares what has arrived.

    The database gets the schema the backup was made with if it has none; otherwise it must have that. `report` is called with the bytes
    read. Raises `CorruptBackup`, `SchemaMismatch`, and `Conflict` when there are rows.
    """
    if backup.revision not in {revision.id for revision in migrations.available()}:
        raise SchemaMismatch(
            f"backup {backup.id} is at revision {backup.revision}, which this release does not know",
            hint=f"Upgrade ruv-swarm-store: this release goes up to {schema.REVISION}",
            actual=backup.revision,
            expected=schema.REVISION,
        )
    with _reading(catalog, backup, report) as file:
        if (at := migrations.current(engine)) is None:
            migrations.upgrade(engine, backup.revision)
        elif at != backup.revision:
            raise SchemaMismatch(
                f"{engine.name} is at revision {at}, and the backup at {backup.revision}",
                hint="Restore into a new database",
                actual=at,
                expected=backup.revision,
            )
        if unknown := {stream.plan.table.name for stream in file.streams} - engine.tables():
            raise ValueError(f"it has tables that revision {backup.revision} does not: {', '.join(sorted(unknown))}")
        transfer.fill(engine, file.streams, file.numbers, sum(backup.rows.values()), journaled=file.journaled)


def verify(catalog: Catalog, backup: Backup, report: Callable[[int], object] | None = None) -> list[str]:
    """What is wrong with the file of a backup: it is read to its end, and every table's rows are counted and summed up."""
    try:
        with _reading(catalog, backup, report) as file:
            for stream in file.streams:
                digest = Digest(stream.plan)
                for rows in stream.pages():
                    digest.add(rows)
                for _ in stream.late():
                    pass
                if digest.content() != stream.content():
                    raise ValueError(f"the rows of {stream.plan.table.name} are not those that were written")
            file.numbers()
    except CorruptBackup as error:
        return [error.message]
    return []


class _Arriving:
    """The stream of a table in a file."""

    def __init__(self, file: _File, plan: Plan) -> None:
        self.plan = plan
        self._file = file
        self._width = len(plan.columns) + sum(
            reference.column.table is plan.table for column in plan.columns for reference in column.foreign_keys
        )

    def pages(self) -> Iterator[Rows]:
        """Every row."""
        file = self._file
        file.begun = True
        while file.line.startswith(b"["):
            lines: list[bytes] = []
            weight = 0
            while file.line.startswith(b"[") and len(lines) < transfer.PAGE and weight < transfer.WEIGHT:
                weight += len(file.line)
                lines.append(file.next())
            rows = _rows.decode_lines(b"\n".join(lines))
            if any(len(row) != self._width for row in rows):
                raise ValueError(f"a row of {self.plan.table.name} has too few values, or too many")
            yield rows

    def late(self) -> Iterator[Rows]:
        """The references that had to wait."""
        while self._file.line.startswith(b'{"type":"references"'):
            yield _decode_references(self._file.next()).rows

    def content(self) -> Content:
        """What was written."""
        end = _decode_end(self._file.next())
        name, backup = self.plan.table.name, self._file.backup
        promised = Content(backup.rows.get(name, 0), backup.checksums.get(name, ""))
        if (end.table, end.content) != (name, promised):
            raise ValueError(f"what it says of {name} is not what the manifest does")
        return end.content


class _File:
    """A backup's file, line by line."""

    def __init__(self, backup: Backup, frames: Iterable[bytes]) -> None:
        self.backup = backup
        self.begun = False
        """Whether rows were asked for."""
        self._lines = _lines(frames)
        self.line = next(self._lines, b"")
        """The one to be read next; empty at the end."""
        metadata = MetaData()
        header = _decode_header(self.next())
        self.journaled = header.journaled
        self.streams = [_Arriving(self, _plan(described, metadata)) for described in header.tables]
        if len({stream.plan.table.name for stream in self.streams}) < len(self.streams):
            raise ValueError("it has a table twice")

    def next(self) -> bytes:
        """Goes on by a line; the one that was passed."""
        line, self.line = self.line, next(self._lines, b"")
        return line

    def numbers(self) -> Mapping[str, int]:
        """The numbers, which stand at the end."""
        numbers = _decode_numbers(self.next())
        if self.line or next(self._lines, None) is not None:
            raise ValueError("it goes on after its end")
        return numbers.last


@contextmanager
def _reading(catalog: Catalog, backup: Backup, report: Callable[[int], object] | None) -> Iterator[_File]:
    """A backup's file, opened. Whatever damage to it leads to is raised as `CorruptBackup`."""
    name = backup.name("rows")
    frames = catalog.read(backup, "rows", report)
    file = None
    try:
        file = _File(backup, frames)
        yield file
    except CorruptBackup:
        raise
    except Exception as error:
        if isinstance(error, StoreError) and (error.retryable or file is None or not file.begun):
            raise
        for _ in frames:  # raises what is wrong with the file, if that is why
            pass
        if not isinstance(error, (ValueError, LookupError, TypeError, RecursionError, StoreError)):
            raise
        reason = error.message if isinstance(error, StoreError) else error
        raise CorruptBackup(f"{name} cannot be restored ({reason})", hint="Restore another backup", file=name) from error


def _lines(frames: Iterable[bytes]) -> Iterator[bytes]:
    begun: list[bytes] = []
    for data in frames:
        first, *others = data.split(b"\n")
        begun.append(first)
        if others:
            yield b"".join(begun)
            yield from others[:-1]
            begun = [others[-1]]
    if any(begun):
        raise ValueError("it ends within a line")


def _plan(described: _Table, metadata: MetaData) -> Plan:
    """The plan of a table as it was when the backup was made."""
    known = schema.metadata.tables.get(described.name)
    return Plan(_table(described, metadata)) if known is None or _described(known) != described else transfer.plan_of(known)


def _table(described: _Table, metadata: MetaData) -> Table:
    columns = {column.name: column for column in described.columns}
    whole = (
        all(map(_is_name, (described.name, *columns)))
        and described.name not in metadata.tables
        and len(columns) == len(described.columns)
        and {column.type for column in described.columns} <= _TYPES.keys()
        and {column.refers for column in described.columns} <= {None, *columns}
        and described.key
        and {*described.key} <= columns.keys()
    )
    if not whole:
        raise ValueError(f"{described.name!r} is no table of a store")
    return Table(
        described.name,
        metadata,
        *(
            Column(
                column.name,
                _TYPES[column.type],
                *([] if column.refers is None else [ForeignKey(f"{described.name}.{column.refers}")]),
            )
            for column in described.columns
        ),
        PrimaryKeyConstraint(*described.key),  # in this order, which is that of the rows
    )
