"""`ruv-swarm backup`: makes backups of a store, and restores and checks them, with the store or without it."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ruv_swarm_store import engines, migrations, schema
from ruv_swarm_store.backup.backups import Backups, storage_at
from ruv_swarm_store.backup.drill import Drill
from ruv_swarm_store.backup.encryption import Key
from ruv_swarm_store.backup.frames import Compression
from ruv_swarm_store.backup.manifest import Backup, Format
from ruv_swarm_store.backup.retention import Retention
from ruv_swarm_store.backup.storage import beside
from ruv_swarm_store.cli.options import SWARM, Address, AsJson, insist, moment, opened
from ruv_swarm_store.cli.output import bytes_bar, counted, instant, print_json, print_table, say, size, span
from ruv_swarm_store.demo.stopping import stop_signals
from ruv_swarm_store.errors import InvalidValue, NotFound, Unsupported

log = logging.getLogger(__name__)

KEY = "RUV_SWARM_BACKUP_KEY"
"""The environment variable that holds a key, where no file does."""
_LOOK = 0.2
"""Seconds between two looks at what goes on in the background."""

app = typer.Typer(
    no_args_is_help=True,
    help="Back a store up while others use it; check backups, rehearse restoring them, and restore them. "
    f"They are kept beside the store's file, or where you say; encrypted with the key in a file or in {KEY}, if there is one.",
)

_PLACE = {"envvar": "RUV_SWARM_BACKUPS", "metavar": "DIRECTORY|URL", "show_default": False}
To = Annotated[str | None, typer.Option("--to", help="Where to keep them; without, beside the store's file.", **_PLACE)]
From = Annotated[str | None, typer.Option("--from", help="Where they are kept; without, beside the store's file.", **_PLACE)]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key-file",
        metavar="FILE",
        envvar=f"{KEY}_FILE",
        exists=True,
        dir_okay=False,
        show_default=False,
        help="Holds the key: 32 bytes, or 64 hexadecimal digits; other text is a passphrase.",
    ),
]
Id = Annotated[str | None, typer.Argument(metavar="ID", show_default=False, help="Which backup; without, the latest state there is.")]
Keep = Annotated[int, typer.Option(min=0, metavar="N", show_default=False, help="The last N.")]
Hourly = Annotated[int, typer.Option(min=0, metavar="N", show_default=False, help="The newest of each of the last N hours that have any.")]
Daily = Annotated[int, typer.Option(min=0, metavar="N", show_default=False, help="Likewise of days, in UTC.")]
Weekly = Annotated[int, typer.Option(min=0, metavar="N", show_default=False, help="Likewise of weeks, from Monday on.")]
Monthly = Annotated[int, typer.Option(min=0, metavar="N", show_default=False, help="Likewise of months.")]
Yearly = Annotated[int, typer.Option(min=0, metavar="N", show_default=False, help="Likewise of years.")]


Compressed = Annotated[
    Compression | None, typer.Option("--compression", show_default=False, help="Without, zstd where it is installed, else zlib.")
]


def _place(store: str, place: str | None) -> str:
    """Where a store's backups are kept."""
    if place is not None:
        return place
    if (file := engines.file_of(store)) is None:
        raise Unsupported(f"there is no place beside {store} to keep backups in", hint="Say where they are: --from or --to")
    return beside(file)


def _key(file: Path | None) -> Key | None:
    """The key in a file or in the environment; None where there is none."""
    if file is None:
        held = os.environ.get(KEY, "").encode(errors="surrogateescape")  # the bytes that are there, text or not
        if not held:
            return None
    else:
        held = file.read_bytes()
    text = held.removesuffix(b"\n").removesuffix(b"\r")
    if file is not None and len(held) == 32 and not (text != held and _is_printable(text)):
        return held
    if re.fullmatch(rb"[0-9A-Fa-f]{64}", text):
        return bytes.fromhex(text.decode())
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise InvalidValue(f"{file or KEY} holds no key", hint="Give 32 bytes, 64 hexadecimal digits, or text") from error


def _is_printable(text: bytes) -> bool:
    """Whether somebody has written this: of random bytes, one in billions are."""
    try:
        return text.decode().isprintable()
    except UnicodeDecodeError:
        return False


