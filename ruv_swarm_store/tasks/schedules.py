"""Recurring tasks: each schedule's next occurrence stands among the scheduled tasks, and brings forth the following one.

That happens in the transaction that ends the waiting of the first, whoever's it is, so claims pay nothing for schedules.
Occurrences missed while nobody looked are not made up for: the following one is counted from the present.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from datetime import UTC, datetime, tzinfo
from functools import cache, lru_cache
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from msgspec import structs
from sqlalchemy import delete, select, update

from ruv_swarm_store import codec, schema
from ruv_swarm_store.clock import new_id
from ruv_swarm_store.engines import Executor, parameter, upsert
from ruv_swarm_store.entities import Schedule, TaskStatus
from ruv_swarm_store.errors import InvalidValue, Unsupported
from ruv_swarm_store.tasks.new import ADD_RELATED, Checked
from ruv_swarm_store.tasks.rows import SCHEDULES, c, changed, now, number

_s = schema.task_schedules.c
_mine = _s.name == parameter("name_")
ALL = select(*SCHEDULES.columns).order_by(_s.name)
_FIND = select(*SCHEDULES.columns).where(_mine).with_for_update(key_share=True)
_GIVEN = ("type", "payload", "cron", "timezone", "priority", "max_retries", "concurrency_key", "paused_at")
_values: dict[str, Any] = {name: parameter(f"{name}_", _s[name].type) for name in (*_GIVEN, "next_run_at")}
_PUT = upsert(
    schema.task_schedules,
    {**_values, "name": parameter("name_"), "created_at": now, "version": number("1")},
    on=["name"],
    update={**_values, "version": _s.version + number("1")},
    returning=SCHEDULES.columns,
)
_MOVE_ON = (
    update(schema.task_schedules)
    .where(_mine, _s.next_run_at == parameter("due_", schema.Int64))
    .values(next_run_at=parameter("next_", schema.Int64), last_run_at=parameter("last_", schema.Int64), version=_s.version + number("1"))
)
_DELETE = delete(schema.task_schedules).where(_mine)
_waiting = (
    c.schedule == parameter("name_"),
    c.schedule.is_not(None),
    c.status == TaskStatus.SCHEDULED,
    c.fence == number("0"),
    c.run_at == parameter("due_", schema.Int64),
)
"""The occurrence that is still to come: a retry of an earlier one has been claimed."""
_WAITING = select(c.id).where(*_waiting)
_REPLACE = changed(
    *_waiting,
    type=parameter("type_"),
    payload=parameter("payload_", schema.Json()),
    priority=parameter("priority_"),
    max_retries=parameter("max_retries_"),
    concurrency_key=parameter("concurrency_key_"),
    run_at=parameter("next_run_at_", schema.Int64),
)


@cache
def available() -> bool:
    """Whether cron expressions can be read here."""
    return importlib.util.find_spec("cronsim") is not None


@lru_cache(256)
def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InvalidValue(
            f"timezone is {name!r}, which is not known here", hint="Use a name like 'Europe/Berlin'; where none is known, install tzdata"
        ) from None


def following(cron: str, timezone: str, after: int) -> int | None:
    """The first time of a cron expression later than `after`, in milliseconds since the epoch; None when there is none."""
    try:
        from cronsim import CronSim, CronSimError
    except ImportError as error:
        raise Unsupported("cron expressions cannot be read here", hint="pip install 'ruv-swarm-store[cron]'") from error
    zone = _zone(timezone)
    try:
        for occurrence in CronSim(cron, datetime.fromtimestamp(after / 1000, zone)):
            # When clocks are set back, an hour comes twice: what ran in its first turn is over.
            if (at := round(occurrence.timestamp() * 1000)) > after:
                return at
    except CronSimError as error:
        raise InvalidValue(f"cron is {cron!r} ({error})", hint="Give five fields, such as '30 2 * * MON'") from None
    except (OverflowError, ValueError):
        return None  # beyond the last year there is
    return None


def find(run: Executor, name: str) -> Schedule | None:
    """A schedule, which nobody else changes until the transaction ends."""
    row = run.one(_FIND, {"name_": name})
    return None if row is None else SCHEDULES.load(row)


def declare(run: Executor, wanted: Schedule) -> Schedule:
    """Stores what is given of a schedule; one that is paused stays so. Returns it as it is then."""
    run.lock(f"task_schedules:{wanted.name}")
    found = find(run, wanted.name)
    if found is None:
        return _put(run, wanted, None)
    wanted = structs.replace(wanted, paused_at=found.paused_at)
    if all(getattr(found, name) == getattr(wanted, name) for name in _GIVEN):
        return found
    return _put(run, wanted, found)


def resume(run: Executor, found: Schedule) -> Schedule:
    """Lets a schedule go on from the present."""
    return _put(run, structs.replace(found, paused_at=None), found)


def pause(run: Executor, found: Schedule) -> Schedule:
    """Stops a schedule; its waiting occurrence is for the caller to cancel."""
    return _put(run, structs.replace(found, paused_at=run.now), found)


def _put(run: Executor, wanted: Schedule, found: Schedule | None) -> Schedule:
    """Stores a schedule; unless it is paused or over, it has one waiting occurrence afterwards."""
    next_run_at = None if wanted.paused_at is not None else following(wanted.cron, wanted.timezone, run.now)
    values = dict(zip(SCHEDULES.fields, SCHEDULES.dump(structs.replace(wanted, next_run_at=next_run_at)), strict=True))
    params: dict[str, Any] = {f"{name}_": values[name] for name in ("name", *_GIVEN, "next_run_at")}
    row = run.one(_PUT, {**params, "now": run.now})
    assert row is not None
    schedule = SCHEDULES.load(row)
    if next_run_at is not None:
        replaced = None
        if found is not None and found.next_run_at is not None:
            replaced = run.one(_REPLACE, {**params, "due_": found.next_run_at})
        if replaced is None:
            _add(run, schedule)
    return schedule


def remove(run: Executor, name: str) -> None:
    """Removes a schedule; its waiting occurrence is for the caller to cancel."""
    run.run(_DELETE, {"name_": name})


def waiting(run: Executor, schedule: Schedule) -> list[str]:
    """The id of the occurrence that is still to come, if there is one."""
    if schedule.next_run_at is None:
        return []
    return [id for (id,) in run.all(_WAITING, {"name_": schedule.name, "due_": schedule.next_run_at})]


def follow(run: Executor, occurrences: Iterable[tuple[str | None, int, int | None]], *, ran: bool) -> None:
    """Adds the following occurrence for each of these that was its schedule's next and waits no longer.

    Each is given as its schedule's name, its fence and its time; tasks of no schedule are passed over.
    """
    for name, fence, run_at in occurrences:
        if name is None or fence or run_at is None:
            continue
        schedule = find(run, name)
        if schedule is None or schedule.next_run_at != run_at:
            continue
        next_run_at = following(schedule.cron, schedule.timezone, max(run.now, run_at))
        last = run_at if ran else schedule.last_run_at
        if run.run(_MOVE_ON, {"name_": name, "due_": run_at, "next_": next_run_at, "last_": last}) and next_run_at is not None:
            _add(run, structs.replace(schedule, next_run_at=next_run_at))


def _add(run: Executor, schedule: Schedule) -> None:
    new = Checked(
        schedule.type,
        schedule.payload,
        codec.encode(schedule.payload),
        schedule.priority,
        schedule.max_retries,
        plain=False,
        run_at=schedule.next_run_at,
        concurrency_key=schedule.concurrency_key,
        schedule=schedule.name,
    )
    run.insert(ADD_RELATED, new.related_row(run.now, new_id(run.now)))
