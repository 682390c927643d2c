"""Out of the queue: claims, what is ready for them, and the promotion of what has come due."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any

from msgspec import Struct
from sqlalchemy import ColumnElement, Executable, and_, exists, false, func, not_, null, or_, select, true, update
from sqlalchemy.sql.selectable import CTE

from ruv_swarm_store import codec, schema
from ruv_swarm_store.engines import Executor, number_items, parameter, text_items, text_rows
from ruv_swarm_store.entities import AgentStatus, Task, TaskStatus
from ruv_swarm_store.errors import InvalidTransition, InvalidValue, NotFound
from ruv_swarm_store.tasks import limits, relations, schedules
from ruv_swarm_store.tasks.rows import TASKS, among, best_first, c, changed, due, now, number, pending, picked, status

log = logging.getLogger(__name__)

PROMOTION_BATCH = 500
"""Most due tasks moved into the queue at a time."""
ATTEMPTS = 5
"""How often a claim looks again when what is ready slips away under others' locks."""

_batch = number(str(PROMOTION_BATCH))
_one = number("1")
_pauses = schema.task_pauses.c
_agents = schema.agents.c
_agent = _agents.id == parameter("agent")
# Held, so that whoever ends the agent meanwhile waits, and then finds this task among the agent's.
_agent_lives = exists(select(_agents.id).where(_agent, _agents.status != AgentStatus.TERMINATED).with_for_update(read=True))
# A due task must not be passed over: while there is one the claim matches nothing, and the slow way promotes it first.
# The earliest is compared rather than any looked for: how many are due a planner guesses, and then reads the whole table.
_earliest_due = select(func.min(c.run_at)).where(c.status == TaskStatus.SCHEDULED).scalar_subquery()
_nothing_due = func.coalesce(_earliest_due > now, true())
_something_due = func.coalesce(_earliest_due <= now, false())
_nothing_paused = not_(exists(select(_pauses.type)))
_not_paused = not_(exists(select(_pauses.type).where(_pauses.type == parameter("type"))))
_of_type = and_(pending, c.type == parameter("type"))

_ASSIGNED: dict[str, Any] = {
    "status": status(TaskStatus.ASSIGNED),
    "agent_id": parameter("agent"),
    "assigned_at": now,
    "started_at": null(),
    "lease_expires_at": parameter("expires"),
    "fence": c.fence + number("1"),
}


def _ready(which: ColumnElement[bool], limit: Any) -> Any:
    """The positions of the best ready tasks that nobody else is taking."""
    return select(c.position).where(which).order_by(*best_first).limit(limit).with_for_update(skip_locked=True, key_share=True)


def _claim(position: Any, *guards: ColumnElement[bool]) -> Executable:
    return changed(c.position == position, _agent_lives, *guards, **_ASSIGNED)


def _claim_batch(rows: CTE, *guards: ColumnElement[bool]) -> Executable:
    return changed(among(rows), _agent_lives, *guards, **_ASSIGNED)


def _best_of_types() -> Any:
    """The best of the best of each type."""
    types = text_rows("types")
    other = schema.tasks.alias("candidate")
    head = (
        select(other.c.position)
        .where(other.c.status == TaskStatus.PENDING, other.c.type == types.c.value)
        .order_by(other.c.priority.desc(), other.c.position)
        .limit(_one)
        .with_for_update(skip_locked=True, key_share=True)
        .correlate(types)
        .scalar_subquery()
    )
    heads = picked(
        select(head.label("position")).select_from(types).where(not_(exists(select(_pauses.type).where(_pauses.type == types.c.value)))),
        "heads",
    )
    return select(c.position).where(among(heads)).order_by(*best_first).limit(_one).scalar_subquery()


CLAIM_ANY = _claim(_ready(pending, _one).scalar_subquery(), _nothing_due, _nothing_paused)
CLAIM_TYPE = _claim(_ready(_of_type, _one).scalar_subquery(), _nothing_due, _not_paused)
CLAIM_TYPES = _claim(_best_of_types(), _nothing_due)
_limit = parameter("limit", schema.Int64)


