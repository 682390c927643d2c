"""Which backups to keep, and the removal of the others: never what a kept one adds to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime

from msgspec import Struct

from ruv_swarm_store.backup.catalog import Catalog, Contents, owner
from ruv_swarm_store.backup.manifest import MANIFEST, Backup, file_name, time_of
from ruv_swarm_store.backup.storage import PART
from ruv_swarm_store.codec import integer
from ruv_swarm_store.errors import Conflict, InvalidValue, NotFound

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
    """Those that had to be kept: what chosen ones add to, unreadable ones may add to, or shipped changes of later than the newest do."""
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
    lost = catalog.lost(contents)
    broken = {*lost, *contents.unreadable, *contents.backups} - {backup.id for backup in whole}
    chosen: set[str] = set()
    needed: set[str] = set()
    for line in _lines(contents, whole):
        chosen |= retention.chosen(line)
        needed |= {backup.id for backup in line if _leads_furthest(contents, backup, line[-1])}
        needed |= _below(line, {*lost, *contents.unreadable})
    needed |= _ancestors(contents, chosen | needed)
    removable = [backup for backup in whole if backup.id not in chosen | needed | _ancestors(contents, broken)]
    leftovers = [
        name
        for name in sorted(contents.names)
        if _is_left(contents.names, name) and owner(name) not in lost and now - time_of(name) > ABANDONED
    ]
    if not dry_run:
        # Increments before what they add to.
        removable = [backup for backup in reversed(removable) if _remove(catalog, backup, backup.id in contents.fitting)][::-1]
        names = frozenset(catalog.storage.names())
        leftovers = [name for name in leftovers if _is_left(names, name)]
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


def _lines(contents: Contents, backups: Iterable[Backup]) -> list[list[Backup]]:
    """Backups by what they are of, and by whether the key fits: what anybody could have written makes nothing else superfluous."""
    lines: dict[tuple[str | None, bool], list[Backup]] = {}
    for backup in backups:
        lines.setdefault((backup.origin, backup.id in contents.fitting), []).append(backup)
    return list(lines.values())


def _leads_furthest(contents: Contents, backup: Backup, newest: Backup) -> bool:
    """Whether what was shipped after a backup goes further than the newest one and what was shipped after that."""
    return contents.last_id(backup.id) > contents.last_id(newest.id)


def _below(line: Sequence[Backup], ids: Iterable[str]) -> set[str]:
    """What each of some backups may add to, of which it is not known."""
    pages = [backup.id for backup in line if backup.format == "pages"]
    return {below[-1] for id in ids if (below := [other for other in pages if other < id])}


def _remove(catalog: Catalog, backup: Backup, fits: bool) -> bool:
    """Removes a backup unless somebody has just gone on from it.

    Its manifest goes first, and comes back if by then an increment has one that adds to it. An increment's maker writes its manifest first,
    and then looks for what it adds to. As each acts before it looks, one of them sees the other.
    """
    if _is_continued(catalog.contents(), backup, fits):
        return False
    try:
        manifest = b"".join(catalog.storage.read(backup.manifest))
    except NotFound:
        return False  # somebody else prunes, too
    catalog.storage.delete(backup.manifest)
    contents = catalog.contents()
    if _is_continued(contents, backup, fits):
        catalog.write(backup.manifest, lambda: [manifest])
        return False
    catalog.delete(contents, [backup.id])
    return True


def _is_continued(contents: Contents, backup: Backup, fits: bool) -> bool:
    """Whether others add to a backup, or more was shipped after it than the newest of its line has."""
    newest = None
    for other in contents.backups.values():
        if other.parent == backup.id:
            return True
        if other.id != backup.id and (other.origin, other.id in contents.fitting) == (backup.origin, fits):
            newest = other
    return newest is None or _leads_furthest(contents, backup, newest)


def _ancestors(contents: Contents, ids: Iterable[str]) -> set[str]:
    """What backups add to, and that to, as far as it is there."""
    found = set()
    for id in ids:
        backup = contents.backups.get(id)
        while backup is not None and backup.parent is not None and backup.parent not in found:
            found.add(backup.parent)
            backup = contents.backups.get(backup.parent)
    return found


def _is_left(names: frozenset[str], name: str) -> bool:
    """Whether a file is part of no backup: it has no manifest, or is itself not whole."""
    id = owner(name)
    return bool(time_of(id)) and (file_name(id, MANIFEST) not in names or name.endswith(PART))


def delete(catalog: Catalog, id: str) -> None:
    """Removes one backup, and what was shipped after it; see `Backups.delete`."""
    contents = catalog.contents()
    manifest = file_name(id, MANIFEST)
    if manifest not in contents.names:
        contents.get(id)
    _insist_that_none_adds_to(contents, id)
    data = b"".join(catalog.storage.read(manifest))
    catalog.storage.delete(manifest)
    contents = catalog.contents()
    try:
        _insist_that_none_adds_to(contents, id)  # who adds to it meanwhile keeps it, as in `_remove`
    except Conflict:
        catalog.write(manifest, lambda: [data])
        raise
    catalog.delete(contents, [id])


def _insist_that_none_adds_to(contents: Contents, id: str) -> None:
    adding = [other.id for other in contents.backups.values() if other.parent == id]
    if (backup := contents.backups.get(id)) is not None:
        alike = [line for line in _lines(contents, contents.backups.values()) if backup in line]
        adding += [other for other in contents.unreadable if id in _below(alike[0], [other])]
    if adding:
        raise Conflict(f"{adding[0]} adds to backup {id}, or may do so", hint="Delete that one first, or let prune() decide", ids=adding)
