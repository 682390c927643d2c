"""The schema's history: Alembic runs it, and every applied revision is recorded with a checksum of its script."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct
from sqlalchemy import Column, Connection, MetaData, PrimaryKeyConstraint, String, Table, delete, insert, inspect, select
from sqlalchemy.schema import CreateTable

from ruv_swarm_store import schema
from ruv_swarm_store.clock import Clock
from ruv_swarm_store.engines import Engine, journal, parameter
from ruv_swarm_store.errors import NotFound, SchemaMismatch

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.runtime.migration import MigrationInfo

log = logging.getLogger(__name__)

_alembic = threading.RLock()
"""Alembic keeps its context in module globals: one migration at a time in a process."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_alembic.acquire, after_in_parent=_alembic.release, after_in_child=_alembic.release)

_PACKAGED = Path(__file__).parent / "alembic"
_CHECKOUT = Path(__file__).parent.parent / "alembic"

# As Alembic makes it.
_version_table = Table(
    "alembic_version", MetaData(), Column("version_num", String(32)), PrimaryKeyConstraint("version_num", name="alembic_version_pkc")
)
UPGRADE = "Run: ruv-swarm upgrade. Or open it once without read_only=True and migrate=False"
"""What to do about an earlier schema."""
_CURRENT = select(_version_table.c.version_num)
_m = schema.schema_migrations.c
_APPLIED = select(_m.version, _m.name, _m.applied_at, _m.checksum).order_by(_m.version)


class Revision(Struct, frozen=True):
    """One step of the schema's history. `applied_at` is None while it is not applied to this database."""

    id: str
    name: str
    checksum: str
    applied_at: int | None = None

    @property
    def version(self) -> int:
        """The revision as a number."""
        return int(self.id)


def scripts() -> Path:
    """The directory of the migration scripts: shipped in the package, or beside it in a checkout."""
    return _PACKAGED if (_PACKAGED / "env.py").exists() else _CHECKOUT


def available() -> list[Revision]:
    """Every revision this release knows, oldest first. A script's name is its number and its title."""
    revisions = []
    for path in sorted((scripts() / "versions").glob("*.py")):
        if named := re.fullmatch(r"(\d{4})_(\w+)", path.stem):
            text = path.read_text(encoding="utf-8")  # newlines read alike everywhere
            revisions.append(Revision(named[1], named[2], hashlib.sha256(text.encode()).hexdigest()))
    return revisions


def current(engine: Engine) -> str | None:
    """The revision a database is at; None for one without a schema."""
    return _current(engine, engine.tables())


def _current(engine: Engine, names: Collection[str]) -> str | None:
    if _version_table.name not in names:
        return None
    with engine.read() as run:
        row = run.one(_CURRENT)
    return None if row is None else str(row[0])


def history(engine: Engine) -> list[Revision]:
    """Every revision, oldest first, with when it was applied to this database."""
    applied = {version: applied_at for version, _, applied_at, _ in _applied(engine, engine.tables())}
    return [Revision(revision.id, revision.name, revision.checksum, applied.get(revision.version)) for revision in available()]


def _applied(engine: Engine, names: Collection[str]) -> list[tuple[int, str, int, str]]:
    if schema.schema_migrations.name not in names:
        return []
    with engine.read() as run:
        return [(row[0], row[1], row[2], row[3]) for row in run.all(_APPLIED)]


def verify(engine: Engine) -> str | None:
    """The revision a database is at; None for one without a schema. Changes nothing.

    Raises `SchemaMismatch` when it holds another program's tables where a store's are to be, when it is newer than this release, and when
    an applied revision's script was edited.
    """
    names = engine.tables()
    at = _current(engine, names)
    if not names >= schema.HISTORY:
        taken = names & schema.metadata.tables.keys() | ({_version_table.name} if at is not None else set())
        if taken:
            raise SchemaMismatch(
                f"{engine.name} holds another program's tables: {', '.join(sorted(taken)[:5])}",
                hint="Name another file, or on a server another schema: ?schema=",
                tables=sorted(taken),
            )
        return None
    known = {revision.version: revision for revision in available()}
    if at is not None and (not at.isdigit() or int(at) not in known):
        raise SchemaMismatch(
            f"{engine.name} is at revision {at}, which this release does not know",
            hint=f"Upgrade ruv-swarm-store: this release goes up to {schema.REVISION}",
            actual=at,
            expected=schema.REVISION,
        )
    for version, name, _, checksum in _applied(engine, names):
        if version in known and known[version].checksum != checksum:
            raise SchemaMismatch(
                f"revision {version:04} ({name}) was edited after it had been applied to {engine.name}",
                hint="Restore the script as it was and put the change into a new revision",
                revision=f"{version:04}",
            )
    return at


