"""Removing what has been finished for long: whole trees, in small transactions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, exists, or_, select

from ruv_swarm_store import codec, schema
from ruv_swarm_store.engines import Executor, Scope, number_items, parameter, text_items
from ruv_swarm_store.errors import Conflict
from ruv_swarm_store.schema import OPEN
from ruv_swarm_store.tasks.rows import c, dependencies, final, number, unfinished

PAGE = 200
"""How many roots are looked at in one go."""
BATCH = 500
"""Most tasks removed in one transaction."""

_before: Any = parameter("before", schema.Int64)
_other = schema.tasks.alias("other")
_ROOTS = (
    select(c.completed_at, c.position, c.id, c.awaited)
    .where(
        final,
        c.parent_task_id.is_(None),
        c.completed_at <= _before,
        c.completed_at >= parameter("seen_at", schema.Int64),
        or_(
            c.completed_at > parameter("seen_at", schema.Int64),
            and_(c.completed_at == parameter("seen_at", schema.Int64), c.position > parameter("seen", schema.Int64)),
        ),
    )
    .order_by(c.completed_at, c.position)
    .limit(number(str(PAGE)))
)


def _needed(id: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether something unfinished depends on a task."""
    edges = schema.task_dependencies.join(_other, _other.c.id == dependencies.task_id)
    return exists(select(_other.c.id).select_from(edges).where(dependencies.depends_on_id == id, _other.c.status.in_(OPEN)))


# A tree is looked at level by level: a planner without statistics makes too much of one recursive statement.
_over = and_(final, c.completed_at <= _before)
_CHILDREN = select(c.id, c.position, c.awaited, c.parent_task_id, _over).where(c.parent_task_id.in_(text_items("ids")))
_NEEDED = (
    select(dependencies.depends_on_id)
    .select_from(schema.task_dependencies.join(_other, _other.c.id == dependencies.task_id))
    .where(dependencies.depends_on_id.in_(text_items("ids")), _other.c.status.in_(OPEN))
)
_these = c.position.in_(number_items("positions"))
_HELD = select(c.position).where(_these).order_by(c.position)
_NO_LONGER = select(c.position).where(_these, or_(unfinished, c.completed_at > _before, _needed(c.id)))
_FORGET = delete(schema.task_dependencies).where(dependencies.depends_on_id.in_(select(c.id).where(_these)))
_REMOVE = delete(schema.tasks).where(_these)


def prune(scope: Scope, before: int) -> int:
    """Removes every tree of tasks that were all finished by `before`, unless something unfinished depends on one; how many tasks."""
    removed = 0
    seen = (-(2**63), -(2**63))
    while True:
        with scope.read() as run:
            roots = run.all(_ROOTS, {"before": before, "seen_at": seen[0], "seen": seen[1]})
            found = _removable(run, [row[1:] for row in roots], before)
        kept: set[int] = set()
        for start in range(0, len(found), BATCH):
            removed += _remove(scope, found[start : start + BATCH], before, kept)
        if len(roots) < PAGE:
            return removed
        seen = (roots[-1][0], roots[-1][1])


def _removable(run: Executor, roots: Sequence[Sequence[Any]], before: int) -> list[tuple[int, int]]:
    """The tasks of those trees that can go, as pairs of root and position, children before their parents.

    A tree may be larger than a batch: it is taken down from its leaves.
    """
    found: dict[int, list[int]] = {position: [position] for position, _, _ in roots}
    root_of = {id: position for position, id, _ in roots}
    level = list(root_of)
    awaited = [id for _, id, awaited in roots if awaited]
    while level:
        children = run.all(_CHILDREN, {"ids": codec.encode(level), "before": before})
        level = []
        for id, position, waited_for, parent, over in children:
            root = root_of[id] = root_of[parent]
            if not over:
                found.pop(root, None)
            if root in found:
                found[root].append(position)
                level.append(id)
                awaited += [id] if waited_for else []
    if awaited:
        for (id,) in run.all(_NEEDED, {"ids": codec.encode(awaited)}):
            found.pop(root_of[id], None)
    return [(root, position) for root, positions in found.items() for position in sorted(positions, reverse=True)]


def _remove(scope: Scope, found: Sequence[Sequence[int]], before: int, kept: set[int]) -> int:
    """Removes these tasks, given as pairs of root and position, but those whose root is or becomes one of the `kept`."""
    wanted = [row for row in found if row[0] not in kept]
    try:
        with scope.transaction() as run:
            params = {"positions": codec.encode([position for _, position in wanted]), "before": before}
            run.hold(_HELD, params)
            if changed := {position for (position,) in run.all(_NO_LONGER, params)}:
                kept.update(root for root, position in wanted if position in changed)
                wanted = [row for row in wanted if row[0] not in kept]
                params["positions"] = codec.encode([position for _, position in wanted])
            run.run(_FORGET, params)
            return run.run(_REMOVE, params)
    except Conflict:
        # Somebody has just put a task below one of these, or made one depend on it.
        roots = list(dict.fromkeys(root for root, _ in wanted))
        if len(roots) < 2:
            kept.update(roots)
            return 0
        return sum(_remove(scope, [row for row in wanted if row[0] == root], before, kept) for root in roots)
