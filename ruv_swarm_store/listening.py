"""Waiting for messages: coroutines that wait, each for an inbox, are looked for together."""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Iterable, Sequence

from ruv_swarm_store import inboxes
from ruv_swarm_store.engines import Scope

LOOK_AROUND = 10.0
"""Seconds after which whoever listens looks for itself all the same."""
MOST = 1_000
"""New messages that are looked through; when there are more, everybody looks for itself."""


class Listener:
    """An agent that waits for messages on a topic, on those of a pattern, or on any."""

    __slots__ = ("_deadline", "_scope", "after", "agent", "topic")

    key: Hashable = "messages"

    def __init__(self, scope: Scope, agent: str, topic: str, after: int, deadline: float | None) -> None:
        """Of messages up to the position `after` it knows; `deadline` is when it gives up, in seconds of the monotonic clock."""
        self._scope, self._deadline = scope, deadline
        self.agent, self.topic, self.after = agent, topic, after

    @property
    def seconds(self) -> float:
        """How long it listens before it looks for itself."""
        return LOOK_AROUND if self._deadline is None else min(LOOK_AROUND, max(self._deadline - time.monotonic(), 0))

    def look(self, group: Sequence[Listener], tick: bool) -> tuple[Iterable[int], float]:
        """The places of those for whom there may be something new, or whose agents are gone; when a message comes again."""
        places: dict[str, list[int]] = {}
        for place, listener in enumerate(group):
            places.setdefault(listener.agent, []).append(place)
        with self._scope.read() as run:
            now = run.now
            news = inboxes.news(run, min(listener.after for listener in group), list(places), MOST)
            coming = inboxes.coming(run, list(places))
            gone = places.keys() - inboxes.present(run, list(places)) if tick else ()
        if len(news) == MOST:
            return range(len(group)), math.inf
        woken = {place for agent in gone for place in places[agent]}
        for position, topic, agents in news:
            reached = range(len(group)) if agents is None else (place for agent in agents for place in places.get(agent, ()))
            woken.update(place for place in reached if group[place].after < position and inboxes.concerns(group[place].topic, topic))
        due = math.inf
        for agent, topic, visible_at in coming:
            concerned = [place for place in places[agent] if inboxes.concerns(group[place].topic, topic)]
            if visible_at <= now:
                woken.update(concerned)
            elif concerned:
                due = min(due, (visible_at - now) / 1000)
        if news:
            for place, listener in enumerate(group):
                if place not in woken:
                    listener.after = news[-1][0]
        return woken, due