@contextmanager
def _of_store(store: str, to: str | None, key_file: Path | None, compression: Compression | None) -> Iterator[Backups]:
    """A store's backups, to add to. Its schema may be of any revision: backups are made before an upgrade, too."""
    insist(store)
    with opened(store, read_only=True) as engine:  # what is no store stays as it is
        if migrations.current(engine) is None or schema.schema_migrations.name not in engine.tables():
            raise NotFound(f"there is no store at {store}", hint="Name one with --store or RUV_SWARM_STORE")
    with opened(store) as engine:
        yield Backups(storage_at(_place(store, to)), engine, compression=compression, key=_key(key_file))


def _kept(store: str, place: str | None, key_file: Path | None) -> Backups:
    """The backups that are kept somewhere; the store itself is not needed."""
    kept = _place(store, place)
    if "://" not in kept and not Path(kept).is_dir():
        raise NotFound(f"there are no backups at {kept}", hint="Say where they are kept with --from or RUV_SWARM_BACKUPS")
    return Backups.of(kept, key=_key(key_file), origin=store)


def _retention(last: int, hourly: int, daily: int, weekly: int, monthly: int, yearly: int) -> Retention | None:
    if not any((last, hourly, daily, weekly, monthly, yearly)):
        return None
    return Retention(last=last, hourly=hourly, daily=daily, weekly=weekly, monthly=monthly, yearly=yearly)


def _tell(backup: Backup) -> str:
    what = f"{backup.kind} backup" if backup.format == "pages" else "backup of rows"
    return f"{backup.id}: {what} of {instant(backup.began_at)}, {size(backup.size)}, up to event {backup.position:,}"


@app.command()
def create(
    store: Address = SWARM,
    incremental: Annotated[bool, typer.Option("--incremental", "-i", help="Only what has changed since the newest backup.")] = False,
    format: Annotated[Format | None, typer.Option(show_default=False, help="Rows can be restored on any engine; pages are faster.")] = None,
    to: To = None,
    compression: Compressed = None,
    key_file: KeyFile = None,
    json: AsJson = False,
) -> None:
    """Make a backup. Nobody who uses the store waits for it."""
    with _of_store(store, to, key_file, compression) as backups, bytes_bar("backing up") as report:
        backup = backups.create("incremental" if incremental else "full", format=format, progress=report)
    if json:
        print_json(backup)
    else:
        say(_tell(backup))


@app.command("list")
def list_(
    store: Address = SWARM,
    place: From = None,
    drills: Annotated[bool, typer.Option("--drills", help="Also tell when each was last drilled, and how that went.")] = False,
    key_file: KeyFile = None,
    json: AsJson = False,
) -> None:
    """List the backups, the oldest first."""
    backups = _kept(store, place, key_file)
    listed = backups.list()
    drilled: dict[str, Drill] = {}
    if drills:
        for backup in listed:
            if records := backups.drills(backup):
                drilled[backup.id] = records[-1]
    if json:
        print_json([{"backup": backup, "drill": drilled.get(backup.id)} for backup in listed] if drills else listed)
        return
    rows = [
        (
            backup.id,
            backup.kind,
            backup.format,
            instant(backup.began_at),
            f"{backup.position:,}",
            backup.revision,
            size(backup.size),
            "yes" if backup.encryption else "no",
            _outcome(drilled.get(backup.id)),
        )
        for backup in listed
    ]
    columns = ("id", "kind", "format", "began", "event", "revision", "size", "encrypted", "drill")
    width = len(columns) - (not drills)
    print_table(
        columns[:width],
        [row[:width] for row in rows],
        numbers=("event", "size"),
        long="drill" if drills else "began",
        spare=("encrypted", "revision", "format", "event", "size", *(("began", "kind") if drills else ())),
    )


def _outcome(drill: Drill | None) -> str:
    return "never" if drill is None else f"{'passed' if drill.passed else 'failed'} {instant(drill.at)}"