class Batches:
    """A claim of up to `limit` tasks, whose statement also says a power of two that `limit` does not exceed.

    Of a parameter a planner assumes the worst, a tenth of the table; PostgreSQL would plan anew for every value to better that, which
    takes a third of a claim's time.
    """

    def __init__(self, which: ColumnElement[bool], *guards: ColumnElement[bool]) -> None:
        self._which, self._guards = which, guards
        self._statements: dict[int, Executable] = {}

    def __getitem__(self, limit: int) -> Executable:
        power = min((limit - 1).bit_length(), 62)
        if power not in self._statements:
            ready = _ready(self._which, number(str(1 << power))).subquery("ready")
            self._statements.setdefault(power, _claim_batch(picked(select(ready.c.position).limit(_limit)), *self._guards))
        return self._statements[power]


CLAIM_BATCH = Batches(pending, _nothing_due, _nothing_paused)
CLAIM_BATCH_OF_TYPE = Batches(_of_type, _nothing_due, _not_paused)

# The slow way, in a transaction: promote, then claim, whatever is due or paused.
_TAKE = Batches(pending, _nothing_paused)
_candidates = select(c.priority, c.position).where(_of_type).order_by(*best_first).limit(_limit)
_CANDIDATES = _candidates.with_for_update(skip_locked=True, key_share=True)
_TAKE_THESE = changed(pending, _agent_lives, c.position.in_(number_items("positions")), **_ASSIGNED)

_plain = and_(due, c.concurrency_key.is_(None), c.schedule.is_(None))


def _promote(which: ColumnElement[bool]) -> Executable:
    rows = select(c.position).where(which).order_by(c.run_at).limit(_batch).with_for_update(skip_locked=True, key_share=True)
    return update(schema.tasks).where(among(picked(rows))).values(status=status(TaskStatus.PENDING), version=c.version + number("1"))


_PROMOTE = _promote(_plain)
_PROMOTE_TYPES = _promote(and_(_plain, c.type.in_(text_items("types"))))
_earliest = select(c.position, c.concurrency_key, c.schedule, c.fence).where(due).order_by(c.run_at).limit(_batch).subquery("earliest")
_DUE_WITH_CARE = select(_earliest).where(or_(_earliest.c.concurrency_key.is_not(None), _earliest.c.schedule.is_not(None)))
_PROMOTE_THESE = changed(due, c.position.in_(number_items("positions")), c.concurrency_key.is_(None), status=status(TaskStatus.PENDING))
_HOLD_BACK_THESE = changed(
    due, c.position.in_(number_items("positions")), c.concurrency_key.is_not(None), status=status(TaskStatus.BLOCKED)
)

_agent_status = select(_agents.status).where(_agent).scalar_subquery()
_wanted = text_rows("types")
_unpaused = select(_wanted.c.value).where(not_(exists(select(_pauses.type).where(_pauses.type == _wanted.c.value))))
_LOOK = select(_agent_status, _something_due, exists().where(pending), exists(select(_pauses.type)), _earliest_due)
_LOOK_FOR = select(
    _agent_status,
    _something_due,
    exists().where(pending, c.type.in_(_unpaused)),
    exists(select(_pauses.type)).label("paused"),
    _earliest_due,
)
_PAUSED = select(_pauses.type).order_by(_pauses.type)
_COUNT = select(func.count()).select_from(select(c.position).where(pending).limit(_limit).subquery())
_COUNT_OF = select(func.count()).select_from(select(c.position).where(pending, c.type.in_(_unpaused)).limit(_limit).subquery())
_LIVING = select(_agents.id).where(_agents.id.in_(text_items("agents")), _agents.status != AgentStatus.TERMINATED)

# The types there are ready tasks of, one step along the index for each, however many tasks there are.
_types = select(func.min(c.type).label("type")).where(pending).cte("ready", recursive=True)
_types = _types.union_all(
    select(select(func.min(c.type)).where(pending, c.type > _types.c.type).scalar_subquery()).where(_types.c.type.is_not(None))
)
_UNPAUSED_TYPES = select(_types.c.type).where(
    _types.c.type.is_not(None), not_(exists(select(_pauses.type).where(_pauses.type == _types.c.type)))
)


class Look(Struct, frozen=True):
    """What there is for an agent."""

    due: bool
    ready: bool
    next_due: int | None


