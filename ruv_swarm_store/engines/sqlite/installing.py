"""Puts a database file where another is, or was: never under somebody who has that open, and never beside a log of its."""

from __future__ import annotations

import importlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ruv_swarm_store.engines.sqlite.driver import driver
from ruv_swarm_store.engines.sqlite.engine import SQLiteEngine, open_engines
from ruv_swarm_store.errors import Conflict, CorruptDatabase

fcntl: Any = importlib.import_module("fcntl") if find_spec("fcntl") else None
"""None where an open file cannot be replaced at all."""

_PENDING, _LOCKS = 0x4000_0000, 512
"""Where in a file SQLite keeps its locks; whoever has a database in WAL mode open holds one of them."""
_OVERWRITE = "Restore to another place, or overwrite it: overwrite=True, or --overwrite"
_LOGS = ("-wal", "-journal", "-shm")


def vacant(target: Path, *, overwrite: bool) -> None:
    """Raises `Conflict` for what `install` would not replace, as far as that can be told without touching it."""
    if overwrite:
        if target.exists() and not target.is_file():
            raise Conflict(f"{target} is no file", hint="Restore to another place", kind="exists")
        if any(engine.path == str(target) for engine in open_engines()):
            raise _in_use(target)
        return
    for path in (target, *_logs(target)):
        if os.path.lexists(path):
            raise Conflict(f"{path} exists already", hint=_OVERWRITE, kind="exists")


def install(new: Path, target: Path, *, overwrite: bool) -> None:
    """Moves a whole and closed database file to `target`, in the same file system. `Conflict` leaves both as they were."""
    if not overwrite:
        vacant(target, overwrite=False)
        try:
            os.link(new, target)  # unlike a rename, it fails when somebody was faster
        except FileExistsError as error:
            raise Conflict(f"{target} exists already", hint=_OVERWRITE, kind="exists") from error
        except OSError:
            new.rename(target)  # a file system without links
        else:
            new.unlink()
    elif target.exists():
        with _closed(target):
            _resemble(new, target)
            new.replace(target)
    else:
        for log in _logs(target):
            log.unlink(missing_ok=True)
        new.replace(target)


def _resemble(new: Path, old: Path) -> None:
    """Gives a file the mode of another, and its owner and group where that is allowed: who could use it can use it still."""
    was = old.stat()
    mode = stat.S_IMODE(was.st_mode)
    if hasattr(os, "chown"):
        for owner in ((was.st_uid, was.st_gid), (-1, was.st_gid)):
            with suppress(OSError):
                os.chown(new, *owner)
                break
        if new.stat().st_gid != was.st_gid:
            mode &= ~stat.S_IRWXG  # it would be another group's
    new.chmod(mode)


def _in_use(target: Path) -> Conflict:
    return Conflict(f"{target} is in use", hint="Close every store on it first, in every process", kind="open")


def _logs(target: Path) -> list[Path]:
    return [Path(f"{target}{ending}") for ending in _LOGS]


@contextmanager
def _closed(target: Path) -> Iterator[None]:
    """Keeps everybody from a database that nobody has open, and that has no log; `Conflict` where somebody has."""
    vacant(target, overwrite=True)
    whole = _ends_its_log(target) and target.stat().st_size > 0
    with _locked(target):
        aside: dict[Path, Path] = {}
        try:
            for log in _logs(target):
                if log.exists():
                    if whole:
                        raise _in_use(target)  # again, just now
                    aside[log] = log.replace(f"{log}.old")  # applied to the new database, it would destroy that
            yield
        except BaseException:
            for log, moved in aside.items():
                moved.rename(log)
            raise
        for moved in aside.values():
            moved.unlink()


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Holds all the locks of a database file, and spoils the file for good if it has been replaced meanwhile."""
    if fcntl is None:
        yield
        return
    with target.open("r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, _LOCKS, _PENDING)
        except OSError as error:
            raise _in_use(target) from error
        yield
        if os.fstat(file.fileno()).st_nlink == 0:
            # Who has opened the old file in this moment, and waits, must not go on to write into what is gone.
            file.write(bytes(100))


def _ends_its_log(target: Path) -> bool:
    """Brings the log's pages into the file and removes the log; False for a file that is no database any more."""
    of = driver(SQLiteEngine.driver)
    try:
        raw = of.module.connect(target, timeout=1.0, isolation_level=None)
    except of.Error as error:
        raise of.translate(error, 1.0, str(target)) from error
    try:
        mode = raw.execute("PRAGMA journal_mode=DELETE").fetchone()[0]
    except of.Error as error:
        if of.is_busy(error):
            raise _in_use(target) from error
        if not isinstance(reason := of.translate(error, 1.0, str(target)), CorruptDatabase):
            raise reason from error
        return False
    finally:
        with suppress(of.Error):
            raw.close()
    if mode != "delete":
        raise _in_use(target)
    return True