@app.command()
def verify(
    id: Annotated[str | None, typer.Argument(metavar="ID", show_default=False, help="Which backup; without, all.")] = None,
    store: Address = SWARM,
    place: From = None,
    quick: Annotated[bool, typer.Option("--quick", help="Read every byte, but do not put the databases together.")] = False,
    key_file: KeyFile = None,
    json: AsJson = False,
) -> None:
    """Read backups again to the last byte and say which files are damaged.

    Exits with 1 if any is.
    """
    backups = _kept(store, place, key_file)
    with bytes_bar("verifying") as report:
        found = backups.verify(id, integrity=not quick, progress=report)
    if json:
        print_json(found)
    else:
        for problem in found.problems:
            typer.echo(f"Error: {problem.file}: {problem.what}", err=True)
        damage = "nothing is damaged" if found.ok else f"{counted(len(found.problems), 'problem')} found"
        say(f"{counted(len(found.backups), 'backup')}, {counted(found.files, 'file')}, {size(found.size)} read: {damage}")
        for other in found.passed_over:
            say(f"{other} is encrypted with another key, and was not looked at")
    if not found.ok:
        raise typer.Exit(1)


@app.command()
def drill(id: Id = None, store: Address = SWARM, place: From = None, key_file: KeyFile = None, json: AsJson = False) -> None:
    """Rehearse the disaster: restore to a temporary place, check what comes out, and keep a record of it.

    Exits with 1 if it is not what was backed up.
    """
    backups = _kept(store, place, key_file)
    with bytes_bar("restoring") as report:
        done = backups.drill(id, progress=report)
    if json:
        print_json(done)
    else:
        for problem in done.problems:
            typer.echo(f"Error: {problem}", err=True)
        came = f"{counted(sum(done.rows.values()), 'row')} up to event {done.position:,}" if done.passed else "it does not restore"
        say(f"{done.backup} {'passed' if done.passed else 'failed'} in {done.seconds:.1f} s: {came}")
    if not done.passed:
        raise typer.Exit(1)


@app.command()
def restore(
    into: Annotated[str, typer.Option("--into", metavar="PATH|URL", show_default=False, help="Where to: a new place, or --overwrite.")],
    id: Id = None,
    store: Address = SWARM,
    place: From = None,
    at: Annotated[
        str | None, typer.Option(metavar="TIME", show_default=False, help="The state of that time, such as 2026-01-31T12:00Z.")
    ] = None,
    position: Annotated[int | None, typer.Option(min=0, metavar="N", show_default=False, help="The state when that event was new.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file that is there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be restored.")] = False,
    key_file: KeyFile = None,
    json: AsJson = False,
) -> None:
    """Restore a backup, an earlier state, or the latest one: checked first, then there at once, or not at all."""
    backups = _kept(store, place, key_file)
    with bytes_bar("restoring") as report:
        done = backups.restore(
            id,
            into=into,
            at=None if at is None else moment(at, "--at"),
            position=position,
            overwrite=overwrite,
            dry_run=dry_run,
            progress=report,
        )
    if json:
        print_json(done)
        return
    parts = counted(len(done.chain), "backup") + (f" and {counted(len(done.segments), 'segment')}" if done.segments else "")
    how = f"{'would be ' if done.dry_run else ''}{'replaced by' if done.replaces else 'restored to'}"
    say(f"{done.into} {how} the state of {instant(done.instant)}, event {done.position:,}")
    say(f"{counted(sum(done.rows.values()), 'row')} from {parts}, {size(done.size)}, at revision {done.revision}")
    if not done.exact:
        say("That is the last state before the one asked for")
    for later in done.passed_over:
        say(f"{later} is later, but not encrypted with this key: name it by its id if it is to be restored")
    if not done.encrypted and _key(key_file) is not None:
        say("It is not encrypted: nothing proves that it was made with this key")


