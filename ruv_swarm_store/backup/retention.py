"""Which backups to keep, and the removal of the others: never what a kept one adds to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime

from msgspec import Struct

from ruv_swarm_store.backup.catalog import Catalog, Contents, owner
from ruv_swarm_store.backup.manifest import MANIFEST, Backup, file_name, time_of
from ruv_swarm_store.backup.storage import PART
from ruv_swarm_store.codec import integer
from ruv_swarm_store.errors import InvalidValue

ABANDONED = 86_400_000
"""Milliseconds after which files without a manifest are no backup that is being made, but one that never was."""


class Retention(Struct, frozen=True, kw_only=True):
    """How many backups to keep: the `last` ones, and the newest of each of the last hours, days, weeks, months and years that have any.

    Periods are those of UTC, weeks begin on Mondays (ISO 8601). This is known as grandfather-father-son.
    """

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            integer(getattr(self, name), name, 0)
        if not any(getattr(self, name) for name in self.__struct_fields__):
            raise InvalidValue("this retention keeps nothing", hint="Give one, such as Retention(last=5) or Retention(daily=7, monthly=12)")

    def chosen(self, backups: Sequence[Backup]) -> set[str]:
        """The ids of those to keep of some, given oldest first; the newest is always among them. What they add to is not counted."""
        kept = set()
        for name, period in _PERIODS.items():
            left: int = getattr(self, name)
            seen = set()
            for backup in reversed(backups):
                if left and (key := period(backup)) not in seen:
                    seen.add(key)
                    kept.add(backup.id)
                    left -= 1
        return kept


def _when(backup: Backup) -> datetime:
    return datetime.fromtimestamp(backup.began_at / 1000, UTC)


_PERIODS: dict[str, Callable[[Backup], object]] = {
    "last": lambda backup: backup.id,
    "hourly": lambda backup: _when(backup).strftime("%Y-%m-%d %H"),
    "daily": lambda backup: _when(backup).date(),
    "weekly": lambda backup: _when(backup).isocalendar()[:2],
    "monthly": lambda backup: (_when(backup).year, _when(backup).month),
    "yearly": lambda backup: _when(backup).year,
}


class Pruning(Struct, frozen=True, kw_only=True):
    """What was removed, or would be."""

    kept: tuple[str, ...]
    """The ids of the backups that were chosen to be kept."""
    needed: tuple[str, ...]
    """Those that had to be kept because chosen ones add to them."""
    removed: tuple[str, ...]
    leftovers: tuple[str, ...]
    """Files that were removed because they belonged to no backup: what a killed process leaves."""
    broken: tuple[str, ...]
    """Those of which something is missing or cannot be read: left alone, and not counted. `verify` says what is wrong with them."""
    size: int
    """Bytes that were freed, manifests and drills aside."""
    dry_run: bool = False


def prune(catalog: Catalog, keep: Retention | int, now: int, *, dry_run: bool = False) -> Pruning:
    """Removes backups that are not to be kept; see `Backups.prune`."""
    retention = keep if isinstance(keep, Retention) else Retention(last=integer(keep, "keep", 1))
    contents = catalog.contents()
    whole = [backup for id, backup in contents.backups.items() if contents.whole(id)]
    chosen = retention.chosen(whole)
    needed = _ancestors(contents, chosen)
    broken = {*contents.unreadable, *contents.backups} - {backup.id for backup in whole}
    # What a later release's backups add to can be told from nothing but their parents, and theirs are not known here.
    removable = [backup for backup in whole if backup.id not in chosen | needed | _ancestors(contents, broken)]
    leftovers = [name for name in sorted(contents.names) if _is_left(contents, name) and now - time_of(name) > ABANDONED]
    if not dry_run:
        for backup in reversed(removable):  # increments before what they add to
            if backup.id in {other.parent for other in catalog.contents().backups.values()}:
                continue  # somebody has just added to it
            catalog.delete(contents, [backup.id])
        for name in leftovers:
            catalog.storage.delete(name)
    return Pruning(
        kept=tuple(sorted(chosen)),
        needed=tuple(sorted(needed - chosen)),
        removed=tuple(backup.id for backup in removable),
        leftovers=tuple(leftovers),
        broken=tuple(sorted(broken)),
        size=sum(backup.size for backup in removable),
        dry_run=dry_run,
    )


def _ancestors(contents: Contents, ids: Iterable[str]) -> set[str]:
    """What backups add to, and that to, as far as it is there."""
    found = set()
    for id in ids:
        backup = contents.backups.get(id)
        while backup is not None and backup.parent is not None and backup.parent not in found:
            found.add(backup.parent)
            backup = contents.backups.get(backup.parent)
    return found


def _is_left(contents: Contents, name: str) -> bool:
    """Whether a file is part of no backup: it has no manifest, or is itself not whole."""
    id = owner(name)
    return bool(time_of(id)) and (file_name(id, MANIFEST) not in contents.names or name.endswith(PART))