def prepare(engine: Engine, *, migrate: bool) -> None:
    """Verifies a database's history and brings its schema up to date, or with `migrate=False` insists that it is."""
    at = verify(engine)
    if at == schema.REVISION:
        return
    if not migrate:
        raise SchemaMismatch(
            f"{engine.name} {'has no schema of this store' if at is None else f'is at revision {at}'}, "
            f"and this release needs {schema.REVISION}",
            hint=UPGRADE,
            actual=at,
            expected=schema.REVISION,
        )
    if not (at is None and _create(engine)):
        upgrade(engine)


def _create(engine: Engine) -> bool:
    """Makes the schema of an empty database from its description, which is where all revisions lead; whether it could be done.

    It takes a tenth of the time of going through them, and does without importing Alembic.
    """
    revisions = available()
    if engine.tables() or not revisions or revisions[-1].id != schema.REVISION:
        return False
    with engine.migration() as connection:
        if inspect(connection).get_table_names():  # somebody else was faster
            return False
        schema.metadata.create_all(connection, checkfirst=False)
        connection.execute(CreateTable(_version_table))
        connection.execute(insert(_version_table).values(version_num=schema.REVISION))
        now = engine.clock()
        connection.execute(
            insert(schema.schema_migrations),
            [{"version": r.version, "name": r.name, "applied_at": now, "checksum": r.checksum} for r in revisions],
        )
    return True


def upgrade(engine: Engine, to: str = "head") -> None:
    """Applies revisions up to `to`, in one transaction that keeps every other writer out. Raises `NotFound` for an unknown one."""
    from alembic import command

    with _configured(engine) as config:
        command.upgrade(config, to)


def downgrade(engine: Engine, to: str) -> None:
    """Takes revisions back down to `to` (`base` for all, `-1` for the newest), in one transaction. Raises as `upgrade`."""
    from alembic import command

    with _configured(engine) as config:
        command.downgrade(config, to)


@contextmanager
def _configured(engine: Engine) -> Iterator[Config]:
    from alembic.config import Config
    from alembic.util import CommandError

    verify(engine)
    try:
        with _alembic, engine.migration() as connection:
            config = Config()
            config.set_main_option("script_location", str(scripts()).replace("%", "%%"))
            config.attributes["connection"] = connection
            config.attributes["clock"] = engine.clock
            yield config
    except CommandError as error:
        raise NotFound(str(error), hint="Run `ruv-swarm history` for the revisions there are") from error


@contextmanager
def journal_kept(connection: Connection, clock: Clock) -> Iterator[None]:
    """Around revisions being applied: a database that is journaled before is so afterwards, beginning with the rows as they are then.

    Its triggers are made for the tables of this release. So none are there meanwhile, and at another revision it ends, with a warning.
    """
    before = _revision(connection)
    begun = connection.dialect.has_table(connection, schema.event_journal.name) and journal.begun(connection)
    whole = begun and journal.journaling(connection) is not None
    if begun:
        journal.remove(connection)
    yield
    after = _revision(connection)
    if not begun:
        return
    if after == before and whole:
        journal.install(connection)
    elif after == schema.REVISION:
        journal.start(connection, clock())
    else:
        if connection.dialect.has_table(connection, schema.event_journal.name):
            journal.stop(connection)
        log.warning("the journal ended with the migration to revision %s: start it again once it is at %s", after, schema.REVISION)


def _revision(connection: Connection) -> str | None:
    if not connection.dialect.has_table(connection, _version_table.name):
        return None
    id: str | None = connection.execute(_CURRENT).scalar()
    return id


def record(connection: Connection, step: MigrationInfo, applied_at: int) -> None:
    """Writes one applied or undone revision into `schema_migrations`."""
    by_id = {revision.id: revision for revision in available()}
    for id in step.up_revision_ids:
        revision = by_id[id]
        if step.is_upgrade:
            connection.execute(
                insert(schema.schema_migrations).values(
                    version=revision.version, name=revision.name, applied_at=applied_at, checksum=revision.checksum
                )
            )
        elif connection.dialect.has_table(connection, schema.schema_migrations.name):
            connection.execute(delete(schema.schema_migrations).where(_m.version == parameter("undone")), {"undone": revision.version})
