"""Waiting for a ready task: coroutines that would claim the same are looked for together."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Iterable, Sequence

from ruv_swarm_store.engines import Scope
from ruv_swarm_store.tasks import claims


class Waiter:
    """An agent that waits for a task of some types, or of any."""

    __slots__ = ("_deadline", "_rescue", "_scope", "agent", "key", "types")

    key: Hashable

    def __init__(self, scope: Scope, rescue: Callable[[], object], agent: str, types: Sequence[str] | None, deadline: float | None) -> None:
        """`deadline` is when it gives up, in seconds of the monotonic clock."""
        self._scope, self._rescue, self._deadline = scope, rescue, deadline
        self.agent, self.types = agent, types
        self.key = ("tasks", None if types is None else frozenset(types))

    @property
    def seconds(self) -> float | None:
        """How long it waits yet; None for ever."""
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 0)

    def look(self, group: Sequence[Waiter], tick: bool) -> tuple[Iterable[int], float]:
        """The places of as many as there are ready tasks, and of those whose agents have ended; when the next task comes due."""
        if tick:
            self._rescue()
        with self._scope.read() as run:
            found = claims.look(run, None, self.types)
            ready = claims.ready(run, self.types, len(group)) if found.ready else 0
            gone = self._gone(group, claims.living(run, [waiter.agent for waiter in group])) if tick else []
            due = math.inf if found.next_due is None else (found.next_due - run.now) / 1000
        # What has come due is promoted by the claim of the one that is woken for it; that is a change, after which is looked again.
        return {*range(max(ready, int(found.due))), *gone} & set(range(len(group))), math.inf if found.due else due

    @staticmethod
    def _gone(group: Sequence[Waiter], living: set[str]) -> list[int]:
        return [place for place, waiter in enumerate(group) if waiter.agent not in living]
