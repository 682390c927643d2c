"""Removing what has been finished for long: whole trees, in small transactions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, exists, or_, select

from ruv_swarm_store import codec, schema
from ruv_swarm_store.engines import Scope, number_items, parameter
from ruv_swarm_store.errors import Conflict
from ruv_swarm_store.schema import OPEN
from ruv_swarm_store.tasks.rows import c, dependencies, final, number, unfinished

PAGE = 200
"""How many roots are looked at in one go."""
BATCH = 500
"""Most tasks removed in one transaction."""

_before: Any = parameter("before", schema.Int64)
_member, _other = schema.tasks.alias("member"), schema.tasks.alias("other")
_ROOTS = (
    select(c.completed_at, c.position)
    .where(
        final,
        c.parent_task_id.is_(None),
        c.completed_at <= _before,
        or_(
            c.completed_at > parameter("seen_at", schema.Int64),
            and_(c.completed_at == parameter("seen_at", schema.Int64), c.position > parameter("seen", schema.Int64)),
        ),
    )
    .order_by(c.completed_at, c.position)
    .limit(number(str(PAGE)))
)
_start = select(c.position.label("root"), c.id.label("id"), c.position.label("position")).where(c.position.in_(number_items("roots")))
_trees = _start.cte("trees", recursive=True)
_trees = _trees.union_all(select(_trees.c.root, _member.c.id, _member.c.position).join(_trees, _member.c.parent_task_id == _trees.c.id))


def _needed(id: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether something unfinished depends on a task."""
    edges = schema.task_dependencies.join(_other, _other.c.id == dependencies.task_id)
    return exists(select(_other.c.id).select_from(edges).where(dependencies.depends_on_id == id, _other.c.status.in_(OPEN)))


_lasting = select(_trees.c.root).join(_member, _member.c.position == _trees.c.position).where(
    or_(_member.c.status.in_(OPEN), _member.c.completed_at > _before, _needed(_trees.c.id))
)  # fmt: skip
# Children before their parents: a tree larger than a batch is taken down from its leaves.
_REMOVABLE = (
    select(_trees.c.root, _trees.c.position).where(_trees.c.root.not_in(_lasting)).order_by(_trees.c.root, _trees.c.position.desc())
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
            found = run.all(_REMOVABLE, {"roots": codec.encode([position for _, position in roots]), "before": before}) if roots else ()
        kept: set[int] = set()
        for start in range(0, len(found), BATCH):
            removed += _remove(scope, found[start : start + BATCH], before, kept)
        if len(roots) < PAGE:
            return removed
        seen = (roots[-1][0], roots[-1][1])


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
