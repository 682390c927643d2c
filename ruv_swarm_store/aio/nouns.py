"""The nouns of a store with verbs to await."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ruv_swarm_store.agents import Agents
from ruv_swarm_store.aio.crew import Undo
from ruv_swarm_store.aio.deriving import UNKNOWN, Recipe, derive
from ruv_swarm_store.cache import CachedRepository
from ruv_swarm_store.config import CachedConfig, Config
from ruv_swarm_store.entities import Message, Task
from ruv_swarm_store.errors import StoreError
from ruv_swarm_store.events import Claim, ConsumerGroup, Events, Projector, Subscription
from ruv_swarm_store.groups import Groups
from ruv_swarm_store.journal import Journal
from ruv_swarm_store.messages import Messages
from ruv_swarm_store.metrics import Metrics
from ruv_swarm_store.metrics.buffer import Buffer
from ruv_swarm_store.query import Query
from ruv_swarm_store.repository import Repository
from ruv_swarm_store.tasks import Tasks

# What somebody has taken who was cancelled meanwhile nobody else would get before its lease has run out; and what was acknowledged never.


def _release_task(tasks: Tasks, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Undo:
    def release(taken: Task | Sequence[Task] | None) -> None:
        tasks.release_many([taken] if isinstance(taken, Task) else taken or ())

    return release


def _release_messages(messages: Messages, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Undo:
    agent: Any = args[0] if args else kwargs.get("agent")

    def release(taken: Sequence[Message]) -> None:
        for message in taken:
            with suppress(StoreError):
                messages.release(message, agent)

    return release


def _reopen_answer(messages: Messages, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Undo:
    def reopen(answer: Message | None) -> None:
        if answer is not None and answer.to_agent is not None:
            messages._reopen(answer, answer.to_agent)

    return reopen


def _release_claims(group: ConsumerGroup, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Undo:
    def release(taken: Sequence[Claim]) -> None:
        for claim in taken:
            with suppress(StoreError):
                group.release(claim)

    return release


AsyncQuery = derive(
    Recipe(
        of=Query,
        lane="reading",
        reads=("pages",),
        plain=("where", "order_by", "limit"),
        holds={"statement": "Select[*tuple[Any, ...]]"},
    )
)
_ROW = {
    "find_by_id": lambda row: row,
    "get": lambda row: UNKNOWN if row is None else row,  # whoever looks for it tells what is wrong
    "exists": lambda row: row is not None,
}
_IN_MEMORY = ("peek", "invalidate", "clear", "stats", "close")
AsyncCachedRepository = derive(Recipe(of=CachedRepository, lane="reading", plain=_IN_MEMORY, keeps=_ROW, holds={"name": "str"}))
AsyncCachedConfig = derive(
    Recipe(
        of=CachedConfig,
        lane="reading",
        keeps={"get": lambda row, default=None: default if row is None else row.value, "entry": lambda row: row},
    ),
    AsyncCachedRepository,
)
AsyncSubscription = derive(Recipe(of=Subscription, asks=("position",), reads=("consumer", "lag")))
AsyncConsumerGroup = derive(
    Recipe(
        of=ConsumerGroup,
        asks=("position",),
        reads=("consumer", "lag", "parked"),
        undo={"claim": _release_claims, "wait": _release_claims},
    )
)
AsyncProjector = derive(
    Recipe(
        of=Projector,
        lane="errands",
        asks=("live", "due"),
        reads=("builds", "lag"),
        holds={"projection": "Projection", "name": "str", "version": "int"},
    )
)
AsyncBuffer = derive(Recipe(of=Buffer, holds={"failure": "StoreError | None"}))
AsyncJournal = derive(Recipe(of=Journal, lane="errands", reads=("status",)))

AsyncRepository = derive(
    Recipe(
        of=Repository,
        reads=("find_by_id", "get", "find_many", "find_all", "count", "exists", "pages"),
        plain=("query", "where", "cached"),
    )
)
AsyncAgents = derive(Recipe(of=Agents, reads=("stale",)), AsyncRepository)
AsyncTasks = derive(
    Recipe(
        of=Tasks,
        reads=("dead", "paused", "limits", "schedules", "failures", "children", "stats"),
        errands=("prune",),
        undo={"claim": _release_task, "claim_many": _release_task, "wait": _release_task},
    ),
    AsyncRepository,
)
AsyncMessages = derive(
    Recipe(
        of=Messages,
        reads=("deliveries", "delivery", "unread", "unread_by_topic", "replay"),
        errands=("prune",),
        plain=("conversation",),
        undo={"receive": _release_messages, "wait": _release_messages, "request": _reopen_answer},
    ),
    AsyncRepository,
)
AsyncMetrics = derive(
    Recipe(of=Metrics, reads=("aggregate", "watermarks"), errands=("rollup", "prune"), plain=("samples", "buffer")), AsyncRepository
)
AsyncGroups = derive(Recipe(of=Groups, reads=("members", "groups_of")), AsyncRepository)
AsyncConfig = derive(
    Recipe(of=Config, reads=("get", "entry", "query", "prefix", "changed_since", "changes_since"), plain=("query", "cached")),
    AsyncRepository,
)
AsyncEvents = derive(
    Recipe(
        of=Events,
        reads=("version", "read", "read_all", "walk", "walk_stream", "follow", "last_position", "fold", "live", "consumers"),
        errands=("seal", "verify"),
        plain=("project",),
    ),
    AsyncRepository,
)
