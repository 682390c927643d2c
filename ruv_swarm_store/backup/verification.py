"""Reads backups again, to the last byte, and says what is wrong with which file."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from msgspec import Struct

from ruv_swarm_store.backup import drill, points, rows
from ruv_swarm_store.backup.catalog import Catalog, Contents, Progress, missing, owner
from ruv_swarm_store.backup.manifest import MANIFEST, Backup, file_name
from ruv_swarm_store.backup.pages import HASH, check_image, hashes_of, unpacked, write_hashes, write_pages
from ruv_swarm_store.backup.restoring import assemble, assembling, examine
from ruv_swarm_store.errors import CorruptBackup, SchemaMismatch, StoreError


class Problem(Struct, frozen=True):
    """Something wrong with a file."""

    file: str
    """The file's name in the storage."""
    what: str


class Verification(Struct, frozen=True, kw_only=True):
    """What was read, and what was wrong with it."""

    backups: tuple[str, ...]
    """The ids of those that were verified."""
    passed_over: tuple[str, ...] = ()
    """The ids of those that were not looked at, as they are encrypted with another key than the one that was given."""
    files: int
    """How many were read."""
    size: int
    """Bytes that were read."""
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was wrong."""
        return not self.problems


def verify(catalog: Catalog, id: str | None, *, integrity: bool = True, progress: Progress = lambda *_: None) -> Verification:
    """Reads one backup with all it adds to, or every one; see `Backups.verify`."""
    contents = catalog.contents(fresh=True)
    return _Verifier(catalog, contents, progress).verify(id, integrity=integrity)


class _Verifier:
    def __init__(self, catalog: Catalog, contents: Contents, progress: Progress) -> None:
        self._catalog = catalog
        self._contents = contents
        self._progress = progress
        self._problems: dict[tuple[str, str], Problem] = {}
        self._examined: set[str] = set()
        self._done = 0
        self._total = 0

    def verify(self, id: str | None, *, integrity: bool) -> Verification:
        contents = self._contents
        if id is None:
            for unreadable, reason in contents.unreadable.items():
                self._note(file_name(unreadable, MANIFEST), reason)
            for lost in self._catalog.lost(contents):
                self._note(file_name(lost, MANIFEST), missing(file_name(lost, MANIFEST)))
            chosen = list(contents.backups.values())
            if self._catalog.keyring and contents.fitting:
                chosen = [backup for backup in chosen if backup.encryption is None or backup.id in contents.fitting]
        elif id in contents.unreadable:
            self._note(file_name(id, MANIFEST), contents.unreadable[id])
            chosen = []
        else:
            chosen = [contents.get(id)]
            chosen = self._chain(id) or chosen
        for backup in chosen:
            self._catalog.cipher(backup.encryption)  # without the right key nothing can be said of what is in it
        over = () if id is not None else tuple(other for other in contents.backups if other not in {backup.id for backup in chosen})
        self._total = sum(backup.size for backup in chosen) * (2 if integrity else 1)
        names = [name for backup in chosen for name in contents.of(backup.id)]
        size = sum(self._backup(backup) for backup in chosen)
        if integrity:
            for path in self._paths(chosen):
                self._assemble(path)
        self._progress(self._total, self._total)
        there = set(self._catalog.storage.names())
        gone = {backup.id for backup in chosen if backup.manifest not in there}  # somebody has pruned them meanwhile
        return Verification(
            backups=tuple(backup.id for backup in chosen if backup.id not in gone),
            passed_over=over,
            files=len(names),
            size=size,
            problems=tuple(problem for problem in self._problems.values() if owner(problem.file) not in gone),
        )

    def _note(self, file: str, error: StoreError | str) -> None:
        what = error if isinstance(error, str) else error.message
        file = file if isinstance(error, str) else error.data.get("file", file)
        self._problems.setdefault((file, what), Problem(file, what))

    def _report(self, size: int) -> None:
        self._done += size
        self._progress(min(self._done, self._total), self._total)

    def _chain(self, id: str) -> list[Backup]:
        try:
            return self._contents.chain(id)
        except (CorruptBackup, SchemaMismatch) as error:
            self._note(file_name(id, MANIFEST), error)
            return []

    def _backup(self, backup: Backup) -> int:
        """Reads all of a backup's files; how many bytes that were."""
        self._chain(backup.id)
        before = self._done
        try:
            if backup.format == "rows":
                for what in rows.verify(self._catalog, backup, self._report):
                    self._note(backup.name("rows"), what)
            else:
                self._pages(backup)
        except CorruptBackup as error:
            self._note(backup.manifest, error)
        size = self._done - before
        for name in self._contents.of(backup.id):
            if drill.is_record(name):
                try:
                    self._catalog.read_record(name, drill.decode, backup.encryption)
                except CorruptBackup as error:
                    self._note(name, error)
                except SchemaMismatch:
                    pass  # a later release's, which that one reads
        for name, what in points.verify(self._catalog, self._contents, backup):
            self._note(name, what)
        return size

    def _pages(self, backup: Backup) -> None:
        """Compares every page with its hash."""
        noted = bytearray()
        try:
            write_hashes(self._catalog, backup, noted, self._report)
        except CorruptBackup as error:
            self._note(backup.name("hashes"), error)
            noted.clear()  # nothing to compare with
        name = backup.name("pages")
        held = 0
        for frame in self._catalog.read(backup, "pages", self._report):
            for (first, length), pages in unpacked(backup, "pages", frame, backup.page_size):
                held += length
                if noted and hashes_of(pages, backup.page_size) != noted[first * HASH : (first + length) * HASH]:
                    self._note(name, f"{name} holds pages that do not match their hashes")
        if held != backup.pages:
            self._note(name, f"{name} holds {held} pages instead of {backup.pages}")

    def _paths(self, chosen: Sequence[Backup]) -> list[list[Backup]]:
        """Chains of files without a problem, no one the beginning of another: together they contain every backup that can be assembled."""
        damaged = {problem.file for problem in self._problems.values()}
        chains = []
        for backup in chosen:
            with suppress(CorruptBackup, SchemaMismatch):
                chain = self._contents.chain(backup.id)
                if not any(part.name(file.role) in damaged for part in chain for file in part.files):
                    chains.append(chain)
        inner = {backup.parent for backup in chosen if any(chain[-1] is backup for chain in chains)}
        return [chain for chain in chains if chain[-1].id not in inner]

    def _assemble(self, chain: Sequence[Backup]) -> None:
        """Puts a chain's backups together one after another, and examines each that was not examined before."""
        hashes = bytearray()
        with assembling() as assembly:
            for backup in chain:
                try:
                    if backup.format == "rows":
                        assemble(self._catalog, self._contents, points.of(backup), assembly)
                        self._report(backup.size)
                    else:
                        with assembly.file() as file:
                            write_hashes(self._catalog, backup, hashes, self._report)
                            write_pages(self._catalog, backup, file, self._report)
                            if backup.id in self._examined:
                                continue
                            check_image(backup, file, hashes)
                    with assembly.engine() as engine:
                        for what in examine(points.of(backup), engine)[1]:
                            self._note(backup.manifest, f"what {backup.manifest} gives is not whole: {what}")
                except CorruptBackup as error:
                    self._note(backup.manifest, error)
                    return
                self._examined.add(backup.id)