def look(run: Executor, agent: str | None, types: Sequence[str] | None) -> Look:
    """What there is for an agent, or for any, without writing. Raises for an agent that cannot claim."""
    params = {"agent": agent, "now": run.now, "types": codec.encode(types)}
    found = run.one(_LOOK if types is None else _LOOK_FOR, params)
    assert found is not None
    state, due_, ready, paused, next_due = found
    if state is None and agent is not None:
        raise NotFound(f"no agent {agent!r}", hint="Register it before it claims", id=agent)
    if state == AgentStatus.TERMINATED:
        raise InvalidTransition(f"agent {agent!r} is terminated and can claim nothing", hint="Register it again first")
    if types is None and paused and ready:
        ready = bool(run.all(_UNPAUSED_TYPES))
    return Look(bool(due_), bool(ready), next_due)


def ready(run: Executor, types: Sequence[str] | None, most: int) -> int:
    """How many tasks of these types, or of any, are ready and not paused; counted up to `most`."""
    if types is None:
        types = [type for (type,) in run.all(_UNPAUSED_TYPES)] if run.all(_PAUSED) else None
    found = run.one(_COUNT if types is None else _COUNT_OF, {"limit": most, "types": codec.encode(types)})
    return 0 if found is None else int(found[0])


def living(run: Executor, agents: Iterable[str]) -> set[str]:
    """Which of these agents can claim."""
    return {agent for (agent,) in run.all(_LIVING, {"agents": codec.encode(list(agents))})}


def promote(run: Executor, types: Sequence[str] | None = None) -> None:
    """Moves tasks that have come due into the queue: a batch of these types, and one of any."""
    if types is not None:
        run.run(_PROMOTE_TYPES, {"types": codec.encode(types), "now": run.now})
    run.run(_PROMOTE, {"now": run.now})
    special = run.all(_DUE_WITH_CARE, {"now": run.now})
    if special and not schedules.available():
        # Whoever takes a schedule's occurrence must know the one after it: that is left to others. A retry has none.
        special = [row for row in special if row[2] is None or row[3]]
    if not special:
        return
    limits.hold(run, [row[1] for row in special])
    relations.hold_schedules(run, [row[2] for row in special])
    params = {"positions": codec.encode([row[0] for row in special]), "now": run.now}
    promoted = TASKS.load_all(run.all(_PROMOTE_THESE, params), lambda error: log.error("%s", error))
    promoted += TASKS.load_all(run.all(_HOLD_BACK_THESE, params), lambda error: log.error("%s", error))
    schedules.follow(run, [(task.schedule, task.fence, task.run_at) for task in promoted], ran=True)
    limits.balance(run, [task.concurrency_key for task in promoted])


def take(run: Executor, agent: str, limit: int, types: Sequence[str] | None, expires: int) -> list[Task]:
    """Claims the slow way: what has come due is promoted first, and paused types are left out."""
    promote(run, types)
    params: dict[str, Any] = {"agent": agent, "limit": limit, "now": run.now, "expires": expires}
    if types is None:
        if rows := run.all(_TAKE[limit], params):
            return in_order(rows)
        wanted = [type for (type,) in run.all(_UNPAUSED_TYPES)] if run.all(_PAUSED) else []
    else:
        paused = {type for (type,) in run.all(_PAUSED)}
        wanted = [type for type in types if type not in paused]
    found = [row for type in wanted for row in run.all(_CANDIDATES, {"type": type, "limit": limit})]
    best = [position for _, position in sorted(found, key=lambda row: (-row[0], row[1]))[:limit]]
    return in_order(run.all(_TAKE_THESE, {**params, "positions": codec.encode(best)})) if best else []


def in_order(rows: Iterable[Sequence[Any]]) -> list[Task]:
    """Claimed tasks, best first."""
    tasks = sorted(TASKS.load_all(list(rows)), key=attrgetter("position"))
    tasks.sort(key=attrgetter("priority"), reverse=True)  # equal ones stay in order
    return tasks


def check_types(types: Iterable[str] | None) -> Sequence[str] | None:
    """A list of task types without repetitions, or None for any."""
    if types is None:
        return None
    if isinstance(types, str):
        raise InvalidValue(f"types is the string {types!r}", hint="Give a list of task types")
    wanted = list(dict.fromkeys(codec.text(type, "task type") for type in types))
    if not wanted:
        raise InvalidValue("types is empty", hint="Leave it out to claim tasks of any type")
    return wanted
