"""What a database holds, counted: what a backup promises, and what the restored one is compared with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec import Struct
from sqlalchemy import Text, column, func, select, table

from ruv_swarm_store import schema
from ruv_swarm_store.engines import Executor

_REVISION = select(column("version_num", Text)).select_from(table("alembic_version"))
_POSITION = select(func.coalesce(func.max(schema.events.c.position), 0))
_ROWS = {name: select(func.count()).select_from(table(name)) for name in schema.metadata.tables}


class Census(Struct, frozen=True):
    """A database's contents in numbers."""

    revision: str
    """The schema's."""
    position: int
    """That of the newest event."""
    rows: Mapping[str, int]
    """How many there are in each table."""

    def differences(self, other: Census) -> list[str]:
        """What is not as in another one that should be the same."""
        names = sorted({*self.rows, *other.rows})
        found = [
            f"{name} has {other.rows.get(name, 0)} rows instead of {self.rows.get(name, 0)}"
            for name in names
            if other.rows.get(name, 0) != self.rows.get(name, 0)
        ]
        if self.position != other.position:
            found.append(f"the newest event is {other.position} instead of {self.position}")
        if self.revision != other.revision:
            found.append(f"the schema is at revision {other.revision} instead of {self.revision}")
        return found


def take(run: Executor, tables: Iterable[str]) -> Census:
    """Counts what there is in those of `tables` that this release knows, all in one state if `run` sees one."""
    present = _ROWS.keys() & set(tables)

    def number(row: object) -> int:
        assert isinstance(row, (tuple, list))
        return int(row[0])

    rows = {name: number(run.one(_ROWS[name])) for name in sorted(present)}
    position = number(run.one(_POSITION)) if schema.events.name in present else 0
    revision = run.one(_REVISION) if "alembic_version" in tables else None
    return Census("" if revision is None else str(revision[0]), position, rows)