@app.command()
def prune(
    store: Address = SWARM,
    place: From = None,
    keep: Keep = 0,
    hourly: Hourly = 0,
    daily: Daily = 0,
    weekly: Weekly = 0,
    monthly: Monthly = 0,
    yearly: Yearly = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell which would be removed.")] = False,
    key_file: KeyFile = None,
    json: AsJson = False,
) -> None:
    """Remove old backups: all but those that an option keeps, and what these add to."""
    retention = _retention(keep, hourly, daily, weekly, monthly, yearly)
    if retention is None:
        raise InvalidValue("it was not said what to keep", hint="Give --keep, --hourly, --daily, --weekly, --monthly or --yearly")
    done = _kept(store, place, key_file).prune(retention, dry_run=dry_run)
    if json:
        print_json(done)
        return
    for id in done.removed:
        say(id)
    for id in done.broken:
        typer.echo(f"{id} is not whole and was left alone: ruv-swarm backup verify says why", err=True)
    left = len(done.kept) + len(done.needed)
    say(f"{counted(len(done.removed), 'backup')} {'would be ' if done.dry_run else ''}removed, {size(done.size)}, and {left:,} kept")


@app.command()
def delete(
    id: Annotated[str, typer.Argument(metavar="ID", show_default=False, help="Which backup.")],
    store: Address = SWARM,
    place: From = None,
    key_file: KeyFile = None,
) -> None:
    """Remove one backup, also one that is damaged or of a lost key, unless others add to it."""
    _kept(store, place, key_file).delete(id)
    say(f"{id} was removed")


@app.command()
def schedule(
    every: Annotated[str, typer.Option(metavar="TIME", show_default=False, help="How often: 90s, 15min, 6h, 1d.")],
    store: Address = SWARM,
    full_every: Annotated[int, typer.Option(min=1, metavar="N", help="One of so many is a full one; the others are increments.")] = 24,
    keep: Keep = 0,
    hourly: Hourly = 0,
    daily: Daily = 0,
    weekly: Weekly = 0,
    monthly: Monthly = 0,
    yearly: Yearly = 0,
    to: To = None,
    compression: Compressed = None,
    key_file: KeyFile = None,
) -> None:
    """Make backups at intervals until Ctrl-C, and remove old ones if an option says what to keep.

    Started again, it goes on from the newest.
    """
    retention = _retention(keep, hourly, daily, weekly, monthly, yearly)
    interval = _seconds(every)
    _log()
    with (
        _of_store(store, to, key_file, compression) as backups,
        stop_signals() as stop,
        backups.schedule(interval, full_every=full_every, keep=retention) as running,
    ):
        say(f"A backup every {span(round(interval * 1000))} to {backups.storage!r}, until Ctrl-C")
        made = 0
        while stop.signal is None:
            if running.made > made and (newest := backups.newest()) is not None:
                made = running.made
                say(_tell(newest))
            sys.stdout.flush()
            time.sleep(_LOOK)


@app.command()
def continuous(
    store: Address = SWARM,
    interval: Annotated[float, typer.Option(min=0.01, metavar="SECONDS", help="How often to ship.")] = 0.3,
    to: To = None,
    compression: Compressed = None,
    key_file: KeyFile = None,
) -> None:
    """Ship every change within moments of its commit, until Ctrl-C; what is left is shipped then."""
    _log()
    with _of_store(store, to, key_file, compression) as backups, stop_signals() as stop:
        with backups.continuous(interval) as shipping:
            say(f"Shipping every {interval:g} s to {backups.storage!r}, until Ctrl-C")
            sys.stdout.flush()
            told = None
            while stop.signal is None:
                failure = shipping.status().failure
                if failure is not None and failure.message != told:
                    log.warning("changes could not be shipped: %s", failure)
                told = failure and failure.message
                time.sleep(_LOOK)
        status = shipping.status()
    sent = f"{counted(status.backups, 'backup')} and {counted(status.segments, 'segment')} of {size(status.bytes)}"
    until = "" if status.shipped is None else f": everything up to {instant(status.shipped.instant)}, event {status.shipped.position:,}"
    say(f"Shipped {sent}{until}")


def _log() -> None:
    """Lets what fails in the background be seen."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)


_UNITS = {"": 1, "s": 1, "min": 60, "h": 3_600, "d": 86_400}


def _seconds(text: str) -> float:
    """A length of time as `span` prints it. Raises `InvalidValue`."""
    found: Any = re.fullmatch(r"(\d+(?:\.\d+)?) ?(s|min|h|d|)", text.strip())
    if found is None:
        raise InvalidValue(f"{text!r} is no length of time", hint="Give one such as 90s, 15min, 6h or 1d")
    return float(found[1]) * _UNITS[found[2]]
