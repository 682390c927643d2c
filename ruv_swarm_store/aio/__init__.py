"""A store for coroutines: `AsyncStore`, and its nouns as type checkers know them.

They are made of the classes that block, by `deriving`, when this is imported: what a verb does is written once. `crew` has the threads that
do it, `carrying` what waits without one. The stub beside this file tells editors and type checkers what there is;
`tests/programs/aio_stub.py` writes it.
"""

from typing import TYPE_CHECKING, Any

from ruv_swarm_store.aio.nouns import (
    AsyncAgents,
    AsyncBuffer,
    AsyncCachedConfig,
    AsyncCachedRepository,
    AsyncConfig,
    AsyncConsumerGroup,
    AsyncEvents,
    AsyncGroups,
    AsyncJournal,
    AsyncMessages,
    AsyncMetrics,
    AsyncProjector,
    AsyncQuery,
    AsyncRepository,
    AsyncSubscription,
    AsyncTasks,
)
from ruv_swarm_store.aio.store import AsyncStore, Opening

if TYPE_CHECKING:
    from ruv_swarm_store.aio.tools import AsyncBackups, AsyncPerformanceMonitor, AsyncSchedule, AsyncShipping

__all__ = [
    "AsyncAgents",
    "AsyncBackups",
    "AsyncBuffer",
    "AsyncCachedConfig",
    "AsyncCachedRepository",
    "AsyncConfig",
    "AsyncConsumerGroup",
    "AsyncEvents",
    "AsyncGroups",
    "AsyncJournal",
    "AsyncMessages",
    "AsyncMetrics",
    "AsyncPerformanceMonitor",
    "AsyncProjector",
    "AsyncQuery",
    "AsyncRepository",
    "AsyncSchedule",
    "AsyncShipping",
    "AsyncStore",
    "AsyncSubscription",
    "AsyncTasks",
    "Opening",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from ruv_swarm_store.aio import tools

        return getattr(tools, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
